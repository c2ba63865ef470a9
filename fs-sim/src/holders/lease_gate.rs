//! TODO

use emulator::gate::Gate;

use crate::base::numbers::LeaseId;

/// A lease's identity: what pins refer to. Its kind and range stand in the table.
#[derive(Debug)]
pub struct Lease {
    /// Its number.
    pub id: LeaseId,
    /// Counts the pins let through under it; shut once the lease can let no more through.
    pub(crate) gate: Gate,
}
