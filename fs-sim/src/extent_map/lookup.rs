//! Questions about a layout, and small edits of it, in terms of pieces.
//!
//! It owns the arithmetic between file blocks and device pages. Invariant: a result is in file
//! order. Kernel counterpart: `xfs_iext_lookup_extent`.

use emulator::pin::PageRange;

use crate::base::page_sets::{common, without};
use crate::base::range::BlockRange;
use crate::base::units::BLOCK;
use crate::extent_map::{Extent, ExtentState, Layout, Piece};

/// How many blocks of a range are holes.
pub(crate) fn holes(layout: &Layout, range: BlockRange) -> u64 {
    pieces_in(layout, range)
        .iter()
        .map(|piece| match piece {
            Piece::Hole { len, .. } => *len,
            Piece::Mapped(_) => 0,
        })
        .sum()
}

/// Spreads new blocks over the holes of a range.
pub(crate) fn fill_holes(layout: &Layout, range: BlockRange, fresh: &[PageRange], state: ExtentState) -> Layout {
    const NONE: PageRange = PageRange::new(0, 0);
    let mut fresh = fresh.iter().copied();
    let mut run = fresh.next().unwrap_or(NONE);
    let mut added = Vec::new();
    for piece in pieces_in(layout, range) {
        let Piece::Hole { mut file_block, mut len } = piece else { continue };
        while len > 0 && !run.is_empty() {
            let n = len.min(run.len());
            added.push(Extent::new(file_block, run.start(), n, state));
            file_block += n;
            len -= n;
            run = PageRange::new(run.start() + n, run.len() - n);
            if run.is_empty() {
                run = fresh.next().unwrap_or(NONE);
            }
        }
    }
    layout.with_mapped(&added)
}

/// Whether a range has blocks that may be shared: writing it may take more than writing.
pub(crate) fn marked(layout: &Layout, range: BlockRange) -> bool {
    mapped(layout, range).any(|extent| extent.shared)
}

/// The block in which byte `size` lies, if it lies inside one: bytes behind an old or new end are
/// zeroed there.
pub(crate) fn tail_block(size: u64) -> BlockRange {
    let block = size / BLOCK;
    if size.is_multiple_of(BLOCK) { BlockRange::NONE } else { BlockRange::new(block, block + 1) }
}

/// The mapped extents of a range, in file order.
pub(crate) fn mapped(layout: &Layout, range: BlockRange) -> impl Iterator<Item = Extent> + '_ {
    pieces_in(layout, range).into_iter().filter_map(|piece| match piece {
        Piece::Mapped(extent) => Some(extent),
        Piece::Hole { .. } => None,
    })
}

/// The part of an extent on `pages`, which lie inside.
pub(crate) fn part_on(extent: Extent, pages: PageRange) -> Extent {
    let file_block = extent.file_block + (pages.start() - extent.block);
    Extent { shared: extent.shared, ..Extent::new(file_block, pages.start(), pages.len(), extent.state) }
}

/// The parts of an extent that are not on `pages`.
pub(crate) fn parts_beside(extent: Extent, pages: &[PageRange]) -> impl Iterator<Item = Extent> + use<> {
    without(&[pages_of(&extent)], pages).into_iter().map(move |pages| part_on(extent, pages))
}

pub(crate) fn parts_on(extent: Extent, pages: &[PageRange]) -> Vec<Extent> {
    common(&[pages_of(&extent)], pages).into_iter().map(|pages| part_on(extent, pages)).collect()
}

/// Extents that place each run of new blocks where it replaces part of `extent`, in file order.
pub(crate) fn replacements(extent: Extent, fresh: &[PageRange]) -> Vec<Extent> {
    let mut next = extent.file_block;
    let place = |run: &PageRange| {
        let placed = Extent::new(next, run.start(), run.len(), extent.state);
        next += run.len();
        placed
    };
    fresh.iter().map(place).collect()
}

/// The layout with an extent's blocks replaced by new ones.
pub(crate) fn replaced(layout: &Layout, extent: Extent, fresh: &[PageRange]) -> Layout {
    layout.without(extent.range()).0.with_mapped(&replacements(extent, fresh))
}

pub(crate) fn runs(layout: &Layout) -> u64 {
    let mut end = None;
    let begins = layout.extents().filter(|extent| {
        let goes_on = end == Some((extent.file_block, extent.block));
        end = Some((extent.end(), extent.block + u64::from(extent.len)));
        !goes_on
    });
    begins.count() as u64
}

/// Whether bytes can be written there in place.
pub(crate) fn is_writable(piece: &Piece) -> bool {
    matches!(piece, Piece::Mapped(extent) if extent.state == ExtentState::Written && !extent.shared)
}

/// The device pages of an extent.
pub(crate) fn pages_of(extent: &Extent) -> PageRange {
    PageRange::new(extent.block, u64::from(extent.len))
}

/// The pieces of a layout in a range that may reach to infinity.
pub(crate) fn pieces_in(layout: &Layout, range: BlockRange) -> Vec<Piece> {
    layout.pieces(range.start, range.len()).collect()
}
