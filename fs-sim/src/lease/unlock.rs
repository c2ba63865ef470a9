//! Giving a lease back, and what pins that live under it have to say.
//!
//! It owns the axis `unlock_while_pinned`. Invariant: an unlock that fails has changed nothing; one that waits lets no new
//! pin in, and lets them in again if it is interrupted. Kernel counterpart: `F_UNLCK` in `fcntl_setlease`.

use emulator::sync::Arc;
use emulator::wait::WaitFor;

use super::Lease;
use super::table::{Entry, State};
use crate::Kernel;
use crate::design::UnlockRule;
use crate::errno::Errno;
use crate::inode::Inode;
use crate::process::fd_table::Fd;
use crate::process::task::Task;
use crate::range::BlockRange;
use crate::waits::{Ended, Look, Need};

impl Kernel {
    /// Whether leases may be given back whatever pins live under them.
    pub(crate) fn unlock_releases(&self) -> bool {
        matches!(self.axes.unlock_while_pinned, None | Some(UnlockRule::Release))
    }

    /// The last pin under a lease that lets no more through is gone: a zombie ends, an unlock or a close goes on.
    pub(crate) fn gate_emptied(&self, inode: &Inode, lease: &Arc<Lease>) {
        {
            let mut entries = inode.leases.lock();
            entries.retain(|entry| {
                let over = entry.state == State::Zombie && Arc::ptr_eq(&entry.lease, lease);
                if over {
                    self.counters.zombie_leases.fall();
                }
                !over
            });
        }
        inode.leases.changed.wake_all();
    }
}

impl Task {
    /// Gives back what the file open as `fd` holds in `range` (`F_UNLCK`), from any descriptor of the open description.
    ///
    /// # Errors
    /// EBADF, EINVAL (not a file); EAGAIN if nothing is held there; EBUSY, EDEADLK or EINTR as `unlock_while_pinned` says.
    pub fn unlock(&self, fd: Fd, range: BlockRange) -> Result<(), Errno> {
        self.with_file(fd, |description, inode, _| {
            let kernel = self.kernel();
            let mut shut = Vec::new();
            let lost = loop {
                let mut entries = inode.leases.lock();
                let own = |entry: &Entry| {
                    entry.file == description.id() && entry.state != State::Zombie && entry.range.overlaps(range)
                };
                if !entries.iter().any(own) {
                    return Err(Errno::EAGAIN);
                }
                let pinned = entries.iter().filter(|entry| own(entry) && entry.is_pinned());
                let pinned: Vec<Arc<Lease>> = pinned.map(|entry| Arc::clone(&entry.lease)).collect();
                if pinned.is_empty() || kernel.unlock_releases() {
                    break self.remove_leases(&mut entries, range, own);
                }
                drop(entries);
                if let Err(errno) = self.settle_pinned_leases(inode, &pinned) {
                    reopen_gates(inode, &shut);
                    return Err(errno);
                }
                shut.extend(pinned);
            };
            inode.leases.changed.wake_all();
            for lease in &lost {
                kernel.lease_lost(inode, lease);
            }
            kernel.trace("lease unlocked", self.pid().0.into(), inode.ino().0, None);
            Ok(())
        })
    }

    /// Takes `range` out of the entries that are `own`; the leases that pins have lost by it.
    fn remove_leases(
        &self,
        entries: &mut Vec<Entry>,
        range: BlockRange,
        own: impl Fn(&Entry) -> bool,
    ) -> Vec<Arc<Lease>> {
        let mut lost = Vec::new();
        let mut kept = Vec::with_capacity(entries.len());
        for entry in entries.drain(..) {
            if !own(&entry) {
                kept.push(entry);
                continue;
            }
            for part in entry.range.minus(range) {
                kept.push(Entry { lease: self.kernel().new_lease(), range: part, ..entry.clone() });
            }
            if entry.lease.gate.close().0 > 0 {
                lost.push(entry.lease);
            }
        }
        *entries = kept;
        lost
    }

    /// Leases with live pins are to be given back or weakened under a design that does not just release them.
    ///
    /// # Errors
    /// EBUSY (`busy`); EDEADLK (`wait`, and a region of the caller's own is among the pins); EINTR. On success the pins that
    /// were there are gone; look again.
    pub(super) fn settle_pinned_leases(&self, inode: &Inode, leases: &[Arc<Lease>]) -> Result<(), Errno> {
        let kernel = self.kernel();
        if kernel.axes.unlock_while_pinned == Some(UnlockRule::Busy) {
            return Err(Errno::EBUSY);
        }
        for lease in leases {
            if inode.holders.under_lease(lease).iter().any(|holder| holder.pid == self.pid()) {
                self.note_self_deadlock("unlock while pinned");
                return Err(Errno::EDEADLK);
            }
        }
        kernel.counters.waits_for_long_term_pin.add(1);
        for lease in leases {
            let how = WaitFor::interruptible("unlock while pinned");
            if let Err(ended) = self.wait_for_gate(inode, lease, how) {
                reopen_gates(inode, leases);
                return Err(if ended == Ended::Deadlock { Errno::EDEADLK } else { Errno::EINTR });
            }
        }
        Ok(())
    }

    /// Shuts a lease's gate and waits until no pin is left inside. It stays shut, whatever the outcome.
    pub(super) fn wait_for_gate(&self, inode: &Inode, lease: &Arc<Lease>, how: WaitFor) -> Result<(), Ended> {
        self.block_on(&inode.leases.changed, how, || {
            // At every look: another thread that waited for the same gate and was interrupted has opened it again.
            if lease.gate.close().0 == 0 {
                return Look::Ready(());
            }
            let holders = inode.holders.under_lease(lease);
            Look::Blocked(holders.iter().map(|holder| Need::any_of(holder.object.describe().processes)).collect())
        })
    }
}

/// An unlock was given up: lets pins in again, unless the lease has ended otherwise meanwhile; whoever else waits for one
/// of these gates shuts it again.
pub(super) fn reopen_gates(inode: &Inode, leases: &[Arc<Lease>]) {
    {
        let entries = inode.leases.lock();
        let held = |lease: &&Arc<Lease>| {
            entries.iter().any(|entry| Arc::ptr_eq(&entry.lease, lease) && entry.state != State::Zombie)
        };
        for lease in leases.iter().filter(held) {
            lease.gate.reopen();
        }
    }
    inode.leases.changed.wake_all();
}
