//! Calls by name that leave a file's contents and leases alone: rename, link, unlink, chmod,
//! utime, stat.
//!
//! It owns the checks for moving names. Invariants: an inode's link count is the number of its
//! names; none of these calls breaks a lease (Linux breaks delegations only). All names lie in one
//! directory that every user may change. Kernel counterpart: `vfs_rename`, `vfs_link`,
//! `vfs_unlink`, `notify_change` (fs/namei.c, fs/attr.c).

use emulator::sync::Arc;

use crate::base::errno::Errno;
use crate::syscalls::stat::FileStat;
use crate::vfs::inode::Inode;
use crate::vfs::lifecycle::LastReference;
use crate::vfs::names::{NAME_MAX, drop_link, drop_open, lookup, mounted_names};
use crate::vfs::task::Task;

fn check_new_name(name: &str) -> Result<(), Errno> {
    if name.is_empty() || name.len() > NAME_MAX { Err(Errno::EINVAL) } else { Ok(()) }
}

/// Runs a call on the file called `name`, which counts as open meanwhile.
fn by_name<R>(task: &Task, name: &str, body: impl FnOnce(&Arc<Inode>) -> Result<R, Errno>) -> Result<R, Errno> {
    task.syscall(|| {
        let inode = lookup(task.kernel(), name, LastReference::Call(task))?;
        let result = body(&inode);
        drop_open(task.kernel(), &inode, LastReference::Call(task));
        result
    })
}

/// Whether the caller may change the file's attributes. Kernel: `inode_owner_or_capable`.
fn owns(task: &Task, inode: &Inode) -> bool {
    let uid = task.process().credentials().uid;
    uid == 0 || uid == inode.uid()
}

impl Task {
    /// Removes a name. The file stays while it is open; then pinned blocks become orphaned.
    ///
    /// # Errors
    /// ENOENT, ENODEV (not mounted, or the device is gone).
    pub fn unlink(&self, name: &str) -> Result<(), Errno> {
        self.syscall(|| {
            let inode = mounted_names(self.kernel())?.remove(name).ok_or(Errno::ENOENT)?;
            drop_link(self.kernel(), &inode, LastReference::Call(self));
            Ok(())
        })
    }

    /// Gives the file called `from` the name `to` instead; the file that was called `to` loses
    /// that name. If `to` existed, there is no moment at which it does not (rename(2)). Two names
    /// of one file stay as they are.
    ///
    /// # Errors
    /// ENOENT, EINVAL (a new name that is empty or longer than [`NAME_MAX`]), ENODEV (not mounted,
    /// or the device is gone).
    pub fn rename(&self, from: &str, to: &str) -> Result<(), Errno> {
        self.syscall(|| {
            let replaced = {
                let mut names = mounted_names(self.kernel())?;
                let inode = Arc::clone(names.get(from).ok_or(Errno::ENOENT)?);
                check_new_name(to)?;
                if names.get(to).is_some_and(|there| Arc::ptr_eq(there, &inode)) {
                    return Ok(());
                }
                names.remove(from);
                names.insert(to.to_owned(), inode)
            };
            if let Some(inode) = replaced {
                drop_link(self.kernel(), &inode, LastReference::Call(self));
            }
            Ok(())
        })
    }

    /// Gives the file called `from` one more name.
    ///
    /// # Errors
    /// ENOENT; EEXIST; EINVAL (a new name that is empty or longer than [`NAME_MAX`]); EPERM
    /// (neither the caller's own nor readable and writable, as with `fs.protected_hardlinks`).
    pub fn link(&self, from: &str, to: &str) -> Result<(), Errno> {
        by_name(self, from, |inode| {
            check_new_name(to)?;
            if self.kernel().names.lock().contains_key(to) {
                return Err(Errno::EEXIST);
            }
            if !owns(self, inode) && !inode.permits(self.process().credentials(), 6) {
                return Err(Errno::EPERM);
            }
            {
                let mut life = inode.life.lock();
                if life.links == 0 {
                    return Err(Errno::ENOENT);
                }
                life.links += 1;
            }
            let taken = {
                let mut names = self.kernel().names.lock();
                let taken = names.contains_key(to);
                if !taken {
                    names.insert(to.to_owned(), Arc::clone(inode));
                }
                taken
            };
            if taken {
                // Another task took the name meanwhile.
                drop_link(self.kernel(), inode, LastReference::Call(self));
                return Err(Errno::EEXIST);
            }
            Ok(())
        })
    }

    /// Sets the permission bits of the file called `name`.
    ///
    /// # Errors
    /// ENOENT, EPERM (neither its owner nor root).
    pub fn chmod(&self, name: &str, mode: u32) -> Result<(), Errno> {
        by_name(self, name, |inode| {
            if !owns(self, inode) {
                return Err(Errno::EPERM);
            }
            inode.set_mode(mode);
            Ok(())
        })
    }

    /// Sets the times of the file called `name` to now (`utimensat` without times). Files have no
    /// times here: only the permission check is left.
    ///
    /// # Errors
    /// ENOENT, EACCES (neither its owner nor root, and the mode does not allow writing).
    pub fn utime(&self, name: &str) -> Result<(), Errno> {
        by_name(self, name, |inode| match owns(self, inode) || inode.permits(self.process().credentials(), 2) {
            true => Ok(()),
            false => Err(Errno::EACCES),
        })
    }

    /// Status of the file called `name`.
    ///
    /// # Errors
    /// ENOENT.
    pub fn stat_name(&self, name: &str) -> Result<FileStat, Errno> {
        by_name(self, name, |inode| Ok(FileStat::of(inode)))
    }
}
