//! The table: pin, unpin, census, and the words behind them.
//!
//! It owns every word of a device and the queue of closers that wait. Invariants: a settled pin
//! (one that [`PinTable::pin`] granted) has its count in the words of its units and `BELOW` in each
//! of their parents; a refused pin leaves no count behind. Kernel counterpart: `pin_user_pages`,
//! `unpin_user_page_range`, `try_grab_folio`.

use std::io;
use std::ops::ControlFlow;

use super::levels::{Geometry, LEVELS, Unit};
use super::mutation::Mutation;
use super::word::{BELOW, ORPHAN, PinKind, WAITERS, Word};
use super::words::WordStore;
use crate::runtime::pages::PageRange;
use crate::runtime::sync::atomic::{AtomicU64, Ordering};
use crate::runtime::sync::fence_after_rmw;
use crate::runtime::sync::race::race_point;
use crate::runtime::wait::WaitQueue;

/// A pinned range. It isn't Clone, and ends in [`PinTable::unpin`] of the table that granted it.
///
/// Dropping it instead leaks its counts for good; debug builds panic on that.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a pin that isn't given back to `unpin` stays for ever"]
pub struct Pin {
    start: u64,
    /// The length in pages above the lowest bit, which says that the pin is long-term.
    len_and_kind: u64,
}

const _: () = assert!(size_of::<Pin>() <= 16, "registrations keep many of these");

impl Pin {
    fn new(range: PageRange, kind: PinKind) -> Pin {
        Pin { start: range.start(), len_and_kind: range.len() << 1 | u64::from(kind == PinKind::Long) }
    }

    /// The pages it pins.
    pub fn range(&self) -> PageRange {
        PageRange::new(self.start, self.len_and_kind >> 1)
    }

    /// What it is for.
    pub fn kind(&self) -> PinKind {
        if self.len_and_kind & 1 == 1 { PinKind::Long } else { PinKind::Short }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        debug_assert!(std::thread::panicking(), "a pin of {} was dropped, not given back to `unpin`", self.range());
    }
}

/// What an unpin found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "orphaned blocks may be waiting for this unpin: if `orphan_seen`, look for them"]
pub struct Unpinned {
    /// A word that was marked by [`super::Closing::orphan`] lost its last pin: look through the
    /// orphaned blocks.
    pub orphan_seen: bool,
}

impl Unpinned {
    pub(super) fn join(self, other: Unpinned) -> Unpinned {
        Unpinned { orphan_seen: self.orphan_seen | other.orphan_seen }
    }
}

/// Why a range wasn't pinned. Nothing of it is: what had been counted was taken back, as an unpin
/// takes it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PinError {
    /// A layout change has closed some of the pages: retry when it is over. EAGAIN.
    #[error("a layout change is in progress on some of the pages")]
    Closed(Unpinned),
    /// A count is at half of its field. ENOMEM.
    #[error("too many pins of one page")]
    CountFull(Unpinned),
    /// The range leaves the device.
    #[error("the range ends beyond the device")]
    OutOfRange,
}

impl PinError {
    /// Whether the undo came upon orphaned blocks; they are the caller's to look for, as after an
    /// unpin.
    pub fn orphan_seen(self) -> bool {
        match self {
            PinError::Closed(undone) | PinError::CountFull(undone) => undone.orphan_seen,
            PinError::OutOfRange => false,
        }
    }
}

/// How many pins there are, each counted once per unit it pins (page, folio or giant folio).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Short-term ones.
    pub short: u64,
    /// Long-term ones.
    pub long: u64,
}

impl Census {
    /// Whether nothing is pinned.
    pub fn is_zero(self) -> bool {
        self == Census::default()
    }
}

/// The pins of a device. The module [`crate::pin`] explains the protocol.
///
/// ```
/// use emulator::pin::{PageRange, PinError, PinKind, PinTable};
///
/// let table = PinTable::new(512)?;
/// let pages = PageRange::new(4, 2);
/// let pin = table.pin(pages, PinKind::Long)?;
/// let closing = table.close(pages)?;
/// assert!(matches!(table.pin(pages, PinKind::Short), Err(PinError::Closed(_))));
/// let closing = closing.freeze().expect_err("the pages are still pinned");
/// let _ = table.unpin(pin);
/// let frozen = closing.freeze().expect("the pages have no pin");
/// drop(frozen); // reopens the pages
/// assert!(table.all_zero());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// `FANOUT` is the number of pages in a folio and of folios in a giant folio: 512 in earnest, less
/// in models.
#[derive(Debug)]
pub struct PinTable<const FANOUT: usize = 512> {
    levels: [WordStore; LEVELS],
    pages: u64,
    drained: WaitQueue,
    #[cfg(daxlab_loom)]
    mutation: Option<Mutation>,
}

impl PinTable {
    /// A table for a device of `pages` pages of 4 KiB, nothing pinned.
    ///
    /// # Errors
    /// The address space can't hold 8 bytes for each page.
    pub fn new(pages: u64) -> io::Result<PinTable> {
        PinTable::with_fanout(pages)
    }
}

enum PinRefusal {
    Closed,
    CountFull,
}

impl<const FANOUT: usize> PinTable<FANOUT> {
    /// As [`PinTable::new`], for any fan-out.
    ///
    /// # Errors
    /// As [`PinTable::new`].
    pub fn with_fanout(pages: u64) -> io::Result<Self> {
        let store = |level| WordStore::new(pages.div_ceil(Geometry::<FANOUT>::size(level)));
        Ok(PinTable {
            levels: [store(0)?, store(1)?, store(2)?],
            pages,
            drained: WaitQueue::new(),
            #[cfg(daxlab_loom)]
            mutation: None,
        })
    }

    /// A table that leaves out one line of the protocol.
    ///
    /// # Errors
    /// As [`PinTable::new`].
    #[cfg(daxlab_loom)]
    pub fn mutated(pages: u64, mutation: Option<Mutation>) -> io::Result<Self> {
        Ok(PinTable { mutation, ..Self::with_fanout(pages)? })
    }

    #[inline(always)]
    pub(super) fn is_mutated(&self, mutation: Mutation) -> bool {
        #[cfg(daxlab_loom)]
        return self.mutation == Some(mutation);
        #[cfg(not(daxlab_loom))]
        {
            let _ = mutation;
            false
        }
    }

    /// How many pages the device has.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Woken whenever the short or the long count of a word that a closer flagged reaches zero.
    pub fn drained(&self) -> &WaitQueue {
        &self.drained
    }

    #[inline]
    pub(super) fn at(&self, unit: Unit) -> &AtomicU64 {
        &self.levels[unit.level].words()[unit.index as usize]
    }

    pub(super) fn holds(&self, range: PageRange) -> bool {
        range.end() <= self.pages
    }

    /// The word of one page, folio or giant folio at this moment; none outside the device.
    pub fn word(&self, unit: Unit) -> Option<Word> {
        let word = self.levels.get(unit.level)?.words().get(usize::try_from(unit.index).ok()?)?;
        // ORDERING: a look from outside; it hands nothing over.
        Some(Word(word.load(Ordering::Relaxed)))
    }

    /// Pins `range`: one count for each page, folio and giant folio of it. Takes no lock, never
    /// waits, and passes on every page in a number of steps bounded by the levels. What was written
    /// before the last change of these pages reopened them is visible afterwards; whether the range
    /// still belongs to the file is the caller's to check again (see the module).
    ///
    /// # Errors
    /// See [`PinError`]; a refused range is undone exactly. The undo is a full unpin, so it may
    /// wake closers: call this with no lock held that they take, and look at
    /// [`PinError::orphan_seen`].
    #[inline]
    pub fn pin(&self, range: PageRange, kind: PinKind) -> Result<Pin, PinError> {
        if !self.holds(range) {
            return Err(PinError::OutOfRange);
        }
        if range.len() == 1 {
            // The most frequent range by far, at a level known when this is compiled.
            let page = Unit { level: 0, index: range.start() };
            if let Err(refusal) = self.enter(page, kind) {
                return Err(self.undo(range, page, kind, refusal));
            }
        } else {
            self.enter_all(range, kind)?;
        }
        Ok(Pin::new(range, kind))
    }

    fn enter_all(&self, range: PageRange, kind: PinKind) -> Result<(), PinError> {
        for unit in Geometry::<FANOUT>::units(range) {
            if let Err(refusal) = self.enter(unit, kind) {
                return Err(self.undo(range, unit, kind, refusal));
            }
        }
        Ok(())
    }

    /// Gives `pin` back; never waits. What was done under it is visible to the change that then
    /// finds its pages unpinned.
    #[inline]
    pub fn unpin(&self, pin: Pin) -> Unpinned {
        let (range, kind) = (pin.range(), pin.kind());
        std::mem::forget(pin);
        debug_assert!(self.holds(range), "a pin of {range} was given back to a table of {} pages", self.pages);
        if range.len() == 1 {
            self.leave(Unit { level: 0, index: range.start() }, kind, true)
        } else {
            self.leave_all(range, kind, true)
        }
    }

    fn leave_all(&self, range: PageRange, kind: PinKind, wake: bool) -> Unpinned {
        let left = Geometry::<FANOUT>::units(range).map(|unit| self.leave(unit, kind, wake));
        left.fold(Unpinned::default(), Unpinned::join)
    }

    /// Counts one pin into `unit` and looks up. An error leaves the count in: the caller takes it
    /// back.
    #[inline(always)]
    fn enter(&self, unit: Unit, kind: PinKind) -> Result<(), PinRefusal> {
        // ORDERING: SeqCst, before the looks at the parents in the one total order: either this pin
        // sees a parent's closer, or that closer's scan sees this count. Against a close of `unit`
        // itself, or of a part of it, the old value decides.
        let old = Word(self.at(unit).fetch_add(kind.one(), Ordering::SeqCst));
        if old.may_refuse() {
            if old.is_shut() {
                return Err(PinRefusal::Closed);
            }
            if old.is_full(kind) {
                return Err(PinRefusal::CountFull);
            }
        }
        if self.is_mutated(Mutation::NoLookAtParent) {
            return Ok(());
        }
        for level in unit.level + 1..LEVELS {
            fence_after_rmw();
            if self.look_up(Geometry::<FANOUT>::above(unit, level)) {
                return Err(PinRefusal::Closed);
            }
        }
        Ok(())
    }

    /// Leaves `BELOW` in `parent`'s word; true if the parent is closed.
    #[inline]
    fn look_up(&self, parent: Unit) -> bool {
        let word = self.at(parent);
        let seen = Word(word.load(Ordering::SeqCst));
        if seen.is_closed() {
            return true;
        }
        if seen.has_below() {
            return false;
        }
        race_point!("before BELOW");
        // A closer that came after the look above found no BELOW and scanned nothing: the second
        // look, in the same access that sets the mark, is what refuses this pin.
        let old = Word(word.fetch_or(BELOW, Ordering::SeqCst));
        old.is_closed() && !self.is_mutated(Mutation::NoSecondLook)
    }

    /// Takes one pin out of `unit`, and wakes the waiting closer, or reports an orphaned block, if
    /// this was the last pin.
    #[inline(always)]
    fn leave(&self, unit: Unit, kind: PinKind, wake: bool) -> Unpinned {
        // ORDERING: Release hands what was done under the pin to the closer that reads this count
        // or a later one; Acquire lets the last one out of an orphan hand on what all the others
        // did.
        let order = if self.is_mutated(Mutation::RelaxedUnpin) { Ordering::Relaxed } else { Ordering::AcqRel };
        let old = Word(self.at(unit).fetch_sub(kind.one(), order));
        debug_assert!(old.count(kind) != 0, "{unit:?} was unpinned more often than pinned: {old:?}");
        let now = Word(old.0.wrapping_sub(kind.one()));
        if !now.has(WAITERS | ORPHAN) || now.count(kind) != 0 {
            return Unpinned::default();
        }
        self.left_flagged(now, wake)
    }

    #[cold]
    fn left_flagged(&self, now: Word, wake: bool) -> Unpinned {
        if now.has_waiters() && wake {
            self.drained.wake_all();
        }
        Unpinned { orphan_seen: now.has_orphan() && !now.is_pinned() }
    }

    /// Takes back what a refused pin had counted: the units up to and including `last`.
    #[cold]
    fn undo(&self, range: PageRange, last: Unit, kind: PinKind, refusal: PinRefusal) -> PinError {
        let counted = PageRange::new(range.start(), Geometry::<FANOUT>::pages(last).end() - range.start());
        let wake = !self.is_mutated(Mutation::UndoWithoutWake);
        let undone = self.leave_all(counted, kind, wake);
        match refusal {
            PinRefusal::Closed => PinError::Closed(undone),
            PinRefusal::CountFull => PinError::CountFull(undone),
        }
    }

    /// Counts the pins that concern `range`: of its units, of what is below them, and of their
    /// parents. Pages outside the device count nothing. A hint while pins come and go; see
    /// [`super::Closing::census`] for when it is more.
    pub fn census(&self, range: PageRange) -> Census {
        let mut census = Census::default();
        let range = range.intersect(PageRange::new(0, self.pages)).unwrap_or(PageRange::new(0, 0));
        let _: ControlFlow<()> = self.walk(range, &mut |_, word| {
            census.short += word.short();
            census.long += word.long();
            ControlFlow::Continue(())
        });
        census
    }

    /// Shows `visit` every word in which a pin of some page of `range` could be counted: parents
    /// first, then each unit, and what lies below those that say so (the pages of a folio only if
    /// not all of their words are zero).
    #[inline]
    pub(super) fn walk<B>(
        &self,
        range: PageRange,
        visit: &mut impl FnMut(Unit, Word) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        for parent in Geometry::<FANOUT>::parents(range) {
            visit(parent, self.scan(parent))?;
        }
        for unit in Geometry::<FANOUT>::units(range) {
            self.walk_down(unit, visit)?;
        }
        ControlFlow::Continue(())
    }

    fn walk_down<B>(&self, unit: Unit, visit: &mut impl FnMut(Unit, Word) -> ControlFlow<B>) -> ControlFlow<B> {
        let word = self.scan(unit);
        visit(unit, word)?;
        if unit.level == 0 || !word.has_below() {
            return ControlFlow::Continue(());
        }
        let children = Geometry::<FANOUT>::children(unit);
        if unit.level > 1 {
            for index in children {
                self.walk_down(Unit { level: unit.level - 1, index }, visit)?;
            }
        } else {
            let words = &self.levels[0].words()[children.start as usize..children.end as usize];
            // Looked at together first, without a branch for each: this loop is what a scan
            // consists of.
            if words.iter().fold(0, |any, word| any | word.load(self.scan_order())) == 0 {
                return ControlFlow::Continue(());
            }
            for (index, word) in children.zip(words) {
                visit(Unit { level: 0, index }, Word(word.load(self.scan_order())))?;
            }
        }
        ControlFlow::Continue(())
    }

    #[inline]
    fn scan(&self, unit: Unit) -> Word {
        Word(self.at(unit).load(self.scan_order()))
    }

    #[inline(always)]
    fn scan_order(&self) -> Ordering {
        // ORDERING: SeqCst: after the closer's marks in the total order, so that a pin which saw no
        // mark is seen here (see `enter`); as an acquire it also takes over what was done under the
        // pins that are gone.
        if self.is_mutated(Mutation::RelaxedScan) { Ordering::Relaxed } else { Ordering::SeqCst }
    }

    /// Up to `limit` words in which a pin or a close is still counted, read one by one without
    /// trust in any hint: what must be none at the end of a run, when no thread is inside.
    /// Untouched words are read as well, which costs page tables but no memory (1 TiB of device: 2
    /// GiB of address space, under a second).
    pub fn busy_words(&self, limit: usize) -> Vec<(Unit, Word)> {
        let all = self.levels.iter().enumerate().rev().flat_map(|(level, store)| {
            let words = store.words().iter().zip(0..);
            // ORDERING: Acquire: a word at rest hands over what its last pinner did.
            words.map(move |(word, index)| (Unit { level, index }, Word(word.load(Ordering::Acquire))))
        });
        all.filter(|(_, word)| word.is_busy()).take(limit).collect()
    }

    /// Whether no pin and no close is left anywhere; see [`PinTable::busy_words`].
    pub fn all_zero(&self) -> bool {
        self.busy_words(1).is_empty()
    }
}
