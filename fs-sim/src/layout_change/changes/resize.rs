//! Resizing: truncate and growth without allocation.
//!
//! It owns the change "everything from the new end on leaves". Invariant: bytes beyond the end of
//! the file read as zeros if the file grows again. Kernel counterpart: `xfs_setattr_size`,
//! `truncate_inode_pages`.

use emulator::sync::Arc;

use crate::base::errno::Errno;
use crate::base::range::BlockRange;
use crate::base::units::{BLOCK, FILE_MAX};
use crate::extent_map::Layout;
use crate::extent_map::lookup::{mapped, tail_block};
use crate::layout_change::copy::zero_to_block_end;
use crate::layout_change::driver::change_layout;
use crate::layout_change::plan::{Change, ChangePlan, ClearedBlocks, Patience};
use crate::vfs::inode::Inode;
use crate::vfs::kernel::Kernel;
use crate::vfs::task::Task;

/// Sets the size to this many bytes.
struct Resize(pub(crate) u64);

impl Change for Resize {
    fn plan(&self, layout: &Layout) -> Result<Option<ChangePlan>, Errno> {
        let size = layout.size();
        let gone = BlockRange::from(self.0.div_ceil(BLOCK));
        if self.0 == size && mapped(layout, gone).next().is_none() {
            return Ok(None);
        }
        // A size change touches everything from the smaller size on.
        let smaller = self.0.min(size);
        Ok(Some(ChangePlan {
            touches: BlockRange::from(smaller / BLOCK).into(),
            leaves: vec![gone],
            writes: vec![tail_block(smaller)],
            zeroes: vec![tail_block(smaller)],
            ..ChangePlan::default()
        }))
    }

    fn apply(&self, kernel: &Kernel, layout: &Layout, _ready: &ClearedBlocks<'_>) -> Layout {
        let old = layout.size();
        // A shrinking file loses the rest of its last block; in a growing one, bytes that a
        // mapping stored past the end must not appear.
        zero_to_block_end(kernel, layout, self.0.min(old));
        let (shorter, _removed) = layout.without(BlockRange::from(self.0.div_ceil(BLOCK)));
        shorter.with_size(self.0)
    }
}

pub(crate) fn resize(task: &Task, inode: &Arc<Inode>, size: u64) -> Result<(), Errno> {
    if size > FILE_MAX {
        return Err(Errno::EFBIG);
    }
    change_layout(task, inode, &Resize(size), Patience::Waits).map(|_| ())
}
