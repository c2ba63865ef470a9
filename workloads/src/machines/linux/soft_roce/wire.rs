//! The messages about verbs between the driver and its child processes.
//!
//! It owns their form. A context is named by its descriptor, every other object by its number in
//! that context. Addresses are those of the process whose region or window it is.

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::ops::RegisterFlags;

/// What a process must do.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum VerbsRequest {
    /// Open the device.
    Open,
    /// `ibv_reg_mr`.
    Register { context: i32, at: u64, len: u64, access: RegionAccess },
    /// `ibv_rereg_mr`: of the translation or of the access.
    Reregister { context: i32, region: u32, translation: Option<(u64, u64)>, access: Option<RegionAccess> },
    /// `ibv_dereg_mr`.
    Deregister { context: i32, region: u32 },
    /// `ibv_advise_mr`.
    Prefetch { context: i32, lkey: u32, at: u64, len: u32, write: bool },
    /// `ibv_alloc_mw`.
    AllocateWindow { context: i32, type2: bool },
    /// `ibv_dealloc_mw`.
    DeallocateWindow { context: i32, window: u32 },
    /// `ibv_create_qp`, of a reliable connection.
    CreatePair { context: i32 },
    /// `ibv_modify_qp` up to RTS.
    ConnectPair { context: i32, pair: u32, peer: u32, rnr_wait: bool },
    /// `ibv_post_send`, and `ibv_poll_cq` until it is completed.
    Perform { context: i32, pair: u32, work: Work },
    /// `ibv_post_send`.
    Post { context: i32, pair: u32, id: u64, work: Work },
    /// `ibv_post_recv`.
    PostReceive { context: i32, pair: u32, id: u64, at: u64, len: u32, lkey: u32 },
    /// The oldest completion of what was posted.
    Poll { context: i32 },
    /// `setrlimit(2)` with RLIMIT_MEMLOCK, without CAP_IPC_LOCK.
    LimitLocked { bytes: u64 },
}

/// The words of a registration.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct RegionAccess {
    pub(super) read_only: bool,
    pub(super) on_demand: bool,
    pub(super) window: bool,
    pub(super) flush: bool,
}

impl From<RegisterFlags> for RegionAccess {
    fn from(flags: RegisterFlags) -> RegionAccess {
        let RegisterFlags { ro, on_demand, window, flush } = flags;
        RegionAccess { read_only: ro, on_demand, window, flush }
    }
}

/// A request of the send queue.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Work {
    Write { to: RemotePlace, len: u64, byte: u8, bad_key: bool },
    Read { from: RemotePlace, len: u64, bad_key: bool },
    Send { len: u64, byte: u8, invalidate: Option<u32> },
    FetchAdd { at: RemotePlace, add: u64 },
    CompareSwap { at: RemotePlace, compare: u64, swap: u64 },
    AtomicWrite { to: RemotePlace, value: u64 },
    Flush { at: RemotePlace, len: u64, persistent: bool, whole: bool },
    Bind { key: u32, new_key: u32, lkey: u32, at: u64, len: u64 },
    Invalidate { key: u32 },
}

/// An address of the peer, and the key that opens it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct RemotePlace {
    pub(crate) at: u64,
    pub(crate) key: u32,
}

/// What a process answers.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum VerbsAnswer {
    /// A descriptor.
    Context(i32),
    Region {
        number: u32,
        lkey: u32,
        rkey: u32,
    },
    Window {
        number: u32,
        key: u32,
    },
    /// A queue pair, by its number in the context and its number on the wire.
    Pair {
        number: u32,
        wire: u32,
    },
    /// A completion; none if nothing that was posted can have completed.
    Completed(Option<Completed>),
}

/// A completion.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Completed {
    pub(crate) id: u64,
    /// `success`, or how it failed.
    pub(crate) status: String,
    /// What was read, or how much was received.
    pub(crate) value: Option<String>,
    /// The message has ended a window's binding.
    pub(crate) invalidated: bool,
}

/// Why a request failed.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum VerbsFailure {
    /// What the kernel says.
    Errno(i32),
    /// There is no device, or it lacks what the request is about: why.
    Lacks(String),
    /// The request did not end within its bound: what it waited for.
    Unfinished(String),
}

impl From<Errno> for VerbsFailure {
    fn from(errno: Errno) -> Self {
        VerbsFailure::Errno(errno.raw_os_error())
    }
}
