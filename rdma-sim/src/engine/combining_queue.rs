//! A queue that the threads which submit work run themselves, one thread at a time.
//!
//! It owns the work that is not yet run, and the state `S` that running it needs. The thread that
//! runs the queue is the *runner*. Invariants: there is one runner at a time, so `S` belongs to it
//! alone; work runs in the order in which it was accepted; no thread waits for another: a thread
//! that finds a runner leaves its work to it. Kernel counterpart: the state machine of `rxe_task`;
//! a llist with a combiner.
//!
//! # Why there is one runner, and no work is left behind
//! A thread becomes the runner by changing `IDLE` to `RUNNING`: by a compare-exchange outside the
//! mutex, or under the mutex after it has queued work. So there is one runner at a time. The runner
//! stops by a compare-exchange from exactly `RUNNING`. That fails once another thread has queued
//! work and set `BACKLOG`; from then on the runner stops only under the mutex and with an empty
//! queue. Work is queued, and `BACKLOG` set, under the mutex too. So either the runner finds the
//! work, or the runner has stopped before; then the flags read `IDLE`, and the thread that queued
//! the work becomes the runner. Without contention a request costs two atomic read-modify-writes
//! and does not touch the mutex.

use std::cell::UnsafeCell;
use std::collections::VecDeque;

use emulator::sync::Mutex;
use emulator::sync::atomic::{AtomicU32, Ordering};

const IDLE: u32 = 0;
const RUNNING: u32 = 1;
const BACKLOG: u32 = 2;

/// The queue holds as much work as it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CombiningQueueFull;

/// A queue with one runner at a time; see the module.
pub(crate) struct CombiningQueue<W, S> {
    runner: AtomicU32,
    backlog: Mutex<VecDeque<W>>,
    /// Only the runner accesses it.
    state: UnsafeCell<S>,
}

// SAFETY: only the runner accesses `state`. There is one runner at a time, and one runner hands
// over to the next with release and acquire; so `S` needs to be Send, not Sync. `W` moves between
// threads through the mutex.
unsafe impl<W: Send, S: Send> Sync for CombiningQueue<W, S> {}

impl<W, S> CombiningQueue<W, S> {
    pub(crate) fn new(state: S) -> CombiningQueue<W, S> {
        CombiningQueue {
            runner: AtomicU32::new(IDLE),
            backlog: Mutex::new(VecDeque::new()),
            state: UnsafeCell::new(state),
        }
    }

    /// Runs `work` by `run`, after all work accepted before; or leaves it to the present runner.
    ///
    /// # Errors
    /// [`CombiningQueueFull`] if `bound` pieces of work already wait.
    pub(crate) fn submit(&self, work: W, bound: usize, run: impl FnMut(&mut S, W)) -> Result<(), CombiningQueueFull> {
        self.accept(work, Some(bound), run)
    }

    /// As [`CombiningQueue::submit`], without a bound: for the few commands of the queue's owner.
    pub(crate) fn command(&self, work: W, run: impl FnMut(&mut S, W)) {
        let _unbounded = self.accept(work, None, run);
    }

    #[inline]
    fn accept(&self, work: W, bound: Option<usize>, mut run: impl FnMut(&mut S, W)) -> Result<(), CombiningQueueFull> {
        // ORDERING: Acquire pairs with the Release of the last runner, so its writes to `state` are
        // visible.
        if self.runner.compare_exchange(IDLE, RUNNING, Ordering::Acquire, Ordering::Relaxed).is_ok() {
            // SAFETY: this thread is the runner.
            run(unsafe { &mut *self.state.get() }, work);
            // ORDERING: Release hands `state` to the next runner.
            if self.runner.compare_exchange(RUNNING, IDLE, Ordering::Release, Ordering::Relaxed).is_err() {
                self.run_backlog(run);
            }
            return Ok(());
        }
        {
            let mut backlog = self.backlog.lock();
            if bound.is_some_and(|bound| backlog.len() >= bound) {
                return Err(CombiningQueueFull);
            }
            backlog.push_back(work);
            // ORDERING: Acquire, as above, in case this thread becomes the runner.
            if self.runner.fetch_or(RUNNING | BACKLOG, Ordering::Acquire) & RUNNING != 0 {
                return Ok(());
            }
        }
        self.run_backlog(run);
        Ok(())
    }

    /// Runs the queued work, then stops being the runner. The caller is the runner.
    #[cold]
    fn run_backlog(&self, mut run: impl FnMut(&mut S, W)) {
        loop {
            let work = {
                let mut backlog = self.backlog.lock();
                match backlog.pop_front() {
                    Some(work) => work,
                    None => {
                        // ORDERING: Release hands `state` to the next runner.
                        self.runner.store(IDLE, Ordering::Release);
                        return;
                    }
                }
            };
            // SAFETY: this thread is the runner since before this loop.
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
        let queue: CombiningQueue<u32, Vec<u32>> = CombiningQueue::new(Vec::new());
        queue
            .submit(1, 2, |log, work| {
                log.push(work);
                if work == 1 {
                    let never = |_: &mut Vec<u32>, _| panic!("another thread is the runner");
                    assert_eq!(queue.submit(2, 2, never), Ok(()));
                    assert_eq!(queue.submit(3, 2, never), Ok(()));
                    assert_eq!(queue.submit(4, 2, never), Err(CombiningQueueFull));
                    queue.command(5, never);
                }
            })
            .unwrap();
        queue
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
        let queue: CombiningQueue<(usize, usize), Log> =
            CombiningQueue::new(Log { running: false, next: [0; THREADS] });
        thread::scope(|scope| {
            for thread in 0..THREADS {
                let queue = &queue;
                scope.spawn(move || {
                    for n in 0..EACH {
                        queue
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
        queue.command((0, EACH), |log, _| assert_eq!(log.next, [EACH; THREADS]));
    }
}
