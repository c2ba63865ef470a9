//! `stat` and `fiemap`.
//!
//! It owns nothing. Invariant: neither breaks a lease or takes a lock. Kernel counterpart:
//! fs/stat.c, `iomap_fiemap`.

use emulator::sync::Arc;

use crate::base::errno::Errno;
use crate::base::numbers::{Fd, Ino};
use crate::base::range::BlockRange;
use crate::extent_map::{FiemapExtent, Layout};
use crate::vfs::inode::Inode;
use crate::vfs::memory_file::MemoryFile;
use crate::vfs::task::Task;

/// What `stat` returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileStat {
    /// The inode's number.
    pub ino: Ino,
    /// Size in bytes.
    pub size: u64,
    /// Allocated 4 KiB blocks.
    pub blocks: u64,
    /// How many names it has.
    pub links: u32,
    /// The user that owns it.
    pub uid: u32,
    /// Permission bits.
    pub mode: u32,
}

impl FileStat {
    pub(crate) fn of(inode: &Inode) -> FileStat {
        let (size, blocks) = inode.layout(|layout| (layout.size(), layout.mapped_blocks()));
        let links = inode.life.lock().links;
        FileStat { ino: inode.ino(), size, blocks, links, uid: inode.uid(), mode: inode.mode() }
    }
}

impl Task {
    /// Status of the file or the directory open as `fd`.
    ///
    /// # Errors
    /// EBADF, EINVAL (neither).
    pub fn stat(&self, fd: Fd) -> Result<FileStat, Errno> {
        self.with_named_inode(fd, |_, inode, _| Ok(FileStat::of(inode)))
    }

    /// The size in bytes of the file open as `fd`, also of one that is not DAX.
    ///
    /// # Errors
    /// EBADF, EINVAL (neither).
    pub fn file_size(&self, fd: Fd) -> Result<u64, Errno> {
        self.with_open(fd, |description| match (description.inode(), MemoryFile::of(description)) {
            (Some((inode, _)), _) => Ok(FileStat::of(inode).size),
            (None, Some(file)) => Ok(file.size()),
            (None, None) => Err(Errno::EINVAL),
        })
    }

    /// The extents of the file open as `fd` in a block range, in file order.
    ///
    /// # Errors
    /// EBADF, EINVAL (not a file).
    pub fn fiemap(&self, fd: Fd, range: BlockRange) -> Result<Vec<FiemapExtent>, Errno> {
        self.with_file(fd, |_, inode, _| Ok(inode.layout(|layout: &Layout| layout.fiemap(range))))
    }

    /// The inode of the file or the directory open as `fd`, for questions.
    ///
    /// # Errors
    /// EBADF, EINVAL (neither).
    pub fn inode(&self, fd: Fd) -> Result<Arc<Inode>, Errno> {
        let description = self.description(fd)?;
        description.inode().map(|(inode, _)| Arc::clone(inode)).ok_or(Errno::EINVAL)
    }
}
