//! Releasing a lease, and what happens to pins that live under it.
//!
//! It owns the axis `unlock_while_pinned`. Invariants: an unlock that fails has changed nothing;
//! an unlock that waits admits no new pin, and admits pins again if it is interrupted. Kernel
//! counterpart: `F_UNLCK` in `fcntl_setlease`.

use emulator::sync::Arc;
use emulator::wait::WaitFor;

use crate::base::errno::Errno;
use crate::base::numbers::DescriptionId;
use crate::base::range::BlockRange;
use crate::deadlock::graph::{WaitFailure, WaitPoll};
use crate::deadlock::need::{Awaited, Need};
use crate::design::UnlockRule;
use crate::holders::holder::Holder;
use crate::holders::lease_gate::Lease;
use crate::holders::list::pin_holders;
use crate::leases::layout::breaking::leases_lost;
use crate::leases::layout::state::{LeaseEvent, LeaseState, change_state};
use crate::leases::layout::table::{LeaseEntry, LeaseTable, forget_owners, new_lease};
use crate::vfs::inode::Inode;
use crate::vfs::kernel::Kernel;
use crate::vfs::task::Task;

/// Whether the design releases leases regardless of pins that live under them.
pub(crate) fn unlock_releases(kernel: &Kernel) -> bool {
    matches!(kernel.axes.unlock_while_pinned, None | Some(UnlockRule::Release))
}

/// The last pin under a lease with a closed gate is gone: a zombie ends; an unlock or a close that
/// waits for it continues.
pub(crate) fn gate_emptied(kernel: &Kernel, inode: &Inode, lease: &Arc<Lease>) {
    {
        let mut entries = LeaseTable::of(inode).lock();
        entries.retain_mut(|entry| {
            if entry.state() != LeaseState::Zombie || !Arc::ptr_eq(&entry.lease, lease) {
                return true;
            }
            kernel.counters.zombie_leases.fall();
            change_state(kernel, entry, LeaseEvent::LastUnpin)
        });
    }
    LeaseTable::of(inode).changed.wake_all();
}

/// Takes `range` out of the leases that are `own`. Returns the leases that pins have lost by it.
pub(crate) fn remove_leases(
    task: &Task,
    entries: &mut Vec<LeaseEntry>,
    range: BlockRange,
    own: impl Fn(&LeaseEntry) -> bool,
) -> Vec<Arc<Lease>> {
    let mut lost = Vec::new();
    let mut kept = Vec::with_capacity(entries.len());
    for mut entry in entries.drain(..) {
        if !own(&entry) {
            kept.push(entry);
            continue;
        }
        for part in entry.range.minus(range) {
            kept.push(LeaseEntry { lease: new_lease(task.kernel()), range: part, ..entry.clone() });
        }
        change_state(task.kernel(), &mut entry, LeaseEvent::Unlock);
        if entry.lease.gate.close().0 > 0 {
            lost.push(entry.lease);
        }
    }
    *entries = kept;
    lost
}

/// Leases with live pins are to be released or weakened, under a design that does not just release
/// them.
///
/// # Errors
/// EBUSY (`busy`); EDEADLK (`wait`, and no task but the caller could release the pins); EINTR. On
/// success the pins that were there are gone; the caller checks again.
pub(crate) fn wait_for_pinned_leases(
    task: &Task,
    inode: &Inode,
    file: DescriptionId,
    leases: &[Arc<Lease>],
) -> Result<(), Errno> {
    let kernel = task.kernel();
    if kernel.axes.unlock_while_pinned == Some(UnlockRule::Busy) {
        return Err(Errno::EBUSY);
    }
    for lease in leases {
        let own = |holder: &Arc<Holder>| Need::of_holder(kernel, holder).any_of == [task.pid()];
        if task.is_alone() && pin_holders(inode).under_lease(lease).iter().any(own) {
            task.note_self_deadlock("unlock while pinned");
            return Err(Errno::EDEADLK);
        }
    }
    for lease in leases {
        let how = WaitFor::interruptible("unlock while pinned");
        let outcome = wait_for_gate(task, inode, lease, how);
        if outcome != Err(WaitFailure::Deadlock) {
            kernel.counters.waits_for_long_term_pin.add(1);
        }
        if let Err(ended) = outcome {
            reopen_gates(inode, file);
            return Err(if ended == WaitFailure::Deadlock { Errno::EDEADLK } else { Errno::EINTR });
        }
    }
    Ok(())
}

/// Closes a lease's gate and waits until no pin is left inside. The gate stays closed in either
/// case.
pub(crate) fn wait_for_gate(task: &Task, inode: &Inode, lease: &Arc<Lease>, how: WaitFor) -> Result<(), WaitFailure> {
    task.block_on(&LeaseTable::of(inode).changed, how, || {
        // Each time: another thread that waited for the same gate and was interrupted has reopened
        // it.
        if lease.gate.close().0 == 0 {
            return WaitPoll::Ready(());
        }
        let holders = pin_holders(inode).under_lease(lease);
        WaitPoll::Blocked(holders.into_iter().map(|holder| Awaited::of_holder(task.kernel(), holder)).collect())
    })
}

/// An unlock was given up: the leases of its open file, also the parts in which one was cut
/// meanwhile, admit pins again. Another task that waits for one of these gates closes it again.
pub(crate) fn reopen_gates(inode: &Inode, file: DescriptionId) {
    {
        let entries = LeaseTable::of(inode).lock();
        for entry in entries.iter().filter(|entry| entry.file == file && entry.state() != LeaseState::Zombie) {
            entry.lease.gate.reopen();
        }
    }
    LeaseTable::of(inode).changed.wake_all();
}

/// Releases what the open file `file` holds in `range`.
///
/// # Errors
/// EAGAIN if it holds nothing there; EBUSY, EDEADLK or EINTR as `unlock_while_pinned` says.
pub(crate) fn unlock(task: &Task, file: DescriptionId, inode: &Inode, range: BlockRange) -> Result<(), Errno> {
    let kernel = task.kernel();
    let mut closed: Vec<Arc<Lease>> = Vec::new();
    let lost = loop {
        let mut entries = LeaseTable::of(inode).lock();
        let own = |entry: &LeaseEntry| {
            entry.file == file && entry.state() != LeaseState::Zombie && entry.range.overlaps(range)
        };
        if !entries.iter().any(own) {
            // While this unlock waited for its pins, the lease was revoked: it is released.
            return if closed.is_empty() { Err(Errno::EAGAIN) } else { Ok(()) };
        }
        let pinned = entries.iter().filter(|entry| own(entry) && entry.is_pinned());
        let pinned: Vec<Arc<Lease>> = pinned.map(|entry| Arc::clone(&entry.lease)).collect();
        if pinned.is_empty() || unlock_releases(kernel) {
            let gone: Vec<LeaseEntry> = entries.iter().filter(|entry| own(entry)).cloned().collect();
            let lost = remove_leases(task, &mut entries, range, own);
            forget_owners(&entries, &gone);
            break lost;
        }
        drop(entries);
        if let Err(errno) = wait_for_pinned_leases(task, inode, file, &pinned) {
            reopen_gates(inode, file);
            return Err(errno);
        }
        closed.extend(pinned);
    };
    LeaseTable::of(inode).changed.wake_all();
    leases_lost(kernel, inode, &lost);
    kernel.trace("lease unlocked", task.pid().0.into(), inode.ino().0, None);
    Ok(())
}
