//! The table of memory windows: from a key to the window.
//!
//! It owns the windows' half of the keys: those whose highest bit is set, 23 bits of index and 8 bits that the binder turns.
//! So one look at a key says whether it names a region or a window, and the way to a region is as short as without windows.
//! Invariant: an index names one window from its allocation to its deallocation, and the next window there starts with the key
//! the last one ended with, so no key comes back before 256 bindings. Kernel counterpart: `rxe_mw.c`, `rxe_pool`.

use std::collections::VecDeque;

use emulator::runtime::registry::Registry;
use emulator::sync::{Arc, Mutex};
use fs_sim::Errno;

use crate::verbs::mw::Mw;

/// The first index of a window; regions have those below.
pub(crate) const FIRST: u32 = 1 << 23;
const END: u32 = 1 << 24;

/// Whether a key can only be a window's.
#[inline]
pub(crate) fn is_window(key: u32) -> bool {
    key >> 8 >= FIRST
}

struct Free {
    /// The last keys of windows that are gone, oldest first.
    used: VecDeque<u32>,
    /// The first index that never was.
    fresh: u32,
}

/// See the module.
pub(crate) struct Windows {
    live: Registry<u32, Arc<Mw>>,
    free: Mutex<Free>,
}

impl Windows {
    pub(crate) fn new() -> Windows {
        Windows { live: Registry::new(), free: Mutex::new(Free { used: VecDeque::new(), fresh: FIRST }) }
    }

    pub(crate) fn live(&self) -> usize {
        self.live.len()
    }

    /// A window, made by `make` from the key it starts with: nobody can use that one before the first binding.
    ///
    /// # Errors
    /// ENOMEM: 2^23 windows exist.
    pub(crate) fn add(&self, make: impl FnOnce(u32) -> Mw) -> Result<Arc<Mw>, Errno> {
        let key = {
            let mut free = self.free.lock();
            match free.used.pop_front() {
                Some(key) => key,
                None if free.fresh < END => {
                    let index = free.fresh;
                    free.fresh += 1;
                    index << 8
                }
                None => return Err(Errno::ENOMEM),
            }
        };
        let window = Arc::new(make(key));
        self.live.insert(key >> 8, Arc::clone(&window));
        Ok(window)
    }

    /// The window at a key's index, whatever the key's lowest bits are.
    pub(crate) fn find(&self, key: u32) -> Option<Arc<Mw>> {
        self.live.get(key >> 8)
    }

    /// Takes a window down: unbinds it for good, then gives its index to others. Called once, by its owner.
    pub(crate) fn remove(&self, window: &Mw) {
        let last = window.retire();
        self.live.remove(last >> 8);
        self.free.lock().used.push_back(last);
    }
}
