//! The stamps: when each page last changed its owner.
//!
//! It owns one counter of events and a stamp per page, 2 MiB folio and 1 GiB folio. Invariant: a
//! page's newest stamp is the newest of its three, and stamps only grow. So a check sees each
//! change made before it, and every later check sees that change too. Kernel counterpart: none.
//!
//! # The order of steps
//! - *A changer* publishes its map, then stamps, then hands the blocks to the allocator. So the
//!   next owner of a block finds the stamp in place. If the arrival of a block in a file is stamped
//!   at all, that happens before its map is published.
//! - *A registrant* reads the file's generation, then takes its [`Ledger::read_point`], then reads
//!   the map, and at the end compares the generation. It takes the read point before the map: a
//!   change published after the map was read draws a newer number, so it is seen. It takes the read
//!   point after the generation: stamps of blocks on their way into this map are older, so no fresh
//!   block looks stale.
//! - *A DMA* checks ([`Ledger::check`]), copies, and checks again ([`Ledger::check_after_copy`]).
//!   The second check decides. If the copy touched a block after its next owner did, the stamp was
//!   there before, and the fence between copy and check keeps it from being missed. The first check
//!   avoids touching pages that are known to be stale.
//!
//! # Cost
//! A stamp is written once for each unit that the range covers whole. Folios and giants keep a
//! second word, the newest stamp of anything *below* them. A check reads two words for a giant or
//! three for a folio in which nothing was stamped since, and otherwise the pages one by one. The
//! result is exact either way.

use std::io;

use crate::pin::words::WordStore;
use crate::runtime::pages::PageRange;
use crate::runtime::sync::atomic::{AtomicU64, Ordering, fence};

/// Pages in a folio, and folios in a giant folio.
const FANOUT_SHIFT: u32 = 9;
const FOLIO: u64 = 1 << FANOUT_SHIFT;
const GIANT: u64 = 1 << (2 * FANOUT_SHIFT);

/// An event's number and what it did to ownership. Later is greater.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp(u64);

impl Stamp {
    /// The event's number; 0 before the first.
    pub const fn event(self) -> u64 {
        self.0 >> 1
    }

    /// Whether the event left the range without an owner, though allocated.
    pub const fn is_orphan(self) -> bool {
        self.0 & 1 == 1
    }

    const fn newer_than(self, since: Stamp) -> bool {
        self.event() > since.event()
    }
}

/// What a stamp says about the range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// It has another owner, another offset in its file, or none at all.
    Changed,
    /// It left its file while pinned, and stays allocated until the last unpin.
    Orphaned,
}

/// Whether the pages of an access still have the owner that they had at registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnershipCheck {
    /// No page has changed its owner since the registration.
    Current,
    /// Some pages were orphaned since then. None has another owner, so the access harms no file.
    Orphan,
    /// A page has changed its owner since.
    Stale {
        /// The first such page.
        page: u64,
        /// When it changed.
        stamp: Stamp,
    },
}

/// The newest ownership change of each page of a device.
///
/// ```
/// use emulator::ledger::{Ledger, Ownership, OwnershipCheck};
/// use emulator::pin::PageRange;
///
/// let ledger = Ledger::new(512)?;
/// let block = PageRange::new(7, 1);
/// let registered = ledger.read_point();
/// assert_eq!(ledger.check(block, registered), OwnershipCheck::Current);
/// let stamp = ledger.stamp(block, Ownership::Changed);
/// assert_eq!(ledger.check(block, registered), OwnershipCheck::Stale { page: 7, stamp });
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct Ledger {
    events: AtomicU64,
    pages: WordStore,
    /// Two words each: the folio's own stamp, and the newest below it.
    folios: WordStore,
    giants: WordStore,
    len: u64,
}

impl Ledger {
    /// A ledger for a device of `pages` pages of 4 KiB; nothing has happened yet.
    ///
    /// # Errors
    /// The address space can't hold 8 bytes for each page.
    pub fn new(pages: u64) -> io::Result<Ledger> {
        Ok(Ledger {
            events: AtomicU64::new(0),
            pages: WordStore::new(pages)?,
            folios: WordStore::new(2 * pages.div_ceil(FOLIO))?,
            giants: WordStore::new(2 * pages.div_ceil(GIANT))?,
            len: pages,
        })
    }

    /// The moment as of which a registration knows its pages. See the module for where it belongs
    /// in the registration.
    pub fn read_point(&self) -> Stamp {
        // ORDERING: Acquire. A caller that reads an event's number here also sees the map that the
        // changer published before it drew the number.
        Stamp(self.events.load(Ordering::Acquire) << 1)
    }

    /// Stamps `range` with a new event. Complete on return: see the module for what must come
    /// before and after.
    ///
    /// # Panics
    /// If the range leaves the device: pages that don't exist belong to no file.
    pub fn stamp(&self, range: PageRange, ownership: Ownership) -> Stamp {
        assert!(range.end() <= self.len, "{range} of a device of {} pages can't be stamped", self.len);
        // ORDERING: Release with `read_point`.
        let event = self.events.fetch_add(1, Ordering::AcqRel) + 1;
        let stamp = Stamp(event << 1 | u64::from(ownership == Ownership::Orphaned));
        let newest = |word: &AtomicU64| {
            // ORDERING: the fence below orders all of them at once.
            word.fetch_max(stamp.0, Ordering::Relaxed);
        };
        let (mut at, end) = (range.start(), range.end());
        while at < end {
            let (folio, giant) = (at >> FANOUT_SHIFT, at >> (2 * FANOUT_SHIFT));
            if at & (GIANT - 1) == 0 && end - at >= GIANT {
                newest(&self.giants(giant)[0]);
                at += GIANT;
                continue;
            }
            newest(&self.giants(giant)[1]);
            if at & (FOLIO - 1) == 0 && end - at >= FOLIO {
                newest(&self.folios(folio)[0]);
                at += FOLIO;
                continue;
            }
            newest(&self.folios(folio)[1]);
            let stop = end.min((folio + 1) << FANOUT_SHIFT);
            self.pages.words()[at as usize..stop as usize].iter().for_each(newest);
            at = stop;
        }
        // ORDERING: all of it before whatever the next owner does to the pages; pairs with
        // `check_after_copy`.
        fence(Ordering::SeqCst);
        stamp
    }

    /// The newest stamp of `page`.
    ///
    /// # Panics
    /// If there is no such page.
    pub fn newest(&self, page: u64) -> Stamp {
        let above = self.folios(page >> FANOUT_SHIFT)[0].load(Ordering::Acquire);
        let top = self.giants(page >> (2 * FANOUT_SHIFT))[0].load(Ordering::Acquire);
        Stamp(self.pages.words()[page as usize].load(Ordering::Acquire).max(above).max(top))
    }

    /// The runs of `range` whose newest event came after `since`, with its stamp, in order;
    /// neighbours of one stamp are one run.
    ///
    /// # Panics
    /// If the range leaves the device.
    pub fn newer_in(&self, range: PageRange, since: Stamp) -> Vec<(PageRange, Stamp)> {
        let mut newer: Vec<(PageRange, Stamp)> = Vec::new();
        let mut at = range.start();
        while at < range.end() {
            // Folio by folio: of a large range next to nothing has changed, and one look at its
            // words says so.
            let stop = range.end().min((at | (FOLIO - 1)) + 1);
            let folio = PageRange::new(at, stop - at);
            at = stop;
            if self.check(folio, since) == OwnershipCheck::Current {
                continue;
            }
            for page in folio.pages() {
                let stamp = self.newest(page);
                if !stamp.newer_than(since) {
                    continue;
                }
                match newer.last_mut() {
                    Some((run, last)) if run.end() == page && *last == stamp => {
                        *run = PageRange::new(run.start(), run.len() + 1);
                    }
                    _ => newer.push((PageRange::new(page, 1), stamp)),
                }
            }
        }
        newer
    }

    /// What an access to `range` means to a registration as of `since`: the worst over its pages.
    /// For the look before a copy: what is stale already is seen, and the copy can't have begun
    /// before the look.
    ///
    /// # Panics
    /// If the range leaves the device.
    #[inline]
    pub fn check(&self, range: PageRange, since: Stamp) -> OwnershipCheck {
        let mut worst = OwnershipCheck::Current;
        let (mut at, end) = (range.start(), range.end());
        while at < end {
            if at & (GIANT - 1) == 0 && end - at >= GIANT {
                let giant = self.giants(at >> (2 * FANOUT_SHIFT));
                if !giant.iter().any(|word| Stamp(word.load(Ordering::Acquire)).newer_than(since)) {
                    at += GIANT;
                    continue;
                }
            }
            let stop = end.min((at | (FOLIO - 1)) + 1);
            let folio = self.folios(at >> FANOUT_SHIFT);
            let giant = self.giants(at >> (2 * FANOUT_SHIFT));
            // ORDERING: Acquire: the copy that follows stays behind the look.
            let own = folio[0].load(Ordering::Acquire).max(giant[0].load(Ordering::Acquire));
            let below = folio[1].load(Ordering::Acquire);
            if Stamp(own.max(below)).newer_than(since) {
                match self.check_pages(PageRange::new(at, stop - at), Stamp(own), since) {
                    OwnershipCheck::Current => {}
                    OwnershipCheck::Orphan => worst = OwnershipCheck::Orphan,
                    stale @ OwnershipCheck::Stale { .. } => return stale,
                }
            }
            at = stop;
        }
        worst
    }

    /// Page by page, where the folio and the giant say `own`.
    fn check_pages(&self, range: PageRange, own: Stamp, since: Stamp) -> OwnershipCheck {
        let mut worst = OwnershipCheck::Current;
        let words = &self.pages.words()[range.start() as usize..range.end() as usize];
        for (page, word) in range.pages().zip(words) {
            let newest = own.max(Stamp(word.load(Ordering::Acquire)));
            if newest.newer_than(since) {
                if !newest.is_orphan() {
                    return OwnershipCheck::Stale { page, stamp: newest };
                }
                worst = OwnershipCheck::Orphan;
            }
        }
        worst
    }

    /// As [`Ledger::check`], for the look after a copy: every change is seen whose next owner came
    /// before the copy did.
    ///
    /// # Panics
    /// If the range leaves the device.
    #[inline]
    pub fn check_after_copy(&self, range: PageRange, since: Stamp) -> OwnershipCheck {
        // ORDERING: the copy's stores, then the look: without a full fence a processor may look
        // first and store later, into a block that was stamped and handed on in between.
        fence(Ordering::SeqCst);
        self.check(range, since)
    }

    #[inline]
    fn folios(&self, index: u64) -> &[AtomicU64] {
        &self.folios.words()[2 * index as usize..2 * index as usize + 2]
    }

    #[inline]
    fn giants(&self, index: u64) -> &[AtomicU64] {
        &self.giants.words()[2 * index as usize..2 * index as usize + 2]
    }
}

#[cfg(all(test, not(any(daxlab_loom, daxlab_shuttle))))]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const PAGES: u64 = GIANT + 2 * FOLIO + 300;

    /// A stamp per page, and the worst found by looking at every one.
    struct Plain(Vec<Stamp>);

    impl Plain {
        fn stamp(&mut self, range: PageRange, stamp: Stamp) {
            self.0[range.start() as usize..range.end() as usize].fill(stamp);
        }

        fn check(&self, range: PageRange, since: Stamp) -> OwnershipCheck {
            let newer =
                range.pages().map(|page| (page, self.0[page as usize])).filter(|(_, s)| s.event() > since.event());
            let (orphan, stale): (Vec<_>, Vec<_>) = newer.partition(|(_, stamp)| stamp.is_orphan());
            match stale.first() {
                Some(&(page, stamp)) => OwnershipCheck::Stale { page, stamp },
                None if orphan.is_empty() => OwnershipCheck::Current,
                None => OwnershipCheck::Orphan,
            }
        }
    }

    fn ranges() -> impl Strategy<Value = PageRange> {
        let place =
            || (0..=PAGES / FOLIO, prop_oneof![Just(0), 0..FOLIO]).prop_map(|(f, p)| (f * FOLIO + p).min(PAGES));
        let between = (place(), place()).prop_map(|(a, b)| PageRange::new(a.min(b), a.abs_diff(b)));
        let short = (place(), 0..40u64).prop_map(|(at, len)| PageRange::new(at, len.min(PAGES - at)));
        prop_oneof![2 => between, 3 => short, 1 => Just(PageRange::new(0, GIANT)), 1 => Just(PageRange::new(0, PAGES))]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn agrees_with_a_stamp_per_page(
            steps in vec((ranges(), any::<bool>(), vec((ranges(), 0..20u64), 1..4)), 1..20),
        ) {
            let ledger = Ledger::new(PAGES).unwrap();
            let mut plain = Plain(vec![Stamp::default(); PAGES as usize]);
            for (event, (range, orphaned, looks)) in (1..).zip(steps) {
                let before = ledger.read_point();
                let ownership = if orphaned { Ownership::Orphaned } else { Ownership::Changed };
                let stamp = ledger.stamp(range, ownership);
                prop_assert_eq!((before.event(), stamp.event(), stamp.is_orphan()), (event - 1, event, orphaned));
                plain.stamp(range, stamp);
                for (range, since) in looks {
                    let since = Stamp(since << 1);
                    prop_assert_eq!(ledger.check(range, since), plain.check(range, since));
                    prop_assert_eq!(ledger.check_after_copy(range, since), plain.check(range, since));
                    let newer = ledger.newer_in(range, since);
                    let flat: Vec<_> = newer.iter().flat_map(|(run, stamp)| run.pages().map(|page| (page, *stamp))).collect();
                    let pages = range.pages().map(|page| (page, plain.0[page as usize]));
                    prop_assert_eq!(flat, pages.filter(|(_, s)| s.event() > since.event()).collect::<Vec<_>>());
                    let split = newer.windows(2).any(|two| two[0].0.end() == two[1].0.start() && two[0].1 == two[1].1);
                    prop_assert!(!split, "as few runs as can be");
                }
                let page = range.start().min(PAGES - 1);
                prop_assert_eq!(ledger.newest(page), plain.0[page as usize]);
            }
        }
    }

    #[test]
    fn a_registration_is_stale_by_later_events_only() {
        let ledger = Ledger::new(PAGES).unwrap();
        let (folio, page) = (PageRange::new(FOLIO, FOLIO), PageRange::new(FOLIO + 7, 1));
        ledger.stamp(folio, Ownership::Changed);
        let since = ledger.read_point();
        assert_eq!(ledger.check(folio, since), OwnershipCheck::Current);
        ledger.stamp(page, Ownership::Orphaned);
        assert_eq!(ledger.check(folio, since), OwnershipCheck::Orphan);
        let freed = ledger.stamp(page, Ownership::Changed);
        assert_eq!(ledger.check(folio, since), OwnershipCheck::Stale { page: FOLIO + 7, stamp: freed });
        assert_eq!(ledger.check(PageRange::new(0, FOLIO), since), OwnershipCheck::Current);
        assert_eq!(ledger.check(folio, ledger.read_point()), OwnershipCheck::Current);
    }

    #[test]
    #[should_panic(expected = "can't be stamped")]
    fn a_range_beyond_the_device_has_no_owner() {
        Ledger::new(4).unwrap().stamp(PageRange::new(3, 2), Ownership::Changed);
    }
}
