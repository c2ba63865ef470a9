//! What a registrant sends along with an RDMA context that it passes to another registrant.
//!
//! It owns the record that the sender puts into the receiver's inbox before it sends the
//! descriptor. Invariant: an inbox holds at most [`INBOX_MAX`] records. Kernel counterpart: none; a
//! program would send this record over a socket beside the descriptor.

use emulator::sync::Arc;
use fs_sim::base::numbers::Pid;
use rdma_sim::Pd;

use super::region::RegionHandle;

/// The most passed contexts that wait for one registrant.
pub(super) const INBOX_MAX: usize = 64;

/// What the receiver needs to use a passed context.
pub(super) struct PassedContext {
    /// The receiving process.
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
