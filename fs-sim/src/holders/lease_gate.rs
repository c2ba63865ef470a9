//! The gate of a layout lease: the part of a lease that pins refer to.
//!
//! It owns the count of pins taken under a lease. Invariant: a pin counts in the gate from before
//! its first page is pinned until after its last page is unpinned; a closed gate admits no pin.
//! Kernel counterpart: none; the 2019 RFC looked the lease up without taking a reference.

use emulator::pin::gate::Gate;
use emulator::sync::OnceLock;

use crate::base::numbers::LeaseId;

/// A lease's identity and gate: what pins refer to. Its kind, range and state are in the inode's
/// table.
#[derive(Debug)]
pub struct Lease {
    /// Its number.
    pub id: LeaseId,
    /// Counts the pins taken under it; closed once the lease admits no more.
    pub(crate) gate: Gate,
    /// Set before the lease leaves the table, if a rule `revoke` takes it away from its pins.
    pub(crate) revoked: OnceLock<LeaseRevocation>,
}

/// Which rule `revoke` took a lease away while pins under it lived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LeaseRevocation {
    /// `stranger_change` or `holder_change`: the change also judges the pins, one by one.
    Change,
    /// `last_close_while_pinned`: the pins go too.
    LastClose,
}
