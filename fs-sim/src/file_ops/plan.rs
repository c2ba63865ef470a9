//! What a layout change wants, in file blocks, and what that means for device pages.
//!
//! It owns the translation: a change names the file blocks that leave, move, become shared, turn unwritten or are written,
//! and [`Work`] finds the pages that must be without pins for it, the shared blocks that must be copied before they are
//! written, and the references that end. Invariants: a block that other mappings share is never shut for leaving one of
//! them, nor written, nor turned unwritten in place; a block without the mark is the file's alone. Kernel counterpart:
//! `xfs_reflink_trim_around_shared` and `xfs_reflink_allocate_cow`.
//!
//! # Shared blocks
//! The mark `shared` on an extent only says that its blocks *may* be shared; the counts ([`crate::volume::Shares`]) decide.
//! A marked block is written by nobody in place: it is replaced by a copy (a layout change), or, if its other mappings are
//! gone, shut for a moment (until whoever still reads it by way of another file has finished) and loses its mark. Shared
//! blocks are always written: cloning leaves unwritten blocks behind as holes.

use emulator::pin::PageRange;

use super::pages::{common, count, merge, without};
use crate::Kernel;
use crate::errno::Errno;
use crate::extent_map::{Extent, ExtentState, Layout, Piece};
use crate::gup::{pages_of, pieces_in};
use crate::inode::{Inode, TicketGuard};
use crate::range::{BlockRange, BlockRanges};
use crate::volume::Shares;

/// What a change wants of one file.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// The file blocks that leases must agree about, besides those of shared blocks that have to be copied, and of pinned
    /// ones that would turn unwritten.
    pub(crate) touches: BlockRanges,
    /// What is mapped here leaves the file.
    pub(crate) leaves: Vec<BlockRange>,
    /// What is mapped here becomes another block of this file, or of the other one.
    pub(crate) moves: Vec<BlockRange>,
    /// What is written here is mapped elsewhere too afterwards.
    pub(crate) shares: Vec<BlockRange>,
    /// What is written here turns unwritten.
    pub(crate) unwritten: Vec<BlockRange>,
    /// Bytes of what is mapped here are written, or it is to be the file's alone.
    pub(crate) writes: Vec<BlockRange>,
    /// Of that, blocks that are overwritten as a whole: what they held is not copied.
    pub(crate) overwrites: Option<BlockRange>,
    /// How many new blocks are needed, besides those for copies.
    pub(crate) blocks: u64,
}

/// Whether a range has blocks that may be shared: writing it may take more than writing.
pub(crate) fn marked(layout: &Layout, range: BlockRange) -> bool {
    mapped(layout, range).any(|extent| extent.shared)
}

/// The block that byte `size` lies in, if it lies within one: bytes behind an old or new end are zeroed there.
pub(crate) fn tail_block(size: u64) -> BlockRange {
    let block = size / crate::BLOCK;
    if size.is_multiple_of(crate::BLOCK) { BlockRange::NONE } else { BlockRange::new(block, block + 1) }
}

/// What is mapped in a range, in file order.
pub(crate) fn mapped(layout: &Layout, range: BlockRange) -> impl Iterator<Item = Extent> + '_ {
    pieces_in(layout, range).into_iter().filter_map(|piece| match piece {
        Piece::Mapped(extent) => Some(extent),
        Piece::Hole { .. } => None,
    })
}

/// What becomes of pages that are shut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// They leave the file and go to the allocator.
    Leaves,
    /// They change owner, offset or sharing.
    Moves,
    /// They stay, and turn unwritten.
    TurnsUnwritten,
    /// They stay, and lose their mark: nobody has a say, but whoever reads them by way of another file finishes first.
    LosesMark,
}

/// A plan for one file, worked out against its layout and the counts of shared blocks.
pub(crate) struct Work<'a> {
    pub(crate) inode: &'a Inode,
    pub(crate) ticket: &'a TicketGuard<'a>,
    /// The file blocks on which leases are asked.
    pub(super) touches: BlockRanges,
    /// The file blocks whose registrations are looked at.
    pub(super) range: BlockRange,
    /// The file blocks that leave, move, become shared or turn unwritten.
    changing: BlockRanges,
    pub(super) leaving: Vec<PageRange>,
    pub(super) moving: Vec<PageRange>,
    pub(super) turning: Vec<PageRange>,
    pub(super) losing_mark: Vec<PageRange>,
    /// All pages that pins are judged for, sorted.
    pub(super) judged: Vec<PageRange>,
    /// References to shared blocks that end.
    pub(super) released: Vec<PageRange>,
    /// Shared extents that are written, and replaced by copies first.
    copies: Vec<Extent>,
    /// Shared extents that are overwritten, and replaced by new blocks first.
    overwritten: Vec<Extent>,
    /// Shared extents that would turn unwritten: holes for the change to fill.
    vacated: Vec<BlockRange>,
    /// Marked, though no longer shared.
    unmarked: Vec<BlockRange>,
    /// Where pages move.
    moves: Vec<BlockRange>,
    /// New blocks needed, copies of shared blocks included.
    pub(super) blocks: u64,
}

impl<'a> Work<'a> {
    pub(super) fn new(
        plan: Plan,
        layout: &Layout,
        shares: &Shares,
        (inode, ticket): (&'a Inode, &'a TicketGuard<'a>),
    ) -> Work<'a> {
        let mut work = Work {
            inode,
            ticket,
            touches: plan.touches,
            range: BlockRange::NONE,
            changing: BlockRanges::default(),
            leaving: Vec::new(),
            moving: Vec::new(),
            turning: Vec::new(),
            losing_mark: Vec::new(),
            judged: Vec::new(),
            released: Vec::new(),
            copies: Vec::new(),
            overwritten: Vec::new(),
            vacated: Vec::new(),
            unmarked: Vec::new(),
            moves: Vec::new(),
            blocks: plan.blocks,
        };
        for range in plan.leaves.iter().chain(&plan.moves).chain(&plan.shares).chain(&plan.unwritten) {
            work.changing.add(*range);
        }
        work.range = work.changing.hull();
        for extent in plan.leaves.iter().flat_map(|range| mapped(layout, *range)) {
            for (part, shared) in by_sharing(shares, extent) {
                if shared { &mut work.released } else { &mut work.leaving }.push(pages_of(&part));
            }
        }
        let written = |extent: &Extent| extent.state == ExtentState::Written;
        let moved = plan.moves.iter().flat_map(|range| mapped(layout, *range));
        let newly_shared = plan.shares.iter().flat_map(|range| mapped(layout, *range)).filter(written);
        // What is marked is neither pinned for long nor written in place: it can go anywhere under whoever reads it.
        work.moving = moved.chain(newly_shared).filter(|extent| !extent.shared).map(|e| pages_of(&e)).collect();
        for extent in plan.unwritten.iter().flat_map(|range| mapped(layout, *range)).filter(written) {
            for (part, shared) in by_sharing(shares, extent) {
                work.turn_unwritten(part, shared);
            }
        }
        for extent in plan.writes.iter().flat_map(|range| mapped(layout, *range)).filter(|extent| extent.shared) {
            for (part, shared) in by_sharing(shares, extent) {
                work.write(part, shared, plan.overwrites);
            }
        }
        work.moves = [plan.moves, plan.shares].concat();
        work.judged = [&work.leaving[..], &work.moving, &work.turning].concat();
        merge(&mut work.judged);
        let pinned = || !inode.holders.holding(work.range, &work.judged).is_empty();
        if !work.turning.is_empty() && pinned() {
            work.touches.extend(plan.unwritten.iter().copied());
        }
        work
    }

    fn turn_unwritten(&mut self, part: Extent, shared: bool) {
        if !shared {
            self.turning.push(pages_of(&part));
            self.unmarked.extend(part.shared.then(|| part.range()));
            return;
        }
        // The mark of an unwritten block is in this file's map alone: the others go on with the old block.
        self.released.push(pages_of(&part));
        self.blocks += u64::from(part.len);
        self.touches.add(part.range());
        self.vacated.push(part.range());
    }

    fn write(&mut self, part: Extent, shared: bool, overwrites: Option<BlockRange>) {
        if !shared {
            self.losing_mark.push(pages_of(&part));
            self.unmarked.push(part.range());
            return;
        }
        self.released.push(pages_of(&part));
        self.blocks += u64::from(part.len);
        self.touches.add(part.range());
        let whole = overwrites.is_some_and(|range| range.contains(part.range()));
        if whole { &mut self.overwritten } else { &mut self.copies }.push(part);
    }

    /// The file blocks whose device blocks a client that knows them must forget or be asked about: those that leases are asked
    /// about, and those that turn unwritten, which are no layout change for users.
    pub(crate) fn concerns_clients(&self) -> BlockRanges {
        let mut all = self.touches.clone();
        all.extend(self.changing.iter());
        all
    }

    /// Whether it only adds blocks: all that was mapped stays what it was.
    pub(crate) fn only_adds(&self) -> bool {
        self.judged.is_empty() && self.released.is_empty() && self.losing_mark.is_empty()
    }

    /// How many runs of pages are to be shut.
    pub(super) fn closings(&self) -> usize {
        self.leaving.len() + self.moving.len() + self.turning.len() + self.losing_mark.len()
    }

    /// How many new blocks are needed when `orphaned` pages stay behind for their holders.
    pub(super) fn blocks_with(&self, orphaned: &[PageRange]) -> u64 {
        self.blocks + count(&common(&self.moving, orphaned))
    }

    /// Whether what has to be copied can be read: asked before anybody is told of the change.
    ///
    /// # Errors
    /// EIO.
    pub(super) fn check_copies(&self, kernel: &Kernel) -> Result<(), Errno> {
        self.copies.iter().try_for_each(|extent| kernel.check_sound(pages_of(extent)))
    }

    /// The layout that the change is applied to: what is written and shared, and what moves but stays behind for its holders,
    /// is replaced by copies.
    ///
    /// # Errors
    /// EIO: something is poisoned that has to be copied.
    pub(super) fn prepare(
        &self,
        kernel: &Kernel,
        layout: &Layout,
        orphaned: &[PageRange],
        supply: &mut super::pages::Supply,
    ) -> Result<Layout, Errno> {
        let mut next = layout.clone();
        for range in &self.vacated {
            next = next.without(*range).0;
        }
        for range in &self.unmarked {
            next = next.with_shared(*range, false);
        }
        let staying = common(&self.moving, orphaned);
        let behind = self.moves.iter().filter(|_| !staying.is_empty()).flat_map(|range| mapped(layout, *range));
        let behind = behind.flat_map(|extent| parts_on(extent, &staying));
        for extent in self.copies.iter().copied().chain(behind) {
            next = kernel.replaced_by_copy(&next, extent, &supply.take(extent.len.into()))?;
        }
        for extent in &self.overwritten {
            next = replaced(&next, *extent, &supply.take(extent.len.into()));
        }
        Ok(next)
    }
}

/// The parts of an extent, and whether each is shared.
fn by_sharing(shares: &Shares, extent: Extent) -> impl Iterator<Item = (Extent, bool)> {
    let runs = if extent.shared { shares.counts(pages_of(&extent)) } else { vec![(pages_of(&extent), 1)] };
    runs.into_iter().map(move |(pages, count)| (part_on(extent, pages), count > 1))
}

/// The part of an extent on `pages`, which lie inside.
fn part_on(extent: Extent, pages: PageRange) -> Extent {
    let file_block = extent.file_block + (pages.start() - extent.block);
    Extent { shared: extent.shared, ..Extent::new(file_block, pages.start(), pages.len(), extent.state) }
}

/// The parts of an extent that are not on `pages`.
pub(super) fn parts_beside(extent: Extent, pages: &[PageRange]) -> impl Iterator<Item = Extent> + use<> {
    without(&[pages_of(&extent)], pages).into_iter().map(move |pages| part_on(extent, pages))
}

fn parts_on(extent: Extent, pages: &[PageRange]) -> Vec<Extent> {
    common(&[pages_of(&extent)], pages).into_iter().map(|pages| part_on(extent, pages)).collect()
}

/// Where each run of new blocks goes in an extent that they replace: extents for them, in file order.
fn replacements(extent: Extent, fresh: &[PageRange]) -> Vec<Extent> {
    let mut next = extent.file_block;
    let place = |run: &PageRange| {
        let placed = Extent::new(next, run.start(), run.len(), extent.state);
        next += run.len();
        placed
    };
    fresh.iter().map(place).collect()
}

/// The layout with an extent's blocks replaced by new ones.
fn replaced(layout: &Layout, extent: Extent, fresh: &[PageRange]) -> Layout {
    layout.without(extent.range()).0.with_mapped(&replacements(extent, fresh))
}

impl Kernel {
    /// The layout with an extent's blocks replaced by new ones of the same contents.
    ///
    /// # Errors
    /// EIO: a block is poisoned, or the device is gone.
    pub(super) fn replaced_by_copy(
        &self,
        layout: &Layout,
        extent: Extent,
        fresh: &[PageRange],
    ) -> Result<Layout, Errno> {
        for copy in replacements(extent, fresh) {
            let from = extent.block + (copy.file_block - extent.file_block);
            self.copy_blocks(PageRange::new(from, copy.len.into()), copy.block)?;
        }
        Ok(replaced(layout, extent, fresh))
    }
}
