//! The layout leases of one inode.
//!
//! It owns the leases and the queue of tasks that wait for them to change. Invariants: no two
//! entries refer to one gate; leases of one open file never overlap until they become zombies; a
//! lease that is being broken admits no pin; a zombie has no open file, and covers the whole file
//! unless a rule `revoke` has cut it. Kernel counterpart: `flc_lease` of `struct
//! file_lock_context` (include/linux/filelock.h).

use emulator::pin::gate::Gate;
use emulator::runtime::clock::Nanos;
use emulator::sync::atomic::Ordering;
use emulator::sync::{Arc, Mutex, MutexGuard, OnceLock};
use emulator::wait::{WaitQueue, WaiterId};

use crate::base::errno::Errno;
use crate::base::numbers::{DescriptionId, LeaseId, Pid};
use crate::base::range::{BlockRange, BlockRanges};
use crate::design::LeaseRules;
use crate::holders::lease_gate::{AdmittingLeases, Lease};
use crate::holders::list::pin_holders;
use crate::leases::layout::kind::LeaseKind;
use crate::leases::layout::state::LeaseState;
use crate::vfs::attachments::{Attachment, Slot};
use crate::vfs::fd_holders::FdHolders;
use crate::vfs::inode::Inode;
use crate::vfs::kernel::Kernel;
use crate::vfs::signal_owner::{BreakNotice, SignalOwner};

pub(crate) fn new_lease(kernel: &Kernel) -> Arc<Lease> {
    let id = LeaseId(kernel.next_lease.fetch_add(1, Ordering::Relaxed));
    Arc::new(Lease { id, gate: Gate::new(), revoked: OnceLock::new() })
}

/// What a break leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BreakTo {
    Nothing,
    Read,
}

/// One lease in the table.
#[derive(Clone, Debug)]
pub(crate) struct LeaseEntry {
    pub(crate) lease: Arc<Lease>,
    pub(crate) file: DescriptionId,
    pub(crate) fd_holders: Arc<FdHolders>,
    /// Whom the open file signals.
    pub(crate) signal_owner: Arc<SignalOwner>,
    /// The process that took it: the lease holder, which is signalled unless F_SETOWN named one.
    pub(crate) pid: Pid,
    pub(crate) kind: LeaseKind,
    pub(crate) range: BlockRange,
    /// A rule `revoke` has cut a range out of the lease that this is a part of.
    pub(super) is_part: bool,
    /// Changed by [`change_state`](super::state::change_state) only.
    pub(super) state: LeaseState,
    /// While a break is pending: when it times out; `None` means never.
    pub(crate) deadline: Option<Nanos>,
}

impl LeaseEntry {
    /// Its state.
    pub(crate) fn state(&self) -> LeaseState {
        self.state
    }

    /// The signal for its break or its removal.
    pub(crate) fn notice(&self) -> BreakNotice {
        self.signal_owner.layout_notice(self.pid)
    }

    /// The processes that could release it: those with a descriptor of the open file, or the taker
    /// if only mappings are left.
    pub(crate) fn releasers(&self) -> Vec<Pid> {
        let processes = self.fd_holders.processes();
        if processes.is_empty() { vec![self.pid] } else { processes }
    }

    /// Whether pins taken under it live.
    pub(crate) fn is_pinned(&self) -> bool {
        self.lease.gate.inside() > 0
    }
}

/// Leases were released, or taken away by a break: an open file that has no layout lease left
/// forgets what F_SETOWN and F_SETSIG set.
pub(crate) fn forget_owners(entries: &[LeaseEntry], gone: &[LeaseEntry]) {
    for lease in gone.iter().filter(|lease| !entries.iter().any(|entry| entry.file == lease.file)) {
        lease.signal_owner.layout_leases_gone();
    }
}

/// Which leases admit a long-term pin.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PinRequirement {
    /// Only exclusive leases count.
    pub(crate) exclusive: bool,
    /// Leases of open files that the process has a descriptor of count as its own do.
    pub(crate) by_reference: bool,
    /// Zombies count too: never, unless the rule is broken on purpose.
    pub(crate) zombies_pass: bool,
}

/// Why a pin was not admitted.
struct GateRefusal {
    errno: Errno,
    /// For a moment it was counted in a gate.
    was_inside: bool,
}

/// A request that waits until the leases in its way are released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WaitingRequest {
    pub(crate) task: WaiterId,
    pub(crate) file: DescriptionId,
    pub(crate) kind: LeaseKind,
    pub(crate) range: BlockRange,
}

/// Keeps a request on the list of waiting requests.
pub(crate) struct WaitingRequestGuard<'a>(&'a LeaseTable, WaitingRequest);

impl Drop for WaitingRequestGuard<'_> {
    fn drop(&mut self) {
        {
            let mut asking = self.0.asking.lock();
            if let Some(at) = asking.iter().position(|other| *other == self.1) {
                asking.remove(at);
            }
        }
        // A layout change stands behind the request.
        self.0.changed.wake_all();
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct LeaseTable {
    entries: Mutex<Vec<LeaseEntry>>,
    /// Requests that wait for breaks they have begun, in the order of arrival.
    asking: Mutex<Vec<WaitingRequest>>,
    pub(crate) changed: WaitQueue,
    /// The blocks in which layout changes that are not over have finished judging leases, by the
    /// task that changes. Written and read with the entries locked: a lease is either judged by a
    /// change or granted after it.
    settled: Mutex<Vec<(WaiterId, BlockRanges)>>,
    /// The leases of pins that have entered gates and are not on the list of holders yet. Added to
    /// with the entries locked.
    entering: Mutex<Vec<Arc<AdmittingLeases>>>,
}

impl Attachment for LeaseTable {
    const SLOT: Slot = Slot::LayoutLeases;
}

impl LeaseTable {
    /// The layout leases of `inode`.
    pub(crate) fn of(inode: &Inode) -> &LeaseTable {
        inode.attached()
    }

    /// Locks the table. The caller neither waits, nor signals, nor revokes while it holds the
    /// lock.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Vec<LeaseEntry>> {
        self.entries.lock()
    }

    /// Lists a request while it waits.
    pub(crate) fn waits(&self, asking: WaitingRequest) -> WaitingRequestGuard<'_> {
        self.asking.lock().push(asking);
        WaitingRequestGuard(self, asking)
    }

    /// The tasks whose requests wait in `ranges`.
    pub(crate) fn asking_in(&self, ranges: &BlockRanges) -> Vec<WaiterId> {
        self.asking.lock().iter().filter(|asking| ranges.overlaps(asking.range)).map(|asking| asking.task).collect()
    }

    /// Whether a request of another open file waits that `stands_against` this one.
    pub(crate) fn is_behind(&self, file: DescriptionId, stands_against: impl Fn(&WaitingRequest) -> bool) -> bool {
        self.asking.lock().iter().any(|asking| asking.file != file && stands_against(asking))
    }

    /// The change of `task` has finished judging leases in `ranges`: no lease is granted there
    /// until the change is over. No ranges: it judges again.
    pub(crate) fn settle_on(&self, _entries: &MutexGuard<'_, Vec<LeaseEntry>>, task: WaiterId, ranges: &BlockRanges) {
        let mut settled = self.settled.lock();
        settled.retain(|(changer, _)| *changer != task);
        if !ranges.is_empty() {
            settled.push((task, ranges.clone()));
        }
    }

    /// The tasks whose changes have finished judging leases in `range`.
    pub(crate) fn settled_in(&self, _entries: &MutexGuard<'_, Vec<LeaseEntry>>, range: BlockRange) -> Vec<WaiterId> {
        let settled = self.settled.lock();
        settled.iter().filter(|(_, ranges)| ranges.overlaps(range)).map(|(task, _)| *task).collect()
    }

    /// The change of `task` is over.
    pub(crate) fn change_over(&self, task: WaiterId) {
        {
            let entries = self.lock();
            self.settle_on(&entries, task, &BlockRanges::default());
        }
        self.changed.wake_all();
    }

    /// Admits a long-term pin of `range` by `pid`: counts it in the gate of every lease that is
    /// needed to cover the range. `required` says which leases count.
    ///
    /// # Errors
    /// EPERM if the active leases that count do not cover the range; EAGAIN if they would, were one
    /// of them not being broken.
    pub(crate) fn enter_gates(
        &self,
        rules: LeaseRules,
        pid: Pid,
        range: BlockRange,
        required: PinRequirement,
    ) -> Result<Arc<AdmittingLeases>, Errno> {
        let entered = {
            let entries = self.lock();
            Self::enter_each(&entries, rules, pid, range, required).map(|leases| {
                let leases = AdmittingLeases::new(range, leases);
                self.entering.lock().push(Arc::clone(&leases));
                leases
            })
        };
        entered.map_err(|refusal| {
            if refusal.was_inside {
                // A task that waits for a closed gate to empty may have counted this pin.
                self.changed.wake_all();
            }
            refusal.errno
        })
    }

    fn enter_each(
        entries: &[LeaseEntry],
        rules: LeaseRules,
        pid: Pid,
        range: BlockRange,
        required: PinRequirement,
    ) -> Result<Vec<Arc<Lease>>, GateRefusal> {
        let zombie_passes = |entry: &&LeaseEntry| required.zombies_pass && entry.state == LeaseState::Zombie;
        let suits = |entry: &&LeaseEntry| {
            (entry.pid == pid || (required.by_reference && entry.fd_holders.processes().contains(&pid)))
                && entry.range.overlaps(range)
                && (entry.state != LeaseState::Zombie || zombie_passes(entry))
                && (!required.exclusive || entry.kind.is_exclusive(rules))
        };
        // A lease whose gate is closed is about to end: an unlock waits for its pins.
        let lets_in = |entry: &&LeaseEntry| {
            (entry.state == LeaseState::Held && !entry.lease.gate.is_closed()) || zombie_passes(entry)
        };
        let mut active: Vec<&LeaseEntry> = entries.iter().filter(suits).filter(lets_in).collect();
        if !range.is_covered_by(active.iter().map(|entry| entry.range)) {
            let broken = |entry: &&LeaseEntry| lets_in(entry) || entry.state.is_breaking();
            let with_broken = range.is_covered_by(entries.iter().filter(suits).filter(broken).map(|entry| entry.range));
            let errno = if with_broken { Errno::EAGAIN } else { Errno::EPERM };
            return Err(GateRefusal { errno, was_inside: false });
        }
        // Only the leases that are needed: a lease that no pin needs can be released at any time.
        active.sort_unstable_by_key(|entry| (entry.range.start, std::cmp::Reverse(entry.range.end)));
        let mut reached = range.start;
        active.retain(|entry| {
            let needed = reached < range.end && entry.range.end > reached;
            reached = if needed { entry.range.end } else { reached };
            needed
        });
        let mut through: Vec<Arc<Lease>> = Vec::with_capacity(active.len());
        for entry in active.into_iter().filter(|entry| entry.state != LeaseState::Zombie) {
            // The gate was closed since the check above: an unlock has just begun to wait.
            if entry.lease.gate.enter().is_err() {
                for lease in through {
                    // The table's lock is held. The task that waits for this gate is woken after
                    // it is released.
                    let _last = lease.gate.leave();
                }
                return Err(GateRefusal { errno: Errno::EPERM, was_inside: true });
            }
            through.push(Arc::clone(&entry.lease));
        }
        Ok(through)
    }

    /// A pin that these leases admitted is on the list of holders, or was not made.
    pub(crate) fn entry_over(&self, leases: &Arc<AdmittingLeases>) {
        self.entering.lock().retain(|entering| !Arc::ptr_eq(entering, leases));
    }

    /// `lease` was cut in `parts`, all of them new: its pins count in the parts that their ranges
    /// overlap. The caller holds the entries locked.
    ///
    /// Pins that are entering come before the holders: a pin is on the list of holders before it
    /// stops to be one of those that are entering, so none is missed.
    pub(super) fn move_pins(&self, inode: &Inode, lease: &Arc<Lease>, parts: &[LeaseEntry]) {
        let parts: Vec<(BlockRange, Arc<Lease>)> =
            parts.iter().map(|part| (part.range, Arc::clone(&part.lease))).collect();
        let entering = self.entering.lock().clone();
        for leases in entering {
            leases.move_to_parts(lease, &parts);
        }
        for holder in pin_holders(inode).under_lease(lease) {
            holder.leases.move_to_parts(lease, &parts);
        }
    }

    /// Whether active leases of `pid` cover `range`.
    pub(crate) fn covers(&self, rules: LeaseRules, pid: Pid, range: BlockRange, exclusive: bool) -> bool {
        let entries = self.lock();
        range.is_covered_by(
            entries
                .iter()
                .filter(|e| e.pid == pid && e.state == LeaseState::Held && (!exclusive || e.kind.is_exclusive(rules)))
                .map(|entry| entry.range),
        )
    }
}
