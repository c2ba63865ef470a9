//! Calls by name that leave a file's contents and its leases alone: rename, link, unlink, chmod, utime, stat.
//!
//! It owns the moving of names. Invariants: an inode's link count is the number of its names; none of these breaks a lease of
//! either kind (Linux asks for delegations only, which user space can't hold here). Kernel counterpart: `vfs_rename`,
//! `vfs_link`, `vfs_unlink`, `notify_change` (fs/namei.c, fs/attr.c). All names lie in one directory that anybody may change.

use std::collections::BTreeMap;

use emulator::race_point;
use emulator::sync::{Arc, MutexGuard};

use super::open::NAME_MAX;
use super::stat::Stat;
use crate::Kernel;
use crate::errno::Errno;
use crate::inode::Inode;
use crate::process::task::Task;

fn check_new_name(name: &str) -> Result<(), Errno> {
    if name.is_empty() || name.len() > NAME_MAX { Err(Errno::EINVAL) } else { Ok(()) }
}

impl Kernel {
    /// The names of a mounted volume, to be changed: an unmount that begins later looks at them only afterwards.
    ///
    /// # Errors
    /// ENODEV.
    pub(crate) fn mounted_names(&self) -> Result<MutexGuard<'_, BTreeMap<String, Arc<Inode>>>, Errno> {
        loop {
            // Waits for an unmount that is looking, so without the lock, which that one takes.
            self.mount.check()?;
            race_point!("names: mounted, not locked");
            let names = self.names.lock();
            if self.mount.is_mounted() {
                return Ok(names);
            }
        }
    }

    /// One name less; evicts the inode if that was the last thing that kept it.
    fn drop_link(self: &Arc<Self>, inode: &Arc<Inode>) {
        let over = {
            let mut life = inode.life.lock();
            life.links -= 1;
            let over = life.links == 0 && life.opens == 0 && !life.evicted;
            life.evicted |= over;
            over
        };
        if over {
            self.evict(inode);
        }
    }
}

impl Task {
    /// Runs a call on the file called `name`, which stays for its time.
    fn by_name<R>(&self, name: &str, body: impl FnOnce(&Arc<Inode>) -> Result<R, Errno>) -> Result<R, Errno> {
        self.syscall(|| {
            let inode = self.kernel().lookup(name)?;
            let result = body(&inode);
            self.kernel().drop_open(&inode);
            result
        })
    }

    /// Whether the caller may change the file's attributes. Kernel: `inode_owner_or_capable`.
    fn owns(&self, inode: &Inode) -> bool {
        let uid = self.process().credentials().uid;
        uid == 0 || uid == inode.uid()
    }

    /// Removes a name. The file lives on while it is open; what is pinned then becomes orphaned.
    ///
    /// # Errors
    /// ENOENT, ENODEV (not mounted, or the device is gone).
    pub fn unlink(&self, name: &str) -> Result<(), Errno> {
        self.syscall(|| {
            let inode = self.kernel().mounted_names()?.remove(name).ok_or(Errno::ENOENT)?;
            self.kernel().drop_link(&inode);
            Ok(())
        })
    }

    /// Gives the file called `from` the name `to` instead; what was called so loses that name. At no moment is there no file
    /// called `to`, if there was one (rename(2)). Two names of one file stay as they are.
    ///
    /// # Errors
    /// ENOENT, EINVAL (a new name that is empty or longer than [`NAME_MAX`]), ENODEV (not mounted, or the device is gone).
    pub fn rename(&self, from: &str, to: &str) -> Result<(), Errno> {
        self.syscall(|| {
            let replaced = {
                let mut names = self.kernel().mounted_names()?;
                let inode = Arc::clone(names.get(from).ok_or(Errno::ENOENT)?);
                check_new_name(to)?;
                if names.get(to).is_some_and(|there| Arc::ptr_eq(there, &inode)) {
                    return Ok(());
                }
                names.remove(from);
                names.insert(to.to_owned(), inode)
            };
            if let Some(inode) = replaced {
                self.kernel().drop_link(&inode);
            }
            Ok(())
        })
    }

    /// Gives the file called `from` one more name.
    ///
    /// # Errors
    /// ENOENT; EEXIST; EINVAL (a new name that is empty or longer than [`NAME_MAX`]); EPERM (neither the caller's own nor
    /// readable and writable, as with `fs.protected_hardlinks`).
    pub fn link(&self, from: &str, to: &str) -> Result<(), Errno> {
        self.by_name(from, |inode| {
            check_new_name(to)?;
            if self.kernel().names.lock().contains_key(to) {
                return Err(Errno::EEXIST);
            }
            if !self.owns(inode) && !inode.permits(self.process().credentials(), 6) {
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
                // Somebody was faster.
                self.kernel().drop_link(inode);
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
        self.by_name(name, |inode| {
            if !self.owns(inode) {
                return Err(Errno::EPERM);
            }
            inode.set_mode(mode);
            Ok(())
        })
    }

    /// Sets the times of the file called `name` to now (`utimensat` without times). Files have no times here, so what is left
    /// of it is who may.
    ///
    /// # Errors
    /// ENOENT, EACCES (neither its owner nor root, and the mode does not allow writing).
    pub fn utime(&self, name: &str) -> Result<(), Errno> {
        self.by_name(name, |inode| match self.owns(inode) || inode.permits(self.process().credentials(), 2) {
            true => Ok(()),
            false => Err(Errno::EACCES),
        })
    }

    /// Tells about the file called `name`.
    ///
    /// # Errors
    /// ENOENT.
    pub fn stat_name(&self, name: &str) -> Result<Stat, Errno> {
        self.by_name(name, |inode| Ok(Stat::of(inode)))
    }
}
