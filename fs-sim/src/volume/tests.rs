//! Tests of the volume: the allocator against a bitmap, orphans by dialogue, both under threads
//! with exact books at the end.

use super::*;
use emulator::pin::{Frozen, PageRange, Pin, PinKind, PinTable};
use emulator::runtime::rng;
use emulator::sync::atomic::{AtomicU64, Ordering};
use emulator::sync::{Mutex, race, thread};
use proptest::prelude::*;

/// Not a multiple of a group, nor of a folio.
const PAGES: u64 = 20_000;

fn r(start: u64, len: u64) -> PageRange {
    PageRange::new(start, len)
}

fn frozen(pins: &PinTable, pages: PageRange) -> Frozen<'_> {
    pins.close(pages).expect("no other close is in progress").freeze().expect("nothing is pinned")
}

fn blocks_in(runs: &[PageRange]) -> u64 {
    runs.iter().map(|run| run.len()).sum()
}

/// Whether some group has a free run of `blocks`, from a folio's start on if `aligned`; and the
/// longest run of any group.
fn runs_in(taken: &[bool], group: u64, blocks: u64, aligned: bool) -> (bool, u64) {
    let (mut found, mut longest) = (false, 0);
    let (mut run, mut usable) = (0, 0);
    for (page, taken) in taken.iter().enumerate() {
        if (page as u64).is_multiple_of(group) {
            (run, usable) = (0, 0);
        }
        run = if *taken { 0 } else { run + 1 };
        let starts_here = !aligned || (page as u64).is_multiple_of(512);
        usable = if !*taken && (usable > 0 || starts_here) { usable + 1 } else { 0 };
        longest = longest.max(run);
        found |= usable >= blocks;
    }
    (found, longest)
}

#[derive(Clone, Debug)]
enum Op {
    Alloc { blocks: u64, hint: u64 },
    Free { which: prop::sample::Index, from: prop::sample::Index, len: prop::sample::Index },
    FreeAgain { page: prop::sample::Index, len: u64 },
}

fn op() -> impl Strategy<Value = Op> {
    let blocks = prop_oneof![
        1 => Just(0u64), 3 => 1u64..8, 3 => 100u64..600, 3 => 500u64..1100, 2 => 2000u64..8000, 1 => 15_000u64..25_000
    ];
    prop_oneof![
        6 => (blocks, 0u64..40).prop_map(|(blocks, hint)| Op::Alloc { blocks, hint }),
        5 => any::<[prop::sample::Index; 3]>().prop_map(|[which, from, len]| Op::Free { which, from, len }),
        1 => (any::<prop::sample::Index>(), 1u64..3000).prop_map(|(page, len)| Op::FreeAgain { page, len }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// The allocator and a bitmap agree on every block after every operation; what is preferred is
    /// taken when it exists.
    #[test]
    fn agrees_with_a_bitmap(ops in prop::collection::vec(op(), 1..30)) {
        let pins = PinTable::new(PAGES).unwrap();
        let allocator = Allocator::new(PAGES);
        let (_, group) = allocator.groups();
        let mut taken = vec![false; PAGES as usize];
        let mut owned: Vec<PageRange> = Vec::new();
        let mut expected_corruptions = 0;
        for op in ops {
            match op {
                Op::Alloc { blocks, hint } => {
                    let free = taken.iter().filter(|taken| !**taken).count() as u64;
                    match allocator.alloc(blocks, GroupHint(hint)) {
                        Err(NoSpace { asked, found }) => {
                            prop_assert!(blocks > free, "{} of {} free blocks refused", blocks, free);
                            prop_assert_eq!((asked, found), (blocks, free));
                        }
                        Ok(runs) => {
                            prop_assert_eq!(blocks_in(&runs), blocks);
                            if blocks > 0 && runs_in(&taken, group, blocks, false).0 {
                                prop_assert_eq!(runs.len(), 1, "one run was there");
                            }
                            if blocks >= 512 && runs_in(&taken, group, blocks, true).0 {
                                prop_assert!(runs[0].start().is_multiple_of(512), "a folio's start was there");
                            }
                            prop_assert!(runs.windows(2).all(|pair| pair[0].end() != pair[1].start()), "one run in two");
                            for page in runs.iter().flat_map(|run| run.pages()) {
                                prop_assert!(!std::mem::replace(&mut taken[page as usize], true), "{} taken twice", page);
                            }
                            owned.extend(runs);
                        }
                    }
                }
                Op::Free { which, from, len } if !owned.is_empty() => {
                    // Any part of an allocation: runs are split and joined again.
                    let run = owned.swap_remove(which.index(owned.len()));
                    let from = from.index(run.len() as usize) as u64;
                    let part = r(run.start() + from, len.index((run.len() - from) as usize) as u64 + 1);
                    owned.extend([r(run.start(), from), r(part.end(), run.end() - part.end())].iter().filter(|r| !r.is_empty()));
                    part.pages().for_each(|page| taken[page as usize] = false);
                    allocator.free(frozen(&pins, part));
                }
                Op::Free { .. } => {}
                Op::FreeAgain { page, len } => {
                    // Whatever is free of this range is given back once more; what isn't is left
                    // out.
                    let start = page.index(PAGES as usize) as u64;
                    let end = (start + len).min(PAGES);
                    let free: Vec<u64> = (start..end).filter(|page| !taken[*page as usize]).collect();
                    for run in free.chunk_by(|a, b| a + 1 == *b) {
                        let run = r(run[0], run.len() as u64);
                        allocator.free(frozen(&pins, run));
                        expected_corruptions += run.end().div_ceil(group) - run.start() / group;
                    }
                }
            }
            let held = taken.iter().filter(|taken| **taken).count() as u64;
            prop_assert_eq!(allocator.allocated_blocks(), held);
            prop_assert_eq!(allocator.free_blocks(), PAGES - held);
            prop_assert_eq!(allocator.largest_free(), runs_in(&taken, group, 0, false).1);
            prop_assert_eq!(allocator.check_owned(owned.iter().copied()), Vec::<String>::new());
            prop_assert_eq!(allocator.corruptions().0, expected_corruptions);
        }
        if expected_corruptions == 0 {
            prop_assert_eq!(allocator.check(), Vec::<String>::new());
        }
    }
}

#[test]
fn groups_are_whole_folios_several_on_small_devices_and_bounded_on_huge_ones() {
    let groups = |pages| Allocator::new(pages).groups();
    assert_eq!(groups(512), (1, 512), "2 MiB");
    assert_eq!(groups(65_536), (16, 4096), "256 MiB");
    assert_eq!(groups(1 << 20), (64, 16_384), "4 GiB");
    assert_eq!(groups(1 << 28), (1024, 262_144), "1 TiB: groups of 1 GiB");
    assert_eq!(groups(PAGES), (20, 1024));
    let empty = Allocator::new(0);
    assert_eq!((empty.groups().0, empty.free_blocks()), (0, 0));
    assert_eq!(empty.alloc(1, GroupHint(7)), Err(NoSpace { asked: 1, found: 0 }));
}

#[test]
fn a_file_larger_than_a_group_is_one_run_of_whole_groups() {
    let allocator = Allocator::new(1 << 20);
    assert_eq!(allocator.alloc(100_000, GroupHint(3)), Ok(vec![r(3 * 16_384, 100_000)]));
    // Round the ring: the end of the device, then its beginning.
    assert_eq!(allocator.alloc(40_000, GroupHint(62)), Ok(vec![r(62 * 16_384, 32_768), r(0, 7_232)]));
}

/// The request takes free runs from group after group until the last one has no more. It is
/// refused, and every run that it took is free again.
#[test]
fn refused_allocation_gives_every_run_back() {
    let pins = PinTable::new(PAGES).unwrap();
    let allocator = Allocator::new(PAGES);
    let whole = allocator.alloc(PAGES, GroupHint(0)).unwrap();
    assert_eq!(whole, [r(0, PAGES)]);
    // One run of 8 blocks in each of three groups; everything else stays allocated.
    let holes = [r(8, 8), r(5 * 1024, 8), r(9 * 1024 + 100, 8)];
    holes.iter().for_each(|hole| allocator.free(frozen(&pins, *hole)));
    let owned =
        [r(0, 8), r(16, 5 * 1024 - 16), r(5 * 1024 + 8, 4 * 1024 + 92), r(9 * 1024 + 108, PAGES - 9 * 1024 - 108)];
    assert_eq!(allocator.check_owned(owned), Vec::<String>::new());
    assert_eq!(allocator.alloc(25, GroupHint(5)), Err(NoSpace { asked: 25, found: 24 }));
    assert_eq!((allocator.free_blocks(), allocator.allocated_blocks()), (24, PAGES - 24), "nothing was kept");
    assert_eq!(allocator.check_owned(owned), Vec::<String>::new());
    assert_eq!(allocator.alloc(24, GroupHint(5)), Ok(vec![holes[1], holes[2], holes[0]]), "all of it can be had");
}

#[test]
fn hints_keep_files_in_their_groups() {
    let allocator = Allocator::new(1 << 20);
    for hint in [0u64, 1, 63, 64, 130, u64::MAX] {
        let run = allocator.alloc(8, GroupHint(hint)).unwrap()[0];
        assert_eq!(run.start() / 16_384, hint % 64);
    }
}

#[test]
fn what_is_freed_twice_or_was_never_there_is_written_down_and_changes_nothing() {
    let pins = PinTable::new(2 * PAGES).unwrap();
    let allocator = Allocator::new(PAGES);
    let run = allocator.alloc(10, GroupHint(0)).unwrap()[0];
    allocator.free(frozen(&pins, run));
    assert_eq!(allocator.check(), Vec::<String>::new());
    allocator.free(frozen(&pins, run));
    let kept = allocator.alloc(4, GroupHint(0)).unwrap()[0];
    assert_eq!(kept, r(0, 4));
    allocator.free(frozen(&pins, r(2, 4)));
    allocator.free(frozen(&pins, r(PAGES - 1, 3)));
    assert_eq!(allocator.free_blocks(), PAGES - 2, "the half that was allocated is free");
    let (count, met) = allocator.corruptions();
    let twice = Corruption::FreeOfFree;
    assert_eq!(
        (count, &met[..]),
        (4, &[twice(r(0, 10)), twice(r(4, 2)), Corruption::Outside(r(PAGES, 2)), twice(r(PAGES - 1, 1))][..])
    );
    let wrong = allocator.check();
    assert_eq!(wrong.len(), 4);
    assert_eq!(wrong[1], "invariant 4: device pages 4..6 freed although free");
    for _ in 0..20 {
        allocator.free(frozen(&pins, r(500, 1)));
    }
    assert_eq!(allocator.check().last().unwrap(), "invariant 4: 8 more corruptions of the allocator");
}

#[test]
fn check_owned_names_leaks_and_double_owners() {
    let allocator = Allocator::new(2048);
    let wrong = |owned: &[PageRange]| allocator.check_owned(owned.iter().copied());
    assert_eq!(wrong(&[]), Vec::<String>::new());
    let run = allocator.alloc(100, GroupHint(0)).unwrap()[0];
    assert_eq!(wrong(&[r(0, 60), r(60, 40)]), Vec::<String>::new());
    assert_eq!(wrong(&[]), ["invariant 4: device pages 0..100 neither free nor owned"]);
    assert_eq!(wrong(&[r(0, 60), r(50, 50)]), ["invariant 4: device pages 50..60 owned and owned"]);
    assert_eq!(wrong(&[run, r(300, 2)]), ["invariant 4: device pages 300..302 free and owned"]);
    assert_eq!(wrong(&[run, r(2040, 10)]).len(), 2, "free, and beyond the end");
}

/// An owner per page, to see every block go from free to owned to free and never from owned to
/// owned.
struct Owners(Vec<AtomicU64>);

impl Owners {
    fn new(pages: u64) -> Owners {
        Owners((0..pages).map(|_| AtomicU64::new(0)).collect())
    }

    fn change(&self, pages: PageRange, from: u64, to: u64) {
        for page in pages.pages() {
            let was = self.0[page as usize].swap(to, Ordering::SeqCst);
            assert_eq!(was, from, "page {page} of {pages} had the wrong owner");
        }
    }
}

/// A generator for choices in a test thread (xorshift64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    /// A generator for thread `n`, and the thread's race points armed.
    fn armed(n: u64) -> Dice {
        race::arm(rng::stream(7, "race points", n), 0.25);
        Dice(0x9e37_79b9_7f4a_7c15 ^ (n + 1))
    }
}

/// Threads that allocate and free on a device too small for them all: every block has one owner at
/// a time, refused requests leave nothing behind, and in the end everything is free and in one
/// piece again.
#[test]
fn threads_allocate_and_free_with_exact_books() {
    let pages = 8192;
    let pins = PinTable::new(pages).unwrap();
    let allocator = Allocator::new(pages);
    let owners = Owners::new(pages);
    let refused = AtomicU64::new(0);
    let free = |run: PageRange| {
        owners.change(run, 1, 0);
        // The blocks may have been freed and not yet reopened by their former owner.
        let closing = loop {
            match pins.close(run) {
                Ok(closing) => break closing,
                Err(_) => thread::yield_now(),
            }
        };
        allocator.free(closing.freeze().unwrap());
    };
    thread::scope(|scope| {
        for n in 0..4 {
            let (allocator, owners, refused, free) = (&allocator, &owners, &refused, &free);
            scope.spawn(move || {
                let mut dice = Dice::armed(n);
                let mut held: Vec<PageRange> = Vec::new();
                for _ in 0..1500 {
                    let blocks = if dice.below(8) == 0 { dice.below(6000) } else { dice.below(600) };
                    match allocator.alloc(blocks, GroupHint(n * 4)) {
                        Ok(runs) => {
                            assert_eq!(blocks_in(&runs), blocks);
                            runs.iter().for_each(|run| owners.change(*run, 0, 1));
                            held.extend(runs);
                        }
                        Err(_) => {
                            refused.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    while blocks_in(&held) > 3000 {
                        free(held.swap_remove(dice.below(held.len() as u64) as usize));
                    }
                }
                held.into_iter().for_each(free);
            });
        }
    });
    assert!(refused.into_inner() > 0, "never short of space: the refused path was not met");
    assert_eq!(allocator.check(), Vec::<String>::new());
    assert_eq!((allocator.free_blocks(), allocator.allocated_blocks()), (pages, 0));
    assert_eq!(allocator.largest_free(), allocator.groups().1, "joined to whole groups");
    assert!(pins.all_zero());
}

/// A device with everything that lets go of blocks: what the kernel does around an orphan, without
/// files.
struct Volume {
    pins: PinTable,
    allocator: Allocator,
    orphans: Orphans,
    owners: Owners,
}

impl Volume {
    fn new(pages: u64) -> Volume {
        Volume {
            pins: PinTable::new(pages).expect("address space for a few pages"),
            allocator: Allocator::new(pages),
            orphans: Orphans::default(),
            owners: Owners::new(pages),
        }
    }

    fn alloc(&self, blocks: u64, hint: u64) -> Vec<PageRange> {
        let runs = self.allocator.alloc(blocks, GroupHint(hint)).unwrap_or_default();
        runs.iter().for_each(|run| self.owners.change(*run, 0, 1));
        runs
    }

    fn free(&self, frozen: Frozen<'_>) {
        self.owners.change(frozen.range(), 1, 0);
        self.allocator.free(frozen);
    }

    fn reap(&self, pages: PageRange) {
        self.orphans.reap(pages, &self.pins, |frozen| self.free(frozen));
    }

    /// What a change does with pages that leave a file: free them, or orphan them if they are
    /// pinned.
    fn leave(&self, pages: PageRange) {
        let closing = loop {
            match self.pins.close(pages) {
                Ok(closing) => break closing,
                Err(_) => thread::yield_now(),
            }
        };
        match closing.freeze() {
            Ok(frozen) => self.free(frozen),
            Err(closing) => {
                self.orphans.insert(pages);
                let _told = closing.orphan().reopen();
                self.reap(pages);
            }
        }
    }

    fn pin(&self, pages: PageRange, kind: PinKind) -> Option<Pin> {
        match self.pins.pin(pages, kind) {
            Ok(pin) => Some(pin),
            Err(error) => {
                if error.orphan_seen() {
                    self.reap(pages);
                }
                None
            }
        }
    }

    fn unpin(&self, pin: Pin) {
        let pages = pin.range();
        if self.pins.unpin(pin).orphan_seen {
            self.reap(pages);
        }
    }

    fn orphaned(&self) -> Vec<(u64, u64)> {
        self.orphans.pages().iter().map(|run| (run.start(), run.end())).collect()
    }

    /// Nothing pinned, nothing orphaned, everything free, every book in order.
    fn assert_empty(&self) {
        assert!(self.pins.all_zero(), "{:?}", self.pins.busy_words(4));
        assert_eq!((self.orphaned(), self.orphans.count()), (vec![], 0));
        assert_eq!(self.allocator.check(), Vec::<String>::new());
        assert_eq!(self.allocator.check_owned([]), Vec::<String>::new());
    }
}

#[test]
fn only_what_is_pinned_stays_and_the_last_unpin_frees_it() {
    let volume = Volume::new(4096);
    let file = volume.alloc(1000, 0)[0];
    let first = volume.pin(r(file.start() + 10, 5), PinKind::Long).unwrap();
    let second = volume.pin(r(file.start() + 14, 3), PinKind::Long).unwrap();
    volume.leave(file);
    assert_eq!(volume.orphaned(), [(file.start() + 10, file.start() + 17)], "the rest went free at once");
    assert_eq!((volume.orphans.count(), volume.allocator.allocated_blocks()), (7, 7), "charged as used");
    volume.unpin(first);
    assert_eq!(volume.orphaned(), [(file.start() + 14, file.start() + 17)], "one page had two pins");
    let orphans = volume.orphans.pages();
    assert_eq!(volume.allocator.check_owned(orphans), Vec::<String>::new());
    volume.unpin(second);
    assert_eq!(volume.orphans.peak(), 7);
    volume.assert_empty();
}

#[test]
fn a_pinned_folio_keeps_all_its_pages_and_no_others() {
    let volume = Volume::new(4096);
    let file = volume.alloc(2048, 0)[0];
    let folio = volume.pin(r(512, 512), PinKind::Long).unwrap();
    let page = volume.pin(r(600, 1), PinKind::Short).unwrap();
    volume.leave(file);
    assert_eq!(volume.orphaned(), [(512, 1024)]);
    volume.unpin(folio);
    assert_eq!(volume.orphaned(), [(600, 601)]);
    volume.unpin(page);
    volume.assert_empty();
}

#[test]
fn orphans_of_several_files_in_one_folio_wait_for_their_own_pins() {
    let volume = Volume::new(512);
    let files: Vec<PageRange> = (0..4).map(|n| volume.alloc(100, n)[0]).collect();
    let pins: Vec<Pin> =
        files.iter().map(|file| volume.pin(r(file.start() + 50, 20), PinKind::Long).unwrap()).collect();
    files.iter().for_each(|file| volume.leave(*file));
    assert_eq!(volume.orphans.count(), 80);
    for (n, pin) in pins.into_iter().enumerate() {
        volume.unpin(pin);
        assert_eq!(volume.orphans.count(), 60 - 20 * n as u64);
    }
    volume.assert_empty();
}

/// A pin without a mark (a look at an old map, about to be undone) that is there when the marked
/// pin goes: it is marked, and its own end frees the page.
#[test]
fn a_late_pin_of_an_orphan_is_the_one_to_free_it() {
    let volume = Volume::new(4096);
    let file = volume.alloc(8, 0)[0];
    let registered = volume.pin(file, PinKind::Long).unwrap();
    volume.leave(file);
    let late = volume.pin(r(file.start() + 3, 1), PinKind::Short).unwrap();
    volume.unpin(registered);
    assert_eq!(volume.orphaned(), [(file.start() + 3, file.start() + 4)]);
    volume.unpin(late);
    volume.assert_empty();
}

#[test]
fn after_a_power_cut_one_look_at_the_whole_device_frees_every_orphan_once() {
    let volume = Volume::new(4096);
    let file = volume.alloc(1500, 0)[0];
    let pin = volume.pin(file, PinKind::Long).unwrap();
    volume.leave(file);
    assert_eq!(volume.orphans.count(), 1500);
    // No pin survives: a new table of pins, the old list.
    let after = PinTable::new(4096).unwrap();
    let whole = r(0, u64::MAX);
    volume.orphans.reap(whole, &after, |frozen| volume.free(frozen));
    assert_eq!((volume.orphans.count(), volume.allocator.free_blocks()), (0, 4096));
    volume.orphans.reap(whole, &after, |_| panic!("freed twice"));
    assert_eq!(volume.pins.unpin(pin), emulator::pin::Unpinned { orphan_seen: true });
}

/// Threads that allocate, pin (their own pages and, like a pin by an outdated map, any thread's),
/// orphan and unpin, all at once. Every block is freed exactly once and none is forgotten: with the
/// last pin gone, no orphan is left.
#[test]
fn threads_orphan_and_unpin_and_nothing_is_lost() {
    for round in 0..30 {
        let pages = 4096;
        let volume = Volume::new(pages);
        let seen: Mutex<Vec<PageRange>> = Mutex::new(vec![r(0, 512)]);
        let orphaned = AtomicU64::new(0);
        thread::scope(|scope| {
            for n in 0..4 {
                let (volume, seen, orphaned) = (&volume, &seen, &orphaned);
                scope.spawn(move || {
                    let mut dice = Dice::armed(round * 4 + n);
                    let mut held: Vec<Pin> = Vec::new();
                    for _ in 0..250 {
                        let files = volume.alloc(1 + dice.below(700), n);
                        seen.lock().extend(&files);
                        for _ in 0..3 {
                            let map = {
                                let seen = seen.lock();
                                seen[dice.below(seen.len() as u64) as usize]
                            };
                            let from = dice.below(map.len());
                            let part = match dice.below(3) {
                                0 => map,
                                _ => r(map.start() + from, 1 + dice.below(map.len() - from)),
                            };
                            let kind = if dice.below(2) == 0 { PinKind::Short } else { PinKind::Long };
                            held.extend(volume.pin(part, kind));
                        }
                        files.iter().for_each(|run| volume.leave(*run));
                        orphaned.fetch_add(volume.orphans.count(), Ordering::Relaxed);
                        while held.len() > 4 {
                            volume.unpin(held.swap_remove(dice.below(held.len() as u64) as usize));
                        }
                    }
                    held.into_iter().for_each(|pin| volume.unpin(pin));
                });
            }
        });
        assert!(orphaned.into_inner() > 0 && volume.orphans.peak() > 0);
        volume.assert_empty();
    }
}
