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
//!
//! # A held queue
//! `run` returns a piece of work that cannot run yet. The runner puts it back in front and stops:
//! the queue is *held* (`HELD`, set and cleared only under the mutex). In a held queue submitted
//! work waits; no thread runs it. [`CombiningQueue::resume`] and [`CombiningQueue::command`] end
//! the hold: that thread becomes the runner and runs the work from the front. A `resume` that finds
//! a runner sets `retry` under the mutex. The runner that wants to hold the queue reads `retry`
//! under the mutex too, and runs the work once more. So a resume that comes after `run` has looked
//! at its condition, and before the queue is held, is not lost.

use std::cell::UnsafeCell;
use std::collections::VecDeque;

use emulator::sync::Mutex;
use emulator::sync::atomic::{AtomicU32, Ordering};

const IDLE: u32 = 0;
const RUNNING: u32 = 1;
const BACKLOG: u32 = 2;
/// The first piece of work cannot run yet, and there is no runner. Never set with another flag.
const HELD: u32 = 4;

/// The queue holds as much work as it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CombiningQueueFull;

/// The work that waits.
struct Backlog<W> {
    work: VecDeque<W>,
    /// A resume came while a thread ran the queue.
    retry: bool,
}

/// A queue with one runner at a time; see the module.
pub(crate) struct CombiningQueue<W, S> {
    runner: AtomicU32,
    backlog: Mutex<Backlog<W>>,
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
            backlog: Mutex::new(Backlog { work: VecDeque::new(), retry: false }),
            state: UnsafeCell::new(state),
        }
    }

    /// Runs `work` by `run`, after all work accepted before; or leaves it to the present runner; or
    /// leaves it in the held queue. `run` returns work that cannot run yet.
    ///
    /// # Errors
    /// [`CombiningQueueFull`] if `bound` pieces of work already wait.
    pub(crate) fn submit(
        &self,
        work: W,
        bound: usize,
        mut run: impl FnMut(&mut S, W) -> Option<W>,
    ) -> Result<(), CombiningQueueFull> {
        // ORDERING: Acquire pairs with the Release of the last runner, so its writes to `state` are
        // visible.
        if self.runner.compare_exchange(IDLE, RUNNING, Ordering::Acquire, Ordering::Relaxed).is_ok() {
            // SAFETY: this thread is the runner.
            if let Some(work) = run(unsafe { &mut *self.state.get() }, work) {
                if !self.hold(work) {
                    self.run_backlog(run);
                }
                return Ok(());
            }
            // ORDERING: Release hands `state` to the next runner.
            if self.runner.compare_exchange(RUNNING, IDLE, Ordering::Release, Ordering::Relaxed).is_err() {
                self.run_backlog(run);
            }
            return Ok(());
        }
        {
            let mut backlog = self.backlog.lock();
            if backlog.work.len() >= bound {
                return Err(CombiningQueueFull);
            }
            backlog.work.push_back(work);
            // ORDERING: Relaxed: the flag changes only under the mutex, which is held.
            if self.runner.load(Ordering::Relaxed) == HELD || !self.take_over() {
                return Ok(());
            }
        }
        self.run_backlog(run);
        Ok(())
    }

    /// As [`CombiningQueue::submit`], without a bound, and ends a hold: for the few commands of the
    /// queue's owner.
    pub(crate) fn command(&self, work: W, run: impl FnMut(&mut S, W) -> Option<W>) {
        self.end_hold(Some(work), run);
    }

    /// Ends a hold: the first piece of work is run, or held, anew. No effect on a queue that is not
    /// held and has no runner.
    pub(crate) fn resume(&self, run: impl FnMut(&mut S, W) -> Option<W>) {
        self.end_hold(None, run);
    }

    /// The number of pieces that wait: in a held queue, or behind the runner.
    pub(crate) fn waiting(&self) -> usize {
        self.backlog.lock().work.len()
    }

    fn end_hold(&self, work: Option<W>, run: impl FnMut(&mut S, W) -> Option<W>) {
        {
            let mut backlog = self.backlog.lock();
            backlog.work.extend(work);
            if !self.take_over() {
                backlog.retry = true;
                return;
            }
        }
        self.run_backlog(run);
    }

    /// Makes this thread the runner, also of a held queue, or tells the present runner that the
    /// backlog has changed. The caller holds the mutex. True if this thread is the runner now.
    fn take_over(&self) -> bool {
        // ORDERING: Acquire pairs with the Release of the last runner. Always a read-modify-write:
        // a thread that becomes the runner later sees what this thread wrote before.
        let held = self.runner.compare_exchange(HELD, RUNNING | BACKLOG, Ordering::AcqRel, Ordering::Relaxed);
        held.is_ok() || self.runner.fetch_or(RUNNING | BACKLOG, Ordering::AcqRel) & RUNNING == 0
    }

    /// Puts `work` back in front, and stops being the runner with the queue held. False if a resume
    /// came meanwhile: the caller is still the runner. The caller is the runner.
    #[cold]
    fn hold(&self, work: W) -> bool {
        let mut backlog = self.backlog.lock();
        backlog.work.push_front(work);
        if std::mem::take(&mut backlog.retry) {
            return false;
        }
        // ORDERING: Release hands `state` to the next runner.
        self.runner.store(HELD, Ordering::Release);
        true
    }

    /// Runs the queued work, then stops being the runner. The caller is the runner.
    #[cold]
    fn run_backlog(&self, mut run: impl FnMut(&mut S, W) -> Option<W>) {
        loop {
            let work = {
                let mut backlog = self.backlog.lock();
                match backlog.work.pop_front() {
                    Some(work) => work,
                    None => {
                        backlog.retry = false;
                        // ORDERING: Release hands `state` to the next runner.
                        self.runner.store(IDLE, Ordering::Release);
                        return;
                    }
                }
            };
            // SAFETY: this thread is the runner since before this loop.
            if let Some(work) = run(unsafe { &mut *self.state.get() }, work)
                && self.hold(work)
            {
                return;
            }
        }
    }
}

#[cfg(all(test, not(any(daxlab_loom, daxlab_shuttle))))]
mod tests {
    use super::*;
    use emulator::sync::atomic::AtomicBool;
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
                None
            })
            .unwrap();
        queue
            .submit(6, 2, |log, work| {
                log.push(work);
                assert_eq!(log, &[1, 2, 3, 5, 6]);
                None
            })
            .unwrap();
    }

    #[test]
    fn a_held_queue_keeps_order_and_bound_and_goes_on_once_resumed() {
        let queue: CombiningQueue<u32, Vec<u32>> = CombiningQueue::new(Vec::new());
        let held = |_: &mut Vec<u32>, work| Some(work);
        let never = |_: &mut Vec<u32>, _| panic!("held");
        queue.submit(1, 3, held).unwrap();
        queue.submit(2, 3, never).unwrap();
        queue.submit(3, 3, never).unwrap();
        assert_eq!((queue.submit(4, 3, never), queue.waiting()), (Err(CombiningQueueFull), 3));
        // Resumed, the first piece still cannot run.
        queue.resume(held);
        assert_eq!(queue.waiting(), 3);
        // It runs, the second one cannot.
        let first = |log: &mut Vec<u32>, work| {
            log.push(work);
            if work == 1 { None } else { log.pop() }
        };
        queue.resume(first);
        assert_eq!(queue.waiting(), 2);
        queue.command(9, |log, work| {
            log.push(work);
            None
        });
        queue.command(0, |log, _| {
            assert_eq!(log, &[1, 2, 3, 9]);
            None
        });
        assert_eq!(queue.waiting(), 0);
    }

    /// The resume comes after `run` has looked, and before the queue is held.
    #[test]
    fn a_resume_during_the_run_is_not_lost() {
        let queue: CombiningQueue<u32, u32> = CombiningQueue::new(0);
        let never = |_: &mut u32, _| panic!("another thread is the runner");
        queue
            .submit(1, 2, |runs, work| {
                *runs += 1;
                if *runs > 1 {
                    return None;
                }
                queue.resume(never);
                Some(work)
            })
            .unwrap();
        queue.command(0, |runs, _| {
            assert_eq!(*runs, 2);
            None
        });
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
        let closed = AtomicBool::new(false);
        let run = |log: &mut Log, (thread, n): (usize, usize)| {
            assert!(!std::mem::replace(&mut log.running, true));
            let can_run = !closed.load(Ordering::SeqCst) || n == EACH;
            if can_run && n < EACH {
                assert_eq!(log.next[thread], n);
                log.next[thread] += 1;
            }
            log.running = false;
            if can_run { None } else { Some((thread, n)) }
        };
        thread::scope(|scope| {
            for thread in 0..THREADS {
                let (queue, run) = (&queue, &run);
                scope.spawn(move || {
                    for n in 0..EACH {
                        queue.submit((thread, n), usize::MAX, run).unwrap();
                    }
                });
            }
            let (queue, run, closed) = (&queue, &run, &closed);
            scope.spawn(move || {
                for _ in 0..EACH {
                    closed.store(true, Ordering::SeqCst);
                    thread::yield_now();
                    closed.store(false, Ordering::SeqCst);
                    queue.resume(run);
                }
            });
        });
        assert_eq!(queue.waiting(), 0);
        queue.command((0, EACH), |log, _| {
            assert_eq!(log.next, [EACH; THREADS]);
            None
        });
    }
}
