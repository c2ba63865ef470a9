//! Real threads on one table, and a count of everything at the end.
//!
//! Files come and go on a few blocks of different sizes: pinners with short and long pins at every
//! level, changes that freeze, wait, give up or orphan, reapers, and allocators that hand the
//! blocks on. Every block has an exclusion counter of its own, so that an access while the block
//! has another owner is seen at once, and at the end every block is in exactly one place and every
//! word is zero.
#![cfg(not(any(daxlab_loom, daxlab_shuttle)))]
#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::task::Poll;

use emulator::World;
use emulator::pin::{Closing, Contended, Frozen, PageRange, Pin, PinError, PinKind, PinTable, Unpinned};
use emulator::runtime::rng::Rng;
use emulator::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use emulator::sync::{Arc, Mutex, race, thread};
use emulator::wait::{WaitFor, Waiter, WaiterId};
use rand::RngExt;

const FANOUT: usize = 4;
/// Two giants of 16 pages, in one of which only a folio and single pages move.
const BLOCKS: [PageRange; 7] = [
    PageRange::new(0, 16),
    PageRange::new(16, 4),
    PageRange::new(20, 1),
    PageRange::new(21, 1),
    PageRange::new(22, 2),
    PageRange::new(24, 6),
    PageRange::new(30, 2),
];
const FILES: usize = 5;
const NO_BLOCK: u64 = u64::MAX;
const THREADS: u64 = 4;
const STEPS: usize = 200_000;

/// {generation, map} and the ticket that changes take in turn.
struct File {
    generation: AtomicU64,
    block: AtomicU64,
    ticket: AtomicBool,
}

struct Machine {
    table: PinTable<FANOUT>,
    world: World,
    files: [File; FILES],
    /// Users that have a block pinned; the top half counts the frozen tokens of it.
    users: [AtomicU64; BLOCKS.len()],
    free: Mutex<Vec<usize>>,
    orphans: Mutex<Vec<usize>>,
}

const FROZEN: u64 = 1 << 32;

#[derive(Default)]
struct Tally {
    pinned: u64,
    refused: u64,
    rolled_back: u64,
    froze: u64,
    waited: u64,
    gave_up: u64,
    orphaned: u64,
    reaped: u64,
}

impl Machine {
    fn new() -> Machine {
        let files = std::array::from_fn(|n| File {
            generation: AtomicU64::new(0),
            block: AtomicU64::new(n as u64),
            ticket: AtomicBool::new(false),
        });
        Machine {
            table: PinTable::with_fanout(32).unwrap(),
            world: World::real(1),
            files,
            users: Default::default(),
            free: Mutex::new((FILES..BLOCKS.len()).collect()),
            orphans: Mutex::new(Vec::new()),
        }
    }

    fn pin(
        &self,
        file: &File,
        part: impl FnOnce(PageRange) -> PageRange,
        kind: PinKind,
        tally: &mut Tally,
    ) -> Option<(usize, Pin)> {
        let generation = file.generation.load(Ordering::Acquire);
        let block = file.block.load(Ordering::Acquire);
        let range = part(*BLOCKS.get(usize::try_from(block).ok()?)?);
        race::point("map read");
        let result = self.table.pin(range, kind);
        race::point("pinned");
        match result {
            Ok(pin) if file.generation.load(Ordering::Acquire) == generation => {
                let users = self.users[block as usize].fetch_add(1, Ordering::SeqCst);
                assert!(users < FROZEN, "pinned {range} while it was frozen");
                tally.pinned += 1;
                Some((block as usize, pin))
            }
            Ok(pin) => {
                tally.rolled_back += 1;
                self.unpinned(self.table.unpin(pin), tally);
                None
            }
            Err(refused) => {
                assert!(matches!(refused, PinError::Closed(_)), "{refused}");
                tally.refused += 1;
                self.unpinned(Unpinned { orphan_seen: refused.orphan_seen() }, tally);
                None
            }
        }
    }

    fn unpin(&self, (block, pin): (usize, Pin), tally: &mut Tally) {
        let users = self.users[block].fetch_sub(1, Ordering::SeqCst);
        assert!(users < FROZEN, "{} was frozen while it was pinned", pin.range());
        self.unpinned(self.table.unpin(pin), tally);
    }

    fn unpinned(&self, unpinned: Unpinned, tally: &mut Tally) {
        if unpinned.orphan_seen {
            let mut orphans = self.orphans.lock();
            orphans.retain(|&block| !self.reap(block, tally));
        }
    }

    fn reap(&self, block: usize, tally: &mut Tally) -> bool {
        loop {
            let Ok(closing) = self.table.close(BLOCKS[block]) else { return false };
            match closing.freeze() {
                Ok(frozen) => {
                    tally.reaped += 1;
                    self.free(block, frozen);
                    return true;
                }
                Err(busy) => {
                    if !busy.orphan().reopen().orphan_seen {
                        return false;
                    }
                }
            }
        }
    }

    fn free(&self, block: usize, frozen: Frozen<'_, FANOUT>) {
        assert_eq!(frozen.range(), BLOCKS[block]);
        let before = self.users[block].fetch_add(FROZEN, Ordering::SeqCst);
        assert_eq!(before, 0, "froze {} with users", frozen.range());
        race::point("frozen");
        assert_eq!(self.users[block].fetch_sub(FROZEN, Ordering::SeqCst), FROZEN);
        drop(frozen);
        self.free.lock().push(block);
    }

    fn publish(&self, file: &File, block: u64) {
        file.block.store(block, Ordering::Release);
        file.generation.fetch_add(1, Ordering::Release);
    }

    /// Truncates, or allocates if there is nothing to truncate.
    fn change(&self, file: &File, me: &Arc<Waiter>, rng: &mut Rng, tally: &mut Tally) {
        if file.ticket.swap(true, Ordering::Acquire) {
            return;
        }
        let block = file.block.load(Ordering::Relaxed);
        if block == NO_BLOCK {
            let free = self.free.lock().pop();
            if let Some(block) = free {
                self.publish(file, block as u64);
            }
        } else {
            self.truncate(file, block as usize, me, rng, tally);
        }
        file.ticket.store(false, Ordering::Release);
    }

    fn truncate(&self, file: &File, block: usize, me: &Arc<Waiter>, rng: &mut Rng, tally: &mut Tally) {
        let mut closing: Closing<'_, FANOUT> = match self.table.close(BLOCKS[block]) {
            Ok(closing) => closing,
            Err(Contended) => panic!("the ticket keeps other changes out, and blocks don't overlap"),
        };
        loop {
            closing = match closing.freeze() {
                Ok(frozen) => {
                    tally.froze += 1;
                    self.publish(file, NO_BLOCK);
                    return self.free(block, frozen);
                }
                Err(closing) => closing,
            };
            match rng.random_range(0..3) {
                0 => {
                    tally.gave_up += 1;
                    return;
                }
                1 => {
                    tally.orphaned += 1;
                    let orphaned = closing.orphan();
                    self.publish(file, NO_BLOCK);
                    self.orphans.lock().push(block);
                    let unpinned = orphaned.reopen();
                    return self.unpinned(unpinned, tally);
                }
                // Only short-term pins are sure to go: their owners don't wait for anything
                // meanwhile.
                _ => {
                    tally.waited += 1;
                    let drained = || if closing.flag_waiter(true) { Poll::Pending } else { Poll::Ready(()) };
                    let how = WaitFor::uninterruptible("short pins");
                    self.table.drained().wait(&self.world, me, how, drained).unwrap();
                }
            }
        }
    }

    fn thread(&self, id: u64) -> Tally {
        race::arm(self.world.stream("race", id), 0.05);
        let mut rng = self.world.stream("stress", id);
        let me = Waiter::new(WaiterId(id));
        let mut tally = Tally::default();
        let mut long: Vec<(usize, Pin)> = Vec::new();
        for _ in 0..STEPS {
            let file = &self.files[rng.random_range(0..FILES)];
            let whole = rng.random_bool(0.5);
            let at = rng.random::<u64>();
            let part = |block: PageRange| match whole {
                true => block,
                false => {
                    let start = at % block.len();
                    PageRange::new(block.start() + start, 1 + (at >> 32) % (block.len() - start))
                }
            };
            match rng.random_range(0..8) {
                0..3 => {
                    if let Some(pinned) = self.pin(file, part, PinKind::Short, &mut tally) {
                        self.unpin(pinned, &mut tally);
                    }
                }
                3 if long.len() < 3 => long.extend(self.pin(file, part, PinKind::Long, &mut tally)),
                3..5 if !long.is_empty() => {
                    let pinned = long.swap_remove(rng.random_range(0..long.len()));
                    self.unpin(pinned, &mut tally);
                }
                _ => self.change(file, &me, &mut rng, &mut tally),
            }
        }
        for pinned in long {
            self.unpin(pinned, &mut tally);
        }
        race::disarm();
        tally
    }
}

#[test]
fn blocks_change_hands_under_pins_and_none_is_lost() {
    let machine = Arc::new(Machine::new());
    let threads: Vec<_> = (0..THREADS)
        .map(|id| {
            let machine = Arc::clone(&machine);
            thread::spawn(move || machine.thread(id))
        })
        .collect();
    let tallies: Vec<Tally> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    let sum = |of: fn(&Tally) -> u64| tallies.iter().map(of).sum::<u64>();

    assert_eq!(machine.table.busy_words(9), []);
    assert!(machine.orphans.lock().is_empty(), "everything is unpinned: everything was reaped");
    assert_eq!(sum(|t| t.orphaned), sum(|t| t.reaped), "each orphan is reaped once");
    assert!(machine.users.iter().all(|users| users.load(Ordering::SeqCst) == 0));
    let mut blocks = machine.free.lock().clone();
    blocks.extend(
        machine
            .files
            .iter()
            .filter_map(|file| usize::try_from(file.block.load(Ordering::SeqCst)).ok())
            .filter(|&b| b < BLOCKS.len()),
    );
    blocks.sort_unstable();
    assert_eq!(blocks, (0..BLOCKS.len()).collect::<Vec<_>>(), "each block is in one place");
    // The two sides met, or all of this says nothing.
    type Count = fn(&Tally) -> u64;
    let met: [(&str, Count); 7] = [
        ("pinned", |t| t.pinned),
        ("refused", |t| t.refused),
        ("rolled back", |t| t.rolled_back),
        ("froze", |t| t.froze),
        ("waited", |t| t.waited),
        ("gave up", |t| t.gave_up),
        ("orphaned", |t| t.orphaned),
    ];
    for (what, count) in met {
        println!("{what}: {}", sum(count));
        assert!(sum(count) > 0, "never {what}");
    }
}
