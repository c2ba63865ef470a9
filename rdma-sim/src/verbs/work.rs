//! Work requests and completions: plain values.
//!
//! It owns their meaning. Units are bytes; addresses are virtual addresses of whoever registered the region. Kernel
//! counterpart: `struct ib_send_wr`, `struct ib_recv_wr`, `struct ib_wc` (include/rdma/ib_verbs.h).

use std::fmt;

use fs_sim::Errno;

use super::state::QpState;

/// The longest message, in bytes: 2 GiB, as for InfiniBand.
pub const MESSAGE_MAX: u32 = 1 << 31;

/// A piece of local memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sge {
    /// The local key of the region it lies in.
    pub lkey: u32,
    /// First address.
    pub addr: u64,
    /// Length in bytes.
    pub len: u32,
}

/// What a work request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Copies local memory to the peer's region.
    Write,
    /// Copies the peer's region to local memory.
    Read,
    /// Copies local memory into the receive that the peer posted first.
    Send,
    /// If 8 aligned bytes of the peer's region equal `compare`, puts `swap` there; what was there goes to local memory. In the
    /// machine's byte order.
    CompareSwap {
        /// What must be there.
        compare: u64,
        /// What is put there.
        swap: u64,
    },
    /// Adds to 8 aligned bytes of the peer's region, wrapping; what was there goes to local memory.
    FetchAdd {
        /// What is added.
        add: u64,
    },
}

impl Op {
    /// How its completion calls it.
    pub fn opcode(self) -> Opcode {
        match self {
            Op::Write => Opcode::Write,
            Op::Read => Opcode::Read,
            Op::Send => Opcode::Send,
            Op::CompareSwap { .. } => Opcode::CompareSwap,
            Op::FetchAdd { .. } => Opcode::FetchAdd,
        }
    }

    pub(crate) fn is_atomic(self) -> bool {
        matches!(self, Op::CompareSwap { .. } | Op::FetchAdd { .. })
    }
}

/// A request for the send queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkRequest {
    /// Returned in the completion.
    pub wr_id: u64,
    /// What to do.
    pub op: Op,
    /// The local end. 8 bytes for atomics.
    pub local: Sge,
    /// The first address at the peer; unused by [`Op::Send`].
    pub remote_addr: u64,
    /// The peer's key; unused by [`Op::Send`].
    pub rkey: u32,
    /// Whether success is to be completed too; failure always is.
    pub signaled: bool,
}

/// A request for the receive queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receive {
    /// Returned in the completion.
    pub wr_id: u64,
    /// Where a message goes.
    pub local: Sge,
}

/// What a completion is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opcode {
    /// [`Op::Write`].
    Write,
    /// [`Op::Read`].
    Read,
    /// [`Op::Send`].
    Send,
    /// [`Op::CompareSwap`].
    CompareSwap,
    /// [`Op::FetchAdd`].
    FetchAdd,
    /// A [`Receive`].
    Recv,
}

/// How a request ended. `enum ibv_wc_status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Done.
    Success,
    /// A message was longer than the receive it met (at the receiver).
    LocalLengthError,
    /// The device failed under a local address.
    LocalOperationError,
    /// A local key, range or access was bad, or the local memory could not be had.
    LocalProtectionError,
    /// The queue pair was in error, or fell into it, before this request's turn came.
    Flushed,
    /// The peer calls the request malformed: a bad length, a misaligned atomic.
    RemoteInvalidRequest,
    /// The peer refused key, range or access, or could not fault the memory in.
    RemoteAccessError,
    /// The peer failed on its own side.
    RemoteOperationError,
    /// The peer is silent: gone, not ready, or in error.
    RetryExceeded,
    /// The peer had no receive posted. There is no clock in this NIC: it gives up at once, as with a retry count of 0.
    RnrRetryExceeded,
}

/// Why, in detail: the vendor's own error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Fault {
    /// Nothing.
    None = 0,
    /// No region has this key (any more).
    UnknownKey = 1,
    /// The region was revoked or is being deregistered.
    Revoked = 2,
    /// The region belongs to another protection domain.
    OtherDomain = 3,
    /// The addresses leave the region.
    Range = 4,
    /// The region does not allow this access.
    Access = 5,
    /// The memory could not be faulted in: truncated, unmapped, its process gone.
    NotPresent = 6,
    /// The device failed.
    Device = 7,
    /// An atomic at an address that is no multiple of 8.
    Misaligned = 8,
    /// The message is longer than the receive.
    Length = 9,
    /// The peer does not answer.
    Silent = 10,
    /// The peer has no receive.
    NoReceive = 11,
    /// Flushed behind an earlier failure.
    Behind = 12,
    /// The peer's receive points to memory it can't use.
    ReceiveMemory = 13,
    /// The peer's completion queue has overflowed.
    ReceiveOverrun = 14,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fault::None => "none",
            Fault::UnknownKey => "no region has this key",
            Fault::Revoked => "the region was revoked",
            Fault::OtherDomain => "the region belongs to another protection domain",
            Fault::Range => "the addresses leave the region",
            Fault::Access => "the region does not allow this access",
            Fault::NotPresent => "the memory could not be faulted in",
            Fault::Device => "the device failed",
            Fault::Misaligned => "the address of an atomic is no multiple of 8",
            Fault::Length => "the message is longer than the receive",
            Fault::Silent => "the peer does not answer",
            Fault::NoReceive => "the peer has no receive posted",
            Fault::Behind => "flushed behind an earlier failure",
            Fault::ReceiveMemory => "the peer's receive points to memory it can't use",
            Fault::ReceiveOverrun => "the peer's completion queue has overflowed",
        })
    }
}

/// A finished request. If `status` isn't [`Status::Success`], only `wr_id`, `status`, `qp_num` and `vendor_err` mean anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// As posted.
    pub wr_id: u64,
    /// How it ended.
    pub status: Status,
    /// What it was.
    pub opcode: Opcode,
    /// Bytes moved.
    pub byte_len: u32,
    /// The queue pair it was posted to.
    pub qp_num: u32,
    /// Why, in detail.
    pub vendor_err: Fault,
}

/// Why a request was not taken. Nothing was queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PostError {
    /// The queue holds as many requests as it was made for: poll, then post again.
    #[error("queue pair {qp_num:#x} has {bound} requests queued, as many as it was made for")]
    Full {
        /// The queue pair.
        qp_num: u32,
        /// Its bound.
        bound: u32,
    },
    /// The queue pair takes no such request in its state.
    #[error("queue pair {qp_num:#x} is in {state} and takes no such request")]
    NotReady {
        /// The queue pair.
        qp_num: u32,
        /// Its state.
        state: QpState,
    },
    /// The local length is not one that the operation can have.
    #[error("a local length of {len} bytes: {expected}")]
    Length {
        /// As posted.
        len: u32,
        /// What it may be.
        expected: &'static str,
    },
}

impl PostError {
    /// As `ibv_post_send` returns it.
    pub fn errno(self) -> Errno {
        match self {
            PostError::Full { .. } => Errno::ENOMEM,
            PostError::NotReady { .. } | PostError::Length { .. } => Errno::EINVAL,
        }
    }
}
