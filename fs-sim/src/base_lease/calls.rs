//! The fcntl requests, and what is asked about base leases.
//!
//! It owns the order of the checks. Kernel counterpart: `fcntl_setlease`, `fcntl_getlease`, `f_setown`, `F_SETSIG`
//! (fs/fcntl.c), `generic_setlease` (fs/locks.c).

use super::{Info, Request, Type};
use crate::Kernel;
use crate::errno::Errno;
use crate::inode::Inode;
use crate::process::Pid;
use crate::process::description::{Access, DescriptionId};
use crate::process::fd_table::Fd;
use crate::process::signals::Signal;
use crate::process::task::Task;

impl Task {
    /// Takes, converts or gives back the base lease of the open file behind `fd`: `fcntl(F_SETLEASE)`. Never waits.
    ///
    /// # Errors
    /// EBADF (`O_PATH` too), EACCES (neither the file's owner nor CAP_LEASE, for giving back as well), EINVAL (not a file);
    /// EAGAIN: for a read lease, somebody has the file open for writing; for a write lease, this is not its only open; another
    /// description's lease is being broken to nothing; nothing is held that could be given back.
    pub fn set_base_lease(&self, fd: Fd, request: Request) -> Result<(), Errno> {
        self.with_file(fd, |description, inode, access| {
            let credentials = self.process().credentials();
            if credentials.uid != inode.uid() && !credentials.cap_lease {
                return Err(Errno::EACCES);
            }
            if request != Request::Unlock {
                self.kernel().time_out_base_leases(inode);
            }
            inode.base.lock().set(description, access, request, (self.pid(), credentials))?;
            inode.base.changed.wake_all();
            Ok(())
        })
    }

    /// What the open file behind `fd` holds, or what a pending break will leave of it: `fcntl(F_GETLEASE)`; none is `F_UNLCK`.
    ///
    /// # Errors
    /// EBADF (`O_PATH` too), EINVAL (not a file).
    pub fn get_base_lease(&self, fd: Fd) -> Result<Option<Type>, Errno> {
        self.with_file(fd, |description, inode, _| {
            self.kernel().time_out_base_leases(inode);
            Ok(inode.base.lock().left_to(description.id()))
        })
    }

    /// Names the process that is signalled when a lease of the open file behind `fd` is broken, or nobody:
    /// `fcntl(F_SETOWN)`. Giving the lease back clears it.
    ///
    /// # Errors
    /// EBADF (`O_PATH` too), EINVAL (not a file), ESRCH.
    pub fn set_owner(&self, fd: Fd, owner: Option<Pid>) -> Result<(), Errno> {
        self.with_file(fd, |description, inode, _| {
            if owner.is_some_and(|pid| self.kernel().processes.get(pid).is_none()) {
                return Err(Errno::ESRCH);
            }
            let uid = self.process().credentials().uid;
            inode.base.lock().set_owner(description.id(), owner.map(|pid| (pid, uid)));
            Ok(())
        })
    }

    /// Chooses the signal that tells of a break, none being SIGIO: `fcntl(F_SETSIG)`. Giving the lease back clears it.
    ///
    /// # Errors
    /// EBADF (`O_PATH` too), EINVAL (not a file).
    pub fn set_signal(&self, fd: Fd, signal: Option<Signal>) -> Result<(), Errno> {
        self.with_file(fd, |description, inode, _| {
            inode.base.lock().set_signal(description.id(), signal);
            Ok(())
        })
    }
}

impl Kernel {
    /// The last reference to an open file is gone, and its base lease with it. Kernel: `locks_remove_lease`,
    /// `put_file_access`.
    pub(crate) fn release_base_lease(&self, inode: &Inode, file: DescriptionId, access: Access) {
        inode.base.lock().release(file, access);
        inode.base.changed.wake_all();
    }

    /// The base leases of a file, in the order they were set. Unlike `F_GETLEASE`, a look at them times nothing out.
    pub fn base_leases(&self, inode: &Inode) -> Vec<Info> {
        let found: Vec<_> = {
            let books = inode.base.lock();
            books.leases().iter().map(|entry| (entry.clone(), books.owner_of(entry.file))).collect()
        };
        found
            .into_iter()
            .map(|(entry, owner)| Info {
                description: entry.file,
                setter: entry.setter,
                owner,
                held: entry.held,
                breaking: entry.is_breaking(),
                left: entry.left(),
                deadline: entry.deadline(),
                releasers: self.base_releasers(&entry),
            })
            .collect()
    }
}
