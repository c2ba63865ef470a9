//! The runtime world: the clock, the seed, and the list of all sleepers.
//!
//! It owns what would otherwise be a static. Invariant: two worlds share nothing, so runs side by
//! side can't disturb each other and a run repeats from its seed. Kernel counterpart: none; it is
//! the machine the kernel boots on.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::runtime::clock::{Clock, Nanos};
use crate::runtime::rng::{self, Rng};
use crate::runtime::sync::{Arc, Condvar, Mutex};
use crate::runtime::wait::{SleeperState, WaitFor, Waiter, WaiterId};

/// One sleeper, as listed by [`World::sleepers`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sleeper {
    /// The waiter that sleeps.
    pub waiter: WaiterId,
    /// What it waits for, in words.
    pub reason: &'static str,
    /// Until when at the latest.
    pub deadline: Option<Nanos>,
}

/// What [`World::rest`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// Some thread runs.
    Moving,
    /// All threads wait. Of those that were woken, this one has waited longest: [`World::grant`]
    /// gives it the turn.
    Turn(WaiterId),
    /// All threads sleep, and none was woken. Nothing moves until a caller outside the world acts.
    Quiet,
}

/// A sleep in progress.
#[derive(Debug)]
struct SleepInProgress {
    waiter: Arc<Waiter>,
    how: WaitFor,
    /// How many sleeps had begun before it.
    order: u64,
}

#[derive(Debug, Default)]
struct Sleeps {
    by_waiter: BTreeMap<WaiterId, SleepInProgress>,
    begun: u64,
}

/// Tells the scheduler of a world in which threads take turns that a thread has moved.
#[derive(Debug, Default)]
struct MoveWatch {
    moves: Mutex<u64>,
    moved: Condvar,
}

/// The clock, the seed and the sleepers of one run.
///
/// ```
/// use std::time::Duration;
/// use emulator::World;
///
/// let world = World::manual(7);
/// let before = world.now();
/// world.advance(Duration::from_secs(45)); // takes no real time
/// assert_eq!(world.now().since(before), 45_000_000_000);
/// assert!(world.sleepers().is_empty());
/// ```
#[derive(Debug)]
pub struct World {
    clock: Clock,
    seed: u64,
    sleeps: Mutex<Sleeps>,
    /// Only where threads take turns.
    watch: Option<MoveWatch>,
}

impl World {
    /// A world on the machine's own clock.
    pub fn real(seed: u64) -> World {
        World::new(Clock::real(), seed)
    }

    /// A world whose time moves only by [`World::advance`].
    pub fn manual(seed: u64) -> World {
        World::new(Clock::manual(), seed)
    }

    /// As [`World::manual`], but a woken thread continues only after [`World::grant`] gives it the
    /// turn. So a run depends on the order of turns and not on the processors.
    pub fn in_turns(seed: u64) -> World {
        World { watch: Some(MoveWatch::default()), ..World::manual(seed) }
    }

    fn new(clock: Clock, seed: u64) -> World {
        World { clock, seed, sleeps: Mutex::new(Sleeps::default()), watch: None }
    }

    /// The seed everything random is derived from.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The random stream `index` of `purpose`; see [`rng::stream`].
    pub fn stream(&self, purpose: &str, index: u64) -> Rng {
        rng::stream(self.seed, purpose, index)
    }

    /// Now.
    pub fn now(&self) -> Nanos {
        self.clock.now()
    }

    /// Moves a virtual clock forward by `span` and wakes every sleeper whose deadline has come. No
    /// effect on a real clock.
    pub fn advance(&self, span: Duration) {
        self.clock.set_at_least(self.now().after(span));
        let now = self.now();
        let due: Vec<Arc<Waiter>> = {
            let sleeps = self.sleeps.lock();
            let due = |sleep: &&SleepInProgress| sleep.how.deadline.is_some_and(|deadline| deadline <= now);
            sleeps.by_waiter.values().filter(due).map(|sleep| Arc::clone(&sleep.waiter)).collect()
        };
        for waiter in due {
            waiter.unpark();
        }
    }

    /// All sleepers at this moment, sorted by waiter.
    pub fn sleepers(&self) -> Vec<Sleeper> {
        let sleeps = self.sleeps.lock();
        let sleeper = |(waiter, sleep): (&WaiterId, &SleepInProgress)| Sleeper {
            waiter: *waiter,
            reason: sleep.how.reason,
            deadline: sleep.how.deadline,
        };
        sleeps.by_waiter.iter().map(sleeper).collect()
    }

    /// Whether all `threads` that are in calls on this world wait. No other thread may be in a
    /// call. The answer is exact, but on a real clock a deadline can end a sleep at any moment. It
    /// takes two looks. The first finds all threads waiting; the second finds them waiting and not
    /// woken since the first. So at a moment between the two all of them waited.
    pub fn rest(&self, threads: usize) -> Rest {
        let look = || {
            let sleeps = self.sleeps.lock();
            let mut waiting: Vec<(u64, WaiterId, SleeperState, u64)> = Vec::with_capacity(threads);
            for (id, sleep) in &sleeps.by_waiter {
                let (standing, wakes) = sleep.waiter.standing();
                waiting.push((sleep.order, *id, standing, wakes));
            }
            let all = waiting.len() == threads && waiting.iter().all(|(_, _, at, _)| *at != SleeperState::Running);
            waiting.sort_unstable_by_key(|(order, ..)| *order);
            all.then_some(waiting)
        };
        let first = look();
        match &first {
            Some(waiting) if first == look() => {
                let woken = waiting.iter().find(|(_, _, standing, _)| *standing == SleeperState::Woken);
                woken.map_or(Rest::Quiet, |(_, id, ..)| Rest::Turn(*id))
            }
            _ => Rest::Moving,
        }
    }

    /// Gives a woken waiter the turn, where threads take turns.
    pub fn grant(&self, turn: WaiterId) {
        let waiter = self.sleeps.lock().by_waiter.get(&turn).map(|sleep| Arc::clone(&sleep.waiter));
        if let Some(waiter) = waiter {
            waiter.grant();
        }
    }

    /// Of the woken waiters that wait for their turn, the one that has waited longest. Other
    /// threads may run.
    pub fn next_turn(&self) -> Option<WaiterId> {
        let sleeps = self.sleeps.lock();
        let woken = sleeps.by_waiter.iter().filter(|(_, sleep)| sleep.waiter.standing().0 == SleeperState::Woken);
        woken.min_by_key(|(_, sleep)| sleep.order).map(|(id, _)| *id)
    }

    pub(crate) fn takes_turns(&self) -> bool {
        self.watch.is_some()
    }

    /// Something has moved: a thread went to sleep, or a call has ended.
    pub fn stirred(&self) {
        if let Some(watch) = &self.watch {
            *watch.moves.lock() += 1;
            watch.moved.notify_all();
        }
    }

    /// How often something moved so far, where threads take turns.
    pub fn moves(&self) -> u64 {
        self.watch.as_ref().map_or(0, |watch| *watch.moves.lock())
    }

    /// Waits until something has moved since there were `moves`, or until `patience` is over.
    #[cfg(not(any(daxlab_loom, daxlab_shuttle)))]
    pub fn wait_for_move(&self, moves: u64, patience: Duration) {
        if let Some(watch) = &self.watch {
            let now = watch.moves.lock();
            if *now == moves {
                let _looked_at_again_by_the_caller = watch.moved.wait_for(now, patience);
            }
        }
    }

    pub(crate) fn fell_asleep(&self, waiter: &Arc<Waiter>, how: WaitFor) {
        let mut sleeps = self.sleeps.lock();
        let sleep = SleepInProgress { waiter: Arc::clone(waiter), how, order: sleeps.begun };
        sleeps.begun += 1;
        let before = sleeps.by_waiter.insert(waiter.id(), sleep);
        debug_assert!(before.is_none(), "a waiter sleeps on one queue at a time");
    }

    pub(crate) fn woke_up(&self, waiter: &Arc<Waiter>) {
        self.sleeps.lock().by_waiter.remove(&waiter.id());
    }

    /// The real time left until `deadline`: none if there is no deadline or the clock is virtual
    /// (then [`World::advance`] wakes the sleeper).
    pub(crate) fn real_time_left(&self, deadline: Option<Nanos>) -> Option<Duration> {
        match (&self.clock, deadline) {
            (Clock::Real(_), Some(deadline)) => Some(Duration::from_nanos(deadline.since(self.now()))),
            _ => None,
        }
    }
}
