//! The NIC as a whole: one for each simulated machine.
//!
//! It owns the tables of memory regions and windows, and the numbers that are unique on a device
//! (of contexts, protection domains, completion queues, queue pairs), and the list of open
//! contexts. Invariants: a number is never given out twice; after the removal of the NIC no context
//! is open that has not begun its removal. Kernel counterpart: `struct ib_device`,
//! `ib_unregister_device`.

use std::collections::BTreeMap;

use emulator::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use emulator::sync::{Arc, Mutex, Weak};
use fs_sim::base::counters::Counter;
use fs_sim::{Errno, Kernel};

use super::owner::ObjectOwner;
use super::region_table::RegionTable;
use super::window_table::WindowTable;

/// The counters of a NIC.
#[derive(Debug, Default)]
pub struct NicCounters {
    /// Memory regions registered.
    pub mrs_registered: Counter,
    /// Memory regions that were revoked: alone, or registered when their context was aborted.
    pub mrs_aborted: Counter,
    /// Contexts aborted by a revocation.
    pub contexts_aborted: Counter,
    /// Completions lost because their queue was full or in error. The first one of a queue puts the
    /// queue into error and raises an event.
    pub completions_lost: Counter,
    /// Asynchronous events lost because their queue was full.
    pub events_lost: Counter,
}

/// The open contexts of a NIC.
#[derive(Default)]
struct OpenContexts {
    /// By number.
    by_number: BTreeMap<u64, Weak<dyn ObjectOwner>>,
    /// The NIC is gone: no context is opened any more.
    removed: bool,
}

/// The NIC of one machine. A program reaches its objects through a context
/// ([`Context`](crate::verbs::context::Context)).
pub struct Nic {
    pub(crate) regions: RegionTable,
    pub(crate) windows: WindowTable,
    /// The NIC's counters.
    pub counters: NicCounters,
    contexts: Mutex<OpenContexts>,
    next_context: AtomicU64,
    next_pd: AtomicU32,
    next_cq: AtomicU32,
    next_qp: AtomicU32,
}

/// Queue pairs 0 and 1 are the management queue pairs of every port.
const FIRST_QP: u32 = 2;
/// Numbers of objects are 24 bits wide, as queue pair numbers on the wire are.
const NUMBER_MAX: u32 = (1 << 24) - 1;

impl Nic {
    /// The NIC of this machine. The first call makes it.
    pub fn of(kernel: &Kernel) -> Arc<Nic> {
        kernel.driver(|| Nic {
            regions: RegionTable::new(),
            windows: WindowTable::new(),
            counters: NicCounters::default(),
            contexts: Mutex::new(OpenContexts::default()),
            next_context: AtomicU64::new(1),
            next_pd: AtomicU32::new(1),
            next_cq: AtomicU32::new(1),
            next_qp: AtomicU32::new(FIRST_QP),
        })
    }

    /// The number of memory regions that still hold their memory: 0 once every context is closed
    /// and every copy has ended.
    pub fn live_regions(&self) -> u64 {
        self.regions.live()
    }

    /// The number of memory windows that exist.
    pub fn live_windows(&self) -> usize {
        self.windows.live()
    }

    /// Whether the NIC was removed.
    pub fn is_removed(&self) -> bool {
        self.contexts.lock().removed
    }

    /// Lists an open context.
    ///
    /// # Errors
    /// ENODEV: the NIC was removed.
    pub(crate) fn add_context(&self, context: &Arc<dyn ObjectOwner>) -> Result<(), Errno> {
        let mut contexts = self.contexts.lock();
        if contexts.removed {
            return Err(Errno::ENODEV);
        }
        contexts.by_number.insert(context.number(), Arc::downgrade(context));
        Ok(())
    }

    /// Takes a closed context off the list.
    pub(crate) fn remove_context(&self, number: u64) {
        self.contexts.lock().by_number.remove(&number);
    }

    /// Unplugs the NIC, once and for good. Every context is disassociated: queue pairs go to error
    /// and work is flushed; windows are unbound; regions end, and their pins go once the last copy
    /// in flight has left; a fatal event is raised. The descriptors stay, and calls on them are
    /// EIO. No context is opened afterwards (ENODEV). `ib_unregister_device`,
    /// `ib_uverbs_free_hw_resources`.
    ///
    /// Never waits, also not for a call in progress: that call finds the removal, undoes what it
    /// did and is EIO **\[chosen\]** (Linux waits for such calls: `synchronize_srcu` in
    /// `ib_uverbs_remove_one`).
    pub fn remove(&self, kernel: &Arc<Kernel>) {
        let contexts: Vec<Arc<dyn ObjectOwner>> = {
            let mut contexts = self.contexts.lock();
            contexts.removed = true;
            std::mem::take(&mut contexts.by_number).values().filter_map(Weak::upgrade).collect()
        };
        // All of them begin first: a send that waits for a receive in another context is flushed.
        for context in &contexts {
            context.begin_removal();
        }
        for context in &contexts {
            context.finish_removal(kernel);
        }
    }

    pub(crate) fn number_context(&self) -> u64 {
        self.next_context.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn number_pd(&self) -> Result<u32, Errno> {
        number(&self.next_pd)
    }

    pub(crate) fn number_cq(&self) -> Result<u32, Errno> {
        number(&self.next_cq)
    }

    pub(crate) fn number_qp(&self) -> Result<u32, Errno> {
        number(&self.next_qp)
    }
}

fn number(next: &AtomicU32) -> Result<u32, Errno> {
    let step = |number| (number <= NUMBER_MAX).then(|| number + 1);
    next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step).map_err(|_| Errno::ENOMEM)
}
