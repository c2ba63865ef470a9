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
use emulator::sync::Arc;

use crate::base::errno::Errno;
use crate::base::page_sets::{BlockSupply, common, count, merge};
use crate::base::range::{BlockRange, BlockRanges};
use crate::extent_map::lookup::{mapped, pages_of, part_on, parts_on, replaced};
use crate::extent_map::{Extent, ExtentState, Layout};
use crate::holders::holder::Holder;
use crate::holders::list::pin_holders;
use crate::layout_change::copy::{check_sound, replaced_by_copy};
use crate::leases::layout::waiting::publish_waiting_on;
use crate::vfs::inode::Inode;
use crate::vfs::kernel::Kernel;
use crate::vfs::layout_turn::TurnGuard;
use crate::volume::Shares;

/// What a change is given when everybody has agreed.
pub(crate) struct ClearedBlocks<'a> {
    /// The new blocks that the plan asked for.
    pub(crate) fresh: &'a [PageRange],
    /// Of the pages that turn unwritten, those that pins don't keep written.
    pub(crate) gone: &'a [PageRange],
}

/// A layout change of one file. Judged by effect: the same call can be one or not.
pub(crate) trait Change {
    /// What it would do to `layout`; none if that is nothing.
    ///
    /// # Errors
    /// Whatever the call can fail with before anything is decided.
    fn plan(&self, layout: &Layout) -> Result<Option<ChangePlan>, Errno>;

    /// The layout after it. Everybody has agreed, the pages that leave are shut, what it writes is the file's alone, and it
    /// can't fail any more: the place to prepare blocks that nobody else can reach yet.
    fn apply(&self, kernel: &Kernel, layout: &Layout, ready: &ClearedBlocks<'_>) -> Layout;
}

/// A layout change of one or two files, given in the order of their inodes' numbers.
pub(crate) trait JointChange {
    /// As [`Change::plan`], one for each file.
    ///
    /// # Errors
    /// As for [`Change::plan`].
    fn plan(&self, kernel: &Kernel, layouts: &[Layout]) -> Result<Option<Vec<ChangePlan>>, Errno>;

    /// Whether it is still to be done, now that nobody can write what it looks at. Since it was planned, unwritten blocks may
    /// have turned written, and nothing else has changed.
    ///
    /// # Errors
    /// EIO: what it looks at is poisoned.
    fn holds(&self, _kernel: &Kernel, _planned: &[Layout], _layouts: &[Layout]) -> Result<StillHolds, Errno> {
        Ok(StillHolds::Yes)
    }

    /// As [`Change::apply`], one for each file.
    fn apply(&self, kernel: &Kernel, layouts: &[Layout], ready: &ClearedBlocks<'_>) -> Vec<Layout>;
}

/// What a change finds when everything is shut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StillHolds {
    /// It is to be done.
    Yes,
    /// There is nothing to be done.
    No,
    /// It is to be planned again.
    Again,
}

/// A change of one file as the driver sees it.
pub(crate) struct SingleChange<'a>(pub(crate) &'a dyn Change);

impl JointChange for SingleChange<'_> {
    fn plan(&self, _kernel: &Kernel, layouts: &[Layout]) -> Result<Option<Vec<ChangePlan>>, Errno> {
        Ok(self.0.plan(&layouts[0])?.map(|plan| vec![plan]))
    }

    fn apply(&self, kernel: &Kernel, layouts: &[Layout], ready: &ClearedBlocks<'_>) -> Vec<Layout> {
        vec![self.0.apply(kernel, &layouts[0], ready)]
    }
}

/// Whether a change may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// For the turn, leases and pins, interruptibly.
    Waits,
    /// For nothing but what is about to finish: a fault or a pin that must allocate gets ETXTBSY under a conflict.
    Never,
}

/// How many separate runs of pages one change may shut: half of what the marks in a parent's word can count, so that two
/// such changes can go on at once under one 1 GiB folio. A file in more pieces is taken down in steps.
pub(crate) const CLOSINGS_MAX: usize = 1 << 14;

/// Says of every file of a change that it waits, whichever of them it is for: new leases and long-term pins in its way are
/// refused, and a fault that must allocate there doesn't wait behind it.
/// `met` are the pins in the way of the `n`th.
pub(crate) fn publish_waiting(works: &[ChangeWork<'_>], met: impl Fn(usize) -> Vec<Arc<Holder>>) {
    for (n, work) in works.iter().enumerate() {
        publish_waiting_on(work.inode, work.turn, &work.touches, &met(n));
    }
}

/// What a change wants of one file.
#[derive(Debug, Default)]
pub(crate) struct ChangePlan {
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

/// What becomes of pages that are shut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PageFate {
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
pub(crate) struct ChangeWork<'a> {
    pub(crate) inode: &'a Inode,
    pub(crate) turn: &'a TurnGuard<'a>,
    /// The file blocks on which leases are asked.
    pub(crate) touches: BlockRanges,
    /// The file blocks whose registrations are looked at.
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
    pub(crate) fn closings(&self) -> usize {
        self.leaving.len() + self.moving.len() + self.turning.len() + self.losing_mark.len()
    }

    /// How many new blocks are needed when `orphaned` pages stay behind for their holders.
    pub(crate) fn blocks_with(&self, orphaned: &[PageRange]) -> u64 {
        self.blocks + count(&common(&self.moving, orphaned))
    }

    /// Whether what has to be copied can be read: asked before anybody is told of the change.
    ///
    /// # Errors
    /// EIO.
    pub(crate) fn check_copies(&self, kernel: &Kernel) -> Result<(), Errno> {
        self.copies.iter().try_for_each(|extent| check_sound(kernel, pages_of(extent)))
    }

    /// The layout that the change is applied to: what is written and shared, and what moves but stays behind for its holders,
    /// is replaced by copies.
    ///
    /// # Errors
    /// EIO: something is poisoned that has to be copied.
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
