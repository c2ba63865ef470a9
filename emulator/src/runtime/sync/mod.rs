//! The concurrency facade: the only module of the project that names `std::sync`, `loom` or
//! `shuttle`.
//!
//! It owns the choice of backend. Three exist: the standard library, loom (`--cfg daxlab_loom`, the
//! only check of memory orderings) and shuttle (`--cfg daxlab_shuttle`, seeded schedules; takes
//! every ordering as SeqCst). Invariant: code written against this module runs unchanged under all
//! three. Kernel counterpart: `<linux/atomic.h>`, `<linux/spinlock.h>`.
//!
//! Rules that keep exploration possible (see `docs/architecture.md`): a [`Mutex`] is a leaf, never
//! held over a wait or a yield; blocking happens in [`crate::runtime::wait::WaitQueue`] only.
#![allow(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "this facade is the one place that may name the originals"
)]

pub mod race;
mod rcu;

pub use rcu::Rcu;
/// A value set once and then read without a lock. Set it under a [`Mutex`] of the facade: two
/// setters at once would block each other where no explorer can see it.
pub use std::sync::OnceLock;
pub use std::sync::{Arc, Weak};

#[cfg(daxlab_loom)]
use loom as backend;
#[cfg(daxlab_shuttle)]
use shuttle as backend;
#[cfg(not(any(daxlab_loom, daxlab_shuttle)))]
use std as backend;

/// Atomic integers of the chosen backend.
pub mod atomic {
    pub use super::backend::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
}

/// The machine's own atomics, whatever the backend: for words that live in a shared mapping, where
/// an explorer's atomics (larger than 8 bytes, and not plain memory) can't stand. Nothing that two
/// threads agree by may use them.
pub mod machine {
    pub use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
}

/// Threads of the chosen backend. There is no sleep: waiting is [`crate::runtime::wait`]'s
/// business.
pub mod thread {
    /// How many threads can run at once on the machine this runs on; 1 if it does not tell.
    pub fn parallelism() -> usize {
        std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
    }

    pub use super::backend::thread::{JoinHandle, spawn, yield_now};
    #[cfg(not(daxlab_loom))]
    pub use super::backend::thread::{Scope, ScopedJoinHandle, scope};

    /// As [`spawn`], which panics where the machine gives no thread.
    ///
    /// # Errors
    /// The machine gives no thread: no memory for a stack, or too many processes.
    pub fn try_spawn<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> std::io::Result<JoinHandle<T>> {
        #[cfg(not(any(daxlab_loom, daxlab_shuttle)))]
        return std::thread::Builder::new().spawn(body);
        #[cfg(any(daxlab_loom, daxlab_shuttle))]
        Ok(spawn(body))
    }

    /// As [`Scope::spawn`], which panics where the machine gives no thread.
    ///
    /// # Errors
    /// As [`try_spawn`].
    #[cfg(not(daxlab_loom))]
    pub fn try_spawn_scoped<'scope, T: Send + 'scope>(
        scope: &'scope Scope<'scope, '_>,
        body: impl FnOnce() -> T + Send + 'scope,
    ) -> std::io::Result<ScopedJoinHandle<'scope, T>> {
        #[cfg(not(daxlab_shuttle))]
        return std::thread::Builder::new().spawn_scoped(scope, body);
        #[cfg(daxlab_shuttle)]
        Ok(scope.spawn(body))
    }
}

#[cfg(daxlab_loom)]
pub use loom::thread_local;
#[cfg(daxlab_shuttle)]
pub use shuttle::thread_local;
#[cfg(not(any(daxlab_loom, daxlab_shuttle)))]
pub use std::thread_local;

/// A mutual exclusion lock that is always a leaf: no wait, yield or other lock of the facade
/// happens while it is held.
///
/// Poisoning is not reported: a panicking holder is a bug that ends the run by itself.
#[derive(Debug, Default)]
pub struct Mutex<T>(backend::sync::Mutex<T>);

/// Access to what a [`Mutex`] protects.
pub type MutexGuard<'a, T> = backend::sync::MutexGuard<'a, T>;

impl<T> Mutex<T> {
    /// A new, unlocked mutex.
    pub fn new(value: T) -> Self {
        Mutex(backend::sync::Mutex::new(value))
    }

    /// Takes the lock, spinning or parking as the backend does.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// A condition variable; private to [`crate::runtime::wait`], which is the only place that blocks.
#[derive(Debug, Default)]
pub(crate) struct Condvar(backend::sync::Condvar);

impl Condvar {
    /// A new condition variable without waiters.
    pub(crate) fn new() -> Self {
        Condvar(backend::sync::Condvar::new())
    }

    /// Releases `guard`, sleeps until notified, takes the lock again.
    pub(crate) fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.0.wait(guard).unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// As [`Condvar::wait`], for at most `limit` of real time. Only the real clock calls it.
    #[cfg(not(any(daxlab_loom, daxlab_shuttle)))]
    pub(crate) fn wait_for<'a, T>(&self, guard: MutexGuard<'a, T>, limit: std::time::Duration) -> MutexGuard<'a, T> {
        self.0.wait_timeout(guard, limit).unwrap_or_else(|poisoned| poisoned.into_inner()).0
    }

    /// Wakes every waiter.
    pub(crate) fn notify_all(&self) {
        self.0.notify_all();
    }
}

/// A fence under loom, nothing elsewhere.
///
/// loom treats a SeqCst access as AcqRel, so a SeqCst read-modify-write followed by a SeqCst load
/// can be reordered in its model although no real machine and no SeqCst semantics allow it. Placed
/// between the two it restores the total order.
#[inline(always)]
pub fn fence_after_rmw() {
    #[cfg(daxlab_loom)]
    atomic::fence(atomic::Ordering::SeqCst);
}
