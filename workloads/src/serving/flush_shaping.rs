//! What an administrator does to a guest's flushes: failures by number, and a delay.
//!
//! It owns the rule, the count of flushes since it was set, and the delay. Invariants: a flush that
//! is told to fail touches no memory; a delay ends early when it is changed or `over`, and never
//! makes a flush succeed. Kernel counterpart: the fault injection of block devices (`null_blk`,
//! device mapper's flakey and delay targets).

use std::task::Poll;
use std::time::Duration;

use emulator::World;
use emulator::sync::Mutex;
use emulator::wait::{WaitFor, WaitQueue, Waiter, WaiterId};

use crate::ops::FlushRule;

/// See the module.
#[derive(Debug)]
pub(super) struct FlushShaping {
    state: Mutex<Shape>,
    changed: WaitQueue,
    /// For waits on `changed`.
    world: World,
}

#[derive(Clone, Copy, Debug, Default)]
struct Shape {
    rule: FlushRule,
    /// Flushes since the rule was set.
    seen: u64,
    delay: Duration,
    /// How often the delay was set.
    delays_set: u64,
    /// Flushes that were held up.
    delayed: u64,
}

impl FlushShaping {
    pub(super) fn new() -> FlushShaping {
        FlushShaping { state: Mutex::default(), changed: WaitQueue::new(), world: World::real(0) }
    }

    pub(super) fn fail(&self, rule: FlushRule) {
        let mut state = self.state.lock();
        state.rule = rule;
        state.seen = 0;
    }

    /// Holds up each flush from now on; one that is being held up goes on at once.
    pub(super) fn delay(&self, delay: Duration) {
        {
            let mut state = self.state.lock();
            state.delay = delay;
            state.delays_set += 1;
        }
        self.changed.wake_all();
    }

    /// `over` has come: no flush is held up any more.
    pub(super) fn wake(&self) {
        self.changed.wake_all();
    }

    /// Flushes that were held up so far.
    pub(super) fn delayed(&self) -> u64 {
        self.state.lock().delayed
    }

    /// Counts a flush, and tells whether it is to fail.
    pub(super) fn fails(&self) -> bool {
        let mut state = self.state.lock();
        state.seen = state.seen.saturating_add(1);
        match state.rule {
            FlushRule::Off => false,
            FlushRule::On => true,
            FlushRule::Nth(number) => state.seen == number,
            FlushRule::Every(number) => state.seen.is_multiple_of(number.max(1)),
        }
    }

    /// Holds up a flush. One thread may be held up at a time.
    pub(super) fn hold_up(&self, over: impl Fn() -> bool) {
        let before = {
            let mut state = self.state.lock();
            if state.delay.is_zero() {
                return;
            }
            state.delayed += 1;
            *state
        };
        let how = WaitFor::uninterruptible("a flush's delay").until(Some(self.world.now().after(before.delay)));
        // The limit's end is the usual one.
        let _elapsed = self.changed.wait(&self.world, &Waiter::new(WaiterId(before.delayed)), how, || {
            let ends = over() || self.state.lock().delays_set != before.delays_set;
            if ends { Poll::Ready(()) } else { Poll::Pending }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flushes_fail_by_number_from_when_the_rule_is_set() {
        let shaping = FlushShaping::new();
        let next = |count: usize| (0..count).map(|_| u8::from(shaping.fails())).collect::<Vec<_>>();
        assert_eq!(next(2), [0, 0]);
        shaping.fail(FlushRule::Nth(3));
        assert_eq!(next(7), [0, 0, 1, 0, 0, 0, 0]);
        shaping.fail(FlushRule::Every(2));
        assert_eq!(next(5), [0, 1, 0, 1, 0]);
        shaping.fail(FlushRule::Every(2));
        assert_eq!(next(2), [0, 1], "counted anew");
        shaping.fail(FlushRule::On);
        assert_eq!(next(2), [1, 1]);
        shaping.fail(FlushRule::Off);
        assert_eq!(next(2), [0, 0]);
    }
}
