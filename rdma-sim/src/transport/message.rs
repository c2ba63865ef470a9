//! Messages, and the two traits that they pass.
//!
//! It owns plain values and traits. [`Transport`] is called by the requester; [`Responder`] is
//! called by a transport, and by a requester that waits for a receive. Kernel counterpart: `struct
//! rxe_pkt_info`, `rxe_requester`, `rxe_responder`.

use emulator::sync::Weak;

use super::local_memory::LocalMemory;
use super::operation::{WorkFailure, WorkOperation};
use crate::memory::protection::KeyedRange;

/// One message, as the requester sends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RdmaMessage {
    /// What the peer executes.
    pub op: WorkOperation,
    /// The first address at the peer. Sends do not use it.
    pub remote_addr: u64,
    /// The peer's key. Sends do not use it.
    pub rkey: u32,
    /// Bytes of data, in either direction; of a flush the length of its range.
    pub len: u32,
}

impl RdmaMessage {
    pub(crate) fn remote(&self) -> KeyedRange {
        KeyedRange { key: self.rkey, addr: self.remote_addr, len: self.len }
    }
}

/// The peer of a message: a queue pair executes it.
pub trait Responder: Send + Sync {
    /// Executes the message with the requester's memory `local`. `bounce` holds the bytes between
    /// the two memories and is never empty. Runs on the caller's thread and returns when the
    /// outcome is known.
    ///
    /// # Errors
    /// The [`WorkFailure`] that completes the request.
    fn execute(&self, message: &RdmaMessage, local: &LocalMemory<'_>, bounce: &mut [u8]) -> Result<(), WorkFailure>;

    /// Registers `sender`, whose send found no receive. Once a receive is posted or this responder
    /// ends, it calls [`WaitingSender::try_again`], once. False if nothing is registered because
    /// the send can be tried again now.
    fn await_receive(&self, sender: Weak<dyn WaitingSender>) -> bool;
}

/// A requester whose first request waits until the peer has a receive posted.
pub trait WaitingSender: Send + Sync {
    /// Tries that request again, on this thread. The caller holds no lock.
    fn try_again(&self);
}

/// A way to the peer.
pub trait Transport: Send + Sync + 'static {
    /// Carries one message to `peer` and its data in the message's direction. Returns when the
    /// outcome is known. `bounce` is the requester's own buffer for the bytes in transit; it is
    /// never empty. For each queue pair one thread at a time calls this, with no lock held.
    ///
    /// # Errors
    /// The [`WorkFailure`] that completes the request.
    fn carry(
        &self,
        peer: &dyn Responder,
        message: &RdmaMessage,
        local: &LocalMemory<'_>,
        bounce: &mut [u8],
    ) -> Result<(), WorkFailure>;
}
