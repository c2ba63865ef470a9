//! What a layout change wants, in file blocks, and what that means for device pages.
//!
//! It owns the translation: a change names the file blocks that leave, move, become shared, turn
//! unwritten or are written; [`ChangeWork`] finds the pages that must be without pins for it, the
//! shared blocks that must be copied before they are written, and the references that end.
//! Invariants: a block that other mappings share is never closed for leaving one of them, nor
//! written, nor turned unwritten in place; a block without the mark belongs to the file alone.
//! Kernel counterpart: `xfs_reflink_trim_around_shared` and `xfs_reflink_allocate_cow`.
//!
//! # Shared blocks
//! The mark `shared` on an extent only says that its blocks *may* be shared; the counts
//! ([`crate::volume::Shares`]) decide. A marked block is never written in place: it is replaced by
//! a copy (a layout change), or, if its other mappings are gone, closed for a moment until a
//! reader by way of another file has finished, and loses its mark. Shared blocks are always
//! written: cloning turns unwritten blocks into holes.

use emulator::pin::PageRange;
use emulator::sync::Arc;

use crate::base::errno::Errno;
use crate::base::page_sets::{BlockSupply, common, count, merge};
use crate::base::range::{BlockRange, BlockRanges};
use crate::extent_map::lookup::{mapped, pages_of, part_on, parts_on, replaced};
use crate::extent_map::{Extent, ExtentState, Layout};
use crate::holders::holder::Holder;
use crate::holders::list::pin_holders;
use crate::layout_change::copy::{check_sound, replaced_by_copy};
use crate::leases::layout::waiting::{publish_waiting_on, stand_aside};
use crate::vfs::inode::Inode;
use crate::vfs::kernel::Kernel;
use crate::vfs::layout_turn::TurnGuard;
use crate::volume::Shares;

/// What a change is given when every lease and pin allows it.
pub(crate) struct ClearedBlocks<'a> {
    /// The new blocks that the plan asked for.
    pub(crate) fresh: &'a [PageRange],
    /// Of the pages that turn unwritten, those that no pin keeps written.
    pub(crate) gone: &'a [PageRange],
}

/// A layout change of one file. It is judged by effect: the same call can be a change or not.
pub(crate) trait Change {
    /// What it would do to `layout`; `None` if it would do nothing.
    ///
    /// # Errors
    /// Whatever the call can fail with before anything is decided.
    fn plan(&self, layout: &Layout) -> Result<Option<ChangePlan>, Errno>;

    /// Whether pins anywhere in the file stand in its way, also where it has no effect, if the
    /// design says so (`busy_scope`): truncate, every `fallocate`, remaps. Writes, faults and pins
    /// meet pins on their own blocks only.
    fn meets_file(&self) -> bool {
        true
    }

    /// The layout after the change. Leases and pins allow it, the pages that leave are closed,
    /// what it writes belongs to the file alone, and it can't fail any more. This is the place to
    /// prepare blocks that no other task can reach yet.
    fn apply(&self, kernel: &Kernel, layout: &Layout, ready: &ClearedBlocks<'_>) -> Layout;
}

/// A layout change of one or two files, given in the order of their inodes' numbers.
pub(crate) trait JointChange {
    /// As [`Change::plan`], one for each file.
    ///
    /// # Errors
    /// As for [`Change::plan`].
    fn plan(&self, kernel: &Kernel, layouts: &[Layout]) -> Result<Option<Vec<ChangePlan>>, Errno>;

    /// As [`Change::meets_file`].
    fn meets_file(&self) -> bool {
        true
    }

    /// Whether the change is still to be done, now that no task can write what it depends on.
    /// Since it was planned, unwritten blocks may have turned written; nothing else has changed.
    ///
    /// # Errors
    /// EIO: a block that it must read is poisoned.
    fn holds(&self, _kernel: &Kernel, _planned: &[Layout], _layouts: &[Layout]) -> Result<StillHolds, Errno> {
        Ok(StillHolds::Yes)
    }

    /// As [`Change::apply`], one for each file.
    fn apply(&self, kernel: &Kernel, layouts: &[Layout], ready: &ClearedBlocks<'_>) -> Vec<Layout>;
}

/// Whether a planned change still applies when all its pages are closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StillHolds {
    /// It is to be done.
    Yes,
    /// There is nothing to be done.
    No,
    /// It is to be planned again.
    Again,
}

/// A change of one file, as the driver sees it.
pub(crate) struct SingleChange<'a>(pub(crate) &'a dyn Change);

impl JointChange for SingleChange<'_> {
    fn plan(&self, _kernel: &Kernel, layouts: &[Layout]) -> Result<Option<Vec<ChangePlan>>, Errno> {
        Ok(self.0.plan(&layouts[0])?.map(|plan| vec![plan]))
    }

    fn meets_file(&self) -> bool {
        self.0.meets_file()
    }

    fn apply(&self, kernel: &Kernel, layouts: &[Layout], ready: &ClearedBlocks<'_>) -> Vec<Layout> {
        vec![self.0.apply(kernel, &layouts[0], ready)]
    }
}

/// How long a change may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// For the turn, leases and pins, interruptibly.
    Waits,
    /// Only for what is about to finish: a fault or a pin that must allocate gets ETXTBSY under a
    /// conflict.
    Never,
}

/// How many separate runs of pages one change may close: half of what the marks in a parent's word
/// can count, so that two such changes fit under one 1 GiB folio. A file in more pieces is
/// truncated in steps.
pub(crate) const CLOSINGS_MAX: usize = 1 << 14;

/// Marks the files in which a change waits: new leases and long-term pins in its way are refused
/// there, and a fault that must allocate does not wait behind it. `met(n)` are the pins in the way
/// in the `n`th file, none if it does not wait there: in such a file it gives up its turn.
pub(crate) fn publish_waiting(works: &[ChangeWork<'_>], met: impl Fn(usize) -> Option<Vec<Arc<Holder>>>) {
    for (n, work) in works.iter().enumerate() {
        match met(n) {
            Some(pins) => publish_waiting_on(work.inode, work.turn, &work.touches, &pins),
            None => stand_aside(work.inode, work.turn),
        }
    }
}

/// What a plan means for each file.
pub(crate) fn works_of<'w>(
    kernel: &Kernel,
    plans: Vec<ChangePlan>,
    layouts: &[Layout],
    sides: &[(&'w Inode, &'w TurnGuard<'w>)],
) -> Vec<ChangeWork<'w>> {
    let planned = plans.into_iter().zip(layouts).zip(sides);
    planned.map(|((plan, layout), side)| ChangeWork::new(plan, layout, &kernel.shares, *side)).collect()
}

/// The layouts that a change was planned on.
pub(crate) struct PlannedOn {
    pub(crate) layouts: Vec<Layout>,
    /// How often each file had published one.
    publications: Vec<u64>,
}

impl PlannedOn {
    /// The present layouts of `inodes`.
    pub(crate) fn now(inodes: &[&Arc<Inode>]) -> PlannedOn {
        // The numbers come first: a layout published in between counts as published since.
        let publications = inodes.iter().map(|inode| inode.publications()).collect();
        PlannedOn { layouts: inodes.iter().map(|inode| inode.layout(Layout::clone)).collect(), publications }
    }

    /// Whether no file has published a layout since.
    pub(crate) fn is_current(&self, works: &[ChangeWork<'_>]) -> bool {
        works.iter().zip(&self.publications).all(|(work, number)| work.inode.publications() == *number)
    }
}

/// What a change wants of one file.
#[derive(Debug, Default)]
pub(crate) struct ChangePlan {
    /// The file blocks on which leases are judged, besides shared blocks that must be copied and
    /// pinned blocks that would turn unwritten.
    pub(crate) touches: BlockRanges,
    /// Blocks mapped here leave the file.
    pub(crate) leaves: Vec<BlockRange>,
    /// Blocks mapped here move to another offset, or to the other file.
    pub(crate) moves: Vec<BlockRange>,
    /// Written blocks here are mapped elsewhere too afterwards.
    pub(crate) shares: Vec<BlockRange>,
    /// Written blocks here turn unwritten.
    pub(crate) unwritten: Vec<BlockRange>,
    /// Bytes of blocks mapped here are written, or the blocks must become the file's own.
    pub(crate) writes: Vec<BlockRange>,
    /// Of these, blocks that are overwritten as a whole: their old contents are not copied.
    pub(crate) overwrites: Option<BlockRange>,
    /// Blocks of which a part is zeroed in place: none may be poisoned.
    pub(crate) zeroes: Vec<BlockRange>,
    /// How many new blocks are needed, besides those for copies.
    pub(crate) blocks: u64,
    /// Whether a long-term pin of the changer needs it: the changer's own leases do not matter
    /// then.
    pub(crate) for_own_pin: bool,
}

impl ChangePlan {
    /// The file blocks that no other change may touch at the same time. Zeroing a part of a block
    /// that stays is no change, unless the block may be shared.
    pub(crate) fn turn_ranges(&self, layout: &Layout) -> BlockRanges {
        let mut ranges = self.touches.clone();
        for range in self.leaves.iter().chain(&self.moves).chain(&self.shares).chain(&self.unwritten) {
            ranges.add(*range);
        }
        let written = self.writes.iter().flat_map(|range| mapped(layout, *range));
        ranges.extend(written.filter(|extent| extent.shared).map(|extent| extent.range()));
        ranges
    }
}

/// What becomes of closed pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PageFate {
    /// They leave the file and go to the allocator.
    Leaves,
    /// They change owner, offset or sharing.
    Moves,
    /// They stay, and turn unwritten.
    TurnsUnwritten,
    /// They stay and lose their mark: no lease or pin is judged, but a reader by way of another
    /// file finishes first.
    LosesMark,
}

/// A plan for one file, worked out against its layout and the counts of shared blocks.
pub(crate) struct ChangeWork<'a> {
    pub(crate) inode: &'a Inode,
    pub(crate) turn: &'a TurnGuard<'a>,
    /// The file blocks on which leases are judged.
    pub(crate) touches: BlockRanges,
    /// The file blocks whose registrations are judged.
    pub(crate) range: BlockRange,
    /// The file blocks that leave, move, become shared or turn unwritten.
    changing: BlockRanges,
    pub(crate) leaving: Vec<PageRange>,
    pub(crate) moving: Vec<PageRange>,
    pub(crate) turning: Vec<PageRange>,
    pub(crate) losing_mark: Vec<PageRange>,
    /// All pages that pins are judged for, sorted.
    pub(crate) judged: Vec<PageRange>,
    /// References to shared blocks that end.
    pub(crate) released: Vec<PageRange>,
    /// Shared extents that are written, and replaced by copies first.
    copies: Vec<Extent>,
    /// Pages of which a part is zeroed in place.
    zeroed: Vec<PageRange>,
    /// Shared extents that are overwritten, and replaced by new blocks first.
    overwritten: Vec<Extent>,
    /// Shared extents that would turn unwritten: holes for the change to fill.
    vacated: Vec<BlockRange>,
    /// Marked, though no longer shared.
    unmarked: Vec<BlockRange>,
    /// Where pages move.
    moves: Vec<BlockRange>,
    /// New blocks needed, copies of shared blocks included.
    pub(crate) blocks: u64,
    /// Whether a long-term pin of the changer needs it.
    pub(crate) for_own_pin: bool,
}

impl<'a> ChangeWork<'a> {
    pub(crate) fn new(
        plan: ChangePlan,
        layout: &Layout,
        shares: &Shares,
        (inode, turn): (&'a Inode, &'a TurnGuard<'a>),
    ) -> ChangeWork<'a> {
        let mut work = ChangeWork {
            inode,
            turn,
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
            zeroed: Vec::new(),
            overwritten: Vec::new(),
            vacated: Vec::new(),
            unmarked: Vec::new(),
            moves: Vec::new(),
            blocks: plan.blocks,
            for_own_pin: plan.for_own_pin,
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
        // A marked block is neither pinned for long nor written in place: it can move under its
        // readers.
        work.moving = moved.chain(newly_shared).filter(|extent| !extent.shared).map(|e| pages_of(&e)).collect();
        for extent in plan.unwritten.iter().flat_map(|range| mapped(layout, *range)).filter(written) {
            for (part, shared) in by_sharing(shares, extent) {
                work.turn_unwritten(part, shared);
            }
        }
        let zeroed = plan.zeroes.iter().flat_map(|range| mapped(layout, *range)).filter(written);
        work.zeroed = zeroed.map(|extent| pages_of(&extent)).collect();
        for extent in plan.writes.iter().flat_map(|range| mapped(layout, *range)).filter(|extent| extent.shared) {
            for (part, shared) in by_sharing(shares, extent) {
                work.write(part, shared, plan.overwrites);
            }
        }
        work.moves = [plan.moves, plan.shares].concat();
        work.judged = [&work.leaving[..], &work.moving, &work.turning].concat();
        merge(&mut work.judged);
        let pinned = || !pin_holders(inode).holding(work.range, &work.judged).is_empty();
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
        // The mark of an unwritten block is in this file's map only: the other files keep the old
        // block.
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

    /// Whether `other`, planned anew, does the same to the same blocks: what was judged for one
    /// holds for the other.
    pub(crate) fn does_as(&self, other: &ChangeWork<'_>) -> bool {
        self.touches == other.touches
            && self.range == other.range
            && (&self.leaving, &self.moving, &self.turning) == (&other.leaving, &other.moving, &other.turning)
            && (&self.losing_mark, &self.released) == (&other.losing_mark, &other.released)
            && (&self.copies, &self.overwritten, &self.vacated) == (&other.copies, &other.overwritten, &other.vacated)
            && (&self.unmarked, &self.moves) == (&other.unmarked, &other.moves)
            && self.blocks == other.blocks
    }

    /// The file blocks about which block-layout clients must be asked: those on which leases are
    /// judged, and those that turn unwritten, which is no layout change for user leases.
    pub(crate) fn concerns_clients(&self) -> BlockRanges {
        let mut all = self.touches.clone();
        all.extend(self.changing.iter());
        all
    }

    /// The file blocks that leave, move, become shared or turn unwritten.
    pub(crate) fn changing(&self) -> &BlockRanges {
        &self.changing
    }

    /// Whether it only adds blocks: everything that was mapped stays as it was.
    pub(crate) fn only_adds(&self) -> bool {
        self.judged.is_empty() && self.released.is_empty() && self.losing_mark.is_empty()
    }

    /// How many runs of pages must be closed.
    pub(crate) fn closings(&self) -> usize {
        self.leaving.len() + self.moving.len() + self.turning.len() + self.losing_mark.len()
    }

    /// How many new blocks are needed when `orphaned` pages stay behind for their holders.
    pub(crate) fn blocks_with(&self, orphaned: &[PageRange]) -> u64 {
        self.blocks + count(&common(&self.moving, orphaned))
    }

    /// Whether the blocks that must be copied, or zeroed in part, are sound; checked before any
    /// lease is broken.
    ///
    /// # Errors
    /// EIO.
    pub(crate) fn check_sound_blocks(&self, kernel: &Kernel) -> Result<(), Errno> {
        let copied = self.copies.iter().map(pages_of);
        copied.chain(self.zeroed.iter().copied()).try_for_each(|pages| check_sound(kernel, pages))
    }

    /// The layout that the change is applied to: shared blocks that are written, and moving blocks
    /// that stay behind for their holders, are replaced by copies.
    ///
    /// # Errors
    /// EIO: a block that must be copied is poisoned.
    pub(crate) fn prepare(
        &self,
        kernel: &Kernel,
        layout: &Layout,
        orphaned: &[PageRange],
        supply: &mut BlockSupply,
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
            next = replaced_by_copy(kernel, &next, extent, &supply.take(extent.len.into()))?;
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

/// A range of one of the files of a change.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FilePlace {
    /// Which file, in the order of the change.
    pub(crate) side: usize,
    /// Byte offset, block aligned.
    pub(crate) offset: u64,
}

impl FilePlace {
    /// The blocks of `len` bytes, the last perhaps in part.
    pub(crate) fn blocks(self, len: u64) -> BlockRange {
        BlockRange::of_bytes(self.offset, len)
    }
}
