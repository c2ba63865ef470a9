//! Breaking leases: mark the break as pending, signal the owner, wait, and act when the break time
//! is over.
//!
//! It owns a break from its start to its end. Invariants: its deadline is sampled when it starts;
//! a lease whose break timed out is handled exactly once, under the table's lock, by the task that
//! waits for it or by the next request. Kernel counterpart: `__break_lease`, `time_out_leases`
//! (fs/locks.c).

use emulator::runtime::clock::Nanos;
use emulator::sync::Arc;
use emulator::wait::WaitFor;

use crate::base::errno::Errno;
use crate::base::numbers::LeaseId;
use crate::deadlock::graph::{WaitFailure, WaitPoll};
use crate::deadlock::need::{Awaited, Need};
use crate::design::{BreakTimeout, LeaseLost};
use crate::holders::holder::{Holder, RevokeReason, revoke_holder};
use crate::holders::in_flight_io::able_to_end;
use crate::holders::lease_gate::{Lease, LeaseRevocation};
use crate::holders::list::pin_holders;
use crate::leases::layout::kind::{LeaseKind, LeaseMode};
use crate::leases::layout::state::{LeaseEvent, change_state};
use crate::leases::layout::table::{BreakTo, LeaseEntry, LeaseTable, forget_owners};
use crate::vfs::inode::Inode;
use crate::vfs::kernel::Kernel;
use crate::vfs::signal_owner::BreakNotice;
use crate::vfs::signals::{SigInfo, Signal};
use crate::vfs::task::Task;

/// The deadline of a break that starts now; `None` if it never times out.
fn break_deadline(kernel: &Kernel) -> Option<Nanos> {
    let never = kernel.axes.break_timeout == BreakTimeout::Never
        || kernel.options.lease_break_time.is_zero()
        || kernel.sabotage.no_break_timeout;
    (!never).then(|| kernel.world.now().after(kernel.options.lease_break_time))
}

/// Marks a lease as being broken. Returns the signal that is owed, unless one was sent for such a
/// break before.
pub(crate) fn begin_break(kernel: &Kernel, entry: &mut LeaseEntry, to: BreakTo) -> Option<BreakNotice> {
    let event = match to {
        BreakTo::Read => LeaseEvent::BreakToRead,
        BreakTo::Nothing => LeaseEvent::BreakToNothing,
    };
    // The owner already knows of a pending break that leaves no more than this one.
    if entry.state().next(event).is_err() {
        return None;
    }
    change_state(kernel, entry, event);
    entry.deadline = break_deadline(kernel);
    kernel.counters.lease_breaks.add(1);
    kernel.counters.notices_owed.add(1);
    match kernel.sabotage.signal_to_holder {
        true => entry.releasers().first().copied().map(BreakNotice::to),
        false => Some(entry.notice()),
    }
}

/// These leases are gone although pins taken under them may live.
pub(crate) fn leases_lost(kernel: &Arc<Kernel>, inode: &Inode, leases: &[Arc<Lease>]) {
    if kernel.axes.on_lease_lost == Some(LeaseLost::Abort) {
        revoke_under(kernel, inode, leases, RevokeReason::LeaseLost);
    }
}

/// Asks every holder under any of these leases, once, to release its pins.
pub(super) fn revoke_under(kernel: &Arc<Kernel>, inode: &Inode, leases: &[Arc<Lease>], reason: RevokeReason) {
    for holder in pin_holders(inode).under_leases(leases) {
        revoke_holder(kernel, &holder, reason);
    }
}

/// A registration has been committed. A lease that went after the registration passed its gate and
/// before the holder was listed is gone for this holder too.
pub(crate) fn revoke_if_lease_lost(kernel: &Arc<Kernel>, inode: &Inode, holder: &Holder) {
    let reason = |lease: &Lease| match lease.revoked.get() {
        // The change that took it judges these pins.
        Some(LeaseRevocation::Change) => None,
        Some(LeaseRevocation::LastClose) => Some(RevokeReason::Rule),
        None => (kernel.axes.on_lease_lost == Some(LeaseLost::Abort)).then_some(RevokeReason::LeaseLost),
    };
    let reason = {
        let entries = LeaseTable::of(inode).lock();
        let there = |lease: &Arc<Lease>| entries.iter().any(|entry| Arc::ptr_eq(&entry.lease, lease));
        let leases = holder.leases.all();
        leases.iter().filter(|lease| !there(lease)).filter_map(|lease| reason(lease)).max()
    };
    if let Some(reason) = reason {
        revoke_holder(kernel, holder, reason);
    }
}

/// Takes away the leases of `targets` whose break timed out. `kill` ends the taker, never the
/// process that F_SETOWN named.
fn time_out_leases(kernel: &Arc<Kernel>, inode: &Inode, targets: &[LeaseId]) {
    let now = kernel.world.now();
    let mut gone = Vec::new();
    let mut to_kill = Vec::new();
    {
        let mut entries = LeaseTable::of(inode).lock();
        let restart = break_deadline(kernel);
        entries.retain_mut(|entry| {
            let over = entry.state().is_breaking() && entry.deadline.is_some_and(|deadline| deadline <= now);
            if !over || !targets.contains(&entry.lease.id) {
                return true;
            }
            if kernel.axes.break_timeout == BreakTimeout::Kill && !entry.state().is_killed() {
                to_kill.push(entry.pid);
                entry.deadline = restart;
                return change_state(kernel, entry, LeaseEvent::Kill);
            }
            kernel.counters.lease_timeouts.add(1);
            let stays = change_state(kernel, entry, LeaseEvent::TimeOut);
            if stays {
                entry.kind = LeaseKind { mode: LeaseMode::Read, ..entry.kind };
            } else {
                let _count = entry.lease.gate.close();
                gone.push(entry.clone());
            }
            stays
        });
        forget_owners(&entries, &gone);
    }
    LeaseTable::of(inode).changed.wake_all();
    for pid in to_kill {
        kernel.send_signal(pid, SigInfo { ino: Some(inode.ino()), ..SigInfo::of(Signal::Sigkill) });
    }
    let gone: Vec<Arc<Lease>> = gone.into_iter().map(|entry| entry.lease).collect();
    leases_lost(kernel, inode, &gone);
}

/// When a task gives up that waits for one break time only: `None` where breaks time out, since the
/// lease is taken then.
pub(crate) fn end_of_patience(kernel: &Kernel) -> Option<Nanos> {
    match break_deadline(kernel) {
        Some(_) => None,
        None => Some(kernel.world.now().after(kernel.options.lease_break_time)),
    }
}

/// The release of a lease: by any process that has its open file when the question is asked, also
/// unread in its inbox; by those that map it if only mappings are left; by those whose direct I/O
/// keeps it if only that is left; by its taker if none is.
pub(crate) fn released_by(kernel: &Arc<Kernel>, entry: LeaseEntry) -> Awaited {
    let kernel = Arc::clone(kernel);
    Awaited::ask(move || match able_to_end(&kernel, &entry.fd_holders, entry.file) {
        able if able.is_empty() => Need::any_of(vec![entry.pid]),
        able => Need::any_of(able),
    })
}

/// Waits interruptibly until none of the leases `targets` stands in the way (`in_way` judges a
/// lease). Takes a lease by the design's rule when its break times out.
pub(crate) fn wait_for_break(
    task: &Task,
    inode: &Inode,
    targets: &[LeaseId],
    in_way: impl Fn(&LeaseEntry) -> bool,
) -> Result<(), Errno> {
    wait_for_break_until(task, inode, targets, in_way, None)
}

/// As [`wait_for_break`], but also ends, with success, at `give_up_at`.
pub(crate) fn wait_for_break_until(
    task: &Task,
    inode: &Inode,
    targets: &[LeaseId],
    in_way: impl Fn(&LeaseEntry) -> bool,
    give_up_at: Option<Nanos>,
) -> Result<(), Errno> {
    let kernel = task.kernel();
    loop {
        let pending = |entry: &&LeaseEntry| targets.contains(&entry.lease.id) && in_way(entry);
        let deadline = LeaseTable::of(inode)
            .lock()
            .iter()
            .filter(pending)
            .filter_map(|entry| entry.deadline.filter(|_| entry.state().is_breaking()))
            .chain(give_up_at)
            .min();
        let how = WaitFor::interruptible("lease break").until(deadline);
        let outcome = task.block_on(&LeaseTable::of(inode).changed, how, || {
            let held: Vec<LeaseEntry> = LeaseTable::of(inode).lock().iter().filter(pending).cloned().collect();
            let needs: Vec<Awaited> = held.into_iter().map(|entry| released_by(kernel, entry)).collect();
            if needs.is_empty() { WaitPoll::Ready(()) } else { WaitPoll::Blocked(needs) }
        });
        match outcome {
            Ok(()) => return Ok(()),
            Err(WaitFailure::TimedOut) => {
                time_out_leases(kernel, inode, targets);
                if give_up_at.is_some_and(|at| at <= kernel.world.now()) {
                    return Ok(());
                }
            }
            Err(WaitFailure::Interrupted) => return Err(Errno::EINTR),
            Err(WaitFailure::Deadlock) => return Err(Errno::EDEADLK),
        }
    }
}
