//! Opening and creating files; and the eviction of what has neither name nor open file.
//!
//! It owns the open counts. Invariant: an inode is evicted once, when both are zero. Kernel counterpart: fs/namei.c,
//! `iput_final`.

use emulator::race_point;
use emulator::sync::Arc;
use emulator::sync::atomic::Ordering;

use crate::Kernel;
use crate::base_lease::Type;
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
    /// `O_NONBLOCK`: does not wait for base leases.
    pub nonblock: bool,
    /// `O_PATH`: only names the file; all other flags mean nothing then.
    pub path: bool,
}

impl Flags {
    /// Open what exists.
    pub fn open(access: Access) -> Flags {
        Flags { access, create: false, exclusive: false, truncate: false, nonblock: false, path: false }
    }

    /// Open for reading and writing, creating it if need be.
    pub fn create() -> Flags {
        Flags { create: true, ..Flags::open(Access::BOTH) }
    }

    /// Name what exists.
    pub fn path() -> Flags {
        Flags { path: true, ..Flags::open(Access::PATH) }
    }
}

/// The longest name, in bytes.
pub const NAME_MAX: usize = 255;

impl Kernel {
    /// The inode called `name`, counted as open until [`Kernel::drop_open`].
    pub(crate) fn lookup(self: &Arc<Self>, name: &str) -> Result<Arc<Inode>, Errno> {
        loop {
            self.mount.check()?;
            let inode = self.names.lock().get(name).cloned().ok_or(Errno::ENOENT)?;
            race_point!("lookup: found, not counted");
            if inode.count_open() {
                // Again, now that it counts: see `Mount::check`.
                let mounted = self.mount.check();
                return mounted.inspect_err(|_| self.drop_open(&inode)).map(|()| inode);
            }
            // Names go before the links they count for, so by now the name means another file (a rename replaces at once) or
            // none. This one again it can't mean.
        }
    }

    /// The inode called `name` or a new one of `uid`'s, counted as open; and whether it is new.
    fn lookup_or_create(self: &Arc<Self>, name: &str, exclusive: bool, uid: u32) -> Result<(Arc<Inode>, bool), Errno> {
        loop {
            match self.lookup(name) {
                Ok(inode) if exclusive => {
                    self.drop_open(&inode);
                    return Err(Errno::EEXIST);
                }
                Ok(inode) => return Ok((inode, false)),
                Err(Errno::ENOENT) => {}
                Err(errno) => return Err(errno),
            }
            let inode = Arc::new(Inode::new(Ino(self.next_ino.fetch_add(1, Ordering::Relaxed)), uid));
            inode.life.lock().opens = 1;
            let mut names = self.mounted_names()?;
            if !names.contains_key(name) {
                names.insert(name.to_owned(), Arc::clone(&inode));
                drop(names);
                self.inodes.insert(inode.ino(), Arc::clone(&inode));
                return Ok((inode, true));
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
    /// Opens a file. Waits for the base leases that this breaks.
    ///
    /// # Errors
    /// ENOENT, EEXIST, ENODEV (not mounted, or the device is gone), EINVAL (a name that is empty or longer than [`NAME_MAX`], neither reading nor writing), EMFILE, EACCES
    /// (the file's mode), ETXTBSY (for writing, while a program runs from it), EAGAIN (`nonblock`, and a base lease is in the
    /// way: its break goes on), EINTR; with `truncate` also what [`Task::ftruncate`] says. A file created stays, whatever
    /// comes after.
    pub fn open(&self, name: &str, flags: Flags) -> Result<Fd, Errno> {
        self.syscall(|| {
            let kernel = self.kernel();
            if name.is_empty() || name.len() > NAME_MAX || !(flags.path || flags.access.is_open()) {
                return Err(Errno::EINVAL);
            }
            // Before anything is created or truncated, as `get_unused_fd_flags` comes first.
            if self.process().fds.lock().is_full() {
                return Err(Errno::EMFILE);
            }
            let uid = self.process().credentials().uid;
            let (inode, created) = match flags.create && !flags.path {
                true => kernel.lookup_or_create(name, flags.exclusive, uid)?,
                false => (kernel.lookup(name)?, false),
            };
            let access = if flags.path { Access::PATH } else { flags.access };
            if let Err(errno) = self.enter_inode(&inode, Flags { access, ..flags }, created) {
                kernel.drop_open(&inode);
                return Err(errno);
            }
            let open = Open::File { inode, access };
            self.install(kernel.new_description(open, Arc::new(Custody::default())))
        })
    }

    /// What an open must pass once the name is found: permission, programs that run from the file, base leases, truncation.
    /// It counts as open from before it waits. Kernel: `do_open`, `do_dentry_open`, `handle_truncate`.
    pub(crate) fn enter_inode(&self, inode: &Arc<Inode>, flags: Flags, created: bool) -> Result<(), Errno> {
        let Flags { access, .. } = flags;
        if !access.is_open() {
            return Ok(());
        }
        let truncates = flags.truncate && !created;
        let wanted = u32::from(access.read) * 4 + u32::from(access.write || truncates) * 2;
        if !created && !inode.permits(self.process().credentials(), wanted) {
            return Err(Errno::EACCES);
        }
        inode.base.lock().enter(access)?;
        let breaker = if access.write { Type::Write } else { Type::Read };
        let broken = self.break_base_leases(inode, breaker, flags.nonblock);
        let entered = broken.and_then(|()| if truncates { self.resize_as_writer(inode, 0) } else { Ok(()) });
        entered.inspect_err(|_| inode.base.lock().leave(access))
    }
}
