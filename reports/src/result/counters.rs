//! The counters of one design in one run.
//!
//! One list generates the struct, `merge` and `iter`, so every counter of the struct is in
//! `result.json` and is merged. Invariant: merging is commutative and associative, and all-zero
//! counters are its identity. Shards therefore add up to the same result in any order.

use serde::{Deserialize, Serialize};

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $rule:ident $name:ident,)+) => {
        /// What one design did and what happened to it, counted over one run.
        ///
        /// Counters count events, except `dma_bytes` (bytes) and the two `_peak` fields (the
        /// largest number that existed at one moment). An operation is one finished simulated
        /// system call or RDMA work request; refusals are counted separately.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct RaceCounters {
            $($(#[doc = $doc])+ pub $name: u64,)+
        }

        impl RaceCounters {
            /// Every counter's name, in the order of the struct.
            pub const NAMES: &'static [&'static str] = &[$(stringify!($name)),+];

            /// Adds another shard's counters: counts are added (saturating), of peaks the larger is
            /// kept.
            ///
            /// ```
            /// use reports::RaceCounters;
            /// let none = RaceCounters::default();
            /// let mut a = RaceCounters { truncate_done: 2, zombie_leases_peak: 7, ..none };
            /// a.merge(&RaceCounters { truncate_done: 3, zombie_leases_peak: 5, ..none });
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
    /// Truncate calls refused with ETXTBSY because of a pin or a lease.
    sum truncate_etxtbsy,
    /// Truncate calls that a signal ended while they waited (EINTR).
    sum truncate_eintr,
    /// Truncate calls that waited at least once, whatever their outcome.
    sum truncate_waited,
    /// Hole punches made.
    sum punch_attempts,
    /// Hole punches that succeeded.
    sum punch_done,
    /// Hole punches refused with ETXTBSY.
    sum punch_etxtbsy,
    /// Hole punches that a signal ended while they waited (EINTR).
    sum punch_eintr,
    /// Hole punches that waited at least once, whatever their outcome.
    sum punch_waited,
    /// Memory registrations granted.
    sum registrations_granted,
    /// Memory registrations refused, with any errno.
    sum registrations_refused,
    /// Memory regions deregistered by their owner, also at its close or exit.
    sum deregistrations,
    /// DMA accesses carried out.
    sum dma_operations,
    /// Bytes moved by DMA.
    sum dma_bytes,
    /// DMA accesses to a block that no longer belongs to the file and offset it was registered for.
    sum stale_dma,
    /// DMA accesses to an orphaned block: removed from its file, not allocated again until
    /// unpinned.
    sum orphan_dma,
    /// The most orphaned blocks at one moment.
    peak orphaned_blocks_peak,
    /// The most zombie leases at one moment: the owner is gone, pins are left.
    peak zombie_leases_peak,
    /// SIGIO signals sent to lease holders.
    sum sigio_sent,
    /// Processes killed: because a lease break timed out, or by the administrator because close()
    /// hung.
    sum processes_killed,
    /// Memory regions aborted by revocation or because a lease was lost.
    sum mrs_aborted,
    /// Calls refused with EDEADLK because their wait would have completed a cycle of waits.
    sum deadlocks,
    /// Tasks that were found stuck at the end of the race: in a cycle of waits that neither a
    /// signal nor EDEADLK ends, because the design has such waits. The race ended them.
    sum stuck_tasks,
    /// Pins that were undone and retried because the file's layout changed meanwhile.
    sum pin_retries,
    /// Closes of a page range that found a pin.
    sum closes_met_pin,
    /// Lease breaks started.
    sum lease_breaks,
    /// Lease breaks that reached their deadline.
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
