//! What a guest's device has done, counted.
//!
//! It owns the counters, the text of the last problem, and what the last memory table looked like.
//! Invariant: counters only grow, over all connections of one server; no decision is taken from any
//! of them here, so each is relaxed and they may disagree with one another while the device runs.

use crate::runtime::clock::Nanos;
use crate::runtime::sync::Mutex;
use crate::runtime::sync::atomic::{AtomicU64, Ordering};

/// A counter.
#[derive(Debug, Default)]
pub(super) struct StatCount(AtomicU64);

impl StatCount {
    pub(super) fn add(&self, more: u64) {
        // ORDERING: relaxed here and below; see the module.
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub(super) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! stats {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// The counters of a [`super::VhostServer`], over all its connections so far.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct VhostStats {
            $($(#[$doc])* pub $name: u64,)*
            /// For how many milliseconds the frontend has been starting the device without telling
            /// of its memory; 0 if it is not. QEMU that can't start the device (too many regions
            /// of memory, say) leaves it there, and the guest's fsync hangs until a reset.
            pub starting_ms: u64,
            /// The last thing that went wrong, for people.
            pub problem: Option<String>,
        }

        #[derive(Debug, Default)]
        pub(super) struct VhostCounters {
            $(pub(super) $name: StatCount,)*
            /// When the frontend began to start the device, plus 1; 0 if it is not starting it.
            starting: StatCount,
            problem: Mutex<Option<String>>,
        }

        impl VhostCounters {
            pub(super) fn snapshot(&self, now: Nanos) -> VhostStats {
                // At least 1, so that it can be told from 0.
                let starting_ms = self.starting_since().map_or(0, |since| (now.since(since) / 1_000_000).max(1));
                VhostStats { $($name: self.$name.get(),)* starting_ms, problem: self.problem.lock().clone() }
            }
        }
    };
}

stats! {
    /// Frontends that were served.
    connections,
    /// Frontends that the medium refused.
    refused,
    /// Connections that ended otherwise than by a hang-up between two messages.
    broken,
    /// Kicks received from the guest.
    kicks,
    /// Interrupts sent to the guest.
    notifications,
    /// FLUSH requests.
    requests,
    /// Flushes of the medium.
    flushes,
    /// FLUSH requests that shared another one's flush.
    coalesced,
    /// FLUSH requests that were answered with a failure.
    failed,
    /// Requests of unknown types, or too short to have one; answered with a failure.
    unknown,
    /// Descriptor chains that could not be answered at all; given back with length 0.
    malformed,
    /// Pieces mapped.
    maps,
    /// Pieces unmapped.
    unmaps,
    /// How often everything had to be unmapped.
    revokes,
    /// How often a driver took the device after the first time of a connection: resets, reboots,
    /// rebinds.
    resets,
    /// Messages that were answered with a failure, and changed nothing.
    declined,
    /// What frontends sent against the specification.
    violations,
    /// Regions of the guest's own memory in the last memory table; not a counter, as the next two.
    ram_regions,
    /// Pieces of this device, and of others of the same server, in the last memory table.
    own_regions,
    /// Regions of other files in the last memory table: devices of other servers, or memory of
    /// another NUMA node.
    other_regions,
}

impl VhostCounters {
    /// The frontend begins to start the device now; or it told of its memory, or is gone.
    pub(super) fn starting(&self, since: Option<Nanos>) {
        self.starting.set(since.map_or(0, |since| since.0.saturating_add(1)));
    }

    /// Since when the frontend has been starting the device; none if it is not.
    pub(super) fn starting_since(&self) -> Option<Nanos> {
        self.starting.get().checked_sub(1).map(Nanos)
    }

    pub(super) fn problem(&self, what: impl Into<String>) {
        *self.problem.lock() = Some(what.into());
    }
}
