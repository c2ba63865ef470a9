//! Truncate: setting a file's size.
//!
//! It owns the change "everything from the new end on goes". Invariant: bytes beyond the end of the file read as zeros if the
//! file grows again. Kernel counterpart: `xfs_setattr_size`, `truncate_inode_pages`.

use emulator::sync::Arc;

use super::change::{Change, Patience, Plan, Ready};
use super::plan::{mapped, tail_block};
use crate::errno::Errno;
use crate::extent_map::{ExtentState, Layout};
use crate::inode::Inode;
use crate::process::fd_table::Fd;
use crate::process::task::Task;
use crate::range::BlockRange;
use crate::{BLOCK, FILE_MAX, Kernel};

/// Set the size to so many bytes.
pub(crate) struct Resize(pub(crate) u64);

impl Change for Resize {
    fn plan(&self, layout: &Layout) -> Result<Option<Plan>, Errno> {
        let size = layout.size();
        let gone = BlockRange::from(self.0.div_ceil(BLOCK));
        if self.0 == size && mapped(layout, gone).next().is_none() {
            return Ok(None);
        }
        // A size change touches everything from the smaller size on.
        let smaller = self.0.min(size);
        Ok(Some(Plan {
            touches: Some(BlockRange::from(smaller / BLOCK)),
            leaves: vec![gone],
            writes: vec![tail_block(smaller)],
            ..Plan::default()
        }))
    }

    fn apply(&self, kernel: &Kernel, layout: &Layout, _ready: &Ready<'_>) -> Layout {
        let old = layout.size();
        // Shrinking, the rest of the last block goes; growing, what a mapping stored past the end must not appear.
        kernel.zero_to_block_end(layout, self.0.min(old));
        let (shorter, _removed) = layout.without(BlockRange::from(self.0.div_ceil(BLOCK)));
        shorter.with_size(self.0)
    }
}

impl Kernel {
    /// Zeroes from byte `offset` of a file to the end of the block it lies in, if that block is mapped and written.
    pub(crate) fn zero_to_block_end(&self, layout: &Layout, offset: u64) {
        if !offset.is_multiple_of(BLOCK) {
            self.zero_within_block(layout, offset, BLOCK - offset % BLOCK);
        }
    }

    /// Zeroes `len` bytes at byte `offset`, which lie in one block, if that block is mapped and written.
    pub(crate) fn zero_within_block(&self, layout: &Layout, offset: u64, len: u64) {
        if let Some(extent) = layout.lookup(offset / BLOCK)
            && extent.state == ExtentState::Written
        {
            let block = extent.block + (offset / BLOCK - extent.file_block);
            let zeros = [0u8; BLOCK as usize];
            // The block is the volume's own: the device has it.
            let _in_range = self.device.write(block * BLOCK + offset % BLOCK, &zeros[..len as usize]);
        }
    }
}

impl Task {
    /// Sets the size of the file called `name`.
    ///
    /// # Errors
    /// ENOENT, EFBIG; ETXTBSY, EDEADLK, EINTR as the design says.
    pub fn truncate(&self, name: &str, size: u64) -> Result<(), Errno> {
        self.syscall(|| {
            let inode = self.kernel().lookup(name)?;
            let resized = self.resize(&inode, size);
            self.kernel().drop_open(&inode);
            resized
        })
    }

    /// Sets the size of the file open as `fd`.
    ///
    /// # Errors
    /// EBADF, EINVAL (not open for writing, not a file), EFBIG; ETXTBSY, EDEADLK, EINTR as the design says.
    pub fn ftruncate(&self, fd: Fd, size: u64) -> Result<(), Errno> {
        self.with_file(fd, |_, inode, access| {
            if !access.write {
                return Err(Errno::EINVAL);
            }
            self.resize(inode, size)
        })
    }

    pub(crate) fn resize(&self, inode: &Arc<Inode>, size: u64) -> Result<(), Errno> {
        if size > FILE_MAX {
            return Err(Errno::EFBIG);
        }
        self.change(inode, &Resize(size), Patience::Waits).map(|_| ())
    }
}
