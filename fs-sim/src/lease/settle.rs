//! Settling a layout change with everybody's leases: steps 1 and 2 of SEMANTICS section 4.
//!
//! It owns the order "check first what can fail, then break, then wait". Invariants: a change that fails here has sent no
//! signal and broken nothing; a change never waits for a lease of its own. Kernel counterpart: `break_layouts`
//! (fs/xfs/xfs_file.c), which knows only one kind of lease.

use emulator::sync::Arc;

use super::table::{BreakTo, Entry, State};
use super::{Kind, Lease, LeaseId, Mode};
use crate::Kernel;
use crate::design::{Axes, ChangeRule, LeaseRules};
use crate::errno::Errno;
use crate::holders::Holder;
use crate::inode::{Inode, TicketGuard};
use crate::inspect::blockers::Effect;
use crate::process::Pid;
use crate::process::task::Task;
use crate::range::{BlockRange, BlockRanges};
use crate::waits::{Ended, Look, Need};

/// Where the settling of a change stands.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Settled {
    /// No lease is in the way.
    Clear,
    /// These leases are: breaks are under way, or exclusive leases are to be waited for.
    InTheWay(Vec<LeaseId>),
}

/// What judging all leases of an inode for one change came to.
#[derive(Default)]
struct Judgement {
    /// Owners to be told.
    owners: Vec<Pid>,
    /// Waited for: being broken, or exclusive under `wait`.
    in_way: Vec<LeaseId>,
    /// Removed although pins live under them.
    lost: Vec<Arc<Lease>>,
}

/// What one lease says to a change of its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Ignore,
    Fail(Errno),
    Break,
    WaitFor,
    /// Taken away, its owner told.
    Remove,
}

impl Verdict {
    /// What it means for the change.
    pub(crate) fn effect(self) -> Effect {
        match self {
            Verdict::Fail(_) => Effect::Refuses,
            Verdict::WaitFor => Effect::WaitedFor,
            Verdict::Break => Effect::Broken,
            Verdict::Remove => Effect::Revoked,
            Verdict::Ignore => Effect::Ignored,
        }
    }
}

fn by_rule(rule: ChangeRule, own: bool) -> Verdict {
    match rule {
        ChangeRule::Proceed | ChangeRule::Orphan => Verdict::Ignore,
        ChangeRule::Fail => Verdict::Fail(Errno::ETXTBSY),
        // A change that waited for a lease of its own would wait for ever.
        ChangeRule::Wait if own => Verdict::Fail(Errno::EDEADLK),
        ChangeRule::Wait => Verdict::WaitFor,
        ChangeRule::Revoke => Verdict::Remove,
    }
}

pub(crate) fn judge(axes: &Axes, entry: &Entry, changer: Pid, others_write: bool) -> Verdict {
    let own = entry.pid == changer;
    let exclusive = entry.kind.is_exclusive(axes.lease_rules);
    match (own, axes.lease_rules) {
        (false, _) if exclusive => by_rule(axes.stranger_change, false),
        (false, _) => Verdict::Break,
        // chinner: the holder is not notified; a reader yields to whoever holds write.
        (true, LeaseRules::Chinner) if entry.kind.mode == Mode::Read && others_write => Verdict::Fail(Errno::ETXTBSY),
        (true, LeaseRules::Chinner) => Verdict::Ignore,
        (true, _) => match entry.kind {
            Kind { mode: Mode::Write, .. } => Verdict::Ignore,
            Kind { mode: Mode::Read, unbreakable: true } => by_rule(axes.holder_change, true),
            Kind { mode: Mode::Read, unbreakable: false } => Verdict::Remove,
        },
    }
}

/// What pins say before any signal is sent: those of others that no breakable lease covers, and the changer's own.
fn pins_refuse(axes: &Axes, holders: &[Arc<Holder>], entries: &[Entry], changer: Pid) -> bool {
    holders.iter().any(|holder| {
        if holder.pid == changer {
            return axes.holder_change == ChangeRule::Fail;
        }
        let breakable = |lease: &Arc<Lease>| {
            let entry = entries.iter().find(|entry| Arc::ptr_eq(&entry.lease, lease));
            entry.is_some_and(|e| e.state != State::Zombie && !e.kind.is_exclusive(axes.lease_rules))
        };
        axes.stranger_change == ChangeRule::Fail && !holder.leases.iter().any(breakable)
    })
}

/// Whether a process other than `changer` holds write in `ranges`.
pub(crate) fn others_write(entries: &[Entry], ranges: &BlockRanges, changer: Pid) -> bool {
    let write = |entry: &Entry| ranges.overlaps(entry.range) && entry.pid != changer && entry.kind.mode == Mode::Write;
    entries.iter().any(write)
}

/// Why a change of `ranges` by `changer` is refused before anything is done, if it is.
fn refusal(
    axes: &Axes,
    entries: &[Entry],
    ranges: &BlockRanges,
    holders: &[Arc<Holder>],
    changer: Pid,
) -> Option<Errno> {
    if pins_refuse(axes, holders, entries, changer) {
        return Some(Errno::ETXTBSY);
    }
    let others_write = others_write(entries, ranges, changer);
    let touched = entries.iter().filter(|entry| ranges.overlaps(entry.range));
    let failures = touched.filter_map(|entry| match judge(axes, entry, changer, others_write) {
        Verdict::Fail(errno) => Some(errno),
        _ => None,
    });
    // A refusal by somebody comes before the deadlock with oneself.
    failures.min_by_key(|errno| *errno == Errno::EDEADLK)
}

impl Task {
    fn refused(&self, errno: Errno) -> Errno {
        if errno == Errno::EDEADLK {
            self.note_self_deadlock("exclusive lease");
        }
        errno
    }

    /// The first look at one of several files: what [`Task::settle`] would fail with, with nothing done.
    ///
    /// # Errors
    /// ETXTBSY or EDEADLK as the design says.
    pub(crate) fn may_settle(&self, inode: &Inode, ranges: &BlockRanges, holders: &[Arc<Holder>]) -> Result<(), Errno> {
        let refused = refusal(&self.kernel().axes, &inode.leases.lock(), ranges, holders, self.pid());
        refused.map_or(Ok(()), |errno| Err(self.refused(errno)))
    }

    /// Judges every lease that `ranges` touch, and `holders` (those of the pages concerned), for a layout change by this
    /// process; begins the breaks that are needed.
    ///
    /// # Errors
    /// ETXTBSY or EDEADLK as the design says; then nothing was done.
    pub(crate) fn settle(
        &self,
        inode: &Inode,
        ticket: &TicketGuard<'_>,
        ranges: &BlockRanges,
        holders: &[Arc<Holder>],
    ) -> Result<Settled, Errno> {
        let kernel = self.kernel();
        let axes = &kernel.axes;
        let mut judgement = Judgement::default();
        {
            let mut entries = inode.leases.lock();
            if let Some(errno) = refusal(axes, &entries, ranges, holders, self.pid()) {
                return Err(self.refused(errno));
            }
            let touched = |entry: &Entry| ranges.overlaps(entry.range);
            let others_write = others_write(&entries, ranges, self.pid());
            let verdict = |entry: &Entry| judge(axes, entry, self.pid(), others_write);
            entries.retain_mut(|entry| {
                let verdict = if touched(entry) { verdict(entry) } else { Verdict::Ignore };
                kernel.carry_out(verdict, entry, &mut judgement)
            });
            let settled = if judgement.in_way.is_empty() { ranges.hull() } else { BlockRange::new(0, 0) };
            inode.leases.settle_on(&entries, settled);
        }
        if !judgement.lost.is_empty() || !judgement.owners.is_empty() {
            inode.leases.changed.wake_all();
        }
        if !judgement.in_way.is_empty() {
            // Before anybody is told: an owner that answers at once finds the change waiting.
            inode.set_waiting(ticket, ranges, holders);
        }
        kernel.tell_owners(inode, &judgement.owners);
        for lease in &judgement.lost {
            kernel.lease_lost(inode, lease);
        }
        if judgement.in_way.is_empty() { Ok(Settled::Clear) } else { Ok(Settled::InTheWay(judgement.in_way)) }
    }

    /// Whether a lease of somebody else stands against an allocation in `ranges` by a fault or a pin, which may neither break
    /// nor wait. An own read+U does not forbid what its own pin needs. If none does, the change has settled.
    pub(crate) fn leases_conflict(&self, inode: &Inode, ranges: &BlockRanges) -> bool {
        let axes = &self.kernel().axes;
        let entries = inode.leases.lock();
        let foreign = entries.iter().filter(|entry| entry.pid != self.pid() && ranges.overlaps(entry.range));
        let mut verdicts = foreign.map(|entry| judge(axes, entry, self.pid(), false));
        let conflict = verdicts.any(|verdict| verdict != Verdict::Ignore);
        if !conflict {
            inode.leases.settle_on(&entries, ranges.hull());
        }
        conflict
    }

    /// Waits until none of `leases` is in the table any more.
    pub(crate) fn wait_for_leases(&self, inode: &Inode, leases: &[LeaseId]) -> Result<(), Errno> {
        let (breaking, exclusive): (Vec<LeaseId>, Vec<LeaseId>) = {
            let entries = inode.leases.lock();
            let breaking =
                |id: &LeaseId| entries.iter().any(|e| e.lease.id == *id && matches!(e.state, State::Breaking { .. }));
            leases.iter().copied().partition(breaking)
        };
        self.wait_for_break(inode, &breaking, |_| true)?;
        let how = emulator::wait::WaitFor::interruptible("exclusive lease");
        let outcome = self.block_on(&inode.leases.changed, how, || {
            let held: Vec<Entry> =
                inode.leases.lock().iter().filter(|entry| exclusive.contains(&entry.lease.id)).cloned().collect();
            if held.is_empty() {
                return Look::Ready(());
            }
            Look::Blocked(held.iter().flat_map(|entry| needs_of(inode, entry)).collect())
        });
        match outcome {
            Ok(()) => Ok(()),
            Err(Ended::Deadlock) => Err(Errno::EDEADLK),
            Err(Ended::Interrupted | Ended::TimedOut) => Err(Errno::EINTR),
        }
    }
}

/// Who could end an exclusive lease: its descriptors' holders, or for a zombie those of the pins that keep it.
fn needs_of(inode: &Inode, entry: &Entry) -> Vec<Need> {
    if entry.state == State::Zombie {
        let holders = inode.holders.under_lease(&entry.lease);
        return holders.iter().map(|holder| Need::any_of(holder.object.describe().processes)).collect();
    }
    vec![Need::any_of(entry.releasers())]
}

impl Kernel {
    /// Does to one entry what its verdict says. False removes it from the table.
    fn carry_out(&self, verdict: Verdict, entry: &mut Entry, judgement: &mut Judgement) -> bool {
        match verdict {
            Verdict::Ignore | Verdict::Fail(_) => true,
            Verdict::WaitFor => {
                judgement.in_way.push(entry.lease.id);
                true
            }
            Verdict::Break => {
                judgement.owners.extend(self.begin_break(entry, BreakTo::Nothing));
                judgement.in_way.push(entry.lease.id);
                true
            }
            Verdict::Remove => {
                if entry.state == State::Zombie {
                    self.counters.zombie_leases.fall();
                } else {
                    self.counters.notices_owed.add(1);
                    judgement.owners.push(entry.pid);
                }
                if entry.lease.gate.close().0 > 0 {
                    judgement.lost.push(Arc::clone(&entry.lease));
                }
                false
            }
        }
    }
}
