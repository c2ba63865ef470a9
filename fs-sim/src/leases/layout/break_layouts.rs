//! A layout change judges every lease in its range, and breaks those that can be broken:
//! docs/semantics.md, section 4.
//!
//! It owns the order "check first what can fail, then break, then wait". Invariants: a change that
//! fails here has sent no signal and broken no lease; a change waits for a lease of its own process
//! only if another task could release it. Kernel counterpart: `break_layouts` (fs/xfs/xfs_file.c),
//! which knows only one kind of lease.

use emulator::sync::Arc;

use crate::base::errno::Errno;
use crate::base::numbers::{LeaseId, Pid};
use crate::base::range::BlockRanges;
use crate::deadlock::graph::{WaitFailure, WaitPoll};
use crate::deadlock::need::Awaited;
use crate::design::{Axes, ChangeRule, LeaseRules};
use crate::holders::holder::Holder;
use crate::holders::lease_gate::{Lease, LeaseRevocation};
use crate::holders::list::pin_holders;
use crate::leases::layout::breaking::{begin_break, leases_lost, released_by, wait_for_break};
use crate::leases::layout::kind::{LeaseKind, LeaseMode};
use crate::leases::layout::state::{LeaseEvent, LeaseState, change_state};
use crate::leases::layout::table::{BreakTo, LeaseEntry, LeaseTable, forget_owners, new_lease};
use crate::leases::layout::waiting::publish_waiting_on;
use crate::vfs::inode::Inode;
use crate::vfs::kernel::Kernel;
use crate::vfs::layout_turn::TurnGuard;
use crate::vfs::signal_owner::BreakNotice;
use crate::vfs::task::Task;

/// What breaking the leases in the way of a change came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum BreakOutcome {
    /// No lease is in the way.
    Clear,
    /// These leases are in the way: their breaks are pending, or they are exclusive and waited
    /// for.
    InTheWay(Vec<LeaseId>),
}

/// What the change must do to the leases of one inode.
#[derive(Default)]
struct BreakPlan {
    /// Signals to owners of leases that are being broken or were removed.
    notices: Vec<BreakNotice>,
    /// Leases to wait for: being broken, or exclusive under `wait`.
    in_way: Vec<LeaseId>,
    /// Leases removed.
    gone: Vec<LeaseEntry>,
    /// Of these, the ones under which pins live.
    lost: Vec<Arc<Lease>>,
    /// What is left of leases behind the ranges cut out of them.
    parts: Vec<LeaseEntry>,
    /// A lease was removed, or a range was cut out of it.
    takes_away: bool,
}

/// What one lease means for a change of its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LeaseVerdict {
    Ignore,
    Fail(Errno),
    Break,
    WaitFor,
    /// The lease is removed and its owner signalled.
    Remove,
    /// A rule `revoke`: if pins live under the lease, the range of the change is cut out of it,
    /// else it is removed. Its owner is signalled; its pins have not lost it.
    Cut,
}

fn by_rule(rule: ChangeRule) -> LeaseVerdict {
    match rule {
        ChangeRule::Proceed | ChangeRule::Orphan => LeaseVerdict::Ignore,
        ChangeRule::Fail => LeaseVerdict::Fail(Errno::ETXTBSY),
        ChangeRule::Wait => LeaseVerdict::WaitFor,
        ChangeRule::Revoke => LeaseVerdict::Cut,
    }
}

pub(crate) fn judge(axes: &Axes, entry: &LeaseEntry, changer: Pid, others_write: bool) -> LeaseVerdict {
    let own = entry.pid == changer;
    let exclusive = entry.kind.is_exclusive(axes.lease_rules);
    match (own, axes.lease_rules) {
        (false, _) if exclusive => by_rule(axes.stranger_change),
        (false, _) => LeaseVerdict::Break,
        // chinner: the holder is not notified; a read holder fails while another process holds
        // write.
        (true, LeaseRules::Chinner) if entry.kind.mode == LeaseMode::Read && others_write => {
            LeaseVerdict::Fail(Errno::ETXTBSY)
        }
        (true, LeaseRules::Chinner) => LeaseVerdict::Ignore,
        (true, _) => match entry.kind {
            LeaseKind { mode: LeaseMode::Write, .. } => LeaseVerdict::Ignore,
            LeaseKind { mode: LeaseMode::Read, unbreakable: true } => by_rule(axes.holder_change),
            LeaseKind { mode: LeaseMode::Read, unbreakable: false } => LeaseVerdict::Remove,
        },
    }
}

/// Whether pins refuse the change before any signal is sent: pins of other processes that no
/// breakable lease covers, and the changer's own.
fn pins_refuse(axes: &Axes, holders: &[Arc<Holder>], entries: &[LeaseEntry], changer: Pid) -> bool {
    holders.iter().any(|holder| {
        if holder.pid == changer {
            return axes.holder_change == ChangeRule::Fail;
        }
        let breakable = |lease: &Arc<Lease>| {
            let entry = entries.iter().find(|entry| Arc::ptr_eq(&entry.lease, lease));
            entry.is_some_and(|e| e.state() != LeaseState::Zombie && !e.kind.is_exclusive(axes.lease_rules))
        };
        axes.stranger_change == ChangeRule::Fail && !holder.leases.any(breakable)
    })
}

/// Whether a breakable lease in `ranges`, which a change there breaks first, covers this holder of
/// another process.
pub(crate) fn covered_by_breakable(axes: &Axes, inode: &Inode, holder: &Holder, ranges: &BlockRanges) -> bool {
    let entries = LeaseTable::of(inode).lock();
    let covers = |entry: &LeaseEntry| {
        ranges.overlaps(entry.range)
            && entry.state() != LeaseState::Zombie
            && !entry.kind.is_exclusive(axes.lease_rules)
            && holder.leases.contains(&entry.lease)
    };
    entries.iter().any(covers)
}

/// Whether a process other than `changer` holds a write lease in `ranges`.
pub(crate) fn others_write(entries: &[LeaseEntry], ranges: &BlockRanges, changer: Pid) -> bool {
    let write = |entry: &LeaseEntry| {
        ranges.overlaps(entry.range) && entry.pid != changer && entry.kind.mode == LeaseMode::Write
    };
    entries.iter().any(write)
}

/// Why a change of `ranges` by this task is refused before anything is done, if it is.
fn refusal(task: &Task, entries: &[LeaseEntry], ranges: &BlockRanges, holders: &[Arc<Holder>]) -> Option<Errno> {
    let (axes, changer) = (&task.kernel().axes, task.pid());
    if pins_refuse(axes, holders, entries, changer) {
        return Some(Errno::ETXTBSY);
    }
    let others_write = others_write(entries, ranges, changer);
    let touched = entries.iter().filter(|entry| ranges.overlaps(entry.range));
    // A lease of its own process, which no task but the caller could release.
    let waits_for_itself = |entry: &LeaseEntry| {
        entry.pid == changer && task.is_alone() && task.kernel().able_to_close(&entry.fd_holders) == [changer]
    };
    let failures = touched.filter_map(|entry| match judge(axes, entry, changer, others_write) {
        LeaseVerdict::Fail(errno) => Some(errno),
        LeaseVerdict::WaitFor if waits_for_itself(entry) => Some(Errno::EDEADLK),
        _ => None,
    });
    // A refusal because of another process comes before EDEADLK because of the changer's own
    // lease.
    failures.min_by_key(|errno| *errno == Errno::EDEADLK)
}

pub(crate) fn refused(task: &Task, errno: Errno) -> Errno {
    if errno == Errno::EDEADLK {
        task.note_self_deadlock("exclusive lease");
    }
    errno
}

/// The first check of one of several files: what [`break_layouts`] would fail with, with nothing
/// done.
///
/// # Errors
/// ETXTBSY or EDEADLK as the design says.
pub(crate) fn check_layouts(
    task: &Task,
    inode: &Inode,
    ranges: &BlockRanges,
    holders: &[Arc<Holder>],
) -> Result<(), Errno> {
    let refusal = refusal(task, &LeaseTable::of(inode).lock(), ranges, holders);
    refusal.map_or(Ok(()), |errno| Err(refused(task, errno)))
}

/// Judges every lease that overlaps `ranges`, and `holders` (those of the pages concerned), for a
/// layout change by this task's process; begins the breaks that are needed.
///
/// # Errors
/// ETXTBSY or EDEADLK as the design says; then nothing was done.
pub(crate) fn break_layouts(
    task: &Task,
    inode: &Inode,
    turn: &TurnGuard<'_>,
    ranges: &BlockRanges,
    holders: &[Arc<Holder>],
) -> Result<BreakOutcome, Errno> {
    let kernel = task.kernel();
    let axes = &kernel.axes;
    let mut judgement = BreakPlan::default();
    {
        let mut entries = LeaseTable::of(inode).lock();
        if let Some(errno) = refusal(task, &entries, ranges, holders) {
            return Err(refused(task, errno));
        }
        let touched = |entry: &LeaseEntry| ranges.overlaps(entry.range);
        let others_write = others_write(&entries, ranges, task.pid());
        let verdict = |entry: &LeaseEntry| judge(axes, entry, task.pid(), others_write);
        entries.retain_mut(|entry| {
            let verdict = if touched(entry) { verdict(entry) } else { LeaseVerdict::Ignore };
            carry_out(kernel, inode, verdict, entry, ranges, &mut judgement)
        });
        entries.append(&mut judgement.parts);
        forget_owners(&entries, &judgement.gone);
        let none = BlockRanges::default();
        let settled = if judgement.in_way.is_empty() { ranges } else { &none };
        LeaseTable::of(inode).settle_on(&entries, task.waiter().id(), settled);
    }
    if !judgement.in_way.is_empty() {
        // Before any owner is signalled: an owner that answers at once finds the change marked as
        // waiting.
        publish_waiting_on(inode, turn, ranges, holders);
    }
    report_removals(kernel, inode, &judgement);
    if judgement.in_way.is_empty() { Ok(BreakOutcome::Clear) } else { Ok(BreakOutcome::InTheWay(judgement.in_way)) }
}

/// Judges the leases in `ranges` for a fault or a long-term pin that must allocate or unshare.
/// Neither breaks a lease of another process nor waits for one: any that stands against it refuses
/// it. A fault is judged against the process's own leases as a write would be: its own breakable
/// read lease is signalled and removed, once nothing refuses the fault. A pin (`for_pin`) is exempt
/// from the process's own leases. On success the change has finished judging leases there.
///
/// # Errors
/// ETXTBSY; then nothing was done.
pub(crate) fn judge_without_breaks(
    task: &Task,
    inode: &Inode,
    ranges: &BlockRanges,
    for_pin: bool,
) -> Result<(), Errno> {
    let kernel = task.kernel();
    let mut judgement = BreakPlan::default();
    {
        let mut entries = LeaseTable::of(inode).lock();
        let others_write = others_write(&entries, ranges, task.pid());
        let verdict = |entry: &LeaseEntry| {
            let own = entry.pid == task.pid();
            if !ranges.overlaps(entry.range) || (own && for_pin) {
                return LeaseVerdict::Ignore;
            }
            match judge(&kernel.axes, entry, task.pid(), others_write) {
                LeaseVerdict::Ignore => LeaseVerdict::Ignore,
                removal @ (LeaseVerdict::Remove | LeaseVerdict::Cut) if own => removal,
                _ => LeaseVerdict::Fail(Errno::ETXTBSY),
            }
        };
        if entries.iter().any(|entry| matches!(verdict(entry), LeaseVerdict::Fail(_))) {
            return Err(Errno::ETXTBSY);
        }
        entries.retain_mut(|entry| carry_out(kernel, inode, verdict(entry), entry, ranges, &mut judgement));
        entries.append(&mut judgement.parts);
        forget_owners(&entries, &judgement.gone);
        LeaseTable::of(inode).settle_on(&entries, task.waiter().id(), ranges);
    }
    report_removals(kernel, inode, &judgement);
    Ok(())
}

/// Signals the owners that a judgement names, and tells the pins that have lost their lease.
fn report_removals(kernel: &Arc<Kernel>, inode: &Inode, judgement: &BreakPlan) {
    if judgement.takes_away || !judgement.notices.is_empty() {
        LeaseTable::of(inode).changed.wake_all();
    }
    kernel.send_notices(inode.ino(), &judgement.notices);
    leases_lost(kernel, inode, &judgement.lost);
}

/// Waits until none of `leases` is in the table.
pub(crate) fn wait_for_leases(task: &Task, inode: &Inode, leases: &[LeaseId]) -> Result<(), Errno> {
    let (breaking, exclusive): (Vec<LeaseId>, Vec<LeaseId>) = {
        let entries = LeaseTable::of(inode).lock();
        let breaking = |id: &LeaseId| entries.iter().any(|e| e.lease.id == *id && e.state().is_breaking());
        leases.iter().copied().partition(breaking)
    };
    wait_for_break(task, inode, &breaking, |_| true)?;
    let how = emulator::wait::WaitFor::interruptible("exclusive lease");
    let outcome = task.block_on(&LeaseTable::of(inode).changed, how, || {
        let held: Vec<LeaseEntry> =
            LeaseTable::of(inode).lock().iter().filter(|entry| exclusive.contains(&entry.lease.id)).cloned().collect();
        if held.is_empty() {
            return WaitPoll::Ready(());
        }
        WaitPoll::Blocked(held.iter().flat_map(|entry| needs_of(task.kernel(), inode, entry)).collect())
    });
    match outcome {
        Ok(()) => Ok(()),
        Err(WaitFailure::Deadlock) => Err(Errno::EDEADLK),
        Err(WaitFailure::Interrupted | WaitFailure::TimedOut) => Err(Errno::EINTR),
    }
}

/// Which processes can end an exclusive lease: those with a descriptor of its open file, or for a
/// zombie those that can release the pins that keep it.
fn needs_of(kernel: &Arc<Kernel>, inode: &Inode, entry: &LeaseEntry) -> Vec<Awaited> {
    if entry.state() == LeaseState::Zombie {
        let holders = pin_holders(inode).under_lease(&entry.lease);
        return holders.into_iter().map(|holder| Awaited::of_holder(kernel, holder)).collect();
    }
    vec![released_by(kernel, entry.clone())]
}

/// Does to one lease what its verdict says. False: the lease leaves the table.
fn carry_out(
    kernel: &Kernel,
    inode: &Inode,
    verdict: LeaseVerdict,
    entry: &mut LeaseEntry,
    ranges: &BlockRanges,
    judgement: &mut BreakPlan,
) -> bool {
    match verdict {
        LeaseVerdict::Ignore | LeaseVerdict::Fail(_) => true,
        LeaseVerdict::WaitFor => {
            judgement.in_way.push(entry.lease.id);
            true
        }
        LeaseVerdict::Break => {
            judgement.notices.extend(begin_break(kernel, entry, BreakTo::Nothing));
            judgement.in_way.push(entry.lease.id);
            true
        }
        LeaseVerdict::Cut if entry.is_pinned() => cut(kernel, inode, entry, ranges, judgement),
        LeaseVerdict::Remove | LeaseVerdict::Cut => {
            note_removal(kernel, entry, judgement);
            if entry.state() == LeaseState::Zombie {
                kernel.counters.zombie_leases.fall();
            }
            judgement.gone.push(entry.clone());
            if entry.lease.gate.close().0 > 0 {
                judgement.lost.push(Arc::clone(&entry.lease));
            }
            change_state(kernel, entry, LeaseEvent::Remove)
        }
    }
}

/// The owner of a lease learns that all of it, or a part, is taken away; a zombie has none.
fn note_removal(kernel: &Kernel, entry: &LeaseEntry, judgement: &mut BreakPlan) {
    judgement.takes_away = true;
    if entry.state() != LeaseState::Zombie {
        kernel.counters.notices_owed.add(1);
        judgement.notices.push(entry.notice());
    }
}

/// Cuts `ranges` out of a lease with pins. Each part that is left is a lease with a gate of its
/// own, and admits pins; the pins have not lost their lease, and count in the parts that they
/// overlap. Of a zombie only the parts with pins are left. False: nothing is left.
fn cut(
    kernel: &Kernel,
    inode: &Inode,
    entry: &mut LeaseEntry,
    ranges: &BlockRanges,
    judgement: &mut BreakPlan,
) -> bool {
    note_removal(kernel, entry, judgement);
    let mut left = vec![entry.range];
    for range in ranges.iter() {
        left = left.into_iter().flat_map(|part| part.minus(range)).collect();
    }
    let part = |range| LeaseEntry { lease: new_lease(kernel), range, is_part: true, ..entry.clone() };
    let mut parts: Vec<LeaseEntry> = left.into_iter().map(part).collect();
    LeaseTable::of(inode).move_pins(inode, &entry.lease, &parts);
    if entry.lease.gate.is_closed() {
        // An unlock, a downgrade or a close waits for its pins: the parts admit none either.
        for part in &parts {
            let _pins_that_are_waited_for = part.lease.gate.close();
        }
    }
    if entry.state() == LeaseState::Zombie {
        kernel.counters.zombie_leases.fall();
        // The last pin of a part leaves a closed gate, and ends the part.
        parts.retain_mut(|part| part.lease.gate.close().0 > 0 || change_state(kernel, part, LeaseEvent::LastUnpin));
        parts.iter().for_each(|_| kernel.counters.zombie_leases.rise());
    }
    let mut parts = parts.into_iter();
    if let Some(first) = parts.next() {
        *entry = first;
        judgement.parts.extend(parts);
        return true;
    }
    judgement.gone.push(entry.clone());
    entry.lease.revoked.get_or_init(|| LeaseRevocation::Change);
    let _pins_that_are_judged = entry.lease.gate.close();
    change_state(kernel, entry, LeaseEvent::Remove)
}
