//! Work requests and completions: plain values.
//!
//! It owns their meaning. Units are bytes; addresses are virtual addresses of whoever registered the region. Kernel
//! counterpart: `struct ib_send_wr`, `struct ib_recv_wr`, `struct ib_wc` (include/rdma/ib_verbs.h).

use std::fmt;

use fs_sim::Errno;

use super::mw::Bind;
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
    /// As [`Op::Send`]; then the receiver's type 2 window of this key is unbound, before its receive completes.
    SendWithInvalidate {
        /// The window's key.
        rkey: u32,
    },
    /// Stores 8 bytes at an aligned address of the peer's region, never torn. It carries them itself: the local length is 0.
    AtomicWrite {
        /// What is stored, in the machine's byte order.
        value: u64,
    },
    /// Completes once what this queue pair wrote to the peer before is where `placement` says. The local length is that of the
    /// remote range; nothing local is touched.
    Flush {
        /// Where to.
        placement: Placement,
        /// How much.
        level: FlushLevel,
    },
    /// Binds a type 2 window of this side. Neither end of the request is used.
    BindMw(Bind),
    /// Unbinds a type 2 window of this side, bound on this queue pair. Neither end of the request is used.
    LocalInvalidate {
        /// Its key.
        rkey: u32,
    },
}

/// Where flushed bytes are to be. `enum ib_placement_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Where everybody on the peer's machine sees them.
    Global,
    /// On a persistent medium.
    Persistent,
}

/// How much is flushed. `enum ib_selectivity_level`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushLevel {
    /// The range that the request names.
    Range,
    /// The whole region of its key.
    Mr,
}

impl Op {
    /// How its completion calls it.
    pub fn opcode(self) -> Opcode {
        match self {
            Op::Write => Opcode::Write,
            Op::Read => Opcode::Read,
            Op::Send | Op::SendWithInvalidate { .. } => Opcode::Send,
            Op::CompareSwap { .. } => Opcode::CompareSwap,
            Op::FetchAdd { .. } => Opcode::FetchAdd,
            Op::AtomicWrite { .. } => Opcode::AtomicWrite,
            Op::Flush { .. } => Opcode::Flush,
            Op::BindMw(_) => Opcode::BindMw,
            Op::LocalInvalidate { .. } => Opcode::LocalInvalidate,
        }
    }

    /// # Errors
    /// The local length is none that the operation can have.
    pub(crate) fn check_len(self, len: u32) -> Result<(), PostError> {
        let expected = match self {
            Op::CompareSwap { .. } | Op::FetchAdd { .. } if len != 8 => "an atomic returns 8",
            Op::AtomicWrite { .. } if len != 0 => "an atomic write carries its 8 bytes itself",
            _ if len > MESSAGE_MAX => "a message has at most 2 GiB",
            _ => return Ok(()),
        };
        Err(PostError::Length { len, expected })
    }

    /// How many bytes it moves if its local length is `len`.
    pub(crate) fn moves(self, len: u32) -> u32 {
        match self {
            Op::AtomicWrite { .. } => 8,
            Op::Flush { .. } | Op::BindMw(_) | Op::LocalInvalidate { .. } => 0,
            _ => len,
        }
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
    /// The first address at the peer; unused by sends and by what stays on this side.
    pub remote_addr: u64,
    /// The peer's key; unused by sends and by what stays on this side.
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
    /// [`Op::AtomicWrite`].
    AtomicWrite,
    /// [`Op::Flush`].
    Flush,
    /// [`Op::BindMw`], or a binding by [`Qp::bind_mw`](super::qp::Qp::bind_mw).
    BindMw,
    /// [`Op::LocalInvalidate`].
    LocalInvalidate,
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
    /// The device failed under a local address, or a key can't be invalidated.
    LocalOperationError,
    /// A window can't be bound as asked. `IBV_WC_MW_BIND_ERR`.
    MemoryWindowBindError,
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
    /// An atomic or atomic write at an address that is no multiple of 8.
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
    /// A type 2 window is bound already.
    WindowBound = 15,
    /// A window's new key is its old one.
    WindowKey = 16,
    /// A type 1 window can't be invalidated.
    WindowType = 17,
    /// The window was bound on another queue pair.
    OtherQp = 18,
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
            Fault::WindowBound => "the window is bound already",
            Fault::WindowKey => "the window's new key is its old one",
            Fault::WindowType => "a type 1 window can't be invalidated",
            Fault::OtherQp => "the window was bound on another queue pair",
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
    /// The key that the message invalidated, of a receive. `IBV_WC_WITH_INV`.
    pub invalidated: Option<u32>,
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
    /// The window is not of the type that this way of binding is for, or there is none of this key.
    #[error("window {rkey:#x} can't be bound this way: {expected}")]
    Window {
        /// The key.
        rkey: u32,
        /// What it should be.
        expected: &'static str,
    },
}

impl PostError {
    /// As `ibv_post_send` returns it.
    pub fn errno(self) -> Errno {
        match self {
            PostError::Full { .. } => Errno::ENOMEM,
            PostError::NotReady { .. } | PostError::Length { .. } | PostError::Window { .. } => Errno::EINVAL,
        }
    }
}
