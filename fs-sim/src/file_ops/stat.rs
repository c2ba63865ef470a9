//! `stat` and `fiemap`: looking at a file without touching it.
//!
//! It owns nothing. Both break no lease and take no lock.

use crate::errno::Errno;
use crate::extent_map::{FiemapExtent, Layout};
use crate::inode::{Ino, Inode};
use crate::process::fd_table::Fd;
use crate::process::task::Task;
use crate::range::BlockRange;

/// What `stat` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// The inode's number.
    pub ino: Ino,
    /// Size in bytes.
    pub size: u64,
    /// Allocated 4 KiB blocks.
    pub blocks: u64,
    /// Names.
    pub links: u32,
    /// The user that owns it.
    pub uid: u32,
    /// Permission bits.
    pub mode: u32,
}

impl Stat {
    pub(crate) fn of(inode: &Inode) -> Stat {
        let (size, blocks) = inode.layout(|layout| (layout.size(), layout.mapped_blocks()));
        let links = inode.life.lock().links;
        Stat { ino: inode.ino(), size, blocks, links, uid: inode.uid(), mode: inode.mode() }
    }
}

impl Task {
    /// Tells about the file open as `fd`.
    ///
    /// # Errors
    /// EBADF, EINVAL (not a file).
    pub fn stat(&self, fd: Fd) -> Result<Stat, Errno> {
        self.with_named_file(fd, |_, inode, _| Ok(Stat::of(inode)))
    }

    /// The extents of the file open as `fd` in a block range, in file order.
    ///
    /// # Errors
    /// EBADF, EINVAL (not a file).
    pub fn fiemap(&self, fd: Fd, range: BlockRange) -> Result<Vec<FiemapExtent>, Errno> {
        self.with_file(fd, |_, inode, _| Ok(inode.layout(|layout: &Layout| layout.fiemap(range))))
    }
}
