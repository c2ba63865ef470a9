//! Time: one clock, real or virtual.
//!
//! It owns the present time only. Sleeping belongs to [`crate::runtime::wait`]. Invariant:
//! [`Clock::now`] never goes back. A virtual clock moves only when a caller advances it, so a 45 s
//! lease break takes no time in a scenario. Kernel counterpart: `ktime_get`.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "the one place that reads the machine's clock")]

use std::time::Duration;

use crate::runtime::sync::atomic::{AtomicU64, Ordering};

/// A point in time: nanoseconds since its clock was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nanos(pub u64);

impl Nanos {
    /// This point plus `span`, saturating at the end of time (584 years).
    pub fn after(self, span: Duration) -> Nanos {
        Nanos(self.0.saturating_add(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// Nanoseconds from `earlier` to here; 0 if `earlier` is later.
    pub fn since(self, earlier: Nanos) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// A clock.
#[derive(Debug)]
pub enum Clock {
    /// The machine's monotonic clock.
    Real(std::time::Instant),
    /// A clock that [`crate::runtime::world::World::advance`] moves; nanoseconds.
    Virtual(AtomicU64),
}

impl Clock {
    /// The machine's clock, starting at 0 now.
    pub fn real() -> Clock {
        Clock::Real(std::time::Instant::now())
    }

    /// A clock that stands at 0 until moved.
    pub fn manual() -> Clock {
        Clock::Virtual(AtomicU64::new(0))
    }

    /// Now.
    pub fn now(&self) -> Nanos {
        match self {
            Clock::Real(start) => Nanos(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)),
            // ORDERING: SeqCst, so that a sleeper which registered before the clock moved is seen
            // by the mover or sees the new time; never on a hot path.
            Clock::Virtual(now) => Nanos(now.load(Ordering::SeqCst)),
        }
    }

    /// Moves a virtual clock to `time` unless it is past it already. A real clock is left alone.
    pub(crate) fn set_at_least(&self, time: Nanos) {
        if let Clock::Virtual(now) = self {
            now.fetch_max(time.0, Ordering::SeqCst);
        }
    }
}

/// The machine's calendar time, for the heads of log files: since 1970-01-01 UTC, zero if the
/// machine's clock stands before. Nothing simulated reads it.
pub fn since_epoch() -> Duration {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
}
