//! Gates and wait queues under loom.
//!
//! Run: `RUSTFLAGS="--cfg daxlab_loom" cargo test -p emulator --test loom_gate --release`.
#![cfg(daxlab_loom)]
#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::task::Poll;

use emulator::World;
use emulator::pin::gate::Gate;
use emulator::sync::atomic::{AtomicU64, Ordering};
use emulator::sync::{Arc, thread};
use emulator::wait::{SleepKind, WaitError, WaitFor, WaitQueue, Waiter, WaiterId};
use loom::cell::UnsafeCell;

fn check(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

/// A gate, what it guards, and how many were told that they are the last.
struct Guarded {
    gate: Gate,
    told: AtomicU64,
    cell: UnsafeCell<u64>,
}

// SAFETY: who may be in the cell is what the model is about; loom reports every access that isn't
// ordered.
unsafe impl Sync for Guarded {}
// SAFETY: as for Sync.
unsafe impl Send for Guarded {}

impl Guarded {
    /// The last one out of a closed gate acts; a refused entry after that is told again, so the
    /// first to be told acts.
    fn told(&self) {
        if self.told.fetch_add(1, Ordering::Relaxed) == 0 {
            // SAFETY: every thread that was inside has left before this, and no thread gets in
            // again.
            self.cell.with_mut(|cell| unsafe { *cell += 1 });
        }
    }

    fn visit(&self) {
        let last = match self.gate.enter() {
            Ok(()) => {
                // SAFETY: loom checks that no thread acts as the last one while another is inside.
                self.cell.with(|cell| unsafe { assert_eq!(*cell, 0) });
                self.gate.leave()
            }
            Err(shut) => shut.last,
        };
        if last {
            self.told();
        }
    }
}

#[test]
fn a_closed_gate_tells_a_last_one_out_and_nobody_earlier() {
    check(|| {
        let guarded = Arc::new(Guarded { gate: Gate::new(), told: AtomicU64::new(0), cell: UnsafeCell::new(0) });
        let visitors = [(); 2].map(|()| {
            let guarded = Arc::clone(&guarded);
            thread::spawn(move || guarded.visit())
        });
        let (inside, shut_by_us) = guarded.gate.close();
        assert!(shut_by_us);
        for visitor in visitors {
            visitor.join().unwrap();
        }
        let told = guarded.told.load(Ordering::Relaxed);
        assert!(inside == 0 || told >= 1, "no leaver was told, though {inside} were inside");
        assert_eq!(guarded.gate.inside(), 0);
    });
}

#[test]
fn no_wake_up_is_lost() {
    check(|| {
        let world = Arc::new(World::manual(0));
        let queue = Arc::new(WaitQueue::new());
        let state = Arc::new(AtomicU64::new(0));
        let waker = {
            let (queue, state) = (Arc::clone(&queue), Arc::clone(&state));
            thread::spawn(move || {
                for value in 1..=2 {
                    state.store(value, Ordering::Relaxed);
                    queue.wake_all();
                }
            })
        };
        let waiter = Waiter::new(WaiterId(1));
        let how = WaitFor::uninterruptible("state");
        let done = || if state.load(Ordering::Relaxed) == 2 { Poll::Ready(()) } else { Poll::Pending };
        queue.wait(&world, &waiter, how, done).unwrap();
        waker.join().unwrap();
        assert!(!queue.has_sleepers() && world.sleepers().is_empty());
    });
}

#[test]
fn an_interruption_ends_every_sleep_that_admits_it() {
    check(|| {
        let world = World::manual(0);
        let queue = WaitQueue::new();
        let waiter = Waiter::new(WaiterId(1));
        let killer = {
            let waiter = Arc::clone(&waiter);
            thread::spawn(move || waiter.interrupt(true))
        };
        let how = WaitFor { reason: "nothing", sleep: SleepKind::Killable, deadline: None };
        let ended: Result<(), WaitError> = queue.wait(&world, &waiter, how, || Poll::Pending);
        assert_eq!(ended, Err(WaitError::Interrupted));
        killer.join().unwrap();
    });
}
