//! The table of memory windows: finds the window of a key.
//!
//! It owns the windows' half of the keys (see [`super::key`]), so windows do not lengthen the way
//! from a key to a region. Invariant: an index names one window from its allocation to its
//! deallocation. The next window at that index starts with the key that the previous one ended
//! with, so no key comes back before 256 bindings. Kernel counterpart: `rxe_mw.c`, `rxe_pool.c`.

use std::collections::VecDeque;

use emulator::runtime::registry::Registry;
use emulator::sync::{Arc, Mutex};
use fs_sim::Errno;

use super::key::{self, FIRST_WINDOW, INDEX_END};
use super::mw::Mw;

struct FreeKeys {
    /// The last keys of deallocated windows, in the order of deallocation.
    used: VecDeque<u32>,
    /// The lowest index that was never used.
    fresh: u32,
}

/// See the module.
pub(crate) struct WindowTable {
    live: Registry<u32, Arc<Mw>>,
    free: Mutex<FreeKeys>,
}

impl WindowTable {
    pub(crate) fn new() -> WindowTable {
        WindowTable { live: Registry::new(), free: Mutex::new(FreeKeys { used: VecDeque::new(), fresh: FIRST_WINDOW }) }
    }

    pub(crate) fn live(&self) -> usize {
        self.live.len()
    }

    /// Makes a window by `make` from the key that it starts with. That key opens nothing before the
    /// first binding.
    ///
    /// # Errors
    /// ENOMEM: 2^23 windows exist.
    pub(crate) fn add(&self, make: impl FnOnce(u32) -> Mw) -> Result<Arc<Mw>, Errno> {
        let key = {
            let mut free = self.free.lock();
            match free.used.pop_front() {
                Some(key) => key,
                None if free.fresh < INDEX_END => {
                    let index = free.fresh;
                    free.fresh += 1;
                    index << 8
                }
                None => return Err(Errno::ENOMEM),
            }
        };
        let window = Arc::new(make(key));
        self.live.insert(key::index(key), Arc::clone(&window));
        Ok(window)
    }

    /// The window at a key's index; the key's lowest 8 bits are ignored.
    pub(crate) fn find(&self, key: u32) -> Option<Arc<Mw>> {
        self.live.get(key::index(key))
    }

    /// Removes a window: unbinds it for good, then frees its index. Its owner calls this once.
    pub(crate) fn remove(&self, window: &Mw) {
        let last = window.retire();
        self.live.remove(key::index(last));
        self.free.lock().used.push_back(last);
    }
}
