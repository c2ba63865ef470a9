//! Memory regions: what a program holds of a registration, and how the kernel reaches whoever answers for its pins.
//!
//! It owns a region's identity and rights; what it pins is in the table of regions. Invariants: rights never change; a
//! region's pins are released once, and [`Mr::is_released`] says so only after the last page was unpinned. Kernel
//! counterpart: `struct ib_mr`, `struct ib_umem`.

use std::fmt;

use emulator::sync::Arc;
use emulator::sync::atomic::{AtomicBool, Ordering};
use fs_sim::gup::Registration;
use fs_sim::holders::{HolderInfo, PinHolder};
use fs_sim::process::description::Deferred;
use fs_sim::{Errno, Kernel};

use super::context::Context;

/// What may be done with a region. `enum ib_access_flags`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AccessFlags {
    /// The NIC may write it for its own side: receives, read responses, results of atomics.
    pub local_write: bool,
    /// The peer may read it.
    pub remote_read: bool,
    /// The peer may write it. Needs `local_write`.
    pub remote_write: bool,
    /// The peer may do atomics on it. Needs `local_write`.
    pub remote_atomic: bool,
    /// Faulted in at each access instead of pinned (explicit on-demand paging).
    pub on_demand: bool,
}

impl AccessFlags {
    /// For sources of local data only.
    pub const LOCAL_READ: AccessFlags = AccessFlags {
        local_write: false,
        remote_read: false,
        remote_write: false,
        remote_atomic: false,
        on_demand: false,
    };
    /// For local data in both directions.
    pub const LOCAL_WRITE: AccessFlags = AccessFlags { local_write: true, ..AccessFlags::LOCAL_READ };
    /// Everything, pinned.
    pub const ALL: AccessFlags =
        AccessFlags { local_write: true, remote_read: true, remote_write: true, remote_atomic: true, on_demand: false };

    /// The same, on demand.
    pub const fn on_demand(self) -> AccessFlags {
        AccessFlags { on_demand: true, ..self }
    }

    /// # Errors
    /// EINVAL: remote write or atomic without local write.
    pub(crate) fn check(self) -> Result<(), Errno> {
        if (self.remote_write || self.remote_atomic) && !self.local_write { Err(Errno::EINVAL) } else { Ok(()) }
    }
}

/// See the module.
pub struct Mr {
    key: u32,
    pd: u32,
    access: AccessFlags,
    va: u64,
    len: u64,
    context: Arc<Context>,
    revoked: AtomicBool,
    released: AtomicBool,
}

impl fmt::Debug for Mr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Mr { key, va, len, access, .. } = self;
        write!(f, "Mr {{ key: {key:#x}, va: {va:#x}, len: {len}, access: {access:?} }}")
    }
}

impl Mr {
    pub(crate) fn new(key: u32, pd: u32, access: AccessFlags, va: u64, len: u64, context: Arc<Context>) -> Mr {
        let (revoked, released) = (AtomicBool::new(false), AtomicBool::new(false));
        Mr { key, pd, access, va, len, context, revoked, released }
    }

    /// The key by which its own side names it in an [`Sge`](super::work::Sge).
    pub fn lkey(&self) -> u32 {
        self.key
    }

    /// The key by which a peer names it. The same number as the local one, as on most NICs.
    pub fn rkey(&self) -> u32 {
        self.key
    }

    pub(crate) fn key(&self) -> u32 {
        self.key
    }

    pub(crate) fn pd(&self) -> u32 {
        self.pd
    }

    /// Its rights.
    pub fn access(&self) -> AccessFlags {
        self.access
    }

    /// Its first address: the virtual address it was registered at.
    pub fn va(&self) -> u64 {
        self.va
    }

    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has no bytes; a registration never makes such a one.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its context.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Whether it was taken away by an abort of its context. It stays the program's to deregister.
    pub fn is_revoked(&self) -> bool {
        self.revoked.load(Ordering::SeqCst)
    }

    pub(crate) fn set_revoked(&self) {
        self.revoked.store(true, Ordering::SeqCst);
    }

    /// Whether what it pinned was let go: after deregistration, revocation or the context's close, and the end of the last
    /// copy in flight.
    pub fn is_released(&self) -> bool {
        self.released.load(Ordering::SeqCst)
    }

    /// The end of its registration. Called once, by whoever drained the region.
    pub(crate) fn let_go(&self, memory: Registration, deferred: &mut Deferred) {
        if let Registration::Pinned(pinned) = memory {
            pinned.release(self.context.kernel(), deferred);
            self.context.file_pin_gone();
        }
        self.released.store(true, Ordering::SeqCst);
        self.context.drained().wake_all();
    }
}

impl PinHolder for Mr {
    fn describe(&self) -> HolderInfo {
        let processes = self.context.custody().processes();
        let first = processes.first().and_then(|pid| self.context.kernel().process(*pid));
        HolderInfo {
            kind: "RDMA region",
            fd: first.and_then(|process| process.fd_of(self.context.custody())),
            processes,
            context: Some(self.context.number()),
            region: Some(self.key),
        }
    }

    /// Aborts the whole context: a NIC can't take one region away from a program that doesn't expect it.
    fn revoke(&self, kernel: &Arc<Kernel>) {
        self.context.abort(kernel);
    }
}
