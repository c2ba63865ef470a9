//! The pin protocol under loom: three levels, fan-out 2, real code; passes as it is, fails with any
//! one line left out.
//!
//! Run: `RUSTFLAGS="--cfg daxlab_loom" cargo test -p emulator --test loom_pin --release`. The
//! pinner and the change are what `fs-sim` does, reduced to one inode of one block range:
//! {generation, map}. What a pinned page protects is loom's own cell, so that an access without a
//! happens-before relation is found as such, not by the value it leaves behind.
#![cfg(daxlab_loom)]
#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::Poll;

use emulator::World;
use emulator::pin::{Closing, Frozen, Mutation, PageRange, Pin, PinKind, PinTable};
use emulator::sync::atomic::{AtomicU64, Ordering};
use emulator::sync::{Arc, Mutex, thread};
use emulator::wait::{WaitFor, Waiter, WaiterId};
use loom::cell::UnsafeCell;

const PAGES: u64 = 4;
const PAGE: PageRange = PageRange::new(0, 1);
const NEXT_PAGE: PageRange = PageRange::new(1, 1);
const FOLIO: PageRange = PageRange::new(0, 2);
const GIANT: PageRange = PageRange::new(0, 4);

struct Machine {
    table: PinTable<2>,
    generation: AtomicU64,
    mapped: AtomicU64,
    memory: Vec<UnsafeCell<u64>>,
    world: World,
    recheck: bool,
}

// SAFETY: the cells are what the models are about: loom reports every access that isn't ordered
// with the others.
unsafe impl Sync for Machine {}
// SAFETY: as for Sync.
unsafe impl Send for Machine {}

impl Machine {
    fn new(mutation: Option<Mutation>, recheck: bool) -> Arc<Machine> {
        Arc::new(Machine {
            table: PinTable::mutated(PAGES, mutation).unwrap(),
            generation: AtomicU64::new(1),
            mapped: AtomicU64::new(1),
            memory: (0..PAGES).map(|_| UnsafeCell::new(0)).collect(),
            world: World::manual(0),
            recheck,
        })
    }

    /// Pins and gives back, so that `BELOW` is set above.
    fn warm(&self, range: PageRange) {
        let pin = self.table.pin(range, PinKind::Short).unwrap();
        let _ = self.table.unpin(pin);
    }

    fn touch(&self, range: PageRange) {
        for page in range.pages() {
            // SAFETY: loom checks that no other thread is in the cell, and that all earlier ones
            // are ordered before.
            self.memory[page as usize].with_mut(|cell| unsafe { *cell += 1 });
        }
    }

    /// Pins `range` of the file if it is mapped and stays so.
    fn pin_file(&self, range: PageRange, kind: PinKind) -> Option<Pin> {
        let generation = self.generation.load(Ordering::Acquire);
        if self.mapped.load(Ordering::Acquire) == 0 {
            return None;
        }
        let pin = self.table.pin(range, kind).ok()?;
        if self.recheck && self.generation.load(Ordering::Acquire) != generation {
            let _ = self.table.unpin(pin);
            return None;
        }
        Some(pin)
    }

    /// Pins, accesses through the pin, unpins.
    fn dma(&self, range: PageRange, kind: PinKind, touched: PageRange) {
        if let Some(pin) = self.pin_file(range, kind) {
            self.touch(touched);
            let _ = self.table.unpin(pin);
        }
    }

    /// Publishes the removal, and lets the pages' next owner write before and after the door opens.
    fn publish_and_free(&self, frozen: Frozen<'_, 2>, touched: PageRange) {
        self.mapped.store(0, Ordering::Release);
        self.generation.fetch_add(1, Ordering::Release);
        self.touch(touched);
        drop(frozen);
        self.touch(touched);
    }

    /// One attempt to take `range` from the file; given up if something is pinned.
    fn change(&self, range: PageRange, touched: PageRange) {
        let Ok(closing) = self.table.close(range) else { return };
        if let Ok(frozen) = closing.freeze() {
            self.publish_and_free(frozen, touched);
        }
    }

    /// Sleeps until `closing` can be frozen. A lost wake-up is a deadlock, which loom reports.
    fn wait<'t>(&self, mut closing: Closing<'t, 2>, id: u64) -> Frozen<'t, 2>
    where
        Self: 't,
    {
        let waiter = Waiter::new(WaiterId(id));
        loop {
            match closing.freeze() {
                Ok(frozen) => return frozen,
                Err(busy) => closing = busy,
            }
            let how = WaitFor::uninterruptible("pins");
            let drained = || if closing.flag_waiter(false) { Poll::Pending } else { Poll::Ready(()) };
            let queue: &emulator::wait::WaitQueue = self.table.drained();
            queue.wait(&self.world, &waiter, how, drained).unwrap();
        }
    }
}

fn check(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

/// The model must fail, and with these words.
fn caught(words: &str, model: impl Fn() + Sync + Send + 'static) {
    let Err(panic) = catch_unwind(AssertUnwindSafe(|| check(model))) else { panic!("the model did not notice") };
    let message = panic.downcast_ref::<String>().cloned().or(panic.downcast_ref::<&str>().map(|m| m.to_string()));
    let message = message.unwrap_or_default();
    assert!(message.to_lowercase().contains(words), "failed for another reason: {message}");
}

const UNORDERED: &str = "causality violation";
const DEADLOCK: &str = "deadlock";

/// What a model consists of, besides its threads' order.
#[derive(Clone, Copy)]
struct Pair {
    pinned: PageRange,
    closed: PageRange,
    /// Pinned for a moment beforehand.
    warm: Option<PageRange>,
    mutation: Option<Mutation>,
    recheck: bool,
}

impl Pair {
    const fn new(pinned: PageRange, closed: PageRange) -> Pair {
        Pair { pinned, closed, warm: None, mutation: None, recheck: true }
    }

    const fn warm(self, range: PageRange) -> Pair {
        Pair { warm: Some(range), ..self }
    }

    const fn without(self, mutation: Mutation) -> Pair {
        Pair { mutation: Some(mutation), ..self }
    }

    fn machine(self) -> Arc<Machine> {
        let machine = Machine::new(self.mutation, self.recheck);
        if let Some(range) = self.warm {
            machine.warm(range);
        }
        machine
    }

    /// A pinner against `attempts` changes one after the other.
    fn race(self, attempts: usize) -> impl Fn() + Sync + Send + 'static {
        move || {
            let machine = self.machine();
            let touched = self.pinned.intersect(self.closed).unwrap();
            let pinner = {
                let machine = Arc::clone(&machine);
                thread::spawn(move || machine.dma(self.pinned, PinKind::Long, touched))
            };
            for _ in 0..attempts {
                if machine.mapped.load(Ordering::Relaxed) == 1 {
                    machine.change(self.closed, touched);
                }
            }
            pinner.join().unwrap();
            assert!(machine.table.all_zero());
        }
    }

    /// A pinner against a change that waits as long as it takes.
    fn race_waiting(self) -> impl Fn() + Sync + Send + 'static {
        move || {
            let machine = self.machine();
            let touched = self.pinned.intersect(self.closed).unwrap();
            let pinner = {
                let machine = Arc::clone(&machine);
                thread::spawn(move || machine.dma(self.pinned, PinKind::Short, touched))
            };
            let closing = machine.table.close(self.closed).unwrap();
            let frozen = machine.wait(closing, 1);
            machine.publish_and_free(frozen, touched);
            pinner.join().unwrap();
            assert!(machine.table.all_zero());
        }
    }
}

#[test]
fn pinner_and_change_at_every_pair_of_levels() {
    for pinned in [PAGE, FOLIO, GIANT] {
        for closed in [PAGE, FOLIO, GIANT] {
            check(Pair::new(pinned, closed).race(1));
            check(Pair::new(pinned, closed).warm(NEXT_PAGE).race(1));
        }
    }
}

#[test]
fn pinner_and_a_change_that_tries_twice() {
    for pinned in [PAGE, FOLIO, GIANT] {
        for closed in [PAGE, FOLIO, GIANT] {
            check(Pair::new(pinned, closed).race(2));
            check(Pair::new(pinned, closed).warm(NEXT_PAGE).race(2));
        }
    }
}

#[test]
fn pinner_and_a_change_that_waits() {
    for pinned in [PAGE, FOLIO, GIANT] {
        for closed in [PAGE, FOLIO, GIANT] {
            check(Pair::new(pinned, closed).race_waiting());
            check(Pair::new(pinned, closed).warm(NEXT_PAGE).race_waiting());
        }
    }
}

#[test]
fn two_pinners_of_different_levels_and_a_change() {
    for closed in [PAGE, FOLIO, GIANT] {
        check(move || {
            let machine = Machine::new(None, true);
            let pinners = [PAGE, FOLIO].map(|range| {
                let machine = Arc::clone(&machine);
                // Each has its own cell: two pins of one page don't exclude each other.
                let own = PageRange::new(range.end() - 1, 1);
                thread::spawn(move || machine.dma(range, PinKind::Long, own))
            });
            machine.change(closed, closed);
            for pinner in pinners {
                pinner.join().unwrap();
            }
            assert!(machine.table.all_zero());
        });
    }
}

#[test]
fn mutation_no_recheck() {
    let pair = Pair { recheck: false, ..Pair::new(PAGE, PAGE) };
    caught(UNORDERED, pair.race(1));
}

#[test]
fn mutation_relaxed_unpin() {
    caught(UNORDERED, Pair::new(PAGE, PAGE).without(Mutation::RelaxedUnpin).race(1));
}

#[test]
fn mutation_relaxed_scan() {
    caught(UNORDERED, Pair::new(PAGE, FOLIO).without(Mutation::RelaxedScan).race(1));
}

#[test]
fn mutation_no_look_at_the_parent() {
    for closed in [FOLIO, GIANT] {
        caught(UNORDERED, Pair::new(PAGE, closed).without(Mutation::NoLookAtParent).race(1));
    }
}

#[test]
fn mutation_no_second_look_after_setting_below() {
    for closed in [FOLIO, GIANT] {
        caught(UNORDERED, Pair::new(PAGE, closed).without(Mutation::NoSecondLook).race(1));
    }
}

#[test]
fn mutation_below_cleared_on_abort() {
    for closed in [FOLIO, GIANT] {
        caught(UNORDERED, Pair::new(PAGE, closed).without(Mutation::BelowClearedOnAbort).race(2));
    }
}

#[test]
fn mutation_no_upward_close_mark() {
    for (pinned, closed) in [(FOLIO, PAGE), (GIANT, PAGE), (GIANT, FOLIO)] {
        caught(UNORDERED, Pair::new(pinned, closed).without(Mutation::NoUpwardMark).race(1));
    }
}

#[test]
fn mutation_undo_without_wake() {
    caught(DEADLOCK, Pair::new(PAGE, PAGE).without(Mutation::UndoWithoutWake).race_waiting());
    // A folio whose `BELOW` is set already: the closer looks at the page, and finds the pin that is
    // about to be refused.
    caught(DEADLOCK, Pair::new(PAGE, FOLIO).warm(NEXT_PAGE).without(Mutation::UndoWithoutWake).race_waiting());
}

/// A page's closer sleeps on its folio's pin; a close of the whole folio, refused, leaves the flag
/// of the sleeper alone.
#[test]
fn a_refused_close_leaves_the_parents_waiters_flagged() {
    check(|| {
        let machine = Machine::new(None, true);
        let pin = machine.table.pin(FOLIO, PinKind::Long).unwrap();
        let closing = machine.table.close(PAGE).unwrap();
        let threads = [
            {
                let machine = Arc::clone(&machine);
                thread::spawn(move || {
                    let _ = machine.table.unpin(pin);
                })
            },
            {
                let machine = Arc::clone(&machine);
                thread::spawn(move || {
                    // Two changes of one range can't meet in the file system; a unit around one can
                    // be tried.
                    let _ = machine.table.close(FOLIO).map(drop);
                })
            },
        ];
        drop(machine.wait(closing, 1));
        for thread in threads {
            thread.join().unwrap();
        }
        assert!(machine.table.all_zero());
    });
}

/// A closer that was woken by one word's drain finds the next one busy, and must not sleep on a
/// flag that came too late.
#[test]
fn a_waiter_moves_on_from_word_to_word() {
    check(|| {
        let machine = Machine::new(None, true);
        let unpinners = [PAGE, NEXT_PAGE].map(|range| {
            let pin = machine.table.pin(range, PinKind::Long).unwrap();
            let machine = Arc::clone(&machine);
            thread::spawn(move || {
                let _ = machine.table.unpin(pin);
            })
        });
        let closing = machine.table.close(FOLIO).unwrap();
        drop(machine.wait(closing, 1));
        for unpinner in unpinners {
            unpinner.join().unwrap();
        }
        assert!(machine.table.all_zero());
    });
}

/// Two closers of sibling pages sleep on the flag that they share in the folio's word.
#[test]
fn closers_share_a_parents_flag() {
    check(|| {
        let machine = Machine::new(None, true);
        let pin = machine.table.pin(FOLIO, PinKind::Long).unwrap();
        let sibling = {
            let machine = Arc::clone(&machine);
            thread::spawn(move || {
                let closing = machine.table.close(NEXT_PAGE).unwrap();
                // Flags, and gives up at once: its reopening must not take the other's flag along.
                closing.flag_waiter(false);
            })
        };
        let unpinner = {
            let machine = Arc::clone(&machine);
            thread::spawn(move || {
                let _ = machine.table.unpin(pin);
            })
        };
        let closing = machine.table.close(PAGE).unwrap();
        drop(machine.wait(closing, 1));
        sibling.join().unwrap();
        unpinner.join().unwrap();
        assert!(machine.table.all_zero());
    });
}

/// Of two closes of which one contains the other at most one is held at a time; each leaves nothing
/// behind.
#[test]
fn closers_exclude_each_other_across_levels() {
    for outer in [PAGE, FOLIO, GIANT] {
        check(move || {
            let machine = Machine::new(None, true);
            let other = {
                let machine = Arc::clone(&machine);
                thread::spawn(move || {
                    if let Ok(closing) = machine.table.close(outer) {
                        machine.touch(PAGE);
                        drop(closing);
                    }
                })
            };
            if let Ok(closing) = machine.table.close(PAGE) {
                machine.touch(PAGE);
                drop(closing);
            }
            other.join().unwrap();
            assert!(machine.table.all_zero());
            drop(machine.table.close(GIANT).unwrap());
        });
    }
}

/// Ranges that left their file while pinned, and who frees them: what fs-sim does.
struct Orphans {
    machine: Arc<Machine>,
    registry: Mutex<Vec<PageRange>>,
    freed: AtomicU64,
}

impl Orphans {
    fn new() -> Arc<Orphans> {
        let machine = Machine::new(None, true);
        Arc::new(Orphans { machine, registry: Mutex::new(Vec::new()), freed: AtomicU64::new(0) })
    }

    fn free(&self, frozen: Frozen<'_, 2>) {
        self.machine.touch(frozen.range());
        self.freed.fetch_add(1, Ordering::Relaxed);
    }

    /// A change that orphans what it finds pinned.
    fn change(&self, range: PageRange) {
        match self.machine.table.close(range).unwrap().freeze() {
            Ok(frozen) => {
                self.machine.mapped.store(0, Ordering::Release);
                self.machine.generation.fetch_add(1, Ordering::Release);
                self.free(frozen);
            }
            Err(closing) => {
                let orphaned = closing.orphan();
                self.machine.mapped.store(0, Ordering::Release);
                self.machine.generation.fetch_add(1, Ordering::Release);
                self.registry.lock().push(range);
                if orphaned.reopen().orphan_seen {
                    self.reap();
                }
            }
        }
    }

    fn reap(&self) {
        let mut registry = self.registry.lock();
        registry.retain(|&range| !self.reap_one(range));
    }

    /// True if `range` was freed.
    fn reap_one(&self, range: PageRange) -> bool {
        loop {
            // The change that orphaned it holds it still, and looks again when it reopens.
            let Ok(closing) = self.machine.table.close(range) else { return false };
            match closing.freeze() {
                Ok(frozen) => {
                    self.free(frozen);
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

    fn unpin(&self, pin: Pin) {
        if self.machine.table.unpin(pin).orphan_seen {
            self.reap();
        }
    }
}

#[test]
fn an_orphaned_range_is_freed_exactly_once() {
    for (pinned, orphaned) in [(PAGE, PAGE), (PAGE, FOLIO), (PAGE, GIANT), (FOLIO, PAGE)] {
        check(move || {
            let orphans = Orphans::new();
            let pin = orphans.machine.table.pin(pinned, PinKind::Long).unwrap();
            let unpinner = {
                let orphans = Arc::clone(&orphans);
                thread::spawn(move || {
                    orphans.machine.touch(pinned.intersect(orphaned).unwrap());
                    orphans.unpin(pin);
                })
            };
            orphans.change(orphaned);
            unpinner.join().unwrap();
            assert_eq!(orphans.freed.load(Ordering::Relaxed), 1, "orphaned blocks were lost");
            assert!(orphans.machine.table.all_zero());
        });
    }
}

/// A pinner with an old map comes and goes while an orphan is reaped: its short-lived count can
/// make the reaper give up, and is then the one to report.
#[test]
fn a_pin_that_comes_too_late_does_not_strand_an_orphan() {
    check(|| {
        let orphans = Orphans::new();
        let pin = orphans.machine.table.pin(PAGE, PinKind::Long).unwrap();
        let late = {
            let orphans = Arc::clone(&orphans);
            thread::spawn(move || match orphans.machine.table.pin(FOLIO, PinKind::Short) {
                Ok(pin) => orphans.unpin(pin),
                Err(refused) if refused.orphan_seen() => orphans.reap(),
                Err(_) => {}
            })
        };
        let closing = orphans.machine.table.close(PAGE).unwrap();
        let orphaned = closing.orphan();
        orphans.registry.lock().push(PAGE);
        if orphaned.reopen().orphan_seen {
            orphans.reap();
        }
        orphans.unpin(pin);
        late.join().unwrap();
        assert_eq!(orphans.freed.load(Ordering::Relaxed), 1, "orphaned blocks were lost");
        assert!(orphans.machine.table.all_zero());
    });
}

/// A change of the page beside an orphan clears the mark that their folio's word carries for no
/// reason; a pinner with an old map comes and goes meanwhile. Whatever the reaper gave up for is
/// reported.
#[test]
fn a_change_beside_it_does_not_strand_an_orphan() {
    check(|| {
        let orphans = Orphans::new();
        let pin = orphans.machine.table.pin(FOLIO, PinKind::Long).unwrap();
        orphans.change(NEXT_PAGE);
        let beside = {
            let orphans = Arc::clone(&orphans);
            thread::spawn(move || {
                let _ = orphans.machine.table.close(PAGE).unwrap().freeze().map(drop);
            })
        };
        let late = {
            let orphans = Arc::clone(&orphans);
            thread::spawn(move || match orphans.machine.table.pin(FOLIO, PinKind::Short) {
                Ok(pin) => orphans.unpin(pin),
                Err(refused) if refused.orphan_seen() => orphans.reap(),
                Err(_) => {}
            })
        };
        orphans.unpin(pin);
        beside.join().unwrap();
        late.join().unwrap();
        assert_eq!(orphans.freed.load(Ordering::Relaxed), 1, "orphaned blocks were lost");
        assert!(orphans.machine.table.all_zero());
    });
}

/// Two orphaned pages share the mark in their folio's word; a reaper of one never takes the other's
/// away too early.
#[test]
fn orphans_share_a_parents_mark() {
    check(|| {
        let orphans = Orphans::new();
        let pin = orphans.machine.table.pin(FOLIO, PinKind::Long).unwrap();
        let unpinner = {
            let orphans = Arc::clone(&orphans);
            thread::spawn(move || orphans.unpin(pin))
        };
        orphans.change(PAGE);
        orphans.change(NEXT_PAGE);
        unpinner.join().unwrap();
        assert_eq!(orphans.freed.load(Ordering::Relaxed), 2, "orphaned blocks were lost");
        assert!(orphans.machine.table.all_zero());
    });
}
