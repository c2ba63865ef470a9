//! io_uring fixed buffers: memory that a ring's requests read and write without a new lookup.
//!
//! It owns a ring's table of buffers. Invariants: the table is registered as a whole or not at
//! all, and a ring has at most one at a time; a revocation unregisters it as a whole
//! **\[chosen\]**: requests on its buffers end in ECANCELED until the program has unregistered it;
//! the pins go with the ring's last close at the latest. Kernel counterpart: io_uring/rsrc.c
//! (`io_sqe_buffers_register`, `io_sqe_buffers_unregister`), whose pins are charged to the
//! registering mm.

use std::any::Any;

use emulator::sync::atomic::{AtomicBool, Ordering};
use emulator::sync::{Arc, Mutex};

use crate::base::errno::Errno;
use crate::holders::holder::{HolderInfo, PinHolder, RevokeReason};
use crate::pinning::registered_memory::RegisteredMemory;
use crate::vfs::fd_holders::FdHolders;
use crate::vfs::kernel::Kernel;
use crate::vfs::open_file::{Deferred, OpenObject, Passing};
use crate::vfs::process::Process;

/// How many buffers a table has at most. Linux: `IORING_MAX_REG_BUFFERS`.
pub const BUFFERS_MAX: usize = 1 << 14;

/// The longest buffer in bytes. Linux: `SZ_1G` in `io_buffer_validate`.
pub const BUFFER_MAX: u64 = 1 << 30;

/// How many bytes a request moves at a time.
pub(crate) const STEP: u64 = 64 << 10;

/// A ring; see the module.
#[derive(Debug)]
pub struct Ring {
    pub(crate) fd_holders: Arc<FdHolders>,
    pub(crate) state: Mutex<RingState>,
}

#[derive(Debug)]
pub(crate) enum RingState {
    Open(Option<Arc<BufferTable>>),
    Closed,
}

/// Registered buffers.
#[derive(Debug)]
pub(crate) struct BufferTable {
    pub(crate) fd_holders: Arc<FdHolders>,
    pub(crate) registrant: Arc<Process>,
    /// Each with its length in bytes.
    pub(crate) buffers: Vec<(RegisteredMemory, u64)>,
    /// Each buffer is a holder of its own; the revocation of the first one takes all of them away.
    pub(crate) revoked: AtomicBool,
}

impl BufferTable {
    /// Closes all of them.
    pub(crate) fn close(&self, kernel: &Arc<Kernel>, deferred: &mut Deferred) {
        for (region, _) in &self.buffers {
            region.close(kernel, deferred);
        }
    }
}

impl PinHolder for BufferTable {
    fn describe(&self) -> HolderInfo {
        HolderInfo::in_descriptor("io_uring fixed buffer", &self.fd_holders, &self.registrant)
    }

    fn fd_holders(&self) -> Option<Arc<FdHolders>> {
        Some(Arc::clone(&self.fd_holders))
    }

    fn revoke(&self, kernel: &Arc<Kernel>, _reason: RevokeReason) {
        // Another task may still be closing them. A task that needs the pins gone waits for that
        // anyway.
        if self.revoked.swap(true, Ordering::SeqCst) {
            return;
        }
        let mut deferred = Deferred::default();
        self.close(kernel, &mut deferred);
        kernel.run_deferred(deferred);
    }
}

impl OpenObject for Ring {
    fn release(&self, kernel: &Arc<Kernel>, deferred: &mut Deferred) {
        let state = std::mem::replace(&mut *self.state.lock(), RingState::Closed);
        if let RingState::Open(Some(table)) = state {
            table.close(kernel, deferred);
        }
    }

    /// A ring may always be passed: the axis `pass_context` speaks of RDMA contexts.
    fn may_pass(&self, _kernel: &Kernel, _pass: Passing) -> bool {
        true
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

impl Ring {
    pub(crate) fn table(&self) -> Result<Option<Arc<BufferTable>>, Errno> {
        match &*self.state.lock() {
            RingState::Open(table) => Ok(table.clone()),
            RingState::Closed => Err(Errno::EBADF),
        }
    }

    /// How many of its buffers were registered and not revoked.
    pub fn buffers(&self) -> usize {
        let table = self.table().ok().flatten();
        table.map_or(0, |table| table.buffers.iter().filter(|(region, _)| !region.is_closed()).count())
    }
}

/// A part of a fixed buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FixedBuffer {
    /// Its index in the table.
    pub index: usize,
    /// The first byte in it.
    pub offset: u64,
    /// How many bytes.
    pub len: u64,
}
