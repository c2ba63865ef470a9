//! TODO

use emulator::sync::Arc;

use crate::base::errno::Errno;
use crate::base::numbers::Fd;
use crate::base::range::BlockRange;
use crate::holders::lease_gate::Lease;
use crate::leases::layout::acquire::{
    InstallOutcome, LeaseRequest, acquire, check_request, install_lease, lease_granted,
};
use crate::leases::layout::breaking::lease_lost;
use crate::leases::layout::kind::{LeaseKind, LeaseMode};
use crate::leases::layout::table::{LeaseEntry, LeaseState, LeaseTable};
use crate::leases::layout::unlock::{remove_leases, reopen_gates, unlock_releases, wait_for_pinned_leases};
use crate::vfs::task::Task;

impl Task {
    /// Takes a layout lease of `kind` on `range` of the file open as `fd` (`fcntl(F_SETLEASE, F_LAYOUT|…)` of the
    /// proposals), or converts what the same description holds there. Waits where the rules say so.
    ///
    /// # Errors
    /// EBADF, EINVAL (no layout leases in this design, +U under `chinner` rules, an empty range, not a file), EACCES (access
    /// mode), ETXTBSY (an exclusive lease is in the way), EAGAIN (a break or a change is pending), EBUSY or EDEADLK
    /// (conversion that weakens a pinned lease), EINTR.
    pub fn lease(&self, fd: Fd, kind: LeaseKind, range: BlockRange) -> Result<(), Errno> {
        self.with_file(fd, |description, inode, access| {
            check_request(self, kind, range, access)?;
            acquire(self, &LeaseRequest { inode, description, kind, range })
        })
    }

    /// Turns a write lease into read+U, as proposed after `fallocate`, atomically and without letting anybody in between.
    ///
    /// # Errors
    /// EINVAL unless the rules are `man-page`; EAGAIN unless the description holds unbroken write leases over all of `range`.
    pub fn downgrade_lease(&self, fd: Fd, range: BlockRange) -> Result<(), Errno> {
        self.with_file(fd, |description, inode, access| {
            check_request(self, LeaseKind::READ_U, range, access)?;
            let request = LeaseRequest { inode, description, kind: LeaseKind::READ_U, range };
            let mut entries = LeaseTable::of(inode).lock();
            let unbroken = entries.iter().filter(|entry| {
                entry.file == description.id() && entry.kind.mode == LeaseMode::Write && entry.state == LeaseState::Held
            });
            if !range.is_covered_by(unbroken.map(|entry| entry.range)) {
                return Err(Errno::EAGAIN);
            }
            let installed = install_lease(self, &mut entries, &request);
            drop(entries);
            match installed {
                InstallOutcome::Done(lost) => {
                    lease_granted(self, &request, &lost);
                    Ok(())
                }
                // A downgrade never waits: a lease that must be split first is unlocked in parts first.
                InstallOutcome::Pinned(_) => Err(Errno::EBUSY),
            }
        })
    }

    /// Gives back what the file open as `fd` holds in `range` (`F_UNLCK`), from any descriptor of the open description.
    ///
    /// # Errors
    /// EBADF, EINVAL (not a file); EAGAIN if nothing is held there; EBUSY, EDEADLK or EINTR as `unlock_while_pinned` says.
    pub fn unlock(&self, fd: Fd, range: BlockRange) -> Result<(), Errno> {
        self.with_file(fd, |description, inode, _| {
            let kernel = self.kernel();
            let mut shut = Vec::new();
            let lost = loop {
                let mut entries = LeaseTable::of(inode).lock();
                let own = |entry: &LeaseEntry| {
                    entry.file == description.id() && entry.state != LeaseState::Zombie && entry.range.overlaps(range)
                };
                if !entries.iter().any(own) {
                    return Err(Errno::EAGAIN);
                }
                let pinned = entries.iter().filter(|entry| own(entry) && entry.is_pinned());
                let pinned: Vec<Arc<Lease>> = pinned.map(|entry| Arc::clone(&entry.lease)).collect();
                if pinned.is_empty() || unlock_releases(kernel) {
                    break remove_leases(self, &mut entries, range, own);
                }
                drop(entries);
                if let Err(errno) = wait_for_pinned_leases(self, inode, &pinned) {
                    reopen_gates(inode, &shut);
                    return Err(errno);
                }
                shut.extend(pinned);
            };
            LeaseTable::of(inode).changed.wake_all();
            for lease in &lost {
                lease_lost(kernel, inode, lease);
            }
            kernel.trace("lease unlocked", self.pid().0.into(), inode.ino().0, None);
            Ok(())
        })
    }
}
