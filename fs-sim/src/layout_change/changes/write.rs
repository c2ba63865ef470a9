//! Writes that allocate or extend.
//!
//! It owns the change behind such a write. Invariants: an extending write publishes data and size
//! at once; bytes go into blocks that no other task can reach, or that stay the file's while the
//! turn is held. Kernel counterpart: `dax_iomap_rw` with `IOMAP_WRITE` over a hole.

use crate::base::errno::Errno;
use crate::base::range::BlockRange;
use crate::base::units::BLOCK;
use crate::extent_map::lookup::{fill_holes, holes, marked, pages_of, pieces_in, tail_block};
use crate::extent_map::{ExtentState, Layout, Piece};
use crate::layout_change::copy::{heal_for_write, store_bytes, zero_blocks, zero_to_block_end};
use crate::layout_change::plan::{Change, ChangePlan, ClearedBlocks};
use crate::vfs::kernel::Kernel;

/// A write that allocates or extends; under `write_break = conservative`, any write.
pub(crate) struct WriteChange<'a> {
    pub(crate) offset: u64,
    pub(crate) data: &'a [u8],
    /// Whether every write counts as a change.
    pub(crate) conservative: bool,
}

impl WriteChange<'_> {
    fn end(&self) -> u64 {
        self.offset + self.data.len() as u64
    }

    fn range(&self) -> BlockRange {
        BlockRange::of_bytes(self.offset, self.data.len() as u64)
    }
}

impl Change for WriteChange<'_> {
    fn plan(&self, layout: &Layout) -> Result<Option<ChangePlan>, Errno> {
        let blocks = holes(layout, self.range());
        let grows = self.end() > layout.size();
        let changes = blocks > 0 || grows || self.conservative;
        if !changes && !marked(layout, self.range()) {
            return Ok(None);
        }
        let touches = match grows {
            true => BlockRange::from(self.range().start.min(layout.size() / BLOCK)),
            false => self.range(),
        };
        // The bytes behind the old end, in the block of the old end, are zeroed if the write
        // begins behind that block.
        let tail = if grows { tail_block(layout.size()) } else { BlockRange::NONE };
        let tail = tail.intersect(BlockRange::new(0, self.range().start));
        let writes = vec![tail, self.range()];
        let zeroes = vec![tail];
        let whole = (self.offset | self.data.len() as u64).is_multiple_of(BLOCK);
        let overwrites = whole.then_some(self.range());
        Ok(Some(ChangePlan {
            touches: changes.then_some(touches).into(),
            blocks,
            writes,
            overwrites,
            zeroes,
            ..ChangePlan::default()
        }))
    }

    fn meets_file(&self) -> bool {
        false
    }

    /// Blocks that were there stay the file's while the turn is held; no other task can reach the
    /// new ones.
    fn apply(&self, kernel: &Kernel, layout: &Layout, ready: &ClearedBlocks<'_>) -> Layout {
        if self.end() > layout.size() {
            zero_to_block_end(kernel, layout, layout.size());
        }
        for pages in ready.fresh {
            zero_blocks(kernel, *pages);
        }
        let mut next = fill_holes(layout, self.range(), ready.fresh, ExtentState::Written);
        for piece in pieces_in(&next.clone(), self.range()) {
            let Piece::Mapped(extent) = piece else { continue };
            if extent.state == ExtentState::Unwritten {
                zero_blocks(kernel, pages_of(&extent));
                let blocks = BlockRange::new(extent.file_block, extent.file_block + u64::from(extent.len));
                next = next.with_state(blocks, ExtentState::Written);
            }
            let start = extent.file_block * BLOCK;
            let from = self.offset.max(start);
            let to = self.end().min(start + u64::from(extent.len) * BLOCK);
            let window = (from - self.offset) as usize..(to - self.offset) as usize;
            heal_for_write(kernel, pages_of(&extent), self.offset, self.data.len() as u64);
            store_bytes(kernel, extent.block * BLOCK + (from - start), &self.data[window]);
        }
        let size = next.size().max(self.end());
        next.with_size(size)
    }
}
