//! What the simulated kernel counts about itself.
//!
//! It owns plain event counters; no decision depends on them. Invariant: a counter only grows; a
//! gauge remembers its peak. Kernel counterpart: vmstat events.

use emulator::sync::atomic::{AtomicU64, Ordering};

/// A count of events.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Counts `n` more.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The count so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that rises and falls, and the highest it has been.
#[derive(Debug, Default)]
pub struct Gauge {
    now: AtomicU64,
    peak: AtomicU64,
}

impl Gauge {
    /// One more.
    pub fn rise(&self) {
        let now = self.now.fetch_add(1, Ordering::Relaxed) + 1;
        self.peak.fetch_max(now, Ordering::Relaxed);
    }

    /// One less.
    pub fn fall(&self) {
        self.now.fetch_sub(1, Ordering::Relaxed);
    }

    /// How many now.
    pub fn now(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    /// How many at most.
    pub fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }
}

/// The kernel's counters.
#[derive(Debug, Default)]
pub struct KernelCounters {
    /// Pins of a file range that met a closed page or were undone by the recheck, and were tried
    /// again.
    pub pin_retries: Counter,
    /// Closes of leaving pages that met a pin.
    pub closes_met_pin: Counter,
    /// Lease owners that had to be signalled because their lease is being broken or was removed.
    pub notices_owed: Counter,
    /// SIGIO sent to lease owners.
    pub sigio_sent: Counter,
    /// Owed signals that could not be sent: the process was dead.
    pub sigio_unsent: Counter,
    /// Processes ended by a signal.
    pub processes_killed: Counter,
    /// Lease breaks begun.
    pub lease_breaks: Counter,
    /// Leases taken away because their break timed out.
    pub lease_timeouts: Counter,
    /// Zombie leases.
    pub zombie_leases: Gauge,
    /// Calls that returned EDEADLK because they would have closed a cycle of waits.
    pub deadlocks: Counter,
    /// Layout changes, closes, unlocks and evictions that waited for a long-term pin.
    pub waits_for_long_term_pin: Counter,
    /// Holders whose pins were revoked.
    pub revocations: Counter,
    /// Accesses to on-demand memory that had to look their pages up.
    pub odp_faults: Counter,
    /// Cached translations of on-demand memory found out of date: the layout changed, or memory was
    /// unmapped.
    pub odp_invalidations: Counter,
    /// Pages made persistent on a device's demand (RDMA FLUSH).
    pub pages_persisted: Counter,
    /// Layouts of block-layout clients recalled.
    pub layout_recalls: Counter,
    /// Layouts of block-layout clients fenced because they were not returned in time.
    pub layout_fences: Counter,
    /// DMA accesses that landed in a block after it left its file or offset.
    pub stale_dma: Counter,
    /// DMA accesses that landed in an orphaned block.
    pub orphan_dma: Counter,
    /// Exclusive leases granted while pins of a lost exclusive lease live in their range.
    pub broken_exclusivity: Counter,
}
