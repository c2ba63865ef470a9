//! The in-process transport: the peer's responder runs on the requester's thread.
//!
//! It owns nothing. It loses nothing and reorders nothing. Kernel counterpart: `rxe_loopback`.

use super::local_memory::LocalMemory;
use super::message::{RdmaMessage, Responder, Transport};
use super::operation::WorkFailure;

/// The transport between two queue pairs of one machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct InProcess;

impl Transport for InProcess {
    fn carry(
        &self,
        peer: &dyn Responder,
        message: &RdmaMessage,
        local: &LocalMemory<'_>,
        bounce: &mut [u8],
    ) -> Result<(), WorkFailure> {
        peer.execute(message, local, bounce)
    }
}
