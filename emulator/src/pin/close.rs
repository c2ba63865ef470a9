//! Close a range of pages, wait until it has no pins, freeze it, and reopen it.
//!
//! It owns the marks of closers: `CLOSED` on what is closed, `closes_below` on the parents,
//! `WAITERS` and `ORPHAN` where pins are still there. Invariants: every mark of `CLOSED` and
//! `closes_below` has exactly one owner, a [`Closing`], [`Frozen`] or [`Orphaned`], whose drop
//! takes it away; only a [`Frozen`] can free, and outside the `proceed` axis there is one only if a
//! scan of the closed range found no pin. Kernel counterpart: `unmap_mapping_pages` and
//! `dax_layout_busy_page` (fs/dax.c), which find a busy page and wait for it, but cannot refuse new
//! pins.

use std::cell::Cell;
use std::ops::ControlFlow;

use super::levels::{Geometry, Unit};
use super::mutation::Mutation;
use super::table::{Census, PinTable, Unpinned};
use super::word::{BELOW, CLOSE_BELOW, CLOSED, ORPHAN, WAITERS, Word};
use crate::runtime::pages::PageRange;
use crate::runtime::sync::atomic::Ordering;
use crate::runtime::sync::fence_after_rmw;
use crate::runtime::sync::race::race_point;

/// Another close holds the range, a part of it, or a unit that contains it. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("another layout change holds some of the pages")]
pub struct Contended;

/// A closed range. Its drop reopens it, in each of the three states.
#[derive(Debug)]
struct ClosedRange<'t, const FANOUT: usize> {
    table: &'t PinTable<FANOUT>,
    range: PageRange,
    /// The one word in the range, below a closed unit or one itself, that [`Closing::flag_waiter`]
    /// left flagged.
    flagged: Cell<Option<Unit>>,
    /// A scan of the closed range found every word without pins, so that `BELOW` may go.
    zero: bool,
    /// Nothing is closed: a forged token ([`PinTable::forge`]).
    forged: bool,
}

impl<const FANOUT: usize> ClosedRange<'_, FANOUT> {
    fn unflag(&self) {
        if let Some(unit) = self.flagged.take() {
            // ORDERING: hands over nothing; the closer that set the flag is awake.
            self.table.at(unit).fetch_and(!WAITERS, Ordering::Relaxed);
        }
    }
}

impl<const FANOUT: usize> Drop for ClosedRange<'_, FANOUT> {
    fn drop(&mut self) {
        if self.forged {
            return;
        }
        race_point!("reopen");
        self.unflag();
        let clear_below = self.zero || self.table.is_mutated(Mutation::BelowClearedOnAbort);
        for unit in Geometry::<FANOUT>::units(self.range) {
            self.table.open(unit, clear_below);
        }
        for parent in Geometry::<FANOUT>::parents(self.range) {
            self.table.unmark(parent);
        }
    }
}

/// A closed range that may still have pins. Their number only falls (the count of a refused pin is
/// visible for a moment). A changer that gives up drops it, which reopens the pages.
#[derive(Debug)]
#[must_use = "dropping it reopens the pages at once"]
pub struct Closing<'t, const FANOUT: usize = 512>(ClosedRange<'t, FANOUT>);

/// A range that may be freed: closed and without any pin (a forged one is neither). It isn't Clone;
/// the allocator takes it by value. Dropping it reopens the pages.
#[derive(Debug)]
#[must_use = "dropping it reopens the pages at once"]
pub struct Frozen<'t, const FANOUT: usize = 512>(ClosedRange<'t, FANOUT>);

/// A closed range with pins that the changer has removed from its file. The last unpin reports it.
/// End it with [`Orphaned::reopen`].
#[derive(Debug)]
#[must_use = "only `reopen` says whether the last pin left already"]
pub struct Orphaned<'t, const FANOUT: usize = 512> {
    shut: ClosedRange<'t, FANOUT>,
    marked: Vec<Unit>,
}

impl<const FANOUT: usize> PinTable<FANOUT> {
    /// Closes `range`: from now on each new pin of any of its pages is refused, at any level. Works
    /// with pins present, also with pins of a folio that contains the range: they are counted by
    /// [`Closing::census`] and drain like the others, since no new one gets in. Pins elsewhere in
    /// the same folio go on undisturbed. Never waits.
    ///
    /// # Errors
    /// [`Contended`] if another close holds a part of it, or a unit around it. A pin may have been
    /// refused meanwhile.
    ///
    /// # Panics
    /// If the range leaves the device: pages that don't exist belong to no file.
    pub fn close(&self, range: PageRange) -> Result<Closing<'_, FANOUT>, Contended> {
        assert!(self.holds(range), "{range} of a device of {} pages can't be closed", self.pages());
        for parent in Geometry::<FANOUT>::parents(range) {
            if !self.mark(parent) {
                self.unmark(parent);
                Geometry::<FANOUT>::parents(range).take_while(|&marked| marked != parent).for_each(|p| self.unmark(p));
                return Err(Contended);
            }
        }
        race_point!("parents marked");
        for unit in Geometry::<FANOUT>::units(range) {
            // ORDERING: SeqCst, before the scan in the total order (see `enter`). Acquire: takes
            // over what was done under the pins of this unit that are gone.
            let old = Word(self.at(unit).fetch_or(CLOSED, Ordering::SeqCst));
            if old.is_shut() {
                if !old.is_closed() {
                    // Only our mark goes: the waiters' flag in it belongs to the closers below.
                    self.at(unit).fetch_and(!CLOSED, Ordering::Release);
                }
                let before = Geometry::<FANOUT>::units(range).take_while(|&closed| closed != unit);
                before.for_each(|closed| self.open(closed, false));
                Geometry::<FANOUT>::parents(range).for_each(|parent| self.unmark(parent));
                return Err(Contended);
            }
        }
        fence_after_rmw();
        race_point!("closed");
        Ok(Closing(ClosedRange { table: self, range, flagged: Cell::new(None), zero: false, forged: false }))
    }

    /// A token without a close, although pins may exist. **Only for the `proceed` choices**, whose
    /// point is to free under a live pin, and for tests that break the rule on purpose.
    pub fn forge(&self, range: PageRange) -> Frozen<'_, FANOUT> {
        Frozen(ClosedRange { table: self, range, flagged: Cell::new(None), zero: false, forged: true })
    }

    /// Counts a close into a parent; false if the parent is closed itself (the mark is in, all the
    /// same).
    fn mark(&self, parent: Unit) -> bool {
        if self.is_mutated(Mutation::NoUpwardMark) {
            return true;
        }
        // ORDERING: SeqCst: a pin of the parent is either counted before this and found by the
        // scan, or sees the mark.
        let old = Word(self.at(parent).fetch_add(CLOSE_BELOW, Ordering::SeqCst));
        !old.is_closed() && !old.closes_full()
    }

    /// Takes a mark out of a parent. The last closer below also takes the waiters' flag away, which
    /// they shared.
    fn unmark(&self, parent: Unit) {
        if self.is_mutated(Mutation::NoUpwardMark) {
            return;
        }
        let word = self.at(parent);
        // ORDERING: as in `open`.
        let mut now = Word(word.fetch_sub(CLOSE_BELOW, Ordering::AcqRel).wrapping_sub(CLOSE_BELOW));
        while now.has_waiters() && !now.is_shut() {
            match word.compare_exchange(now.0, now.0 & !WAITERS, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => break,
                Err(other) => now = Word(other),
            }
        }
    }

    /// Opens a unit that the caller closed.
    fn open(&self, unit: Unit, clear_below: bool) {
        let gone = CLOSED | WAITERS | if clear_below { BELOW } else { 0 };
        // ORDERING: Release: a pin that gets in from now on sees the map which the change
        // published. Acquire: a close that was refused because of this mark came earlier, with the
        // unpin that led to it: `Orphaned::reopen` then sees that unpin.
        self.at(unit).fetch_and(!gone, Ordering::AcqRel);
    }

    /// Takes `ORPHAN` from a word, if the word has no pins. One compare-exchange checks and clears,
    /// so a mark whose unpin is still to come is never lost.
    fn clear_orphan(&self, unit: Unit) {
        let word = self.at(unit);
        let mut seen = Word(word.load(Ordering::Relaxed));
        while seen.has_orphan() && !seen.is_pinned() {
            // ORDERING: hands nothing over: the mark is a hint, and the unpin that it was for has
            // reported already.
            match word.compare_exchange(seen.0, seen.0 & !ORPHAN, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => break,
                Err(other) => seen = Word(other),
            }
        }
    }
}

impl<'t, const FANOUT: usize> Closing<'t, FANOUT> {
    /// The pages it holds.
    pub fn range(&self) -> PageRange {
        self.0.range
    }

    /// The pins still there. It only falls, except that a pin which is about to be refused is
    /// counted for a moment.
    pub fn census(&self) -> Census {
        self.0.table.census(self.0.range)
    }

    /// A frozen range if nothing is pinned; everything done under earlier pins is visible then.
    ///
    /// # Errors
    /// The range, still closed, if a page is pinned.
    pub fn freeze(mut self) -> Result<Frozen<'t, FANOUT>, Closing<'t, FANOUT>> {
        let (table, range) = (self.0.table, self.0.range);
        let mut orphans = false;
        let scan = table.walk(range, &mut |_, word| {
            orphans |= word.has_orphan();
            if word.is_pinned() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        if scan.is_break() {
            return Err(self);
        }
        if orphans {
            let _: ControlFlow<()> = table.walk(range, &mut |unit, word| {
                if word.has_orphan() {
                    table.clear_orphan(unit);
                }
                ControlFlow::Continue(())
            });
        }
        self.0.zero = true;
        Ok(Frozen(self.0))
    }

    /// Flags one word that has short-term pins (`shorts_only`) or any pins, so that its drain wakes
    /// [`PinTable::drained`], and looks again. True: still busy, sleep and ask again. False:
    /// nothing of that kind was found. Made for [`crate::runtime::wait::WaitQueue::wait`], whose
    /// condition it is: ready once it says false.
    pub fn flag_waiter(&self, shorts_only: bool) -> bool {
        let (table, range) = (self.0.table, self.0.range);
        let busy = |word: Word| if shorts_only { word.short() != 0 } else { word.is_pinned() };
        let found = table.walk(range, &mut |unit, word| {
            if !busy(word) {
                return ControlFlow::Continue(());
            }
            let inside = Geometry::<FANOUT>::pages(unit).intersect(range) == Some(Geometry::<FANOUT>::pages(unit));
            // Words inside the range are ours alone; one flag at a time keeps them easy to take
            // back. A parent's flag is shared with the other closers below it, and goes with the
            // last of them.
            if inside && self.0.flagged.get() != Some(unit) {
                self.0.unflag();
                self.0.flagged.set(Some(unit));
            }
            // ORDERING: SeqCst, and the old value is the second look: a count that falls to zero
            // after it meets the flag.
            let old = Word(table.at(unit).fetch_or(WAITERS, Ordering::SeqCst));
            if busy(old) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        found.is_break()
    }

    /// Marks every word that holds pins of the range: the unpin that empties one reports it. For
    /// blocks that leave their file while pinned, and for giving up an attempt to reap them: **a
    /// range without an owner is always left this way**, never by a plain drop, or a pin that was
    /// refused during the attempt could be the last one out and report nothing.
    pub fn orphan(self) -> Orphaned<'t, FANOUT> {
        let (table, range) = (self.0.table, self.0.range);
        let mut marked = Vec::new();
        let _: ControlFlow<()> = table.walk(range, &mut |unit, word| {
            if word.is_pinned() {
                // ORDERING: an unpin either comes later in this word and meets the mark, or the
                // look after the reopening, which is behind this access to the same word, finds it
                // gone.
                table.at(unit).fetch_or(ORPHAN, Ordering::AcqRel);
                marked.push(unit);
            }
            ControlFlow::Continue(())
        });
        Orphaned { shut: self.0, marked }
    }
}

impl<const FANOUT: usize> Frozen<'_, FANOUT> {
    /// The pages it holds.
    pub fn range(&self) -> PageRange {
        self.0.range
    }

    /// Whether it proves nothing: made by [`PinTable::forge`].
    pub fn is_forged(&self) -> bool {
        self.0.forged
    }
}

impl<const FANOUT: usize> Orphaned<'_, FANOUT> {
    /// The pages it holds.
    pub fn range(&self) -> PageRange {
        self.shut.range
    }

    /// Reopens the pages and checks once more: `orphan_seen` if a marked word lost its last pin in
    /// the meantime, or if nothing was pinned at all. Then no other thread may have been able to
    /// reap the blocks, and the caller has to try.
    pub fn reopen(self) -> Unpinned {
        let Orphaned { shut, marked } = self;
        let table = shut.table;
        drop(shut);
        // ORDERING: after the reopening; see `open` for why this check can't miss an unpin whose
        // reaper found the pages closed.
        let reports = |&unit: &Unit| {
            let word = Word(table.at(unit).load(Ordering::SeqCst));
            word.is_pinned() && word.has_orphan()
        };
        Unpinned { orphan_seen: marked.is_empty() || !marked.iter().all(reports) }
    }
}
