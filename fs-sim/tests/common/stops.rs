//! Calls that a test keeps at a race point while other tasks move.
//!
//! It owns no order of its own: a test names the point, and says when the call goes on.

use emulator::sync::atomic::{AtomicBool, Ordering};
use emulator::sync::{Arc, race, thread};
use fs_sim::Task;

use super::Actor;
use super::watchdog::{Spawned, observe, spawn};

/// A call that stops at a race point.
pub(crate) struct Stopped<R> {
    reached: Arc<AtomicBool>,
    goes_on: Arc<AtomicBool>,
    thread: Spawned<R>,
}

/// Starts `call` and returns once it has reached `point`, where it stays.
pub(crate) fn stops_at<R: Send + 'static>(
    point: &'static str,
    actor: &Actor,
    call: impl FnOnce(&Task) -> R + Send + 'static,
) -> Stopped<R> {
    let (reached, goes_on) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (here, go, task) = (Arc::clone(&reached), Arc::clone(&goes_on), Arc::clone(&actor.0));
    let thread = spawn(move || {
        race::call(move |name| {
            if name == point {
                here.store(true, Ordering::SeqCst);
                while !go.load(Ordering::SeqCst) {
                    thread::yield_now();
                }
            }
        });
        let result = call(&task);
        race::disarm();
        result
    });
    let stopped = Stopped { reached, goes_on, thread };
    observe(point, || {
        let reached = stopped.reached.load(Ordering::SeqCst);
        assert!(reached || !stopped.thread.is_over(), "the call returned without reaching {point:?}");
        reached
    });
    stopped
}

impl<R> Stopped<R> {
    /// Lets it go on.
    pub(crate) fn goes_on(&self) {
        self.goes_on.store(true, Ordering::SeqCst);
    }

    /// Waits until the call, which goes on, sleeps for this reason.
    pub(crate) fn expect_blocked(&self, actor: &Actor, reason: &'static str) {
        observe(reason, || {
            let found = actor.sleeps_on() == Some(reason);
            assert!(found || !self.thread.is_over(), "the call returned instead of blocking on {reason:?}");
            found
        });
    }

    /// Lets it go on to its end.
    pub(crate) fn finish(self) -> R {
        self.goes_on();
        self.thread.join()
    }
}
