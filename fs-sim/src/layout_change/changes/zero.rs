//! Punching holes and zeroing ranges.
//!
//! It owns the two changes and the arithmetic of partial blocks at the edges. Invariants: a hole
//! punched over part of a block zeroes that part; a pinned block never turns unwritten unless the
//! design lets its holder decide **\[chosen\]**. Kernel counterpart: `xfs_free_file_space`,
//! `xfs_falloc_zero_range`.

use crate::base::errno::Errno;
use crate::base::range::BlockRange;
use crate::base::units::BLOCK;
use crate::extent_map::lookup::{fill_holes, mapped, marked, pages_of, pieces_in};
use crate::extent_map::{ExtentState, Layout, Piece};
use crate::layout_change::changes::allocate::Allocate;
use crate::layout_change::copy::{zero_to_block_end, zero_within_block};
use crate::layout_change::plan::{Change, ChangePlan, ClearedBlocks};
use crate::vfs::kernel::Kernel;

/// The parts of blocks at the two edges of a byte range.
pub(crate) fn edges(offset: u64, end: u64) -> impl Iterator<Item = (u64, u64)> {
    let first = (offset, offset.next_multiple_of(BLOCK).min(end));
    let last = ((end / BLOCK * BLOCK).max(first.1), end);
    [first, last].into_iter().filter(|(from, to)| from < to)
}

fn edge_blocks(offset: u64, end: u64) -> impl Iterator<Item = BlockRange> {
    edges(offset, end).map(|(from, to)| BlockRange::of_bytes(from, to - from))
}

/// Takes the whole blocks of a byte range out of the file and zeroes the partial ones.
pub(crate) struct Punch {
    pub(crate) offset: u64,
    pub(crate) end: u64,
}

impl Punch {
    fn whole(&self) -> BlockRange {
        BlockRange::new(self.offset.div_ceil(BLOCK), self.end / BLOCK)
    }
}

impl Change for Punch {
    fn plan(&self, layout: &Layout) -> Result<Option<ChangePlan>, Errno> {
        let leaves = mapped(layout, self.whole()).next().is_some();
        if !leaves && !edge_blocks(self.offset, self.end).any(|block| marked(layout, block)) {
            return Ok(None);
        }
        Ok(Some(ChangePlan {
            touches: leaves.then_some(self.whole()).into(),
            leaves: vec![self.whole()],
            writes: edge_blocks(self.offset, self.end).collect(),
            zeroes: edge_blocks(self.offset, self.end).collect(),
            ..ChangePlan::default()
        }))
    }

    fn apply(&self, kernel: &Kernel, layout: &Layout, _ready: &ClearedBlocks<'_>) -> Layout {
        for (from, to) in edges(self.offset, self.end) {
            zero_within_block(kernel, layout, from, to - from);
        }
        layout.without(self.whole()).0
    }
}

/// Allocates the holes of a byte range and turns its whole written blocks unwritten. For unpinned
/// blocks that is no layout change; for pinned ones it counts as one **\[chosen\]**. Where the
/// design lets a change proceed under pins, the pinned blocks are overwritten with zeros instead
/// and stay written. Shared blocks are replaced by new ones.
pub(crate) struct Zero {
    pub(crate) offset: u64,
    pub(crate) end: u64,
    pub(crate) size_min: u64,
}

impl Zero {
    /// Every block that the byte range touches.
    fn all(&self) -> BlockRange {
        BlockRange::of_bytes(self.offset, self.end - self.offset)
    }

    /// The blocks that lie wholly inside the byte range.
    fn whole(&self) -> BlockRange {
        BlockRange::new(self.offset.div_ceil(BLOCK), self.end / BLOCK)
    }
}

impl Change for Zero {
    fn plan(&self, layout: &Layout) -> Result<Option<ChangePlan>, Errno> {
        let state = ExtentState::Unwritten;
        let growth = Allocate { range: self.all(), size_min: self.size_min, state, unshare: false, by_fallocate: true };
        let growth = growth.plan(layout)?;
        let mut touched = mapped(layout, self.whole());
        let turns = touched.any(|extent| extent.state == ExtentState::Written);
        let edges: Vec<BlockRange> = edge_blocks(self.offset, self.end).collect();
        if growth.is_none() && !turns && !edges.iter().any(|block| marked(layout, *block)) {
            return Ok(None);
        }
        let mut plan = growth.unwrap_or_default();
        // An old end inside the range is zeroed with the rest.
        plan.writes.retain(|tail| !tail.overlaps(self.all()));
        plan.writes.extend(edges.iter().copied());
        plan.zeroes.retain(|tail| !tail.overlaps(self.all()));
        plan.zeroes.extend(edges);
        Ok(Some(ChangePlan { unwritten: vec![self.whole()], ..plan }))
    }

    fn apply(&self, kernel: &Kernel, layout: &Layout, ready: &ClearedBlocks<'_>) -> Layout {
        for (from, to) in edges(self.offset, self.end) {
            zero_within_block(kernel, layout, from, to - from);
        }
        if self.size_min > layout.size() {
            zero_to_block_end(kernel, layout, layout.size());
        }
        let mut next = fill_holes(layout, self.all(), ready.fresh, ExtentState::Unwritten);
        for piece in pieces_in(layout, self.whole()) {
            let Piece::Mapped(extent) = piece else { continue };
            for gone in ready.gone {
                if let Some(cut) = gone.intersect(pages_of(&extent)) {
                    let start = extent.file_block + (cut.start() - extent.block);
                    next = next.with_state(BlockRange::new(start, start + cut.len()), ExtentState::Unwritten);
                }
            }
        }
        let size = next.size().max(self.size_min);
        next.with_size(size)
    }
}
