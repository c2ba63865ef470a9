//! A value that is read without a lock and replaced as a whole.
//!
//! It owns the reclamation of replaced values. Invariant: a reader sees one version from beginning
//! to end, and a version is dropped only after every reader that could see it has left. Kernel
//! counterpart: `rcu_dereference` and `rcu_assign_pointer`. Under loom and shuttle a locked `Arc`
//! stands in for crossbeam-epoch, which neither can see into.

#[cfg(not(any(daxlab_loom, daxlab_shuttle)))]
mod imp {
    use crossbeam_epoch::{self as epoch, Atomic, Owned};
    use std::sync::atomic::Ordering;

    /// See the module.
    #[derive(Debug)]
    pub struct EpochRcu<T>(Atomic<T>);

    impl<T: Send + Sync + 'static> EpochRcu<T> {
        /// A cell that holds `value`.
        pub fn new(value: T) -> Self {
            EpochRcu(Atomic::new(value))
        }

        /// Runs `look` on the current version. `look` must not block: it delays reclamation for all
        /// threads.
        pub fn read<R>(&self, look: impl FnOnce(&T) -> R) -> R {
            let guard = epoch::pin();
            // ORDERING: Acquire pairs with the Release half of `replace`: the version's fields are
            // visible.
            let shared = self.0.load(Ordering::Acquire, &guard);
            // SAFETY: the pointer is never null (set in `new`, only ever replaced by another
            // value), and the guard keeps the version alive until `look` returns.
            look(unsafe { shared.deref() })
        }

        /// Publishes `value`. Writers must be serialised by the caller, or one of two versions is
        /// lost.
        pub fn replace(&self, value: T) {
            let guard = epoch::pin();
            // ORDERING: Release publishes the new version's fields; Acquire orders us after the old
            // one's publication.
            let old = self.0.swap(Owned::new(value), Ordering::AcqRel, &guard);
            // SAFETY: `old` was unlinked by the swap, so no new reader can reach it, and it is
            // unlinked only once.
            unsafe { guard.defer_destroy(old) };
        }
    }

    impl<T> Drop for EpochRcu<T> {
        fn drop(&mut self) {
            // SAFETY: `&mut self` proves that no reader is left; the pointer is never null and
            // owned by this cell.
            unsafe { drop(std::mem::replace(&mut self.0, Atomic::null()).into_owned()) };
        }
    }
}

#[cfg(any(daxlab_loom, daxlab_shuttle))]
mod imp {
    use crate::runtime::sync::{Arc, Mutex};

    /// See the module.
    #[derive(Debug)]
    pub struct LockedRcu<T>(Mutex<Arc<T>>);

    impl<T: Send + Sync + 'static> LockedRcu<T> {
        /// A cell that holds `value`.
        pub fn new(value: T) -> Self {
            LockedRcu(Mutex::new(Arc::new(value)))
        }

        /// Runs `look` on the current version.
        pub fn read<R>(&self, look: impl FnOnce(&T) -> R) -> R {
            let version = self.0.lock().clone();
            look(&version)
        }

        /// Publishes `value`.
        pub fn replace(&self, value: T) {
            let value = Arc::new(value);
            let old = std::mem::replace(&mut *self.0.lock(), value);
            drop(old);
        }
    }
}

#[cfg(not(any(daxlab_loom, daxlab_shuttle)))]
pub use imp::EpochRcu as Rcu;
#[cfg(any(daxlab_loom, daxlab_shuttle))]
pub use imp::LockedRcu as Rcu;
