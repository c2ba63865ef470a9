//! Memory regions: the handle that a program holds, and the pin holder that the kernel can ask.
//!
//! It owns a region's identity and rights; the memory itself is in the table of regions.
//! Invariants: the rights of a handle never change (a changed registration is a new [`Mr`] under
//! the same key); a region's pins are released once, and [`Mr::is_released`] is true only after the
//! last page is unpinned. Kernel counterpart: `struct ib_mr`, `struct ib_umem`.

use std::fmt;

use emulator::sync::Arc;
use emulator::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use fs_sim::design::RevokeScope;
use fs_sim::holders::holder::{HolderInfo, PinHolder, RevokeReason};
use fs_sim::pinning::registration::Registration;
use fs_sim::vfs::fd_holders::FdHolders;
use fs_sim::vfs::open_file::Deferred;
use fs_sim::{Errno, Kernel};

use super::access::AccessFlags;
use super::owner::ObjectOwner;

/// A registered memory region. Dropping the handle does not deregister it.
pub struct Mr {
    key: u32,
    pd: u32,
    access: AccessFlags,
    va: u64,
    len: u64,
    owner: Arc<dyn ObjectOwner>,
    revoked: AtomicBool,
    released: AtomicBool,
    /// The number of windows bound to it, or [`NO_WINDOWS`].
    windows: AtomicU32,
}

/// The value of `Mr::windows` while the region is deregistered or changed: no window can be bound.
const NO_WINDOWS: u32 = u32::MAX;

impl fmt::Debug for Mr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Mr { key, va, len, access, .. } = self;
        write!(f, "Mr {{ key: {key:#x}, va: {va:#x}, len: {len}, access: {access:?} }}")
    }
}

impl Mr {
    pub(crate) fn new(key: u32, pd: u32, access: AccessFlags, va: u64, len: u64, owner: Arc<dyn ObjectOwner>) -> Mr {
        let (revoked, released) = (AtomicBool::new(false), AtomicBool::new(false));
        Mr { key, pd, access, va, len, owner, revoked, released, windows: AtomicU32::new(0) }
    }

    /// The local key: the key by which its own side names it in an [`Sge`](super::access::Sge).
    pub fn lkey(&self) -> u32 {
        self.key
    }

    /// The remote key: the key by which a peer names it. The same number as the local key, as on
    /// most NICs.
    pub fn rkey(&self) -> u32 {
        self.key
    }

    pub(crate) fn key(&self) -> u32 {
        self.key
    }

    pub(crate) fn pd(&self) -> u32 {
        self.pd
    }

    /// The rights it was registered with.
    pub fn access(&self) -> AccessFlags {
        self.access
    }

    /// Its first address: the virtual address at which it was registered.
    pub fn va(&self) -> u64 {
        self.va
    }

    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has no bytes. A registration never makes such a region.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its context, as this layer sees it.
    pub(crate) fn owner(&self) -> &Arc<dyn ObjectOwner> {
        &self.owner
    }

    /// Whether it was revoked, alone or with its context. The program can still deregister it.
    pub fn is_revoked(&self) -> bool {
        self.revoked.load(Ordering::SeqCst)
    }

    pub(crate) fn set_revoked(&self) {
        self.revoked.store(true, Ordering::SeqCst);
    }

    /// Whether its pins are released. That happens after a deregistration, a revocation or the
    /// close of the context, once the last copy in flight has ended.
    pub fn is_released(&self) -> bool {
        self.released.load(Ordering::SeqCst)
    }

    /// The number of windows bound to it.
    pub fn windows(&self) -> u32 {
        let windows = self.windows.load(Ordering::SeqCst);
        if windows == NO_WINDOWS { 0 } else { windows }
    }

    /// Counts a window that will be bound. Returns false if the region is being deregistered or
    /// changed.
    pub(crate) fn hold_for_window(&self) -> bool {
        let one_more = |windows: u32| windows.checked_add(1).filter(|more| *more < NO_WINDOWS);
        self.windows.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_more).is_ok()
    }

    /// Counts one bound window less.
    pub(crate) fn window_gone(&self) {
        self.windows.fetch_sub(1, Ordering::SeqCst);
    }

    /// From now on no window can be bound.
    ///
    /// # Errors
    /// EBUSY: a window is bound.
    pub(crate) fn refuse_windows(&self) -> Result<(), Errno> {
        let refused = self.windows.compare_exchange(0, NO_WINDOWS, Ordering::SeqCst, Ordering::SeqCst);
        refused.map(|_| ()).map_err(|_| Errno::EBUSY)
    }

    /// Undoes [`Mr::refuse_windows`].
    pub(crate) fn admit_windows(&self) {
        self.windows.store(0, Ordering::SeqCst);
    }

    /// Releases `memory`, which the region held. The task that drained the region calls this once.
    pub(crate) fn release(&self, memory: Registration, deferred: &mut Deferred) {
        let pins_file = memory.pins_file();
        if let Registration::Pinned(pinned) = memory {
            pinned.release(self.owner.kernel(), deferred);
        }
        if pins_file {
            self.owner.file_pin_gone();
        }
        self.set_released();
    }

    /// Records that this handle holds no pins any more: they are released, or another handle has
    /// them.
    pub(crate) fn set_released(&self) {
        self.released.store(true, Ordering::SeqCst);
        self.owner.drained().wake_all();
    }
}

impl PinHolder for Mr {
    fn describe(&self) -> HolderInfo {
        let processes = self.owner.fd_holders().processes();
        let first = processes.first().and_then(|pid| self.owner.kernel().process(*pid));
        HolderInfo {
            kind: "RDMA region",
            fd: first.and_then(|process| process.fd_of(self.owner.fd_holders())),
            processes,
            context: Some(self.owner.number()),
            region: Some(self.key),
            guest: None,
        }
    }

    fn fd_holders(&self) -> Option<Arc<FdHolders>> {
        Some(Arc::clone(self.owner.fd_holders()))
    }

    /// Takes away the region alone where a rule `revoke` demands it and `revoke_scope` says so;
    /// else aborts the whole context.
    fn revoke(&self, kernel: &Arc<Kernel>, reason: RevokeReason) {
        let alone = reason == RevokeReason::Rule && kernel.axes().revoke_scope == Some(RevokeScope::Region);
        if !alone {
            return self.owner.abort(kernel);
        }
        // First: a registration under way finds it once its region is in place.
        self.set_revoked();
        self.owner.revoke_region(kernel, self.key, self);
    }
}
