//! A queue that those who put work in take turns to run.
//!
//! It owns the work not yet run and the state `S` that running it needs. Invariants: one thread at a time runs, so `S` is its
//! own; work runs in the order it was taken; nobody waits for anybody: who finds a runner leaves the work to it. Kernel
//! counterpart: `rxe_task`'s state machine; llist with a combiner.
//!
//! # Why one runner, and no work left behind
//! `IDLE` becomes `RUNNING` by a compare-exchange outside the mutex, or, when work was queued, under it; so one thread at a
//! time holds the turn. It is given up by a compare-exchange from exactly `RUNNING`, which fails once somebody queued work
//! and set `BACKLOG`; then only under the mutex and with nothing queued. Work is queued, and `BACKLOG` set, under the mutex
//! too: either the runner finds it, or it has given the turn up before, and then the flags read `IDLE` and the one who queued
//! takes the turn itself. Without contention that is two atomic read-modify-writes a request, and the mutex is not touched.

use std::cell::UnsafeCell;
use std::collections::VecDeque;

use emulator::sync::Mutex;
use emulator::sync::atomic::{AtomicU32, Ordering};

const IDLE: u32 = 0;
const RUNNING: u32 = 1;
const BACKLOG: u32 = 2;

/// As much work is queued as may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

/// See the module.
pub(crate) struct Turns<W, S> {
    turn: AtomicU32,
    backlog: Mutex<VecDeque<W>>,
    /// Touched only by whoever holds the turn.
    state: UnsafeCell<S>,
}

// SAFETY: `state` is reached only by the thread that holds the turn, which is one at a time and is handed on with
// release and acquire; so `S` needs to be Send, not Sync. `W` travels between threads through the mutex.
unsafe impl<W: Send, S: Send> Sync for Turns<W, S> {}

impl<W, S> Turns<W, S> {
    pub(crate) fn new(state: S) -> Turns<W, S> {
        Turns { turn: AtomicU32::new(IDLE), backlog: Mutex::new(VecDeque::new()), state: UnsafeCell::new(state) }
    }

    /// Runs `work` by `run`, after everything taken before; or leaves it to the thread that is running.
    ///
    /// # Errors
    /// [`Full`] if `bound` pieces of work wait already.
    pub(crate) fn submit(&self, work: W, bound: usize, run: impl FnMut(&mut S, W)) -> Result<(), Full> {
        self.take_in(work, Some(bound), run)
    }

    /// As [`Turns::submit`], whatever waits: for the few commands of the queue's owner.
    pub(crate) fn command(&self, work: W, run: impl FnMut(&mut S, W)) {
        let _unbounded = self.take_in(work, None, run);
    }

    #[inline]
    fn take_in(&self, work: W, bound: Option<usize>, mut run: impl FnMut(&mut S, W)) -> Result<(), Full> {
        // ORDERING: Acquire: what the last runner did to `state` is seen; pairs with the Release that gave the turn up.
        if self.turn.compare_exchange(IDLE, RUNNING, Ordering::Acquire, Ordering::Relaxed).is_ok() {
            // SAFETY: we took the turn.
            run(unsafe { &mut *self.state.get() }, work);
            // ORDERING: Release hands `state` on.
            if self.turn.compare_exchange(RUNNING, IDLE, Ordering::Release, Ordering::Relaxed).is_err() {
                self.run_backlog(run);
            }
            return Ok(());
        }
        {
            let mut backlog = self.backlog.lock();
            if bound.is_some_and(|bound| backlog.len() >= bound) {
                return Err(Full);
            }
            backlog.push_back(work);
            // ORDERING: Acquire, as above, in case the turn is ours now.
            if self.turn.fetch_or(RUNNING | BACKLOG, Ordering::Acquire) & RUNNING != 0 {
                return Ok(());
            }
        }
        self.run_backlog(run);
        Ok(())
    }

    /// With the turn held: runs what is queued, then gives the turn up.
    #[cold]
    fn run_backlog(&self, mut run: impl FnMut(&mut S, W)) {
        loop {
            let work = {
                let mut backlog = self.backlog.lock();
                match backlog.pop_front() {
                    Some(work) => work,
                    None => {
                        // ORDERING: Release hands `state` on.
                        self.turn.store(IDLE, Ordering::Release);
                        return;
                    }
                }
            };
            // SAFETY: we hold the turn since before this loop.
            run(unsafe { &mut *self.state.get() }, work);
        }
    }
}

#[cfg(all(test, not(any(daxlab_loom, daxlab_shuttle))))]
mod tests {
    use super::*;
    use emulator::sync::thread;

    #[test]
    fn work_posted_from_inside_a_run_waits_its_turn() {
        let turns: Turns<u32, Vec<u32>> = Turns::new(Vec::new());
        turns
            .submit(1, 2, |log, work| {
                log.push(work);
                if work == 1 {
                    let never = |_: &mut Vec<u32>, _| panic!("somebody else is running");
                    assert_eq!(turns.submit(2, 2, never), Ok(()));
                    assert_eq!(turns.submit(3, 2, never), Ok(()));
                    assert_eq!(turns.submit(4, 2, never), Err(Full));
                    turns.command(5, never);
                }
            })
            .unwrap();
        turns
            .submit(6, 2, |log, work| {
                log.push(work);
                assert_eq!(log, &[1, 2, 3, 5, 6]);
            })
            .unwrap();
    }

    #[test]
    fn every_piece_runs_once_one_at_a_time_and_each_posters_in_order() {
        const THREADS: usize = 4;
        const EACH: usize = 20_000;
        struct Log {
            running: bool,
            next: [usize; THREADS],
        }
        let turns: Turns<(usize, usize), Log> = Turns::new(Log { running: false, next: [0; THREADS] });
        thread::scope(|scope| {
            for thread in 0..THREADS {
                let turns = &turns;
                scope.spawn(move || {
                    for n in 0..EACH {
                        turns
                            .submit((thread, n), usize::MAX, |log, (thread, n)| {
                                assert!(!std::mem::replace(&mut log.running, true));
                                assert_eq!(log.next[thread], n);
                                log.next[thread] += 1;
                                log.running = false;
                            })
                            .unwrap();
                    }
                });
            }
        });
        turns.command((0, EACH), |log, _| assert_eq!(log.next, [EACH; THREADS]));
    }
}
