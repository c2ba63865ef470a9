//! What a guest's device has done, counted.
//!
//! It owns the counters and the text of the last problem. Invariant: they only grow, over all
//! connections of one server; no decision is taken from them, so each is relaxed and they may
//! disagree with one another while the device runs.

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
            /// The last thing that went wrong, for people.
            pub problem: Option<String>,
        }

        #[derive(Debug, Default)]
        pub(super) struct VhostCounters {
            $(pub(super) $name: StatCount,)*
            problem: Mutex<Option<String>>,
        }

        impl VhostCounters {
            pub(super) fn snapshot(&self) -> VhostStats {
                VhostStats { $($name: self.$name.get(),)* problem: self.problem.lock().clone() }
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
}

impl VhostCounters {
    pub(super) fn problem(&self, what: impl Into<String>) {
        *self.problem.lock() = Some(what.into());
    }
}
