//! Calls by name that leave a file's contents and leases alone: rename, link, unlink, chmod,
//! utime, stat.
//!
//! It owns the checks for moving names. Invariants: an inode's link count is the number of its
//! names; all of these calls but stat wait for delegations of what they change, the directory's
//! first, and none breaks a lease. All names lie in one directory that every user may change.
//! Kernel counterpart: `vfs_rename`, `vfs_link`, `vfs_unlink`, `notify_change` (fs/namei.c,
//! fs/attr.c).

use emulator::sync::Arc;

use crate::base::errno::Errno;
use crate::leases::posix::breaking::{change_names, check_delegations};
use crate::syscalls::stat::FileStat;
use crate::vfs::inode::Inode;
use crate::vfs::lifecycle::LastReference;
use crate::vfs::names::{DIRECTORY_NAME, NAME_MAX, drop_link, drop_open, lookup, lookup_any};
use crate::vfs::task::Task;

fn check_new_name(name: &str) -> Result<(), Errno> {
    if name.is_empty() || name.len() > NAME_MAX { Err(Errno::EINVAL) } else { Ok(()) }
}

/// Runs a call on the file called `name`, which counts as open meanwhile.
fn by_name<R>(task: &Task, name: &str, body: impl FnOnce(&Arc<Inode>) -> Result<R, Errno>) -> Result<R, Errno> {
    task.syscall(|| with_counted(task, lookup(task.kernel(), name, LastReference::Call(task))?, body))
}

/// As [`by_name`], for calls on the directory too.
fn by_any_name<R>(task: &Task, name: &str, body: impl FnOnce(&Arc<Inode>) -> Result<R, Errno>) -> Result<R, Errno> {
    task.syscall(|| with_counted(task, lookup_any(task.kernel(), name, LastReference::Call(task))?, body))
}

fn with_counted<R>(
    task: &Task,
    inode: Arc<Inode>,
    body: impl FnOnce(&Arc<Inode>) -> Result<R, Errno>,
) -> Result<R, Errno> {
    let result = body(&inode);
    drop_open(task.kernel(), &inode, LastReference::Call(task));
    result
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
    /// ENOENT, EISDIR, ENODEV (not mounted, or the device is gone), EINTR.
    pub fn unlink(&self, name: &str) -> Result<(), Errno> {
        self.syscall(|| {
            if name == DIRECTORY_NAME {
                return Err(Errno::EISDIR);
            }
            let inode = change_names(self, |names| {
                let inode = Arc::clone(names.get(name).ok_or(Errno::ENOENT)?);
                check_delegations(&self.kernel().directory)?;
                check_delegations(&inode)?;
                names.remove(name);
                Ok(inode)
            })?;
            drop_link(self.kernel(), &inode, LastReference::Call(self));
            Ok(())
        })
    }

    /// Gives the file called `from` the name `to` instead; the file that was called `to` loses
    /// that name. If `to` existed, there is no moment at which it does not (rename(2)). Two names
    /// of one file stay as they are.
    ///
    /// # Errors
    /// ENOENT, EBUSY (the directory), EINVAL (a new name that is empty or longer than
    /// [`NAME_MAX`]), ENODEV (not mounted, or the device is gone), EINTR.
    pub fn rename(&self, from: &str, to: &str) -> Result<(), Errno> {
        self.syscall(|| {
            if [from, to].contains(&DIRECTORY_NAME) {
                return Err(Errno::EBUSY);
            }
            let replaced = change_names(self, |names| {
                let inode = Arc::clone(names.get(from).ok_or(Errno::ENOENT)?);
                check_new_name(to)?;
                let there = names.get(to);
                if there.is_some_and(|there| Arc::ptr_eq(there, &inode)) {
                    return Ok(None);
                }
                check_delegations(&self.kernel().directory)?;
                check_delegations(&inode)?;
                there.map_or(Ok(()), check_delegations)?;
                names.remove(from);
                Ok(names.insert(to.to_owned(), inode))
            })?;
            if let Some(inode) = replaced {
                drop_link(self.kernel(), &inode, LastReference::Call(self));
            }
            Ok(())
        })
    }

    /// Gives the file called `from` one more name.
    ///
    /// # Errors
    /// ENOENT; EISDIR; EEXIST; EINTR; EINVAL (a new name that is empty or longer than
    /// [`NAME_MAX`]); EPERM (neither the caller's own nor readable and writable, as with
    /// `fs.protected_hardlinks`).
    pub fn link(&self, from: &str, to: &str) -> Result<(), Errno> {
        by_name(self, from, |inode| {
            check_new_name(to)?;
            let may = owns(self, inode) || inode.permits(self.process().credentials(), 6);
            change_names(self, |names| {
                if names.contains_key(to) || to == DIRECTORY_NAME {
                    return Err(Errno::EEXIST.into());
                }
                if !may {
                    return Err(Errno::EPERM.into());
                }
                if inode.life.lock().links == 0 {
                    return Err(Errno::ENOENT.into());
                }
                check_delegations(&self.kernel().directory)?;
                check_delegations(inode)?;
                let mut life = inode.life.lock();
                if life.links == 0 {
                    return Err(Errno::ENOENT.into());
                }
                life.links += 1;
                names.insert(to.to_owned(), Arc::clone(inode));
                Ok(())
            })
        })
    }

    /// Sets the permission bits of the file called `name`, or of the directory. As in Linux a
    /// delegation is broken before the caller's right is looked at (`setattr_prepare`).
    ///
    /// # Errors
    /// ENOENT, EINTR, EPERM (neither its owner nor root).
    pub fn chmod(&self, name: &str, mode: u32) -> Result<(), Errno> {
        by_any_name(self, name, |inode| {
            change_names(self, |_| {
                check_delegations(inode)?;
                if !owns(self, inode) {
                    return Err(Errno::EPERM.into());
                }
                inode.set_mode(mode);
                Ok(())
            })
        })
    }

    /// Sets the times of the file called `name`, or of the directory, to now (`utimensat` without
    /// times). There are no times here: the permission check and the break of delegations are left.
    ///
    /// # Errors
    /// ENOENT, EINTR, EACCES (neither its owner nor root, and the mode does not allow writing).
    pub fn utime(&self, name: &str) -> Result<(), Errno> {
        by_any_name(self, name, |inode| match owns(self, inode) || inode.permits(self.process().credentials(), 2) {
            true => change_names(self, |_| check_delegations(inode)),
            false => Err(Errno::EACCES),
        })
    }

    /// Status of the file called `name`, or of the directory.
    ///
    /// # Errors
    /// ENOENT.
    pub fn stat_name(&self, name: &str) -> Result<FileStat, Errno> {
        by_any_name(self, name, |inode| Ok(FileStat::of(inode)))
    }
}
