//! Truncate and ftruncate.
//!
//! It owns the order of their checks: permission, ordinary leases, then the layout change. Kernel
//! counterpart: `vfs_truncate`, `do_sys_ftruncate` (fs/open.c).

use emulator::sync::Arc;

use crate::base::errno::Errno;
use crate::base::numbers::Fd;
use crate::layout_change::changes::resize::resize;
use crate::layout_change::publication::take_private_copies;
use crate::leases::posix::breaking::break_posix_leases;
use crate::leases::posix::table::{LeaseBreaker, PosixLeases};
use crate::vfs::inode::Inode;
use crate::vfs::lifecycle::LastReference;
use crate::vfs::memory_file::MemoryFile;
use crate::vfs::names::{drop_open, lookup};
use crate::vfs::open_file::{AccessMode, Description};
use crate::vfs::task::Task;

impl Task {
    /// Sets the size of the file called `name`. Breaks every ordinary lease first, the caller's
    /// own too, even if the size stays: then the caller waits for itself, unless the signal that
    /// it gets interrupts it. Kernel: `vfs_truncate`.
    ///
    /// # Errors
    /// ENOENT, EACCES (the file's mode), ETXTBSY (a program runs from it), EINTR, EFBIG; ETXTBSY,
    /// EDEADLK, EINTR as the design says.
    pub fn truncate(&self, name: &str, size: u64) -> Result<(), Errno> {
        self.syscall(|| {
            let inode = lookup(self.kernel(), name, LastReference::Call(self))?;
            let resized = match inode.permits(self.process().credentials(), 2) {
                true => as_writer(self, &inode, || {
                    break_posix_leases(self, &inode, LeaseBreaker::WRITER, false)?;
                    resize(self, &inode, size)
                }),
                false => Err(Errno::EACCES),
            };
            drop_open(self.kernel(), &inode, LastReference::Call(self));
            resized
        })
    }

    /// Sets the size of the file open as `fd`.
    ///
    /// # Errors
    /// EBADF, EINVAL (not open for writing, not a file), EFBIG, EAGAIN (the file has a delegation,
    /// which can only be a write delegation of this open file: the break of it continues); ETXTBSY,
    /// EDEADLK, EINTR as the design says.
    pub fn ftruncate(&self, fd: Fd, size: u64) -> Result<(), Errno> {
        self.with_open(fd, |description| {
            if let Some(file) = MemoryFile::of(description) {
                return resize_memory_file(self, &file, size);
            }
            let (inode, access) = description.opened_file()?;
            if !access.write {
                return Err(Errno::EINVAL);
            }
            break_posix_leases(self, inode, LeaseBreaker::CHANGE, true)?;
            resize(self, inode, size)
        })
    }
}

/// A file that is not DAX loses its pages at once, whatever holds them.
fn resize_memory_file(task: &Task, file: &Arc<MemoryFile>, size: u64) -> Result<(), Errno> {
    let is_open = |description: &Description| MemoryFile::of(description).is_some_and(|of| Arc::ptr_eq(&of, file));
    file.resize(size, || take_private_copies(task.kernel(), &is_open, size))
}

/// `O_TRUNC`: the caller counts as a writer meanwhile, however it opens the file. It does not wait
/// for a delegation, whose break continues. Kernel: `do_truncate`, which passes no delegated inode.
pub(crate) fn resize_as_writer(task: &Task, inode: &Arc<Inode>, size: u64) -> Result<(), Errno> {
    as_writer(task, inode, || {
        break_posix_leases(task, inode, LeaseBreaker::CHANGE, true)?;
        resize(task, inode, size)
    })
}

/// Runs a call that writes without a descriptor open for it. Kernel: `get_write_access`.
fn as_writer(_task: &Task, inode: &Inode, body: impl FnOnce() -> Result<(), Errno>) -> Result<(), Errno> {
    PosixLeases::of(inode).lock().enter(AccessMode::WRITE)?;
    let result = body();
    PosixLeases::of(inode).lock().leave(AccessMode::WRITE);
    result
}
