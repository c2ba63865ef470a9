//! What a region asks of the context that it belongs to.
//!
//! It owns the trait. Invariant: a region reaches its context through this trait only, because
//! contexts belong to a layer above. Kernel counterpart: the `struct ib_ucontext` behind a `struct
//! ib_mr`.

use std::any::Any;

use emulator::sync::Arc;
use emulator::wait::WaitQueue;
use fs_sim::Kernel;
use fs_sim::holders::holder::PinHolder;
use fs_sim::vfs::fd_holders::FdHolders;

/// The context of a region, as the memory layer sees it.
pub(crate) trait ObjectOwner: Send + Sync + 'static {
    /// The context's number, unique on the NIC.
    fn number(&self) -> u64;

    /// The kernel of the machine.
    fn kernel(&self) -> &Arc<Kernel>;

    /// The processes that hold the context's descriptor.
    fn fd_holders(&self) -> &Arc<FdHolders>;

    /// The wait queue of tasks that wait until a region is drained.
    fn drained(&self) -> &WaitQueue;

    /// Counts one region less that pins pages of a file.
    fn file_pin_gone(&self);

    /// Aborts the context: every queue pair goes to error, every region is revoked. Returns at
    /// once.
    fn abort(&self, kernel: &Arc<Kernel>);

    /// The NIC goes: from now on every call on the context is EIO, and its queue pairs are in
    /// error. Nothing is flushed yet.
    fn begin_removal(&self);

    /// The rest of the removal, after every context of the NIC has begun it: flushes the work,
    /// takes down windows and regions, raises a fatal event. Returns at once.
    fn finish_removal(&self, kernel: &Arc<Kernel>);

    /// Revokes the region of `key` if `holder` answers for its pins: its keys die, and its pins go
    /// once the accesses in flight have left it. Returns at once.
    fn revoke_region(&self, kernel: &Arc<Kernel>, key: u32, holder: &dyn PinHolder);

    /// The context as a value of its own type.
    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}
