//! Scenario time on a real machine, where only lease breaks have deadlines.
//!
//! It owns the relation of scenario time to real time: the scenario's break time corresponds to the
//! shortened real one ([`BreakTime`]). Invariant: after an advance, every break that must be over
//! in scenario time is over, and no other break is. If the driver can't guarantee that, the run is
//! inconclusive. Kernel counterpart: jiffies.

use std::time::Duration;

use rustix::event::{PollFd, Timespec, poll};
use rustix::time::{ClockId, clock_gettime};

use super::break_time::BreakTime;
use crate::machines::machine::Trouble;

/// The distance kept from real deadlines: far more than a jiffy and a scheduling delay.
const MARGIN: Duration = Duration::from_millis(150);
/// The most operations whose times are kept. A scenario has at most 4096 lines.
const OPERATIONS_MAX: usize = 4096;

/// An operation's scenario time, and its real start and end.
#[derive(Clone, Copy, Debug)]
struct TimedOperation {
    at: Duration,
    began: Duration,
    ended: Duration,
}

/// The clock; see the module.
#[derive(Debug)]
pub(super) struct BreakClock {
    /// The scenario's break time.
    length: Duration,
    real: Option<BreakTime>,
    now: Duration,
    operations: Vec<TimedOperation>,
}

impl BreakClock {
    pub(super) fn new(length: Duration, real: Option<BreakTime>) -> BreakClock {
        BreakClock { length, real, now: Duration::ZERO, operations: Vec::new() }
    }

    /// From here on the next operation may start a break.
    pub(super) fn operation_begins(&mut self) {
        if self.real.is_some() && self.operations.len() < OPERATIONS_MAX {
            let began = monotonic();
            self.operations.push(TimedOperation { at: self.now, began, ended: began });
        }
    }

    /// The last operation starts no break after this.
    pub(super) fn operation_ended(&mut self) {
        if let Some(last) = self.operations.last_mut() {
            last.ended = monotonic();
        }
    }

    /// Lets scenario time pass, by the least real time after which the right breaks have ended.
    pub(super) fn advance(&mut self, span: Duration) -> Result<(), Trouble> {
        let Some(real) = self.real.as_ref().map(BreakTime::length) else {
            let why = "time passes in this scenario, but the host's lease break time can't be shortened";
            return Err(Trouble::CannotRun(why.to_owned()));
        };
        self.now = self.now.saturating_add(span);
        let length = self.length.max(Duration::from_nanos(1));
        let share = (span.as_secs_f64() / length.as_secs_f64()).min(1.0);
        let over = |operation: &&TimedOperation| operation.at.saturating_add(length) <= self.now;
        let at_least = self.operations.iter().filter(over).map(|operation| operation.ended + real + MARGIN).max();
        let running = self.operations.iter().filter(|operation| !over(operation));
        let deadline = running.map(|operation| (operation.began + real).saturating_sub(MARGIN)).min();
        let before = deadline.map(|deadline| deadline.saturating_sub(MARGIN));
        let start = monotonic();
        // Real time in proportion to scenario time, so that distances between later events are
        // kept, but moved to the right side of every deadline.
        let wanted = start + real.mul_f64(share);
        let wanted = before.map_or(wanted, |before| wanted.min(before));
        pause(at_least.map_or(wanted, |least| wanted.max(least)));
        match deadline.is_some_and(|deadline| monotonic() > deadline) {
            true => {
                Err(Trouble::Inconclusive("too much real time passed: a break may have ended too early".to_owned()))
            }
            false => Ok(()),
        }
    }
}

fn monotonic() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

/// Sleeps in real time. The break time can be tested only this way; no other code sleeps.
fn pause(until: Duration) {
    loop {
        let left = until.saturating_sub(monotonic());
        if left.is_zero() {
            return;
        }
        let none: &mut [PollFd<'_>] = &mut [];
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        // A signal ends the poll early; the loop continues.
        let _ = poll(none, Some(&left));
    }
}
