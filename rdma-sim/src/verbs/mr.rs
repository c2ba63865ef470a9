//! Memory regions: what a program holds of a registration, and how the kernel reaches whoever answers for its pins.
//!
//! It owns a region's identity and rights; what it pins is in the table of regions. Invariants: rights never change (a changed
//! registration is a new [`Mr`] under the same key, see [`super::rereg`]); a region's pins are released once, and [`Mr::is_released`] says so only after the last page was unpinned. Kernel
//! counterpart: `struct ib_mr`, `struct ib_umem`.

use std::fmt;

use emulator::sync::Arc;
use emulator::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use fs_sim::holders::holder::{HolderInfo, PinHolder};
use fs_sim::pinning::registration::Registration;
use fs_sim::vfs::fd_holders::FdHolders;
use fs_sim::vfs::open_file::Deferred;
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
    /// Faulted in at need instead of pinned (explicit on-demand paging).
    pub on_demand: bool,
    /// Memory windows may be bound to it.
    pub mw_bind: bool,
    /// The peer may flush it to where everybody sees it. `IB_ACCESS_FLUSH_GLOBAL`.
    pub flush_global: bool,
    /// The peer may flush it to its medium. Needs persistent memory. `IB_ACCESS_FLUSH_PERSISTENT`.
    pub flush_persistent: bool,
}

impl AccessFlags {
    /// For sources of local data only.
    pub const LOCAL_READ: AccessFlags = AccessFlags {
        local_write: false,
        remote_read: false,
        remote_write: false,
        remote_atomic: false,
        on_demand: false,
        mw_bind: false,
        flush_global: false,
        flush_persistent: false,
    };
    /// For local data in both directions.
    pub const LOCAL_WRITE: AccessFlags = AccessFlags { local_write: true, ..AccessFlags::LOCAL_READ };
    /// Every access to the bytes, pinned; no window, no flush.
    pub const ALL: AccessFlags =
        AccessFlags { remote_read: true, remote_write: true, remote_atomic: true, ..AccessFlags::LOCAL_WRITE };

    /// The same, on demand.
    pub const fn on_demand(self) -> AccessFlags {
        AccessFlags { on_demand: true, ..self }
    }

    /// The same, and windows may be bound.
    pub const fn mw_bind(self) -> AccessFlags {
        AccessFlags { mw_bind: true, ..self }
    }

    /// The same, and the peer may flush to everybody's view.
    pub const fn flush_global(self) -> AccessFlags {
        AccessFlags { flush_global: true, ..self }
    }

    /// The same, and the peer may flush to the medium.
    pub const fn flush_persistent(self) -> AccessFlags {
        AccessFlags { flush_persistent: true, ..self }
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
    /// How many windows are bound to it, or [`NO_WINDOWS`].
    windows: AtomicU32,
}

/// It is being deregistered or changed: no window can be bound any more.
const NO_WINDOWS: u32 = u32::MAX;

impl fmt::Debug for Mr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Mr { key, va, len, access, .. } = self;
        write!(f, "Mr {{ key: {key:#x}, va: {va:#x}, len: {len}, access: {access:?} }}")
    }
}

impl Mr {
    pub(crate) fn new(key: u32, pd: u32, access: AccessFlags, va: u64, len: u64, context: Arc<Context>) -> Mr {
        let (revoked, released) = (AtomicBool::new(false), AtomicBool::new(false));
        Mr { key, pd, access, va, len, context, revoked, released, windows: AtomicU32::new(0) }
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

    /// How many windows are bound to it.
    pub fn windows(&self) -> u32 {
        let windows = self.windows.load(Ordering::SeqCst);
        if windows == NO_WINDOWS { 0 } else { windows }
    }

    /// Counts a window to be bound; false if the region is being deregistered or changed.
    pub(crate) fn hold_for_window(&self) -> bool {
        let one_more = |windows: u32| windows.checked_add(1).filter(|more| *more < NO_WINDOWS);
        self.windows.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_more).is_ok()
    }

    /// A window that was counted is no longer bound.
    pub(crate) fn window_gone(&self) {
        self.windows.fetch_sub(1, Ordering::SeqCst);
    }

    /// Admits no window from now on.
    ///
    /// # Errors
    /// EBUSY: some are bound.
    pub(crate) fn refuse_windows(&self) -> Result<(), Errno> {
        let refused = self.windows.compare_exchange(0, NO_WINDOWS, Ordering::SeqCst, Ordering::SeqCst);
        refused.map(|_| ()).map_err(|_| Errno::EBUSY)
    }

    /// Undoes [`Mr::refuse_windows`].
    pub(crate) fn admit_windows(&self) {
        self.windows.store(0, Ordering::SeqCst);
    }

    /// The end of its registration. Called once, by whoever drained the region.
    pub(crate) fn let_go(&self, memory: Registration, deferred: &mut Deferred) {
        if let Registration::Pinned(pinned) = memory {
            pinned.release(self.context.kernel(), deferred);
            self.context.file_pin_gone();
        }
        self.set_released();
    }

    /// What it pinned is gone, or is another handle's from now on.
    pub(crate) fn set_released(&self) {
        self.released.store(true, Ordering::SeqCst);
        self.context.drained().wake_all();
    }
}

impl PinHolder for Mr {
    fn describe(&self) -> HolderInfo {
        let processes = self.context.fd_holders().processes();
        let first = processes.first().and_then(|pid| self.context.kernel().process(*pid));
        HolderInfo {
            kind: "RDMA region",
            fd: first.and_then(|process| process.fd_of(self.context.fd_holders())),
            processes,
            context: Some(self.context.number()),
            region: Some(self.key),
            guest: None,
        }
    }

    fn fd_holders(&self) -> Option<Arc<FdHolders>> {
        Some(Arc::clone(self.context.fd_holders()))
    }

    /// Aborts the whole context: a NIC can't take one region away from a program that doesn't expect it.
    fn revoke(&self, kernel: &Arc<Kernel>) {
        self.context.abort(kernel);
    }
}
