//! The fcntl calls on ordinary leases and delegations, and those that say whom leases of either
//! kind signal.
//!
//! It owns the order of their checks. Invariant: a delegation is granted with the names locked, so
//! a change of names or attributes is made before it, or sees it. Kernel counterpart:
//! `fcntl_setlease`, `fcntl_getlease`, `fcntl_setdeleg`, `fcntl_getdeleg`, `f_setown`, `F_SETSIG`
//! (fs/fcntl.c), `generic_setlease` (fs/locks.c).

use emulator::sync::Arc;

use crate::base::errno::Errno;
use crate::base::numbers::{Fd, Pid};
use crate::leases::posix::breaking::time_out_posix_leases;
use crate::leases::posix::request::{PosixLeaseFlavor, PosixLeaseRequest, PosixLeaseType};
use crate::leases::posix::table::PosixLeases;
use crate::vfs::inode::Inode;
use crate::vfs::open_file::{AccessMode, Description};
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
        self.with_inode(fd, |description, inode, access| match inode.is_directory() {
            true => Err(Errno::EINVAL),
            false => set_lease(self, description, (inode, access), (request, PosixLeaseFlavor::Lease)),
        })
    }

    /// As [`Task::set_base_lease`], for a delegation, which the directory can have too:
    /// `fcntl(F_SETDELEG)`. One open file has one lease or delegation: a request of either kind
    /// converts or releases what is there.
    ///
    /// # Errors
    /// As for [`Task::set_base_lease`]; EINVAL (a write delegation of the directory).
    pub fn set_delegation(&self, fd: Fd, request: PosixLeaseRequest) -> Result<(), Errno> {
        let flavor = PosixLeaseFlavor::Delegation;
        self.with_inode(fd, |description, inode, access| {
            set_lease(self, description, (inode, access), (request, flavor))
        })
    }

    /// What the open file behind `fd` holds, or what a pending break will leave of it:
    /// `fcntl(F_GETLEASE)`; `None` is `F_UNLCK`.
    ///
    /// # Errors
    /// EBADF (`O_PATH` too), EINVAL (neither a file nor the directory).
    pub fn get_base_lease(&self, fd: Fd) -> Result<Option<PosixLeaseType>, Errno> {
        self.lease_left(fd, PosixLeaseFlavor::Lease)
    }

    /// As [`Task::get_base_lease`], for a delegation: `fcntl(F_GETDELEG)`.
    ///
    /// # Errors
    /// As for [`Task::get_base_lease`].
    pub fn get_delegation(&self, fd: Fd) -> Result<Option<PosixLeaseType>, Errno> {
        self.lease_left(fd, PosixLeaseFlavor::Delegation)
    }

    fn lease_left(&self, fd: Fd, flavor: PosixLeaseFlavor) -> Result<Option<PosixLeaseType>, Errno> {
        self.with_inode(fd, |description, inode, _| {
            time_out_posix_leases(self.kernel(), inode);
            Ok(PosixLeases::of(inode).lock().left_to(description.id(), flavor))
        })
    }

    /// Names the process that is signalled when a lease of the open file behind `fd`, ordinary or
    /// layout, is broken: `fcntl(F_SETOWN)`. With none, a break of the ordinary lease signals no
    /// process, and one of a layout lease its taker. A release of the lease clears it.
    ///
    /// # Errors
    /// EBADF (`O_PATH` too), EINVAL (neither a file nor the directory), ESRCH.
    pub fn set_owner(&self, fd: Fd, owner: Option<Pid>) -> Result<(), Errno> {
        self.with_inode(fd, |description, _, _| {
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
    /// EBADF (`O_PATH` too), EINVAL (neither a file nor the directory).
    pub fn set_signal(&self, fd: Fd, signal: Option<Signal>) -> Result<(), Errno> {
        self.with_inode(fd, |description, _, _| {
            description.signal_owner().set_signal(signal);
            Ok(())
        })
    }
}

/// Kernel: `vfs_setlease`, `generic_setlease`.
fn set_lease(
    task: &Task,
    description: &Arc<Description>,
    (inode, access): (&Arc<Inode>, AccessMode),
    asked: (PosixLeaseRequest, PosixLeaseFlavor),
) -> Result<(), Errno> {
    let credentials = task.process().credentials();
    if credentials.uid != inode.uid() && !credentials.cap_lease {
        return Err(Errno::EACCES);
    }
    if inode.is_directory() && asked.0 == PosixLeaseRequest::Take(PosixLeaseType::Write) {
        return Err(Errno::EINVAL);
    }
    if asked.0 != PosixLeaseRequest::Unlock {
        time_out_posix_leases(task.kernel(), inode);
    }
    {
        // Stands for the `inode_trylock` of `generic_add_lease`: a change that runs comes first.
        let _no_change_meanwhile = task.kernel().names.lock();
        PosixLeases::of(inode).lock().set(description, access, asked, (task.pid(), credentials))?;
    }
    PosixLeases::of(inode).changed.wake_all();
    Ok(())
}
