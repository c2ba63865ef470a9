//! The runtime world: the clock, the seed, and the register of everybody asleep.
//!
//! It owns what would otherwise be a static. Invariant: two worlds share nothing, so runs side by side can't disturb each
//! other and a run repeats from its seed. Kernel counterpart: none; it is the machine the kernel boots on.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::rng::{self, Rng};
use crate::sync::{Arc, Mutex};
use crate::time::{Clock, Nanos};
use crate::wait::{WaitFor, Waiter, WaiterId};

/// Somebody asleep, as [`World::sleepers`] tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sleeper {
    /// Who.
    pub waiter: WaiterId,
    /// On what, in words.
    pub reason: &'static str,
    /// Until when at the latest.
    pub deadline: Option<Nanos>,
}

/// See the module.
#[derive(Debug)]
pub struct World {
    clock: Clock,
    seed: u64,
    sleepers: Mutex<BTreeMap<WaiterId, (Arc<Waiter>, WaitFor)>>,
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

    fn new(clock: Clock, seed: u64) -> World {
        World { clock, seed, sleepers: Mutex::new(BTreeMap::new()) }
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

    /// Moves a virtual clock forward by `span` and wakes everybody whose deadline has come. No effect on a real clock.
    pub fn advance(&self, span: Duration) {
        self.clock.set_at_least(self.now().after(span));
        let now = self.now();
        let due: Vec<Arc<Waiter>> = self
            .sleepers
            .lock()
            .values()
            .filter(|(_, how)| how.deadline.is_some_and(|deadline| deadline <= now))
            .map(|(waiter, _)| Arc::clone(waiter))
            .collect();
        for waiter in due {
            waiter.unpark();
        }
    }

    /// Everybody asleep at this moment, by waiter.
    pub fn sleepers(&self) -> Vec<Sleeper> {
        let sleepers = self.sleepers.lock();
        sleepers
            .iter()
            .map(|(waiter, (_, how))| Sleeper { waiter: *waiter, reason: how.reason, deadline: how.deadline })
            .collect()
    }

    /// Whether exactly `threads` sleep at this moment, every one with nothing to look at again: then, if no other thread runs
    /// on this world, nothing moves until somebody from outside acts. Needs a virtual clock. An exact answer, not a guess:
    /// of two looks in a row the first finds every sleeper asleep, and the second finds each asleep and not woken since.
    pub fn is_quiescent(&self, threads: usize) -> bool {
        let look = || {
            let sleepers = self.sleepers.lock();
            // The count before the state: a wake-up in between shows in the next look's count.
            let sleeper = |(id, (waiter, _)): (&WaiterId, &(Arc<Waiter>, WaitFor))| {
                let wakes = waiter.wakes();
                waiter.is_asleep().then_some((*id, wakes))
            };
            let asleep: Option<Vec<(WaiterId, u64)>> = sleepers.iter().map(sleeper).collect();
            asleep.filter(|asleep| asleep.len() == threads)
        };
        let first = look();
        first.is_some() && first == look()
    }

    pub(crate) fn fell_asleep(&self, waiter: &Arc<Waiter>, how: WaitFor) {
        let before = self.sleepers.lock().insert(waiter.id(), (Arc::clone(waiter), how));
        debug_assert!(before.is_none(), "a waiter sleeps on one queue at a time");
    }

    pub(crate) fn woke_up(&self, waiter: &Arc<Waiter>) {
        self.sleepers.lock().remove(&waiter.id());
    }

    /// The real time left until `deadline`: none if there is no deadline or the clock is virtual (then [`World::advance`]
    /// wakes the sleeper).
    pub(crate) fn real_time_left(&self, deadline: Option<Nanos>) -> Option<Duration> {
        match (&self.clock, deadline) {
            (Clock::Real(_), Some(deadline)) => Some(Duration::from_nanos(deadline.since(self.now()))),
            _ => None,
        }
    }
}
