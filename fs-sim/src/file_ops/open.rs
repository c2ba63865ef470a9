//! Names: create, open, unlink; and the eviction of what has neither name nor open file.
//!
//! It owns the link and open counts. Invariant: an inode is evicted once, when both are zero. Kernel counterpart: fs/namei.c,
//! `iput_final`.

use emulator::sync::Arc;
use emulator::sync::atomic::Ordering;

use crate::Kernel;
use crate::errno::Errno;
use crate::inode::{Ino, Inode};
use crate::process::custody::Custody;
use crate::process::description::{Access, Open};
use crate::process::fd_table::Fd;
use crate::process::task::Task;

/// How to open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flags {
    /// Reading, writing.
    pub access: Access,
    /// `O_CREAT`.
    pub create: bool,
    /// `O_EXCL`: with `create`, the name must be new.
    pub exclusive: bool,
    /// `O_TRUNC`: a layout change like any other.
    pub truncate: bool,
}

impl Flags {
    /// Open what exists.
    pub fn open(access: Access) -> Flags {
        Flags { access, create: false, exclusive: false, truncate: false }
    }

    /// Open for reading and writing, creating it if need be.
    pub fn create() -> Flags {
        Flags { access: Access::BOTH, create: true, exclusive: false, truncate: false }
    }
}

/// The longest name, in bytes.
pub const NAME_MAX: usize = 255;

impl Kernel {
    /// The inode called `name`, counted as open until [`Kernel::drop_open`].
    pub(crate) fn lookup(&self, name: &str) -> Result<Arc<Inode>, Errno> {
        let names = self.names.lock();
        let inode = names.get(name).cloned().ok_or(Errno::ENOENT)?;
        drop(names);
        let mut life = inode.life.lock();
        if life.evicted {
            return Err(Errno::ENOENT);
        }
        life.opens += 1;
        drop(life);
        Ok(inode)
    }

    /// The inode called `name` or a new one, counted as open.
    fn lookup_or_create(self: &Arc<Self>, name: &str, exclusive: bool) -> Result<Arc<Inode>, Errno> {
        loop {
            match self.lookup(name) {
                Ok(inode) if exclusive => {
                    self.drop_open(&inode);
                    return Err(Errno::EEXIST);
                }
                Ok(inode) => return Ok(inode),
                Err(Errno::ENOENT) => {}
                Err(errno) => return Err(errno),
            }
            let inode = Arc::new(Inode::new(Ino(self.next_ino.fetch_add(1, Ordering::Relaxed))));
            inode.life.lock().opens = 1;
            let mut names = self.names.lock();
            if !names.contains_key(name) {
                names.insert(name.to_owned(), Arc::clone(&inode));
                drop(names);
                self.inodes.insert(inode.ino(), Arc::clone(&inode));
                return Ok(inode);
            }
        }
    }

    fn drop_count(&self, inode: &Inode) -> bool {
        let mut life = inode.life.lock();
        life.opens -= 1;
        let over = life.opens == 0 && life.links == 0 && !life.evicted;
        life.evicted |= over;
        over
    }

    /// One open file (or call by path) less; evicts the inode if that was the last thing that kept it.
    pub(crate) fn drop_open(self: &Arc<Self>, inode: &Arc<Inode>) {
        if self.drop_count(inode) {
            self.evict(inode);
        }
    }
}

impl Task {
    /// Opens a file.
    ///
    /// # Errors
    /// ENOENT, EEXIST, EINVAL (a name that is empty or longer than [`NAME_MAX`], neither reading nor writing), EMFILE; with
    /// `truncate` also what [`Task::ftruncate`] says.
    pub fn open(&self, name: &str, flags: Flags) -> Result<Fd, Errno> {
        self.syscall(|| {
            let kernel = self.kernel();
            if name.is_empty() || name.len() > NAME_MAX || !(flags.access.read || flags.access.write) {
                return Err(Errno::EINVAL);
            }
            // Before anything is created or truncated, as `get_unused_fd_flags` comes first.
            if self.process().fds.lock().is_full() {
                return Err(Errno::EMFILE);
            }
            let inode = match flags.create {
                true => kernel.lookup_or_create(name, flags.exclusive)?,
                false => kernel.lookup(name)?,
            };
            if flags.truncate
                && let Err(errno) = self.resize(&inode, 0)
            {
                kernel.drop_open(&inode);
                return Err(errno);
            }
            let open = Open::File { inode, access: flags.access };
            self.install(kernel.new_description(open, Arc::new(Custody::default())))
        })
    }

    /// Removes a name. The file lives on while it is open; what is pinned then becomes orphaned.
    ///
    /// # Errors
    /// ENOENT.
    pub fn unlink(&self, name: &str) -> Result<(), Errno> {
        self.syscall(|| {
            let kernel = self.kernel();
            let inode = kernel.names.lock().remove(name).ok_or(Errno::ENOENT)?;
            let over = {
                let mut life = inode.life.lock();
                life.links -= 1;
                let over = life.links == 0 && life.opens == 0 && !life.evicted;
                life.evicted |= over;
                over
            };
            if over {
                kernel.evict(&inode);
            }
            Ok(())
        })
    }
}
