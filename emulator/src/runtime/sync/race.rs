//! Race points: places where two sides can meet, made likely on a machine with few processors.
//!
//! It owns a per-thread generator and a probability. An armed thread yields its processor at a race
//! point with that probability; an unarmed one (benchmarks, tests, models) pays one thread-local
//! load. Invariant: whether a race point yields never depends on, and never changes, anything but
//! the schedule. Kernel counterpart: `CONFIG_KCSAN_DELAY_TASK`.

use rand_xoshiro::Xoshiro256PlusPlus;

#[cfg(not(any(daxlab_loom, daxlab_shuttle)))]
mod imp {
    use std::cell::RefCell;

    use rand_xoshiro::Xoshiro256PlusPlus;

    struct Armed {
        rng: Xoshiro256PlusPlus,
        /// A draw below this yields; the probability scaled to the whole range of a `u64`.
        threshold: u64,
    }

    thread_local! {
        static ARMED: RefCell<Option<Armed>> = const { RefCell::new(None) };
    }

    pub(super) fn arm(rng: Xoshiro256PlusPlus, probability: f64) {
        let threshold = (probability.clamp(0.0, 1.0) * u64::MAX as f64) as u64;
        ARMED.with(|armed| *armed.borrow_mut() = Some(Armed { rng, threshold }));
    }

    pub(super) fn disarm() {
        ARMED.with(|armed| *armed.borrow_mut() = None);
    }

    #[inline]
    pub(super) fn point() {
        let hit = ARMED.with(|armed| match &mut *armed.borrow_mut() {
            Some(armed) => rand::Rng::next_u64(&mut armed.rng) < armed.threshold,
            None => false,
        });
        if hit {
            std::thread::yield_now();
        }
    }
}

/// Under loom and shuttle the explorer decides which thread runs: every access is a race point
/// already.
#[cfg(any(daxlab_loom, daxlab_shuttle))]
mod imp {
    pub(super) fn arm(_rng: rand_xoshiro::Xoshiro256PlusPlus, _probability: f64) {}
    pub(super) fn disarm() {}
    pub(super) fn point() {}
}

/// Arms the race points of this thread: each yields with `probability` (clamped to 0..=1), drawn
/// from `rng`.
pub fn arm(rng: Xoshiro256PlusPlus, probability: f64) {
    imp::arm(rng, probability);
}

/// Disarms the race points of this thread.
pub fn disarm() {
    imp::disarm();
}

/// Called by [`race_point!`](crate::race_point); the name appears in nothing but the source and a
/// debugger.
#[inline]
pub fn point(_name: &'static str) {
    imp::point();
}

/// Marks a place where two sides of a race can meet. See [`crate::runtime::sync::race`].
#[macro_export]
macro_rules! race_point {
    ($name:literal) => {
        $crate::runtime::sync::race::point($name)
    };
}

pub use race_point;
