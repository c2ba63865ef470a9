//! What travels with an RDMA context that one registrant passes to another.
//!
//! It owns the record that the sender puts into the receiver's inbox before it sends the descriptor. Invariant: an inbox holds
//! at most [`INBOX_MAX`] records.

use emulator::sync::Arc;
use fs_sim::process::Pid;
use rdma_sim::Pd;

use super::endpoint::RegionHandle;

/// The most passed contexts that wait for one registrant.
pub(super) const INBOX_MAX: usize = 64;

/// The letter that goes with a passed context: what its receiver needs to use it.
pub(super) struct PassedContext {
    /// The process it was sent to.
    pub(super) to: Pid,
    /// The context's number.
    pub(super) context: u64,
    pub(super) pd: Arc<Pd>,
    pub(super) handles: Vec<RegionHandle>,
}

impl std::fmt::Debug for PassedContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PassedContext").field("to", &self.to).field("context", &self.context).finish_non_exhaustive()
    }
}
