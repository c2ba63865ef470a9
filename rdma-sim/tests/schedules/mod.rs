//! Seeded schedules under shuttle.
//!
//! It owns the choice of schedules. A seed stands for one schedule: an even one picks a random
//! thread at every step; an odd one uses random priorities that change at few random steps (a first
//! run only counts the steps), so one thread can finish inside another one's window.
//! `DAXLAB_SCHEDULES` sets how many seeds are run, `DAXLAB_SEED` runs one.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use shuttle::Runner;
use shuttle::scheduler::{PctScheduler, RandomScheduler};

/// How often a priority schedule changes priorities. One preemption is enough to stop a
/// registration at its worst moment.
const CHANGES: usize = 3;

/// What the schedule of `seed` says if it fails.
pub(crate) fn failure(seed: u64, body: impl Fn() + Send + Sync + 'static) -> Option<String> {
    let mut settings = shuttle::Config::new();
    // The seed names a failing schedule; shuttle's default would print every step as well.
    settings.failure_persistence = shuttle::FailurePersistence::None;
    let run = || match seed.is_multiple_of(2) {
        true => Runner::new(RandomScheduler::new_from_seed(seed, 1), settings).run(body),
        false => Runner::new(PctScheduler::new_from_seed(seed, CHANGES, 2), settings).run(body),
    };
    let panic = catch_unwind(AssertUnwindSafe(run)).err()?;
    let text = panic.downcast_ref::<String>().cloned();
    Some(text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default())
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}: not a number")))
}

/// The seeds that this run is asked for.
pub(crate) fn seeds() -> Range<u64> {
    let schedules = setting("DAXLAB_SCHEDULES").unwrap_or(2_000);
    setting("DAXLAB_SEED").map_or(0..schedules, |seed| seed..seed + 1)
}
