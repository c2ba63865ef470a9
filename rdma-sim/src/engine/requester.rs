//! The requester: takes a request off the send queue, sends it to the peer, and completes it.
//!
//! It owns the checks of the local side and the order of completions. Invariants: a request's
//! completion is queued before the next request begins; the first failure puts the queue pair into
//! error before any later request is executed; an atomic or read reaches the peer only if its
//! result can be stored; a request that is held has had no effect. Kernel counterpart:
//! `rxe_requester`, `rxe_completer`.

use emulator::sync::Arc;

use super::local;
use super::qp::{Qp, RnrRetry};
use super::qp_state::QpState;
use super::work::WorkRequest;
use crate::memory::fault::WorkFault;
use crate::memory::protection::{AccessNeed, CHUNK};
use crate::transport::operation::{WorkOperation, WorkStatus};
use crate::transport::{LocalMemory, RdmaMessage, Responder, Transport, WorkFailure};

/// The peer of a queue pair, and the transport to it.
pub(crate) struct PeerLink {
    pub(crate) peer: Arc<dyn Responder>,
    pub(crate) transport: Arc<dyn Transport>,
}

/// The state that the thread running a send queue owns.
#[derive(Default)]
pub(crate) struct SendEngine {
    link: Option<PeerLink>,
    /// Bytes between the two memories. Allocated at the first use, so that later requests allocate
    /// nothing.
    bounce: Vec<u8>,
}

/// One entry of a send queue.
pub(crate) enum SendWork {
    /// A posted request.
    Request(WorkRequest),
    /// Connects the queue pair to a peer.
    Attach(PeerLink),
    /// Drops the connection, and with it the reference to the peer.
    Detach,
}

/// Runs one entry, and returns it if it must wait. The caller is the thread that runs the send
/// queue.
pub(crate) fn run(qp: &Qp, engine: &mut SendEngine, work: SendWork) -> Option<SendWork> {
    match work {
        SendWork::Request(request) => return run_request(qp, engine, request).map(SendWork::Request),
        SendWork::Attach(link) => engine.link = Some(link),
        SendWork::Detach => engine.link = None,
    }
    None
}

/// Executes and completes a request, and returns it if it must wait.
fn run_request(qp: &Qp, engine: &mut SendEngine, request: WorkRequest) -> Option<WorkRequest> {
    let WorkRequest { wr_id, op, local, signaled, .. } = request;
    loop {
        match qp.state() {
            QpState::ReadyToSend => {}
            // Executed, or flushed, once the state changes: that thread resumes the queue.
            QpState::SendQueueDrained => return Some(request),
            QpState::Error => {
                qp.complete_send(wr_id, op, WorkStatus::Flushed, 0, WorkFault::Behind);
                return None;
            }
            // Reset or destroyed since it was posted: the request vanishes.
            _ => return None,
        }
        match execute(qp, engine, &request) {
            Ok(()) if signaled => {
                qp.complete_send(wr_id, op, WorkStatus::Success, op.moves(local.len), WorkFault::None);
            }
            Ok(()) => {}
            Err(WorkFailure { status: WorkStatus::RnrRetryExceeded, .. }) if qp.rnr_retry() == RnrRetry::Forever => {
                match engine.link.as_ref() {
                    Some(link) if qp.awaits_receive(link.peer.as_ref()) => return Some(request),
                    // A receive was posted since, or the peer has ended.
                    _ => continue,
                }
            }
            Err(WorkFailure { status, fault }) => {
                // The completion of this request comes before those of the requests behind it.
                qp.complete_send(wr_id, op, status, 0, fault);
                qp.fail();
            }
        }
        return None;
    }
}

fn execute(qp: &Qp, engine: &mut SendEngine, request: &WorkRequest) -> Result<(), WorkFailure> {
    let WorkRequest { op, local, remote_addr, rkey, .. } = *request;
    match op {
        WorkOperation::BindMw(bind) => return local::bind(qp, &bind),
        WorkOperation::LocalInvalidate { rkey } => return local::invalidate(qp, rkey),
        _ => {}
    }
    let link = engine.link.as_ref().ok_or(WorkFailure::SILENT)?;
    if engine.bounce.is_empty() {
        engine.bounce = vec![0; CHUNK];
    }
    let memory = LocalMemory::new(qp.accessor(), local);
    // The first copy of a write checks its source. The other operations check before they reach the
    // peer.
    match op {
        WorkOperation::Send | WorkOperation::SendWithInvalidate { .. } => memory.check(AccessNeed::LocalRead)?,
        WorkOperation::Read | WorkOperation::CompareSwap { .. } | WorkOperation::FetchAdd { .. } => {
            memory.check(AccessNeed::LocalWrite)?
        }
        // These access no local byte before the peer is reached.
        WorkOperation::Write
        | WorkOperation::AtomicWrite { .. }
        | WorkOperation::Flush { .. }
        | WorkOperation::BindMw(_)
        | WorkOperation::LocalInvalidate { .. } => {}
    }
    let len = if let WorkOperation::AtomicWrite { .. } = op { 8 } else { local.len };
    let message = RdmaMessage { op, remote_addr, rkey, len };
    link.transport.carry(link.peer.as_ref(), &message, &memory, &mut engine.bounce)
}
