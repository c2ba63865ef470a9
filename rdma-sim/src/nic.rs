//! The NIC as a whole: one for each simulated machine.
//!
//! It owns the table of memory regions and the numbers that are unique on a device (contexts, protection domains, queues,
//! queue pairs). Invariant: a number is never given out twice. Kernel counterpart: `struct ib_device`.

use emulator::sync::Arc;
use emulator::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use fs_sim::base::counters::Counter;
use fs_sim::{Errno, Kernel};

use crate::regions::Regions;
use crate::windows::Windows;

/// What a NIC counts about itself.
#[derive(Debug, Default)]
pub struct Counters {
    /// Memory regions registered.
    pub mrs_registered: Counter,
    /// Memory regions that lived when their context was aborted.
    pub mrs_aborted: Counter,
    /// Contexts aborted by a revocation.
    pub contexts_aborted: Counter,
    /// Completions that found their queue full or in error. The first of a queue puts it into error and raises an event.
    pub completions_lost: Counter,
    /// Asynchronous events that found their queue full.
    pub events_lost: Counter,
}

/// See the module. Its objects are reached through [`crate::Context`].
pub struct Nic {
    pub(crate) regions: Regions,
    pub(crate) windows: Windows,
    /// What it counts about itself.
    pub counters: Counters,
    next_context: AtomicU64,
    next_pd: AtomicU32,
    next_cq: AtomicU32,
    next_qp: AtomicU32,
}

/// Queue pairs 0 and 1 are the management ones of every port.
const FIRST_QP: u32 = 2;
/// Numbers of objects are 24 bits wide, as queue pair numbers on the wire are.
const NUMBER_MAX: u32 = (1 << 24) - 1;

impl Nic {
    /// The NIC of this machine.
    pub fn of(kernel: &Kernel) -> Arc<Nic> {
        kernel.driver(|| Nic {
            regions: Regions::new(),
            windows: Windows::new(),
            counters: Counters::default(),
            next_context: AtomicU64::new(1),
            next_pd: AtomicU32::new(1),
            next_cq: AtomicU32::new(1),
            next_qp: AtomicU32::new(FIRST_QP),
        })
    }

    /// How many memory regions exist, revoked ones included: 0 once every context is closed and every copy has ended.
    pub fn live_regions(&self) -> u64 {
        self.regions.live()
    }

    /// How many memory windows exist.
    pub fn live_windows(&self) -> usize {
        self.windows.live()
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
