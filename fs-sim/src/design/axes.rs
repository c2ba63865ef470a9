//! The axes of a design and the values each can take.
//!
//! Names and values are spelled once, here: TOML, tables, `result.json` and scenario conditions
//! (`@stranger_change=wait`) all go through [`Axis`] and [`Axes::get`]. What a value makes the
//! kernel do is at the code that reads it: `leases`, `layout_change`, `pinning`, and rdma-sim for
//! `pass_context`.

use std::fmt;

use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};

/// How TOML and JSON write an axis that has no meaning under gate `refuse`.
pub const NOT_APPLICABLE: &str = "n/a";

/// A value of an axis: a closed set of spelled choices.
trait Choice: Copy + Sized {
    fn choices() -> Vec<&'static str>;
    fn spelled(self) -> &'static str;
    fn read(text: &str) -> Option<Self>;
}

macro_rules! choices {
    ($($(#[$doc:meta])* $name:ident { $($(#[$choice_doc:meta])* $choice:ident = $text:literal,)+ })+) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$choice_doc])* #[serde(rename = $text)] $choice,)+
        }

        impl $name {
            /// Every choice, in the order the document lists them.
            pub const ALL: &[$name] = &[$($name::$choice),+];
        }

        impl Choice for $name {
            fn choices() -> Vec<&'static str> {
                vec![$($text),+]
            }

            fn spelled(self) -> &'static str {
                match self {
                    $($name::$choice => $text,)+
                }
            }

            fn read(text: &str) -> Option<Self> {
                match text {
                    $($text => Some($name::$choice),)+
                    _ => None,
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.spelled())
            }
        }
    )+};
}

choices! {
    /// Which layout leases users can take, and how they conflict (docs/semantics.md, section 3).
    LeaseRules {
        /// None: a request is EINVAL. Block-layout clients inside the kernel still have theirs.
        None = "none",
        /// Those of the lease proposal of 2019-09-23: read, write, each breakable or unbreakable
        /// (+U).
        ManPage = "man-page",
        /// Read and write leases of different processes coexist until a holder changes the layout;
        /// a write lease is the exclusive kind.
        Chinner = "chinner",
    }

    /// What a long-term pin must show before it is taken.
    PinGate {
        /// Nothing.
        Open = "open",
        /// It is never granted: EOPNOTSUPP.
        Refuse = "refuse",
        /// An active layout lease of the calling process that covers the range, else EPERM.
        Lease = "lease",
        /// Such a lease, or one of an open file that the calling process has a descriptor of, else
        /// EPERM.
        Reference = "reference",
        /// An exclusive one, else EPERM; a zombie never suffices.
        Unbreakable = "unbreakable",
        /// Nothing is pinned: registered, and faulted in at each access. Holders that can't fault:
        /// EOPNOTSUPP, but for a guest that can be unmapped, which is before a block of it changes.
        Fault = "fault",
    }

    /// Who may be a long-term pin holder at all.
    GateScope {
        /// Every user of long-term pins, by the gate.
        All = "all",
        /// RDMA by the gate; the others (AF_XDP, io_uring fixed buffers, guests) EOPNOTSUPP.
        RdmaOnly = "rdma-only",
    }

    /// What a layout change does about pins and exclusive leases in its way; one axis for a
    /// stranger's change, one for the holder's own.
    ChangeRule {
        /// It goes on and frees pinned blocks: the negative control.
        Proceed = "proceed",
        /// It goes on; pinned blocks leave the file but stay allocated until the last unpin.
        Orphan = "orphan",
        /// It fails, ETXTBSY, and was never visible.
        Fail = "fail",
        /// It waits, interruptibly, until lease and pins are gone.
        Wait = "wait",
        /// It takes the holders' access away, waits for in-flight DMA to drain, and goes on.
        Revoke = "revoke",
    }

    /// What unlocking (or shrinking, or making breakable) a lease does while pins taken under it
    /// live.
    UnlockRule {
        /// The lease goes, the pins stay.
        Release = "release",
        /// EBUSY.
        Busy = "busy",
        /// Waits for the pins, interruptibly; EDEADLK for a process that would wait on its own
        /// region.
        Wait = "wait",
    }

    /// What the last close of a leased file does while pins taken under the lease live.
    LastCloseRule {
        /// The lease goes, the pins stay.
        Release = "release",
        /// The lease stays, over the whole range, until the last of those pins goes.
        Zombie = "zombie",
        /// close and dup2 block until the pins are gone or a fatal signal comes; munmap, exec, exit
        /// and queue collection never wait and leave a zombie.
        WaitKillable = "wait-killable",
        /// The holders' access is taken away.
        Revoke = "revoke",
    }

    /// Whether an RDMA context with file pins may reach another process.
    PassRule {
        /// Yes.
        Allow = "allow",
        /// No: sendmsg is EPERM when it has file pins, `reg_mr` is EPERM while another process or a
        /// queue holds it, fork doesn't inherit it.
        Deny = "deny",
        /// If the receiver holds a covering lease of its own at recvmsg; else the fd is dropped
        /// (MSG_CTRUNC).
        ReceiverLease = "receiver-lease",
    }

    /// What happens when a broken lease's owner lets `lease_break_time` pass.
    BreakTimeout {
        /// The kernel downgrades or removes the lease.
        Force = "force",
        /// The owner gets SIGKILL; after one more break time, as `force`.
        Kill = "kill",
        /// Nothing: the breaker waits on.
        Never = "never",
    }

    /// What losing its lease means for a memory region.
    LeaseLost {
        /// Nothing.
        Nothing = "nothing",
        /// The whole RDMA context is aborted: queue pairs to error, work flushed, later access a
        /// remote access error, a fatal asynchronous event; one-way.
        Abort = "abort",
    }

    /// How much of an RDMA context a revocation of one of its regions takes.
    RevokeScope {
        /// All of it, as [`LeaseLost::Abort`] does.
        Context = "context",
        /// The region: its keys are invalid, DMA in flight drains, later access is a remote access
        /// error, an asynchronous event names it. Queue pairs and other regions stay.
        Region = "region",
    }

    /// Where pins stand in the way of a truncate, a `fallocate` or a remap.
    BusyScope {
        /// On the blocks that leave, move, change sharing or turn unwritten.
        Range = "range",
        /// Anywhere in the file, the caller's own too. Outside of the blocks that change, only the
        /// rules `fail` and `wait` act. Writes, faults and pins never meet pins elsewhere.
        File = "file",
    }

    /// How much of the file one pinned page makes busy.
    BusyUnit {
        /// The page.
        Page = "page",
        /// The whole aligned 2 MiB of the file, where the file maps them by one aligned run of the
        /// device.
        Entry = "entry",
    }

    /// What a layout change keeps other tasks from while it waits for pins.
    PinWaitHolds {
        /// Changes that overlap it.
        Range = "range",
        /// Every read, write and change of the file by other tasks: they wait uninterruptibly. Page
        /// faults proceed.
        Inode = "inode",
    }

    /// What the last close of an unlinked file does about pinned pages.
    EvictRule {
        /// They stay allocated until their last unpin.
        Orphan = "orphan",
        /// It waits for the pins, uninterruptibly.
        Wait = "wait",
        /// They are freed although pinned.
        Proceed = "proceed",
    }
}

impl Choice for bool {
    fn choices() -> Vec<&'static str> {
        vec!["no", "yes"]
    }

    fn spelled(self) -> &'static str {
        if self { "yes" } else { "no" }
    }

    fn read(text: &str) -> Option<Self> {
        match text {
            "no" => Some(false),
            "yes" => Some(true),
            _ => None,
        }
    }
}

/// An axis that may be `n/a`.
impl<T: Choice> Choice for Option<T> {
    fn choices() -> Vec<&'static str> {
        let mut choices = T::choices();
        choices.push(NOT_APPLICABLE);
        choices
    }

    fn spelled(self) -> &'static str {
        self.map_or(NOT_APPLICABLE, T::spelled)
    }

    fn read(text: &str) -> Option<Self> {
        match text {
            NOT_APPLICABLE => Some(None),
            _ => T::read(text).map(Some),
        }
    }
}

macro_rules! axes {
    ($($(#[$doc:meta])* $axis:ident $field:ident: $type:ty,)+) => {
        /// Everything the simulated kernel knows of a design. `None` = `n/a`, only with
        /// [`PinGate::Refuse`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub struct Axes {
            $($(#[$doc])* pub $field: $type,)+
        }

        /// The name of an axis, for code that treats all axes alike: files, tables, conditions.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Axis {
            $($(#[$doc])* $axis,)+
        }

        impl Axis {
            /// Every axis, in the order of docs/semantics.md, section 5.
            pub const ALL: [Axis; 16] = [$(Axis::$axis),+];

            /// As TOML and tables spell it.
            pub fn name(self) -> &'static str {
                match self {
                    $(Axis::$axis => stringify!($field),)+
                }
            }

            /// The values it can take, as TOML spells them; `n/a` last where it exists.
            pub fn choices(self) -> Vec<&'static str> {
                match self {
                    $(Axis::$axis => <$type as Choice>::choices(),)+
                }
            }
        }

        impl Axes {
            /// The value of one axis, as TOML spells it.
            pub fn get(&self, axis: Axis) -> &'static str {
                match axis {
                    $(Axis::$axis => self.$field.spelled(),)+
                }
            }

            /// Sets one axis from its spelling; `None`, and nothing changed, if that isn't one of
            /// [`Axis::choices`]. The result may be a combination that [`check`](Self::check)
            /// rejects.
            pub fn set(&mut self, axis: Axis, choice: &str) -> Option<()> {
                match axis {
                    $(Axis::$axis => self.$field = Choice::read(choice)?,)+
                }
                Some(())
            }
        }
    };
}

axes! {
    /// Which layout leases users can take.
    LeaseRules lease_rules: LeaseRules,
    /// What a long-term pin must show before it is taken.
    PinGate pin_gate: PinGate,
    /// Who may be a long-term pin holder.
    GateScope gate_scope: GateScope,
    /// A layout change by a process that holds neither lease nor pin.
    StrangerChange stranger_change: ChangeRule,
    /// A layout change by the holder itself.
    HolderChange holder_change: ChangeRule,
    /// Unlock of a lease with live pins.
    UnlockWhilePinned unlock_while_pinned: Option<UnlockRule>,
    /// Last close of a leased file with live pins.
    LastCloseWhilePinned last_close_while_pinned: Option<LastCloseRule>,
    /// Passing an RDMA context with file pins to another process.
    PassContext pass_context: PassRule,
    /// A break that timed out without an answer.
    BreakTimeout break_timeout: BreakTimeout,
    /// Whether a memory region keeps the lease it was taken under (its open file) alive.
    MrHoldsLease mr_holds_lease: Option<bool>,
    /// What losing its lease does to a memory region.
    OnLeaseLost on_lease_lost: Option<LeaseLost>,
    /// How much of an RDMA context a revocation takes.
    RevokeScope revoke_scope: Option<RevokeScope>,
    /// Where pins stand in the way of a change.
    BusyScope busy_scope: BusyScope,
    /// How much of the file one pinned page makes busy.
    BusyUnit busy_unit: BusyUnit,
    /// What a change keeps other tasks from while it waits for pins.
    PinWaitHolds pin_wait_holds: PinWaitHolds,
    /// Last close of an unlinked file with pinned pages.
    EvictWhilePinned evict_while_pinned: EvictRule,
}

impl Axis {
    /// The axis of that name.
    pub fn from_name(name: &str) -> Option<Axis> {
        Axis::ALL.into_iter().find(|axis| axis.name() == name)
    }

    /// What a design file without a base means where it leaves the axis out, as TOML spells it.
    /// `None`: such a file must state the axis.
    pub fn choice_if_unstated(self) -> Option<&'static str> {
        match self {
            Axis::RevokeScope => Some(RevokeScope::Context.spelled()),
            Axis::BusyScope => Some(BusyScope::Range.spelled()),
            Axis::BusyUnit => Some(BusyUnit::Page.spelled()),
            Axis::PinWaitHolds => Some(PinWaitHolds::Range.spelled()),
            Axis::EvictWhilePinned => Some(EvictRule::Orphan.spelled()),
            _ => None,
        }
    }
}

impl fmt::Display for Axis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Axes that cannot stand together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Conflict {
    /// The axes involved; changing any of them can resolve it.
    pub axes: Vec<Axis>,
    /// Why they can't.
    pub reason: String,
    /// What to do.
    pub remedy: String,
}

impl Axes {
    /// Rows of a table: axis name and value, in the document's order; `n/a` is shown as –.
    pub fn rows(&self) -> impl Iterator<Item = (&'static str, &'static str)> + use<> {
        let axes = *self;
        Axis::ALL.into_iter().map(move |axis| match axes.get(axis) {
            NOT_APPLICABLE => (axis.name(), "–"),
            value => (axis.name(), value),
        })
    }

    /// Whether the axes can stand together.
    ///
    /// # Errors
    /// `n/a` without gate `refuse`; `lease_rules = "none"` with a gate or a `pass_context` that
    /// demands a lease.
    pub fn check(&self) -> Result<(), Conflict> {
        let blank: Vec<Axis> = Axis::ALL.into_iter().filter(|&axis| self.get(axis) == NOT_APPLICABLE).collect();
        if self.pin_gate != PinGate::Refuse && !blank.is_empty() {
            let names: Vec<&str> = blank.iter().map(|axis| axis.name()).collect();
            let (names, are) = (names.join(", "), if blank.len() == 1 { "is" } else { "are" });
            return Err(Conflict {
                reason: format!("`n/a` stands only with pin_gate = \"refuse\", and pin_gate is \"{}\"", self.pin_gate),
                remedy: format!("{names} {are} `n/a`: choose a value, or set pin_gate = \"refuse\""),
                axes: blank.into_iter().chain([Axis::PinGate]).collect(),
            });
        }
        if self.lease_rules != LeaseRules::None {
            return Ok(());
        }
        let demanding = if matches!(self.pin_gate, PinGate::Lease | PinGate::Reference | PinGate::Unbreakable) {
            Axis::PinGate
        } else if self.pass_context == PassRule::ReceiverLease {
            Axis::PassContext
        } else {
            return Ok(());
        };
        Err(Conflict {
            axes: vec![demanding, Axis::LeaseRules],
            reason: format!(
                "{demanding} = \"{}\" demands a lease, and lease_rules = \"none\" has none",
                self.get(demanding)
            ),
            remedy: format!("set lease_rules to \"man-page\" or \"chinner\", or choose another {demanding}"),
        })
    }
}

/// A map of axis names to values, in the document's order, `n/a` included: what `result.json` and
/// `designs --json` hold.
impl Serialize for Axes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(Axis::ALL.len()))?;
        for axis in Axis::ALL {
            map.serialize_entry(axis.name(), self.get(axis))?;
        }
        map.end()
    }
}
