//! Collapse and insert range: blocks keep their contents and get another offset in the file.
//!
//! It owns the two changes. Invariants: a block that moves is judged as one that leaves, because a
//! region registered for its old offset must not reach it at the new one; it is never freed; where
//! the design lets its holder keep it, the file continues with a copy **\[chosen\]**. Kernel
//! counterpart: `xfs_falloc_collapse_range`, `xfs_falloc_insert_range`.

use emulator::sync::Arc;

use crate::base::errno::Errno;
use crate::base::range::BlockRange;
use crate::base::units::{BLOCK, FILE_MAX};
use crate::extent_map::Layout;
use crate::layout_change::driver::change_layout;
use crate::layout_change::plan::{Change, ChangePlan, ClearedBlocks, Patience};
use crate::vfs::inode::Inode;
use crate::vfs::kernel::Kernel;
use crate::vfs::task::Task;

/// Removes a range of bytes and moves what is behind it forward.
struct Collapse {
    offset: u64,
    len: u64,
}

impl Collapse {
    fn blocks(&self) -> BlockRange {
        BlockRange::of_bytes(self.offset, self.len)
    }
}

impl Change for Collapse {
    fn plan(&self, layout: &Layout) -> Result<Option<ChangePlan>, Errno> {
        let blocks = aligned(self.offset, self.len)?;
        // Linux: a range that reaches the end of the file is truncated, not collapsed.
        if blocks.end * BLOCK >= layout.size() {
            return Err(Errno::EINVAL);
        }
        Ok(Some(ChangePlan {
            touches: BlockRange::from(blocks.start).into(),
            leaves: vec![blocks],
            moves: vec![BlockRange::from(blocks.end)],
            ..ChangePlan::default()
        }))
    }

    fn apply(&self, _kernel: &Kernel, layout: &Layout, _ready: &ClearedBlocks<'_>) -> Layout {
        let (shorter, _removed) = layout.collapsed(self.blocks());
        shorter.with_size(layout.size() - self.len)
    }
}

/// Moves what is in a range of bytes and behind it back by the range's length.
struct Insert {
    offset: u64,
    len: u64,
}

impl Insert {
    fn blocks(&self) -> BlockRange {
        BlockRange::of_bytes(self.offset, self.len)
    }
}

impl Change for Insert {
    fn plan(&self, layout: &Layout) -> Result<Option<ChangePlan>, Errno> {
        let (size, blocks) = (layout.size(), aligned(self.offset, self.len)?);
        if size + self.len > FILE_MAX || layout.inserted(blocks.start, blocks.len()).is_none() {
            return Err(Errno::EFBIG);
        }
        if self.offset >= size {
            return Err(Errno::EINVAL);
        }
        let behind = BlockRange::from(blocks.start);
        Ok(Some(ChangePlan { touches: behind.into(), moves: vec![behind], ..ChangePlan::default() }))
    }

    fn apply(&self, _kernel: &Kernel, layout: &Layout, _ready: &ClearedBlocks<'_>) -> Layout {
        // The plan has checked the bounds. Copies of blocks that stay behind lie at the same
        // offsets as the blocks did.
        let blocks = self.blocks();
        let longer = layout.inserted(blocks.start, blocks.len()).unwrap_or_else(|| layout.clone());
        longer.with_size(layout.size() + self.len)
    }
}

fn aligned(offset: u64, len: u64) -> Result<BlockRange, Errno> {
    match offset.is_multiple_of(BLOCK) && len.is_multiple_of(BLOCK) {
        true => Ok(BlockRange::of_bytes(offset, len)),
        false => Err(Errno::EINVAL),
    }
}

pub(crate) fn collapse(task: &Task, inode: &Arc<Inode>, offset: u64, len: u64) -> Result<(), Errno> {
    change_layout(task, inode, &Collapse { offset, len }, Patience::Waits).map(|_| ())
}

pub(crate) fn insert_range(task: &Task, inode: &Arc<Inode>, offset: u64, len: u64) -> Result<(), Errno> {
    change_layout(task, inode, &Insert { offset, len }, Patience::Waits).map(|_| ())
}
