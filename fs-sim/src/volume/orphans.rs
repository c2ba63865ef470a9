//! Orphaned blocks: blocks that left their file while pinned.
//!
//! It owns their list: they belong to no file, stay allocated (charged as used) and are freed when
//! nothing pins them. Invariants: an orphaned block is either on the list or taken by exactly one
//! reaper; it is freed exactly once; as long as it is on the list, some pin's unpin will still
//! report it (or a reporter is on its way here). Kernel counterpart: none for blocks; a page with
//! `FOLL_LONGTERM` pins whose file has dropped it.
//!
//! # Which task frees
//! [`emulator::pin`] keeps a mark (`ORPHAN`) on every word with pins of an orphaned range. The
//! unpin that empties a marked word returns `orphan_seen`, and its caller calls [`Orphans::reap`]
//! with the pages it had pinned. This *reaper* takes what the list has of these pages, under the
//! list's mutex, and then, without a lock, closes them. Pages that freeze are freed. The others go
//! back on the list, are marked and reopened, and are checked *after all of this*.
//!
//! # Why no orphan is lost
//! Let the last pin of a block go while a reaper has taken the block. The unpinner finds nothing
//! on the list and leaves. It passed through the mutex before the reaper put the block back (else
//! it would have found it), so the reaper's check afterwards sees the word without that pin: the
//! block is *uncovered*, and the reaper takes it again.
//!
//! A block is covered, and may be left on the list, only if one of its words is pinned **and**
//! marked: no task clears a mark while pins are there, so the unpin that empties the word is still
//! to come, will see the mark, and will find the block on the list. A pin without a mark covers
//! nothing (it came after the marking, from an outdated map): the reaper closes the pages again,
//! and marks the word.
//!
//! # Why it ends
//! A reaper repeats itself only for pages that a pin left, or newly pinned, since it marked them.
//! No map shows orphaned pages, so new pins come only from outdated maps: at most one for each
//! thread, which then rechecks. Between its rounds a reaper lets other threads run: such a pin may
//! be counted and not yet shown to the word above, and then only its own thread can end the search.

use std::collections::BTreeMap;

use emulator::pin::{Contended, Frozen, PageRange, PinTable, Unit};
use emulator::race_point;
use emulator::sync::{Mutex, thread};

/// How often a reaper yields to another close of its pages. No two closes want pages without an
/// owner, so this bounds the effect of a broken rule: the pages stay on the list and are missing
/// at the end.
const CONTENDED_MAX: u32 = 1000;

/// See the module.
#[derive(Debug, Default)]
pub struct Orphans(Mutex<PageList>);

/// Runs of pages, joined where they touch.
#[derive(Debug, Default)]
pub(crate) struct PageList {
    /// Start to end; disjoint and not adjacent.
    runs: BTreeMap<u64, u64>,
    /// Blocks on the list or in a reaper's hands.
    blocks: u64,
    peak: u64,
}

impl PageList {
    /// Puts `pages` on the list, joined with their neighbours.
    pub(crate) fn put(&mut self, pages: PageRange) {
        let (mut start, mut end) = (pages.start(), pages.end());
        while let Some((&its_start, &its_end)) = self.runs.range(..=end).next_back()
            && its_end >= start
        {
            self.runs.remove(&its_start);
            (start, end) = (start.min(its_start), end.max(its_end));
        }
        if start < end {
            self.runs.insert(start, end);
        }
    }

    /// Takes off the list what it has of `pages`.
    pub(crate) fn take(&mut self, pages: PageRange) -> Vec<PageRange> {
        let mut taken = Vec::new();
        while let Some((&start, &end)) = self.runs.range(..pages.end()).next_back()
            && end > pages.start()
            && !pages.is_empty()
        {
            self.runs.remove(&start);
            let (from, to) = (start.max(pages.start()), end.min(pages.end()));
            taken.push(PageRange::new(from, to - from));
            for (start, end) in [(start, from), (to, end)] {
                if start < end {
                    self.runs.insert(start, end);
                }
            }
        }
        taken
    }

    /// All of them, in device order.
    pub(crate) fn pages(&self) -> Vec<PageRange> {
        self.runs.iter().map(|(start, end)| PageRange::new(*start, end - start)).collect()
    }
}

impl Orphans {
    /// Puts `pages` on the list: they are about to leave their file while pinned. The caller marks
    /// their words with [`Closing::orphan`](emulator::pin::Closing::orphan), and after
    /// [`Orphaned::reopen`](emulator::pin::Orphaned::reopen) calls [`Orphans::reap`] for them,
    /// **whatever it returned**: pages that nothing pins, or that were unpinned before they were
    /// listed, are freed by no other task.
    pub fn insert(&self, pages: PageRange) {
        let mut list = self.0.lock();
        list.put(pages);
        list.blocks += pages.len();
    }

    /// Frees, through `free`, those of `pages` that are on the list and not pinned. Called when an
    /// unpin of `pages` (or the undo of a refused pin) reported `orphan_seen`, and after orphaned
    /// pages were reopened. `free` is called with no lock held. Never waits.
    ///
    /// After a power cut, when no pin survives, a call for the whole device empties the list.
    pub fn reap<'t, const FANOUT: usize>(
        &self,
        pages: PageRange,
        pins: &'t PinTable<FANOUT>,
        mut free: impl FnMut(Frozen<'t, FANOUT>),
    ) {
        let mut hands = self.0.lock().take(pages);
        while let Some(run) = hands.pop() {
            race_point!("reap: in hand, not shut");
            let Some(closing) = close(run, pins) else {
                self.0.lock().put(run);
                continue;
            };
            match closing.freeze() {
                Ok(frozen) => {
                    free(frozen);
                    self.0.lock().blocks -= run.len();
                }
                Err(closing) => {
                    self.0.lock().put(run);
                    race_point!("reap: on the list, not marked");
                    // The check below sees what this reports.
                    let _told = closing.orphan().reopen();
                    race_point!("reap: reopened, not looked at");
                    let uncovered = uncovered(run, pins);
                    {
                        let mut list = self.0.lock();
                        uncovered.into_iter().for_each(|pages| hands.extend(list.take(pages)));
                    }
                    if !hands.is_empty() {
                        // A pin from an outdated map may be counted and not yet shown to the word
                        // above: its thread must go on before this search can end.
                        thread::yield_now();
                    }
                }
            }
        }
        let mut list = self.0.lock();
        list.peak = list.peak.max(list.blocks);
    }

    /// Blocks orphaned now.
    pub fn count(&self) -> u64 {
        self.0.lock().blocks
    }

    /// The most blocks that were orphaned at one time, as found by the reapers at their end: pages
    /// that left in one extent with a pinned one and were free at once don't count.
    pub fn peak(&self) -> u64 {
        self.0.lock().peak
    }

    /// The pages on the list, in device order: all orphaned ones, unless a reaper is at work.
    pub fn pages(&self) -> Vec<PageRange> {
        self.0.lock().pages()
    }
}

fn close<const FANOUT: usize>(run: PageRange, pins: &PinTable<FANOUT>) -> Option<emulator::pin::Closing<'_, FANOUT>> {
    for _ in 0..CONTENDED_MAX {
        match pins.close(run) {
            Ok(closing) => return Some(closing),
            Err(Contended) => thread::yield_now(),
        }
    }
    None
}

/// The runs of `pages` for which no unpin is still to report: none of their words (page, folio,
/// giant folio) is both pinned and marked. Checks single pages only below a folio that reports
/// pins.
fn uncovered<const FANOUT: usize>(pages: PageRange, pins: &PinTable<FANOUT>) -> Vec<PageRange> {
    let fanout = FANOUT as u64;
    // Relaxed loads suffice: an unpin that came too early to find these pages on the list went
    // through its mutex before this reaper.
    let word = |level, index| pins.word(Unit { level, index }).unwrap_or_default();
    let covers = |level, index| {
        let word = word(level, index);
        word.is_pinned() && word.has_orphan()
    };
    let mut found: Vec<PageRange> = Vec::new();
    let mut add = |start: u64, len: u64| match found.last_mut() {
        Some(last) if last.end() == start => *last = PageRange::new(last.start(), last.len() + len),
        _ => found.push(PageRange::new(start, len)),
    };
    let mut at = pages.start();
    while at < pages.end() {
        let folio = at / fanout;
        let end = pages.end().min((folio + 1) * fanout);
        if covers(2, folio / fanout) || covers(1, folio) {
            // All of the folio's pages are covered.
        } else if word(1, folio).has_below() {
            (at..end).filter(|page| !covers(0, *page)).for_each(|page| add(page, 1));
        } else {
            add(at, end - at);
        }
        at = end;
    }
    found
}
