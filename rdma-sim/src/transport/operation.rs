//! The operations of work requests, and how a request can end.
//!
//! It owns plain values. Units are bytes. Kernel counterpart: `enum ib_wr_opcode`, `enum
//! ib_wc_status` (include/rdma/ib_verbs.h).

use crate::memory::access::FlushLevel;
use crate::memory::fault::WorkFault;
use crate::memory::mw::WindowBind;

/// The longest message, in bytes: 2 GiB, as for InfiniBand.
pub const MESSAGE_MAX: u32 = 1 << 31;

/// What a work request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkOperation {
    /// Copies local memory to the peer's region.
    Write,
    /// Copies the peer's region to local memory.
    Read,
    /// Copies local memory into the oldest receive that the peer has posted.
    Send,
    /// If 8 aligned bytes of the peer's region equal `compare`, stores `swap` there. Returns the
    /// bytes before to local memory. In the machine's byte order.
    CompareSwap {
        /// The expected bytes.
        compare: u64,
        /// The bytes to store.
        swap: u64,
    },
    /// Adds to 8 aligned bytes of the peer's region, wrapping. Returns the bytes before to local
    /// memory.
    FetchAdd {
        /// The addend.
        add: u64,
    },
    /// As [`WorkOperation::Send`]; then unbinds the receiver's type 2 window of this key, before
    /// the receive completes.
    SendWithInvalidate {
        /// The window's key.
        rkey: u32,
    },
    /// Stores 8 bytes at an aligned address of the peer's region, never torn. The request carries
    /// the bytes itself: the local length is 0.
    AtomicWrite {
        /// The bytes to store, in the machine's byte order.
        value: u64,
    },
    /// Completes once everything that this queue pair wrote to the peer before is where `placement`
    /// says. The local length is the length of the remote range; no local memory is accessed.
    Flush {
        /// Where the bytes must be.
        placement: FlushPlacement,
        /// How much is flushed.
        level: FlushLevel,
    },
    /// Binds a type 2 window of this side. The request's local and remote ends are not used.
    BindMw(WindowBind),
    /// Unbinds a type 2 window of this side that this queue pair bound. The request's local and
    /// remote ends are not used.
    LocalInvalidate {
        /// The window's key.
        rkey: u32,
    },
}

impl WorkOperation {
    /// The opcode in its completion.
    pub fn opcode(self) -> WorkOpcode {
        match self {
            WorkOperation::Write => WorkOpcode::Write,
            WorkOperation::Read => WorkOpcode::Read,
            WorkOperation::Send | WorkOperation::SendWithInvalidate { .. } => WorkOpcode::Send,
            WorkOperation::CompareSwap { .. } => WorkOpcode::CompareSwap,
            WorkOperation::FetchAdd { .. } => WorkOpcode::FetchAdd,
            WorkOperation::AtomicWrite { .. } => WorkOpcode::AtomicWrite,
            WorkOperation::Flush { .. } => WorkOpcode::Flush,
            WorkOperation::BindMw(_) => WorkOpcode::BindMw,
            WorkOperation::LocalInvalidate { .. } => WorkOpcode::LocalInvalidate,
        }
    }

    /// The number of bytes it moves if its local length is `len`.
    pub(crate) fn moves(self, len: u32) -> u32 {
        match self {
            WorkOperation::AtomicWrite { .. } => 8,
            WorkOperation::Flush { .. } | WorkOperation::BindMw(_) | WorkOperation::LocalInvalidate { .. } => 0,
            _ => len,
        }
    }
}

/// Where flushed bytes must be. `enum ib_placement_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushPlacement {
    /// Visible to every process on the peer's machine.
    Global,
    /// On the persistent medium.
    Persistent,
}

/// What a completion is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkOpcode {
    /// [`WorkOperation::Write`].
    Write,
    /// [`WorkOperation::Read`].
    Read,
    /// [`WorkOperation::Send`].
    Send,
    /// [`WorkOperation::CompareSwap`].
    CompareSwap,
    /// [`WorkOperation::FetchAdd`].
    FetchAdd,
    /// [`WorkOperation::AtomicWrite`].
    AtomicWrite,
    /// [`WorkOperation::Flush`].
    Flush,
    /// [`WorkOperation::BindMw`], or a binding by [`Qp::bind_mw`](crate::engine::qp::Qp::bind_mw).
    BindMw,
    /// [`WorkOperation::LocalInvalidate`].
    LocalInvalidate,
    /// A receive.
    Recv,
}

/// How a request ended. `enum ibv_wc_status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkStatus {
    /// The request succeeded.
    Success,
    /// At the receiver: the message is longer than the receive.
    LocalLengthError,
    /// The device failed at a local address, or a key cannot be invalidated.
    LocalOperationError,
    /// A window cannot be bound as requested. `IBV_WC_MW_BIND_ERR`.
    MemoryWindowBindError,
    /// A local key, range or access is bad, or the local memory could not be faulted in.
    LocalProtectionError,
    /// The queue pair went to error before it executed this request.
    Flushed,
    /// The peer refuses the request as malformed: a bad length, a misaligned atomic.
    RemoteInvalidRequest,
    /// The peer refuses key, range or access, or could not fault the memory in.
    RemoteAccessError,
    /// The peer failed on its own side.
    RemoteOperationError,
    /// The peer does not answer: it is destroyed, not ready, or in error.
    RetryExceeded,
    /// The peer had no receive posted. This NIC has no clock: it gives up at once, as with a retry
    /// count of 0, or never ([`RnrRetry`](crate::engine::qp::RnrRetry)).
    RnrRetryExceeded,
}

/// Why a request failed, as its completion reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkFailure {
    /// The status of the completion.
    pub status: WorkStatus,
    /// The detail.
    pub fault: WorkFault,
}

impl WorkFailure {
    /// The peer does not answer.
    pub const SILENT: WorkFailure = WorkFailure { status: WorkStatus::RetryExceeded, fault: WorkFault::Silent };

    /// A fault at a local address.
    pub(crate) fn local(fault: WorkFault) -> WorkFailure {
        let status = match fault {
            WorkFault::Device => WorkStatus::LocalOperationError,
            _ => WorkStatus::LocalProtectionError,
        };
        WorkFailure { status, fault }
    }
}
