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

/// Removes a range and moves what is behind it forward.
struct Collapse(BlockRange);

impl Change for Collapse {
    fn plan(&self, layout: &Layout) -> Result<Option<ChangePlan>, Errno> {
        // Linux: a range that reaches the end of the file is truncated, not collapsed.
        if self.0.end * BLOCK >= layout.size() {
            return Err(Errno::EINVAL);
        }
        Ok(Some(ChangePlan {
            touches: BlockRange::from(self.0.start).into(),
            leaves: vec![self.0],
            moves: vec![BlockRange::from(self.0.end)],
            ..ChangePlan::default()
        }))
    }

    fn apply(&self, _kernel: &Kernel, layout: &Layout, _ready: &ClearedBlocks<'_>) -> Layout {
        let (shorter, _removed) = layout.collapsed(self.0);
        shorter.with_size(layout.size() - self.0.len() * BLOCK)
    }
}

/// Moves what is in a range and behind it back by the range's length.
struct Insert(BlockRange);

impl Change for Insert {
    fn plan(&self, layout: &Layout) -> Result<Option<ChangePlan>, Errno> {
        let size = layout.size();
        if size + self.0.len() * BLOCK > FILE_MAX || layout.inserted(self.0.start, self.0.len()).is_none() {
            return Err(Errno::EFBIG);
        }
        if self.0.start * BLOCK >= size {
            return Err(Errno::EINVAL);
        }
        let behind = BlockRange::from(self.0.start);
        Ok(Some(ChangePlan { touches: behind.into(), moves: vec![behind], ..ChangePlan::default() }))
    }

    fn apply(&self, _kernel: &Kernel, layout: &Layout, _ready: &ClearedBlocks<'_>) -> Layout {
        // The plan has checked the bounds. Copies of blocks that stay behind lie at the same
        // offsets as the blocks did.
        let longer = layout.inserted(self.0.start, self.0.len()).unwrap_or_else(|| layout.clone());
        longer.with_size(layout.size() + self.0.len() * BLOCK)
    }
}

fn aligned(offset: u64, len: u64) -> Result<BlockRange, Errno> {
    match offset.is_multiple_of(BLOCK) && len.is_multiple_of(BLOCK) {
        true => Ok(BlockRange::of_bytes(offset, len)),
        false => Err(Errno::EINVAL),
    }
}

pub(crate) fn collapse(task: &Task, inode: &Arc<Inode>, offset: u64, len: u64) -> Result<(), Errno> {
    change_layout(task, inode, &Collapse(aligned(offset, len)?), Patience::Waits).map(|_| ())
}

pub(crate) fn insert_range(task: &Task, inode: &Arc<Inode>, offset: u64, len: u64) -> Result<(), Errno> {
    change_layout(task, inode, &Insert(aligned(offset, len)?), Patience::Waits).map(|_| ())
}
