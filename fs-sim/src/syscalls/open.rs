//! Opening and creating files.
//!
//! It owns the order of the checks of an open. Invariant: a file counts as open from before its
//! open waits for anything. Kernel counterpart: `do_open`, `do_dentry_open` (fs/namei.c,
//! fs/open.c).

use emulator::sync::Arc;

use crate::base::errno::Errno;
use crate::base::numbers::Fd;
use crate::leases::posix::breaking::{break_posix_leases, is_delegated};
use crate::leases::posix::table::{LeaseBreaker, PosixLeases};
use crate::syscalls::truncate::resize_as_writer;
use crate::vfs::fd_holders::FdHolders;
use crate::vfs::inode::Inode;
use crate::vfs::lifecycle::LastReference;
use crate::vfs::names::{DIRECTORY_NAME, NAME_MAX, drop_open, lookup_any, lookup_or_create};
use crate::vfs::open_file::{AccessMode, Description, OpenTarget};
use crate::vfs::task::Task;

/// How to open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenFlags {
    /// Reading, writing.
    pub access: AccessMode,
    /// `O_CREAT`.
    pub create: bool,
    /// `O_EXCL`: with `create`, the name must be new.
    pub exclusive: bool,
    /// `O_TRUNC`: a layout change like any other.
    pub truncate: bool,
    /// `O_NONBLOCK`: does not wait for ordinary leases.
    pub nonblock: bool,
    /// `O_PATH`: only names the file; all other flags are ignored then.
    pub path: bool,
}

impl OpenFlags {
    /// Open what exists.
    pub fn open(access: AccessMode) -> OpenFlags {
        OpenFlags { access, create: false, exclusive: false, truncate: false, nonblock: false, path: false }
    }

    /// Open for reading and writing, creating it if need be.
    pub fn create() -> OpenFlags {
        OpenFlags { create: true, ..OpenFlags::open(AccessMode::BOTH) }
    }

    /// Name what exists.
    pub fn path() -> OpenFlags {
        OpenFlags { path: true, ..OpenFlags::open(AccessMode::PATH) }
    }
}

impl Task {
    /// Opens a file, or the directory by the name [`DIRECTORY_NAME`]. Waits for the ordinary leases
    /// that this breaks, and, to create a file, for delegations of the directory, also if
    /// `nonblock` is set.
    ///
    /// # Errors
    /// ENOENT, EEXIST, EISDIR (the directory, for writing, to create or to truncate it), ENODEV
    /// (not mounted, or the device is gone), EINVAL (a name that is empty or longer than
    /// [`NAME_MAX`], neither reading nor writing), EMFILE, EACCES (the file's mode), ETXTBSY (for
    /// writing, while a program runs from it), EAGAIN (`nonblock`, and an ordinary lease is in the
    /// way: its break continues), EINTR; with `truncate` also the errors of [`Task::ftruncate`]. A
    /// file created stays, whatever fails later.
    pub fn open(&self, name: &str, flags: OpenFlags) -> Result<Fd, Errno> {
        self.syscall(|| {
            let kernel = self.kernel();
            if name.is_empty() || name.len() > NAME_MAX || !(flags.path || flags.access.is_open()) {
                return Err(Errno::EINVAL);
            }
            // Before anything is created or truncated, as `get_unused_fd_flags` comes first.
            if self.process().fds.lock().is_full() {
                return Err(Errno::EMFILE);
            }
            if name == DIRECTORY_NAME && !flags.path && (flags.access.write || flags.create || flags.truncate) {
                return Err(Errno::EISDIR);
            }
            let (inode, created) = match flags.create && !flags.path {
                true => create(self, name, flags.exclusive)?,
                false => (lookup_any(kernel, name, LastReference::Call(self))?, false),
            };
            let access = if flags.path { AccessMode::PATH } else { flags.access };
            if let Err(errno) = enter_inode(self, &inode, OpenFlags { access, ..flags }, created) {
                drop_open(kernel, &inode, LastReference::Call(self));
                return Err(errno);
            }
            let open = OpenTarget::File { inode, access };
            self.install(kernel.new_description(open, Arc::new(FdHolders::default())))
        })
    }
}

/// The inode called `name`, or a new one; and whether it is new. Waits for delegations of the
/// directory before it makes one. Kernel: `lookup_open`, `break_deleg_wait`.
fn create(task: &Task, name: &str, exclusive: bool) -> Result<(Arc<Inode>, bool), Errno> {
    let directory = &task.kernel().directory;
    loop {
        match lookup_or_create(task, name, exclusive, || !is_delegated(directory))? {
            Some(found) => return Ok(found),
            None => break_posix_leases(task, directory, LeaseBreaker::CHANGE, false)?,
        }
    }
}

/// What an open must pass once the name is found: permission, running programs, ordinary leases,
/// truncation. The file counts as open before this waits. Kernel: `do_open`, `do_dentry_open`,
/// `handle_truncate`.
fn enter_inode(task: &Task, inode: &Arc<Inode>, flags: OpenFlags, created: bool) -> Result<(), Errno> {
    let OpenFlags { access, .. } = flags;
    if !access.is_open() {
        return Ok(());
    }
    let truncates = flags.truncate && !created;
    let wanted = u32::from(access.read) * 4 + u32::from(access.write || truncates) * 2;
    if !created && !inode.permits(task.process().credentials(), wanted) {
        return Err(Errno::EACCES);
    }
    PosixLeases::of(inode).lock().enter(access)?;
    let breaker = if access.write { LeaseBreaker::WRITER } else { LeaseBreaker::READER };
    let broken = break_posix_leases(task, inode, breaker, flags.nonblock);
    let entered = broken.and_then(|()| if truncates { resize_as_writer(task, inode, 0) } else { Ok(()) });
    entered.inspect_err(|_| PosixLeases::of(inode).lock().leave(access))
}

/// Opens the file that is open as `fd` once more, as a server does, in no descriptor table.
///
/// # Errors
/// EBADF, EINVAL (not a file), EACCES (`suits` rejects its access mode); the errors of an open
/// ([`Task::open`]).
pub(crate) fn open_again(
    task: &Task,
    fd: Fd,
    suits: impl FnOnce(AccessMode) -> bool,
) -> Result<Arc<Description>, Errno> {
    task.with_file(fd, |_, inode, access| {
        if !suits(access) {
            return Err(Errno::EACCES);
        }
        // It is open as `fd`, so it can't be evicted.
        inode.life.lock().opens += 1;
        enter_inode(task, inode, OpenFlags::open(access), false)
            .inspect_err(|_| drop_open(task.kernel(), inode, LastReference::Call(task)))?;
        let open = OpenTarget::File { inode: Arc::clone(inode), access };
        Ok(task.kernel().new_description(open, Arc::new(FdHolders::default())))
    })
}
