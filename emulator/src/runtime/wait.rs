//! The one way to block: wait queues, waiters, interruption and deadlines.
//!
//! It owns every sleeping thread of the project. A [`Waiter`] is a simulated task (an opaque id
//! here); it sleeps on one [`WaitQueue`] at a time, for a stated reason, perhaps until a deadline,
//! and a signal may end the sleep. Invariants: a wake-up that follows a change of the awaited state
//! is never lost; at any moment [`crate::runtime::world::World::sleepers`] lists each sleeper with
//! its reason and deadline, so that quiescence is known exactly. Kernel counterpart: `wait_event_*`
//! and `struct wait_queue_head` (include/linux/wait.h).
//!
//! # Why no wake-up is lost
//! The sleeper registers (a SeqCst increment of `armed`, then a SeqCst fence), *then* evaluates its
//! condition. The waker changes the state, *then* passes a SeqCst fence and reads `armed`. Of two
//! such sides at least one sees the other: either the sleeper's condition holds, or the waker finds
//! it registered and leaves a token that the sleep consumes.

use std::task::Poll;

use crate::runtime::clock::Nanos;
use crate::runtime::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use crate::runtime::sync::{Arc, Condvar, Mutex};
use crate::runtime::world::World;

/// A waiter's number; what it stands for (a simulated task) is known above this crate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WaiterId(pub u64);

/// What may end a sleep besides its condition. Kernel: `TASK_INTERRUPTIBLE`, `TASK_KILLABLE`,
/// `TASK_UNINTERRUPTIBLE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SleepKind {
    /// Any signal.
    Interruptible,
    /// A fatal signal only.
    Killable,
    /// Nothing.
    Uninterruptible,
}

/// Why a sleep ended without its condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WaitError {
    /// A signal that this sleep admits is pending.
    #[error("interrupted by a signal")]
    Interrupted,
    /// The deadline passed.
    #[error("deadline passed")]
    TimedOut,
}

const SIGNAL: u32 = 1;
const FATAL: u32 = 2;

/// A simulated task as far as waiting goes: its pending-signal bits and its place to sleep.
#[derive(Debug)]
pub struct Waiter {
    id: WaiterId,
    pending: AtomicU32,
    /// How often it was woken.
    wakes: AtomicU64,
    token: Mutex<WakeToken>,
    woken: Condvar,
}

/// A sleep and its end.
#[derive(Debug, Default)]
struct WakeToken {
    /// Left by a wake-up, and not yet consumed.
    woken: bool,
    /// The waiter's thread is in [`Waiter::park`].
    parked: bool,
    /// Where threads take turns: it is this one's.
    granted: bool,
}

/// Where a sleeper stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SleeperState {
    /// Its thread runs.
    Running,
    /// It sleeps and has no wake-up pending.
    Asleep,
    /// It was woken and waits for its turn.
    Woken,
}

impl Waiter {
    /// A waiter with nothing pending.
    pub fn new(id: WaiterId) -> Arc<Waiter> {
        Arc::new(Waiter {
            id,
            pending: AtomicU32::new(0),
            wakes: AtomicU64::new(0),
            token: Mutex::new(WakeToken::default()),
            woken: Condvar::new(),
        })
    }

    /// Its number.
    pub fn id(&self) -> WaiterId {
        self.id
    }

    /// Marks a signal as pending (`fatal`: one that ends the task) and ends a sleep that admits it.
    pub fn interrupt(&self, fatal: bool) {
        // ORDERING: SeqCst and before the token, so that a sleeper which consumed the token sees
        // the bit.
        self.pending.fetch_or(if fatal { FATAL | SIGNAL } else { SIGNAL }, Ordering::SeqCst);
        self.unpark();
    }

    /// Forgets pending non-fatal signals: they were taken from the queue. A fatal one stays.
    pub fn signals_taken(&self) {
        self.pending.fetch_and(FATAL, Ordering::SeqCst);
    }

    /// Whether a signal is pending that a sleep of kind `sleep` admits.
    pub fn interrupted(&self, sleep: SleepKind) -> bool {
        let pending = self.pending.load(Ordering::SeqCst);
        match sleep {
            SleepKind::Interruptible => pending != 0,
            SleepKind::Killable => pending & FATAL != 0,
            SleepKind::Uninterruptible => false,
        }
    }

    /// How often it was woken so far. If the number has grown, the awaited state may have changed,
    /// and the sleeper evaluates its condition again. If it is the same, no waker has reported a
    /// change.
    pub fn wakes(&self) -> u64 {
        self.wakes.load(Ordering::SeqCst)
    }

    /// Makes the present sleep evaluate its condition once more, whether or not its queue was
    /// woken: for conditions that depend on more than the queue's state.
    pub fn look_again(&self) {
        self.unpark();
    }

    /// Leaves a token; the present or next sleep ends once to look again.
    pub(crate) fn unpark(&self) {
        {
            let mut token = self.token.lock();
            // ORDERING: SeqCst, before the token: a thread that consumed the token, or comes after
            // the waker's next step, sees the count.
            self.wakes.fetch_add(1, Ordering::SeqCst);
            token.woken = true;
        }
        self.woken.notify_all();
    }

    /// Where it stands, and how often it was woken so far; the two at one moment.
    pub(crate) fn standing(&self) -> (SleeperState, u64) {
        let token = self.token.lock();
        let standing = match (token.parked, token.woken) {
            (true, false) => SleeperState::Asleep,
            (true, true) if !token.granted => SleeperState::Woken,
            _ => SleeperState::Running,
        };
        (standing, self.wakes())
    }

    /// Where threads take turns: lets it go on.
    pub(crate) fn grant(&self) {
        self.token.lock().granted = true;
        self.woken.notify_all();
    }

    fn park(&self, world: &World, deadline: Option<Nanos>) {
        let mut token = self.token.lock();
        token.parked = true;
        world.stirred();
        while !token.woken {
            match world.real_time_left(deadline) {
                None => token = self.woken.wait(token),
                #[cfg(not(any(daxlab_loom, daxlab_shuttle)))]
                Some(left) if !left.is_zero() => token = self.woken.wait_for(token, left),
                Some(_) => break,
            }
        }
        while world.takes_turns() && !token.granted {
            token = self.woken.wait(token);
        }
        *token = WakeToken::default();
    }
}

/// How to sleep: which signals end the sleep, its reason as shown to users, and its deadline.
#[derive(Clone, Copy, Debug)]
pub struct WaitFor {
    /// Shown by [`crate::runtime::world::World::sleepers`], such as `"lease break"`.
    pub reason: &'static str,
    /// What may end it early.
    pub sleep: SleepKind,
    /// When it ends at the latest.
    pub deadline: Option<Nanos>,
}

impl WaitFor {
    /// An interruptible wait without a deadline.
    pub fn interruptible(reason: &'static str) -> WaitFor {
        WaitFor { reason, sleep: SleepKind::Interruptible, deadline: None }
    }

    /// A wait that only a fatal signal ends, without a deadline.
    pub fn killable(reason: &'static str) -> WaitFor {
        WaitFor { reason, sleep: SleepKind::Killable, deadline: None }
    }

    /// A wait that no signal ends, without a deadline.
    pub fn uninterruptible(reason: &'static str) -> WaitFor {
        WaitFor { reason, sleep: SleepKind::Uninterruptible, deadline: None }
    }

    /// The same, until `deadline` at the latest.
    pub fn until(self, deadline: Option<Nanos>) -> WaitFor {
        WaitFor { deadline, ..self }
    }
}

/// A queue of sleepers that wait for one piece of state. Kernel: `wait_queue_head_t`.
///
/// ```
/// use std::task::Poll;
/// use emulator::World;
/// use emulator::sync::atomic::{AtomicBool, Ordering};
/// use emulator::sync::thread;
/// use emulator::wait::{WaitFor, WaitQueue, Waiter, WaiterId};
///
/// let (world, queue, ready) = (World::real(1), WaitQueue::new(), AtomicBool::new(false));
/// thread::scope(|scope| {
///     scope.spawn(|| {
///         let waiter = Waiter::new(WaiterId(1));
///         let is_set = || ready.load(Ordering::SeqCst);
///         let condition = || if is_set() { Poll::Ready(()) } else { Poll::Pending };
///         queue.wait(&world, &waiter, WaitFor::interruptible("the flag"), condition)
///     });
///     ready.store(true, Ordering::SeqCst); // change the state, then wake
///     queue.wake_all();
/// });
/// assert!(!queue.has_sleepers());
/// ```
#[derive(Debug, Default)]
pub struct WaitQueue {
    /// How many are registered; lets a wake-up without sleepers cost one load.
    armed: AtomicU32,
    sleepers: Mutex<Vec<Arc<Waiter>>>,
}

impl WaitQueue {
    /// A queue without sleepers.
    pub fn new() -> WaitQueue {
        WaitQueue { armed: AtomicU32::new(0), sleepers: Mutex::new(Vec::new()) }
    }

    /// Blocks until `ready` yields a value. `ready` is called with no lock of this module held, any
    /// number of times.
    ///
    /// # Errors
    /// [`WaitError::Interrupted`] if a signal that `how.sleep` admits is pending,
    /// [`WaitError::TimedOut`] once `how.deadline` has passed; `ready` is always asked once more
    /// before either is returned.
    pub fn wait<T>(
        &self,
        world: &World,
        waiter: &Arc<Waiter>,
        how: WaitFor,
        mut ready: impl FnMut() -> Poll<T>,
    ) -> Result<T, WaitError> {
        if let Poll::Ready(value) = ready() {
            return Ok(value);
        }
        let _registered = self.register(world, waiter, how);
        loop {
            // Looked at before the condition: what is reported as an interruption was pending while
            // it did not hold.
            let interrupted = waiter.interrupted(how.sleep);
            let timed_out = how.deadline.is_some_and(|deadline| world.now() >= deadline);
            if let Poll::Ready(value) = ready() {
                return Ok(value);
            }
            if interrupted {
                return Err(WaitError::Interrupted);
            }
            if timed_out {
                return Err(WaitError::TimedOut);
            }
            waiter.park(world, how.deadline);
        }
    }

    fn register<'a>(&'a self, world: &'a World, waiter: &'a Arc<Waiter>, how: WaitFor) -> Registered<'a> {
        self.sleepers.lock().push(Arc::clone(waiter));
        // ORDERING: SeqCst increment and fence before the condition is evaluated; see the module's
        // essay.
        self.armed.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        world.fell_asleep(waiter, how);
        Registered { queue: self, world, waiter }
    }

    /// Wakes every sleeper to look at its condition again. Call it after the state changed, with no
    /// lock held that a sleeper's condition takes.
    pub fn wake_all(&self) {
        // ORDERING: the fence orders the caller's change of state before the look at `armed`; see
        // the module's essay.
        fence(Ordering::SeqCst);
        if self.armed.load(Ordering::SeqCst) == 0 {
            return;
        }
        let sleepers: Vec<_> = self.sleepers.lock().clone();
        for waiter in sleepers {
            waiter.unpark();
        }
    }

    /// The waiters registered at this moment, roughly in the order of their arrival. For queries.
    pub fn waiting(&self) -> Vec<WaiterId> {
        self.sleepers.lock().iter().map(|waiter| waiter.id()).collect()
    }

    /// Whether a sleeper is registered. A hint: it may change at once.
    pub fn has_sleepers(&self) -> bool {
        self.armed.load(Ordering::SeqCst) != 0
    }
}

/// Undoes a registration, whichever way the wait ends.
struct Registered<'a> {
    queue: &'a WaitQueue,
    world: &'a World,
    waiter: &'a Arc<Waiter>,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.world.woke_up(self.waiter);
        self.queue.armed.fetch_sub(1, Ordering::SeqCst);
        let mut sleepers = self.queue.sleepers.lock();
        if let Some(at) = sleepers.iter().position(|other| Arc::ptr_eq(other, self.waiter)) {
            sleepers.swap_remove(at);
        }
    }
}
