//! The counters of one design in one run.
//!
//! One list below makes the struct, its merging and its walk; a counter that is in the struct is therefore in `result.json`
//! and merged. Invariant: merging is commutative and associative, and the zero value is its identity, so that shards add up
//! to the same result in any order.

use serde::{Deserialize, Serialize};

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $rule:ident $name:ident,)+) => {
        /// What one design did and what happened to it, counted over one run.
        ///
        /// All counts are of events except `dma_bytes` (bytes) and the two `_peak` fields (the largest number alive at one
        /// moment). An operation is one finished simulated system call or RDMA work request; refusals are counted apart.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct RaceCounters {
            $($(#[doc = $doc])+ pub $name: u64,)+
        }

        impl RaceCounters {
            /// Every counter's name, in the order of the struct.
            pub const NAMES: &'static [&'static str] = &[$(stringify!($name)),+];

            /// Adds another shard's counters: counts add (saturating), peaks take the larger.
            ///
            /// ```
            /// use reports::RaceCounters;
            /// let mut a = RaceCounters { truncate_done: 2, zombie_leases_peak: 7, ..RaceCounters::default() };
            /// a.merge(&RaceCounters { truncate_done: 3, zombie_leases_peak: 5, ..RaceCounters::default() });
            /// assert_eq!((a.truncate_done, a.zombie_leases_peak), (5, 7));
            /// ```
            pub fn merge(&mut self, other: &RaceCounters) {
                $(self.$name = counters!(@$rule self.$name, other.$name);)+
            }

            /// Names and values, in the order of [`RaceCounters::NAMES`].
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name)),+].into_iter()
            }
        }
    };
    (@sum $a:expr, $b:expr) => { $a.saturating_add($b) };
    (@peak $a:expr, $b:expr) => { $a.max($b) };
}

counters! {
    /// Truncate calls made.
    sum truncate_attempts,
    /// Truncate calls that succeeded.
    sum truncate_done,
    /// Truncate calls refused with ETXTBSY because of somebody's pin or lease.
    sum truncate_etxtbsy,
    /// Truncate calls ended by a signal while they waited (EINTR).
    sum truncate_eintr,
    /// Truncate calls that waited at least once, whatever their end.
    sum truncate_waited,
    /// Hole punches tried.
    sum punch_attempts,
    /// Hole punches that succeeded.
    sum punch_done,
    /// Hole punches refused with ETXTBSY.
    sum punch_etxtbsy,
    /// Hole punches ended by a signal while they waited (EINTR).
    sum punch_eintr,
    /// Hole punches that waited at least once, whatever their end.
    sum punch_waited,
    /// Memory registrations granted.
    sum registrations_granted,
    /// Memory registrations refused, with any errno.
    sum registrations_refused,
    /// Memory regions deregistered by their owner, close and exit included.
    sum deregistrations,
    /// DMA accesses carried out.
    sum dma_operations,
    /// Bytes moved by DMA.
    sum dma_bytes,
    /// DMA accesses to a block that had left the file, or the file offset, it was registered for.
    sum stale_dma,
    /// DMA accesses to an orphaned block: removed from its file, kept unallocated until unpinned.
    sum orphan_dma,
    /// Most orphaned blocks at one moment.
    peak orphaned_blocks_peak,
    /// Most zombie leases at one moment: owner gone, pins left.
    peak zombie_leases_peak,
    /// SIGIO signals sent to lease holders.
    sum sigio_sent,
    /// Processes killed by the design when a lease break timed out.
    sum processes_killed,
    /// Memory regions aborted by revocation or a lost lease.
    sum mrs_aborted,
    /// Cycles of waits without a waker or deadline.
    sum deadlocks,
    /// Pins undone and tried again because the file's layout had changed meanwhile.
    sum pin_retries,
    /// Closes of a page range that met a pin.
    sum closes_met_pin,
    /// Lease breaks started.
    sum lease_breaks,
    /// Lease breaks that ran into their deadline.
    sum lease_timeouts,
    /// Read calls finished.
    sum reads,
    /// Write calls finished.
    sum writes,
    /// Calls that made a file longer.
    sum extends,
    /// Operations finished successfully.
    sum operations,
    /// Operations refused by the design.
    sum refusals,
}
