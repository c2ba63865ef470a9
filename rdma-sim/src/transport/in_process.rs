//! The in-process transport: the peer's responder runs on the requester's thread.
//!
//! It owns nothing. It loses nothing and reorders nothing. Kernel counterpart: `rxe_loopback`.

use super::{Failure, LocalMemory, Message, Transport};
use crate::engine::responder;
use crate::verbs::qp::Qp;

/// See the module.
#[derive(Clone, Copy, Debug, Default)]
pub struct InProcess;

impl Transport for InProcess {
    fn carry(&self, peer: &Qp, message: &Message, local: &LocalMemory<'_>, bounce: &mut [u8]) -> Result<(), Failure> {
        responder::execute(peer, message, local, bounce)
    }
}
