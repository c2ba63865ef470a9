//! Transports: how a message reaches the peer and its outcome comes back.
//!
//! It owns the trait and the plain values that cross it. Invariant: a transport adds nothing to what the responder decides:
//! it carries, or the peer is silent. Kernel counterpart: `rxe_net.c` and the packet formats, for a transport over a wire.

mod in_process;

pub use crate::engine::requester::LocalMemory;
pub use in_process::InProcess;

use crate::engine::protection::Range;
use crate::verbs::qp::Qp;
use crate::verbs::work::{Fault, Op, Status};

/// One message, as the requester sends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// What the peer is to do.
    pub op: Op,
    /// At which of its addresses (not for sends).
    pub remote_addr: u64,
    /// By which of its keys (not for sends).
    pub rkey: u32,
    /// Bytes of data, in either direction; of a flush the length of its range.
    pub len: u32,
}

impl Message {
    pub(crate) fn remote(&self) -> Range {
        Range { key: self.rkey, addr: self.remote_addr, len: self.len }
    }
}

/// Why a request failed, as its completion will say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The status.
    pub status: Status,
    /// The detail.
    pub fault: Fault,
}

impl Failure {
    /// The peer does not answer.
    pub const SILENT: Failure = Failure { status: Status::RetryExceeded, fault: Fault::Silent };

    /// A fault under a local address.
    pub(crate) fn local(fault: Fault) -> Failure {
        let status = match fault {
            Fault::Device => Status::LocalOperationError,
            _ => Status::LocalProtectionError,
        };
        Failure { status, fault }
    }
}

/// A way to the peer.
pub trait Transport: Send + Sync + 'static {
    /// Carries one message to `peer` and its data in the message's direction; returns when the outcome is known. `bounce` is
    /// the requester's own buffer for bytes on their way, never empty. Called by one thread at a time for each queue pair,
    /// with no lock held.
    ///
    /// # Errors
    /// The [`Failure`] that completes the request.
    fn carry(&self, peer: &Qp, message: &Message, local: &LocalMemory<'_>, bounce: &mut [u8]) -> Result<(), Failure>;
}
