//! Calls on layout leases: take, downgrade, unlock.
//!
//! It owns the check of the file's open mode. Kernel counterpart: `fcntl(F_SETLEASE)` with
//! `F_LAYOUT` of the proposals.

use crate::base::errno::Errno;
use crate::base::numbers::Fd;
use crate::base::range::BlockRange;
use crate::leases::layout::acquire::{LeaseRequest, acquire, check_request, downgrade};
use crate::leases::layout::kind::LeaseKind;
use crate::leases::layout::unlock::unlock;
use crate::vfs::task::Task;

impl Task {
    /// Takes a layout lease of `kind` on `range` of the file open as `fd` (`fcntl(F_SETLEASE,
    /// F_LAYOUT|…)` of the proposals), or converts what the same open file holds there. Waits
    /// where the rules say so.
    ///
    /// # Errors
    /// EBADF, EINVAL (no layout leases in this design, +U under `chinner` rules, an empty range,
    /// not a file), EACCES (access mode), ETXTBSY (an exclusive lease is in the way), EAGAIN (a
    /// break or a change is pending), EBUSY or EDEADLK (a conversion that weakens a pinned lease),
    /// EINTR.
    pub fn lease(&self, fd: Fd, kind: LeaseKind, range: BlockRange) -> Result<(), Errno> {
        self.with_file(fd, |description, inode, access| {
            check_request(self, kind, range, access)?;
            acquire(self, &LeaseRequest { inode, description, kind, range })
        })
    }

    /// Turns a write lease into read+U, as proposed after `fallocate`, atomically: no other
    /// request is granted in between.
    ///
    /// # Errors
    /// EINVAL unless the rules are `man-page`; EAGAIN unless the description holds unbroken write
    /// leases over all of `range`.
    pub fn downgrade_lease(&self, fd: Fd, range: BlockRange) -> Result<(), Errno> {
        self.with_file(fd, |description, inode, access| {
            check_request(self, LeaseKind::READ_U, range, access)?;
            downgrade(self, &LeaseRequest { inode, description, kind: LeaseKind::READ_U, range })
        })
    }

    /// Gives back what the file open as `fd` holds in `range` (`F_UNLCK`), from any descriptor of
    /// the open description.
    ///
    /// # Errors
    /// EBADF, EINVAL (not a file); EAGAIN if nothing is held there; EBUSY, EDEADLK or EINTR as
    /// `unlock_while_pinned` says.
    pub fn unlock(&self, fd: Fd, range: BlockRange) -> Result<(), Errno> {
        self.with_file(fd, |description, inode, _| unlock(self, description.id(), inode, range))
    }
}
