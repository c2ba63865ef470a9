//! The requester: takes a request off the send queue, has it carried to the peer, and completes it.
//!
//! It owns the local side's checks and the order of completions. Invariants: a request's completion is queued before the next
//! request begins; the first failure puts the pair into error before anything behind it is looked at; an atomic or read
//! reaches the peer only if its result has a place. Kernel counterpart: `rxe_requester`, `rxe_completer`.

use emulator::sync::Arc;

use super::local;
use super::protection::{CHUNK, Need, Range};
use crate::transport::{Failure, Message, Transport};
use crate::verbs::qp::Qp;
use crate::verbs::state::QpState;
use crate::verbs::work::{Fault, Op, Sge, Status, WorkRequest};

/// Who a queue pair talks to, and how.
pub(crate) struct Link {
    pub(crate) peer: Arc<Qp>,
    pub(crate) transport: Arc<dyn Transport>,
}

/// What the send queue's runner owns.
#[derive(Default)]
pub(crate) struct Engine {
    link: Option<Link>,
    /// Bytes on their way; made at the first use, so that no request allocates.
    bounce: Vec<u8>,
}

/// What goes through a send queue.
pub(crate) enum Work {
    Request(WorkRequest),
    /// The peer is known.
    Attach(Link),
    /// The peer is forgotten: nothing holds it any more.
    Detach,
}

/// Runs one piece of work, with the send queue's turn held.
pub(crate) fn run(qp: &Qp, engine: &mut Engine, work: Work) {
    match work {
        Work::Request(request) => run_request(qp, engine, &request),
        Work::Attach(link) => engine.link = Some(link),
        Work::Detach => engine.link = None,
    }
}

fn run_request(qp: &Qp, engine: &mut Engine, request: &WorkRequest) {
    let WorkRequest { wr_id, op, local, signaled, .. } = *request;
    match qp.state() {
        QpState::ReadyToSend => {}
        QpState::Error => return qp.complete_send(wr_id, op, Status::Flushed, 0, Fault::Behind),
        // Reset or destroyed since it was posted: it vanishes.
        _ => return,
    }
    match execute(qp, engine, request) {
        Ok(()) if signaled => qp.complete_send(wr_id, op, Status::Success, op.moves(local.len), Fault::None),
        Ok(()) => {}
        Err(Failure { status, fault }) => {
            // Its own completion first, then those behind it.
            qp.complete_send(wr_id, op, status, 0, fault);
            qp.fail();
        }
    }
}

fn execute(qp: &Qp, engine: &mut Engine, request: &WorkRequest) -> Result<(), Failure> {
    let WorkRequest { op, local, remote_addr, rkey, .. } = *request;
    match op {
        Op::BindMw(bind) => return local::bind(qp, &bind),
        Op::LocalInvalidate { rkey } => return local::invalidate(qp, rkey),
        _ => {}
    }
    let link = engine.link.as_ref().ok_or(Failure::SILENT)?;
    if engine.bounce.is_empty() {
        engine.bounce = vec![0; CHUNK];
    }
    let memory = LocalMemory { qp, sge: local };
    // A write's first copy checks its source; the others must know before they reach the peer.
    match op {
        Op::Send | Op::SendWithInvalidate { .. } => memory.check(Need::LocalRead)?,
        Op::Read | Op::CompareSwap { .. } | Op::FetchAdd { .. } => memory.check(Need::LocalWrite)?,
        // The last three move no local byte.
        Op::Write | Op::AtomicWrite { .. } | Op::Flush { .. } | Op::BindMw(_) | Op::LocalInvalidate { .. } => {}
    }
    let len = if let Op::AtomicWrite { .. } = op { 8 } else { local.len };
    let message = Message { op, remote_addr, rkey, len };
    link.transport.carry(&link.peer, &message, &memory, &mut engine.bounce)
}

/// The requester's end of a message's bytes.
pub struct LocalMemory<'a> {
    qp: &'a Qp,
    sge: Sge,
}

impl LocalMemory<'_> {
    fn range(&self) -> Range {
        Range { key: self.sge.lkey, addr: self.sge.addr, len: self.sge.len }
    }

    fn check(&self, need: Need) -> Result<(), Failure> {
        self.range().check(self.qp, need).map_err(Failure::local)
    }

    /// Copies from the message's byte `at` on.
    ///
    /// # Errors
    /// A local protection error, or a local operation error if the device fails.
    pub fn read(&self, at: u64, into: &mut [u8]) -> Result<(), Failure> {
        self.range().read(self.qp, Need::LocalRead, at, into).map_err(Failure::local)
    }

    /// Copies to the message's byte `at` on.
    ///
    /// # Errors
    /// A local protection error, or a local operation error if the device fails.
    pub fn write(&self, at: u64, from: &[u8]) -> Result<(), Failure> {
        self.range().write(self.qp, Need::LocalWrite, at, from).map_err(Failure::local)
    }
}
