//! Work requests and completions: plain values.
//!
//! It owns their meaning. Units are bytes; an address is a virtual address of the process that
//! registered the region. Kernel counterpart: `struct ib_send_wr`, `struct ib_recv_wr`, `struct
//! ib_wc` (include/rdma/ib_verbs.h).

use fs_sim::Errno;

use super::qp_state::QpState;
use crate::memory::access::Sge;
use crate::memory::fault::WorkFault;
use crate::transport::operation::{MESSAGE_MAX, WorkOpcode, WorkOperation, WorkStatus};

/// A request for the send queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkRequest {
    /// The caller's number, returned in the completion.
    pub wr_id: u64,
    /// What to do.
    pub op: WorkOperation,
    /// The local end. 8 bytes for atomics.
    pub local: Sge,
    /// The first address at the peer. Sends and operations on this side do not use it.
    pub remote_addr: u64,
    /// The peer's key. Sends and operations on this side do not use it.
    pub rkey: u32,
    /// Whether a success generates a completion. A failure always does.
    pub signaled: bool,
}

/// A request for the receive queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceiveRequest {
    /// The caller's number, returned in the completion.
    pub wr_id: u64,
    /// Where the message is stored.
    pub local: Sge,
}

/// A finished request. If `status` is not [`WorkStatus::Success`], only `wr_id`, `status`, `qp_num`
/// and `vendor_err` are valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The number given in the request.
    pub wr_id: u64,
    /// How the request ended.
    pub status: WorkStatus,
    /// What the request was.
    pub opcode: WorkOpcode,
    /// Bytes moved.
    pub byte_len: u32,
    /// The number of the queue pair that it was posted to.
    pub qp_num: u32,
    /// Why it failed, in detail.
    pub vendor_err: WorkFault,
    /// Of a receive: the key that the message invalidated. `IBV_WC_WITH_INV`.
    pub invalidated: Option<u32>,
}

/// Why a request was refused. Nothing is queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PostError {
    /// The queue is full: poll, then post again.
    #[error("queue pair {qp_num:#x} has {bound} requests queued, as many as it was made for")]
    Full {
        /// The queue pair.
        qp_num: u32,
        /// The most requests that the queue holds.
        bound: u32,
    },
    /// The queue pair refuses such a request in its state.
    #[error("queue pair {qp_num:#x} is in {state} and takes no such request")]
    NotReady {
        /// The queue pair.
        qp_num: u32,
        /// Its state.
        state: QpState,
    },
    /// The operation cannot have this local length.
    #[error("a local length of {len} bytes: {expected}")]
    Length {
        /// The length given in the request.
        len: u32,
        /// The permitted length.
        expected: &'static str,
    },
    /// The window is not of the type that this way of binding is for, or no window has this key.
    #[error("window {rkey:#x} cannot be bound this way: {expected}")]
    Window {
        /// The key.
        rkey: u32,
        /// The expected window.
        expected: &'static str,
    },
}

impl PostError {
    /// The error number that `ibv_post_send` returns.
    pub fn errno(self) -> Errno {
        match self {
            PostError::Full { .. } => Errno::ENOMEM,
            PostError::NotReady { .. } | PostError::Length { .. } | PostError::Window { .. } => Errno::EINVAL,
        }
    }
}

/// Checks the local length of a request.
///
/// # Errors
/// [`PostError::Length`]: `op` cannot have a local length of `len` bytes.
pub(crate) fn check_len(op: WorkOperation, len: u32) -> Result<(), PostError> {
    let expected = match op {
        WorkOperation::CompareSwap { .. } | WorkOperation::FetchAdd { .. } if len != 8 => "an atomic returns 8",
        WorkOperation::AtomicWrite { .. } if len != 0 => "an atomic write carries its 8 bytes itself",
        _ if len > MESSAGE_MAX => "a message has at most 2 GiB",
        _ => return Ok(()),
    };
    Err(PostError::Length { len, expected })
}
