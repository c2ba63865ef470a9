//! Truncate: setting a file's size.
//!
//! It owns the change "everything from the new end on goes". Invariant: bytes beyond the end of the file read as zeros if the
//! file grows again. Kernel counterpart: `xfs_setattr_size`, `truncate_inode_pages`.

use emulator::sync::Arc;

use super::change::{Change, Patience, Plan, Ready};
use super::plan::{mapped, tail_block};
use crate::base_lease::Type;
use crate::errno::Errno;
use crate::extent_map::{ExtentState, Layout};
use crate::inode::Inode;
use crate::process::description::Access;
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
            touches: BlockRange::from(smaller / BLOCK).into(),
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
    /// Sets the size of the file called `name`. Breaks every base lease first, the caller's own too, and even if the size
    /// stays: the caller waits for itself, unless the signal it gets interrupts it. Kernel: `vfs_truncate`.
    ///
    /// # Errors
    /// ENOENT, EACCES (the file's mode), ETXTBSY (a program runs from it), EINTR, EFBIG; ETXTBSY, EDEADLK, EINTR as the design
    /// says.
    pub fn truncate(&self, name: &str, size: u64) -> Result<(), Errno> {
        self.syscall(|| {
            let inode = self.kernel().lookup(name)?;
            let resized = match inode.permits(self.process().credentials(), 2) {
                true => self.as_writer(&inode, || {
                    self.break_base_leases(&inode, Type::Write, false)?;
                    self.resize(&inode, size)
                }),
                false => Err(Errno::EACCES),
            };
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

    /// `O_TRUNC`: a writer while it lasts, however the file is opened.
    pub(crate) fn resize_as_writer(&self, inode: &Arc<Inode>, size: u64) -> Result<(), Errno> {
        self.as_writer(inode, || self.resize(inode, size))
    }

    /// Runs a call that writes without a descriptor open for it. Kernel: `get_write_access`.
    fn as_writer(&self, inode: &Inode, body: impl FnOnce() -> Result<(), Errno>) -> Result<(), Errno> {
        inode.base.lock().enter(Access::WRITE)?;
        let result = body();
        inode.base.lock().leave(Access::WRITE);
        result
    }

    pub(crate) fn resize(&self, inode: &Arc<Inode>, size: u64) -> Result<(), Errno> {
        if size > FILE_MAX {
            return Err(Errno::EFBIG);
        }
        self.change(inode, &Resize(size), Patience::Waits).map(|_| ())
    }
}
