//! The fcntl calls on ordinary leases, and those that say whom leases of either kind signal.
//!
//! It owns the order of their checks. Kernel counterpart: `fcntl_setlease`, `fcntl_getlease`,
//! `f_setown`, `F_SETSIG` (fs/fcntl.c), `generic_setlease` (fs/locks.c).

use crate::base::errno::Errno;
use crate::base::numbers::{Fd, Pid};
use crate::leases::posix::breaking::time_out_posix_leases;
use crate::leases::posix::request::{PosixLeaseRequest, PosixLeaseType};
use crate::leases::posix::table::PosixLeases;
use crate::vfs::signals::Signal;
use crate::vfs::task::Task;

impl Task {
    /// Takes, converts or releases the ordinary lease of the open file behind `fd`:
    /// `fcntl(F_SETLEASE)`. Never waits.
    ///
    /// # Errors
    /// EBADF (`O_PATH` too), EACCES (neither the file's owner nor CAP_LEASE, for a release too),
    /// EINVAL (not a file); EAGAIN: for a read lease, the file is open for writing; for a write
    /// lease, this is not its only open; another open file's lease is being broken to nothing;
    /// there is nothing to release.
    pub fn set_base_lease(&self, fd: Fd, request: PosixLeaseRequest) -> Result<(), Errno> {
        self.with_file(fd, |description, inode, access| {
            let credentials = self.process().credentials();
            if credentials.uid != inode.uid() && !credentials.cap_lease {
                return Err(Errno::EACCES);
            }
            if request != PosixLeaseRequest::Unlock {
                time_out_posix_leases(self.kernel(), inode);
            }
            PosixLeases::of(inode).lock().set(description, access, request, (self.pid(), credentials))?;
            PosixLeases::of(inode).changed.wake_all();
            Ok(())
        })
    }

    /// What the open file behind `fd` holds, or what a pending break will leave of it:
    /// `fcntl(F_GETLEASE)`; `None` is `F_UNLCK`.
    ///
    /// # Errors
    /// EBADF (`O_PATH` too), EINVAL (not a file).
    pub fn get_base_lease(&self, fd: Fd) -> Result<Option<PosixLeaseType>, Errno> {
        self.with_file(fd, |description, inode, _| {
            time_out_posix_leases(self.kernel(), inode);
            Ok(PosixLeases::of(inode).lock().left_to(description.id()))
        })
    }

    /// Names the process that is signalled when a lease of the open file behind `fd`, ordinary or
    /// layout, is broken: `fcntl(F_SETOWN)`. With none, a break of the ordinary lease signals no
    /// process, and one of a layout lease its taker. A release of the lease clears it.
    ///
    /// # Errors
    /// EBADF (`O_PATH` too), EINVAL (not a file), ESRCH.
    pub fn set_owner(&self, fd: Fd, owner: Option<Pid>) -> Result<(), Errno> {
        self.with_file(fd, |description, _, _| {
            if owner.is_some_and(|pid| self.kernel().processes.get(pid).is_none()) {
                return Err(Errno::ESRCH);
            }
            let uid = self.process().credentials().uid;
            description.signal_owner().name(owner.map(|pid| (pid, uid)));
            Ok(())
        })
    }

    /// Chooses the signal that announces a break; `None` is SIGIO: `fcntl(F_SETSIG)`. A release of
    /// the lease clears it.
    ///
    /// # Errors
    /// EBADF (`O_PATH` too), EINVAL (not a file).
    pub fn set_signal(&self, fd: Fd, signal: Option<Signal>) -> Result<(), Errno> {
        self.with_file(fd, |description, _, _| {
            description.signal_owner().set_signal(signal);
            Ok(())
        })
    }
}
