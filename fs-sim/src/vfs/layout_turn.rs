//! The turn for layout changes of one inode.
//!
//! It owns the order of a file's layout changes: one at a time, first come first served.
//! Invariant: the turn is a state, not a lock: the task that has it may wait for leases and pins,
//! and unlock, close and deregistration never need it. Kernel counterpart: `i_rwsem`, which Linux
//! holds across the wait for pins.

use std::collections::VecDeque;

use emulator::sync::Mutex;
use emulator::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use emulator::wait::{WaitFor, WaitQueue, WaiterId};

use crate::base::errno::Errno;
use crate::base::numbers::HolderId;
use crate::base::range::BlockRanges;
use crate::deadlock::graph::{WaitFailure, WaitPoll};
use crate::deadlock::need::Need;
use crate::vfs::task::Task;

/// The queue for layout changes of one inode. The task that has the turn may wait for leases and
/// pins; the next change waits for the turn, interruptibly.
#[derive(Debug, Default)]
pub(crate) struct LayoutTurn {
    state: Mutex<LayoutTurnState>,
    changed: WaitQueue,
    /// Whether the change waits for leases or long-term pins: a check before the lock is taken.
    waiting_hint: AtomicBool,
    /// How many times the change has closed pages: a pinner that meets a closed page waits until
    /// this is zero.
    closings: AtomicU32,
    /// How often pages were reopened: a pinner that waits continues then, even if the next pages
    /// are closed already.
    reopenings: AtomicU64,
    reopened: WaitQueue,
}

#[derive(Debug, Default)]
struct LayoutTurnState {
    holder: Option<WaiterId>,
    queue: VecDeque<WaiterId>,
    waiting: Option<BlockRanges>,
    /// The range in which the change last closed pages and found pins: for questions only, nothing
    /// is refused for it.
    draining: Option<BlockRanges>,
    /// The pins that a waiting change has met.
    pins: Vec<HolderId>,
}

/// The turn and its queue, as other tasks see them.
pub(crate) struct ChangeQueueView {
    pub(crate) holder: Option<WaiterId>,
    /// The range on which the change waits, if it does.
    pub(crate) waiting: Option<BlockRanges>,
    /// The pins that it has met.
    pub(crate) pins: Vec<HolderId>,
    pub(crate) queue: Vec<WaiterId>,
}

/// Has an inode's turn; dropping it lets the next change in.
pub(crate) struct TurnGuard<'a>(&'a LayoutTurn);

impl LayoutTurn {
    /// Takes the turn, waiting interruptibly behind earlier changes.
    ///
    /// # Errors
    /// EINTR, or EDEADLK if the wait would close a cycle.
    pub(crate) fn take(&self, task: &Task) -> Result<TurnGuard<'_>, Errno> {
        self.take_or_give_up(task, false)
    }

    /// As [`LayoutTurn::take`], but not behind a change that waits for leases or long-term pins:
    /// for faults and pins that must allocate.
    ///
    /// # Errors
    /// ETXTBSY in that case.
    pub(crate) fn take_unless_waiting(&self, task: &Task) -> Result<TurnGuard<'_>, Errno> {
        self.take_or_give_up(task, true)
    }

    /// Takes the turn if no task has it or waits for it: for the kernel's own work, which has no
    /// process.
    pub(crate) fn try_take(&self, waiter: WaiterId) -> Option<TurnGuard<'_>> {
        let mut state = self.state.lock();
        if state.holder.is_some() || !state.queue.is_empty() {
            return None;
        }
        state.holder = Some(waiter);
        Some(TurnGuard(self))
    }

    fn take_or_give_up(&self, task: &Task, unless_waiting: bool) -> Result<TurnGuard<'_>, Errno> {
        let me = task.waiter().id();
        {
            let mut state = self.state.lock();
            if state.holder.is_none() && state.queue.is_empty() {
                state.holder = Some(me);
                return Ok(TurnGuard(self));
            }
            state.queue.push_back(me);
        }
        // A fault waits only for what is about to finish, and has no way to report an interruption.
        let reason = "layout change ahead";
        let how = if unless_waiting { WaitFor::killable(reason) } else { WaitFor::interruptible(reason) };
        let outcome = task.block_on(&self.changed, how, || {
            let mut state = self.state.lock();
            match state.holder {
                Some(_) if unless_waiting && state.waiting.is_some() => WaitPoll::Ready(Err(Errno::ETXTBSY)),
                Some(waiter) => WaitPoll::Blocked(vec![Need::task(waiter)]),
                // An earlier waiter is awake and about to take it.
                None if state.queue.front() != Some(&me) => WaitPoll::Blocked(Vec::new()),
                None => {
                    state.queue.pop_front();
                    state.holder = Some(me);
                    WaitPoll::Ready(Ok(()))
                }
            }
        });
        let failure = match outcome {
            Ok(Ok(())) => return Ok(TurnGuard(self)),
            Ok(Err(errno)) => errno,
            Err(WaitFailure::Deadlock) => Errno::EDEADLK,
            Err(WaitFailure::Interrupted | WaitFailure::TimedOut) => Errno::EINTR,
        };
        self.state.lock().queue.retain(|waiter| *waiter != me);
        self.changed.wake_all();
        Err(failure)
    }

    /// The range on which the present change waits for leases or long-term pins, if it does.
    pub(crate) fn waiting_on(&self) -> Option<BlockRanges> {
        // ORDERING: Acquire pairs with the Release in `set_waiting`. A check that comes too early
        // is as good as a request that came too early: the change finds its result committed and
        // judges it.
        if !self.waiting_hint.load(Ordering::Acquire) {
            return None;
        }
        self.state.lock().waiting.clone()
    }

    /// Which task changes the layout, on what it waits, and which changes queue behind it.
    pub(crate) fn line(&self) -> ChangeQueueView {
        let state = self.state.lock();
        let queue = state.queue.iter().copied().collect();
        let waiting = state.waiting.clone().or_else(|| state.draining.clone());
        ChangeQueueView { holder: state.holder, waiting, pins: state.pins.clone(), queue }
    }

    /// The task whose change is in progress.
    pub(crate) fn holder(&self) -> Option<WaiterId> {
        self.state.lock().holder
    }

    /// Where tasks wait for the present change to finish.
    pub(crate) fn changed(&self) -> &WaitQueue {
        &self.changed
    }

    pub(crate) fn pages_closed(&self) {
        self.closings.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn pages_reopened(&self) {
        self.reopenings.fetch_add(1, Ordering::SeqCst);
        self.closings.fetch_sub(1, Ordering::SeqCst);
        self.reopened.wake_all();
    }

    /// How often pages were reopened so far.
    pub(crate) fn reopenings(&self) -> u64 {
        self.reopenings.load(Ordering::SeqCst)
    }

    /// Whether any of this inode's pages may be closed, and where to wait until none is.
    pub(crate) fn closed_pages(&self) -> (bool, &WaitQueue) {
        (self.closings.load(Ordering::SeqCst) > 0, &self.reopened)
    }
}

impl TurnGuard<'_> {
    /// Records that this change waits for pins on closed pages in `ranges`.
    pub(crate) fn set_draining(&self, ranges: BlockRanges) {
        self.0.state.lock().draining = Some(ranges);
    }

    /// Records that this change waits for leases or long-term pins in `ranges`: new ones there are
    /// refused meanwhile.
    pub(crate) fn set_waiting(&self, ranges: BlockRanges, pins: Vec<HolderId>) {
        {
            let mut state = self.0.state.lock();
            state.waiting = Some(ranges);
            state.pins = pins;
            // With the lock held: the hint never lags behind a later change's.
            self.0.waiting_hint.store(true, Ordering::Release);
        }
        self.0.changed.wake_all();
    }
}

impl Drop for TurnGuard<'_> {
    fn drop(&mut self) {
        {
            let mut state = self.0.state.lock();
            state.holder = None;
            state.waiting = None;
            state.draining = None;
            state.pins.clear();
            self.0.waiting_hint.store(false, Ordering::Release);
        }
        self.0.changed.wake_all();
    }
}
