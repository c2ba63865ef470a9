//! Race points: places where two sides can meet, made likely on a machine with few processors.
//!
//! It owns a per-thread generator and a probability. An armed thread yields its processor at a race
//! point with that probability; a thread of a test can call a function there instead, which keeps
//! it at the point for as long as the test needs; an unarmed one (benchmarks, most tests, models)
//! pays one thread-local load. Invariant: whether a race point yields never depends on, and never
//! changes, anything but the schedule. Kernel counterpart: `CONFIG_KCSAN_DELAY_TASK`.

use rand_xoshiro::Xoshiro256PlusPlus;

#[cfg(not(any(daxlab_loom, daxlab_shuttle)))]
mod imp {
    use std::cell::RefCell;
    use std::rc::Rc;

    use rand_xoshiro::Xoshiro256PlusPlus;

    /// What a test's thread calls at a race point.
    type Called = Rc<dyn Fn(&'static str)>;

    /// What an armed thread does at a race point. It needs no drop, so an unarmed thread pays no
    /// more than the load.
    enum AtPoint {
        Yields {
            rng: Xoshiro256PlusPlus,
            /// A draw below this yields; the probability scaled to the whole range of a `u64`.
            threshold: u64,
        },
        /// It calls what [`CALLED`] holds.
        Calls,
    }

    thread_local! {
        static ARMED: RefCell<Option<AtPoint>> = const { RefCell::new(None) };
        static CALLED: RefCell<Option<Called>> = const { RefCell::new(None) };
    }

    fn set(armed: Option<AtPoint>, called: Option<Called>) {
        ARMED.with(|now| *now.borrow_mut() = armed);
        CALLED.with(|now| *now.borrow_mut() = called);
    }

    pub(super) fn arm(rng: Xoshiro256PlusPlus, probability: f64) {
        let threshold = (probability.clamp(0.0, 1.0) * u64::MAX as f64) as u64;
        set(Some(AtPoint::Yields { rng, threshold }), None);
    }

    pub(super) fn call(at: impl Fn(&'static str) + 'static) {
        set(Some(AtPoint::Calls), Some(Rc::new(at)));
    }

    pub(super) fn disarm() {
        set(None, None);
    }

    #[inline]
    pub(super) fn point(name: &'static str) {
        let hit = ARMED.with(|armed| match &mut *armed.borrow_mut() {
            None => None,
            Some(AtPoint::Yields { rng, threshold }) => (rand::Rng::next_u64(rng) < *threshold).then_some(false),
            Some(AtPoint::Calls) => Some(true),
        });
        match hit {
            None => {}
            Some(false) => std::thread::yield_now(),
            Some(true) => called(name),
        }
    }

    #[cold]
    fn called(name: &'static str) {
        // Not borrowed during the call, which may reach race points of its own.
        let at = CALLED.with(|called| called.borrow().clone());
        if let Some(at) = at {
            at(name);
        }
    }
}

/// Under loom and shuttle the explorer decides which thread runs: every access is a race point
/// already.
#[cfg(any(daxlab_loom, daxlab_shuttle))]
mod imp {
    pub(super) fn arm(_rng: rand_xoshiro::Xoshiro256PlusPlus, _probability: f64) {}
    pub(super) fn call(_at: impl Fn(&'static str) + 'static) {}
    pub(super) fn disarm() {}
    pub(super) fn point(_name: &'static str) {}
}

/// Arms the race points of this thread: each yields with `probability` (clamped to 0..=1), drawn
/// from `rng`.
pub fn arm(rng: Xoshiro256PlusPlus, probability: f64) {
    imp::arm(rng, probability);
}

/// Has this thread call `at` with the name of each race point that it reaches: for tests that keep
/// a task at one point while another task moves. `at` may spin; the thread can hold locks there.
/// Under loom and shuttle it is never called: there the explorer stops threads anywhere.
///
/// ```
/// use std::cell::Cell;
/// use std::rc::Rc;
/// use emulator::race_point;
/// use emulator::sync::race;
///
/// let reached = Rc::new(Cell::new(""));
/// let last = Rc::clone(&reached);
/// race::call(move |name| last.set(name));
/// race_point!("example: half done");
/// race::disarm();
/// race_point!("example: done");
/// assert_eq!(reached.get(), "example: half done");
/// ```
pub fn call(at: impl Fn(&'static str) + 'static) {
    imp::call(at);
}

/// Disarms the race points of this thread.
pub fn disarm() {
    imp::disarm();
}

/// Called by [`race_point!`](crate::race_point); the name appears in nothing but the source, a
/// debugger, and what [`call`] was given.
#[inline]
pub fn point(name: &'static str) {
    imp::point(name);
}

/// Marks a place where two sides of a race can meet. See [`crate::runtime::sync::race`].
#[macro_export]
macro_rules! race_point {
    ($name:literal) => {
        $crate::runtime::sync::race::point($name)
    };
}

pub use race_point;
