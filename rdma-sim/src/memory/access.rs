//! Rights: what an owner may allow on a region or window, and what a request names.
//!
//! It owns plain values. Invariant: remote write and remote atomic need local write. Kernel
//! counterpart: `enum ib_access_flags`, `struct ib_sge` (include/rdma/ib_verbs.h).

use fs_sim::Errno;

/// What a region allows. `enum ib_access_flags`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AccessFlags {
    /// The NIC may write it on behalf of its own side: receives, read responses, results of
    /// atomics.
    pub local_write: bool,
    /// The peer may read it.
    pub remote_read: bool,
    /// The peer may write it. Needs `local_write`.
    pub remote_write: bool,
    /// The peer may execute atomics on it. Needs `local_write`.
    pub remote_atomic: bool,
    /// Its pages are faulted in at each access instead of pinned (explicit on-demand paging).
    pub on_demand: bool,
    /// Memory windows may be bound to it.
    pub mw_bind: bool,
    /// The peer may flush writes to it until they are globally visible. `IB_ACCESS_FLUSH_GLOBAL`.
    pub flush_global: bool,
    /// The peer may flush writes to it to the persistent medium. Needs persistent memory.
    /// `IB_ACCESS_FLUSH_PERSISTENT`.
    pub flush_persistent: bool,
}

impl AccessFlags {
    /// For local source buffers only.
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
    /// For local buffers in both directions.
    pub const LOCAL_WRITE: AccessFlags = AccessFlags { local_write: true, ..AccessFlags::LOCAL_READ };
    /// Every access to the bytes, with pinned pages; no window, no flush.
    pub const ALL: AccessFlags =
        AccessFlags { remote_read: true, remote_write: true, remote_atomic: true, ..AccessFlags::LOCAL_WRITE };

    /// These rights, with on-demand paging.
    pub const fn on_demand(self) -> AccessFlags {
        AccessFlags { on_demand: true, ..self }
    }

    /// These rights, and windows may be bound.
    pub const fn mw_bind(self) -> AccessFlags {
        AccessFlags { mw_bind: true, ..self }
    }

    /// These rights, and the peer may flush to global visibility.
    pub const fn flush_global(self) -> AccessFlags {
        AccessFlags { flush_global: true, ..self }
    }

    /// These rights, and the peer may flush to the persistent medium.
    pub const fn flush_persistent(self) -> AccessFlags {
        AccessFlags { flush_persistent: true, ..self }
    }

    /// # Errors
    /// EINVAL: remote write or atomic without local write.
    pub(crate) fn check(self) -> Result<(), Errno> {
        if (self.remote_write || self.remote_atomic) && !self.local_write { Err(Errno::EINVAL) } else { Ok(()) }
    }
}

/// What a window allows a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WindowAccess {
    /// Read.
    pub remote_read: bool,
    /// Write. Needs the region's local write.
    pub remote_write: bool,
    /// Execute atomics. Needs the region's local write.
    pub remote_atomic: bool,
}

impl WindowAccess {
    /// Every access.
    pub const ALL: WindowAccess = WindowAccess { remote_read: true, remote_write: true, remote_atomic: true };
    /// Reads only.
    pub const READ: WindowAccess = WindowAccess { remote_read: true, remote_write: false, remote_atomic: false };
}

/// A range of local memory. `struct ib_sge`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sge {
    /// The local key of the region that contains it.
    pub lkey: u32,
    /// First address.
    pub addr: u64,
    /// Length in bytes.
    pub len: u32,
}

/// How much a flush covers. `enum ib_selectivity_level`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushLevel {
    /// The range that the request names.
    Range,
    /// The whole region of the request's key.
    Mr,
}

/// The queue pair for which memory is accessed: its number and its protection domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QpIdentity {
    pub(crate) number: u32,
    pub(crate) pd: u32,
}
