//! The responder: executes a message of the peer on a queue pair.
//!
//! It owns the checks of the remote side and the refusals. Invariants: a queue pair that cannot
//! answer (destroyed, not ready, in error) is silent, at every piece of a message; only if its
//! context was aborted it refuses instead. A refusal puts the refusing queue pair into error and
//! raises an event. A receive is taken by one message; it is completed, or put back if the message
//! did not arrive whole. Kernel counterpart: `rxe_responder`
//! (drivers/infiniband/sw/rxe/rxe_resp.c).
//!
//! docs/semantics.md, section 7, names "queue pair to error" for remote access errors. This queue
//! pair goes to error for the two other refusals as well, as InfiniBand has it (volume 1, 9.9.3:
//! class A and C faults of a responder) and `rxe` does. A message without a posted receive fails
//! only the requester.

use emulator::sync::Weak;
use emulator::sync::atomic::{Ordering, fence};
use fs_sim::base::atomic_op::AtomicOp;

use super::event::AsyncEvent;
use super::local;
use super::qp::Qp;
use super::qp_state::QpState;
use super::work::ReceiveRequest;
use crate::memory::access::FlushLevel;
use crate::memory::fault::WorkFault;
use crate::memory::protection::{AccessNeed, KeyedRange};
use crate::transport::operation::{FlushPlacement, WorkOperation, WorkStatus};
use crate::transport::{LocalMemory, RdmaMessage, Responder, WaitingSender, WorkFailure};

impl Responder for Qp {
    fn execute(&self, message: &RdmaMessage, local: &LocalMemory<'_>, bounce: &mut [u8]) -> Result<(), WorkFailure> {
        match message.op {
            WorkOperation::Write => write(self, message, local, bounce),
            WorkOperation::Read => read(self, message, local, bounce),
            WorkOperation::Send => send(self, message, None, local, bounce),
            WorkOperation::SendWithInvalidate { rkey } => send(self, message, Some(rkey), local, bounce),
            WorkOperation::CompareSwap { compare, swap } => {
                atomic(self, message, local, AtomicOp::CompareSwap(compare, swap))
            }
            WorkOperation::FetchAdd { add } => atomic(self, message, local, AtomicOp::FetchAdd(add)),
            WorkOperation::AtomicWrite { value } => {
                aligned(self, message, AccessNeed::RemoteWrite, AtomicOp::Store(value)).map(|_| ())
            }
            WorkOperation::Flush { placement, level } => flush(self, message, placement, level),
            // These operations stay on the requester's side. A transport that carries one anyway
            // gets a refusal.
            WorkOperation::BindMw(_) | WorkOperation::LocalInvalidate { .. } => {
                Err(refuse(self, WorkStatus::RemoteInvalidRequest, WorkFault::Access))
            }
        }
    }

    fn await_receive(&self, sender: Weak<dyn WaitingSender>) -> bool {
        self.add_waiting(sender)
    }
}

fn listening(peer: &Qp) -> Result<(), WorkFailure> {
    match peer.state() {
        state if state.answers() => Ok(()),
        // An aborted context still answers: docs/semantics.md, section 5, makes a later access a
        // remote access error.
        QpState::Error if peer.owner().is_aborted() => {
            Err(WorkFailure { status: WorkStatus::RemoteAccessError, fault: WorkFault::Revoked })
        }
        _ => Err(WorkFailure::SILENT),
    }
}

/// Puts the refusing queue pair into error, raises its event, and makes the failure for the
/// requester.
fn refuse(peer: &Qp, status: WorkStatus, fault: WorkFault) -> WorkFailure {
    peer.fail();
    let qp_num = peer.number();
    peer.owner().raise(match status {
        WorkStatus::RemoteAccessError => AsyncEvent::QpAccess { qp_num },
        WorkStatus::RemoteInvalidRequest => AsyncEvent::QpRequest { qp_num },
        _ => AsyncEvent::QpFatal { qp_num },
    });
    WorkFailure { status, fault }
}

/// Refuses a message because of a fault at a remote address.
fn refuse_access(peer: &Qp, fault: WorkFault) -> WorkFailure {
    let status = match fault {
        WorkFault::Device => WorkStatus::RemoteOperationError,
        WorkFault::Misaligned => WorkStatus::RemoteInvalidRequest,
        _ => WorkStatus::RemoteAccessError,
    };
    refuse(peer, status, fault)
}

/// The pieces of a message, as (first byte, length). An empty message has none.
fn pieces(len: u32, bounce: usize) -> impl Iterator<Item = (u64, usize)> {
    let len = len as usize;
    (0..len).step_by(bounce).map(move |at| (at as u64, bounce.min(len - at)))
}

fn write(peer: &Qp, message: &RdmaMessage, local: &LocalMemory<'_>, bounce: &mut [u8]) -> Result<(), WorkFailure> {
    if message.len == 0 {
        return listening(peer);
    }
    let remote = message.remote();
    for (at, len) in pieces(message.len, bounce.len()) {
        let bytes = &mut bounce[..len];
        local.read(at, bytes)?;
        listening(peer)?;
        remote
            .write(peer.accessor(), AccessNeed::RemoteWrite, at, bytes)
            .map_err(|fault| refuse_access(peer, fault))?;
    }
    Ok(())
}

fn read(peer: &Qp, message: &RdmaMessage, local: &LocalMemory<'_>, bounce: &mut [u8]) -> Result<(), WorkFailure> {
    if message.len == 0 {
        return listening(peer);
    }
    let remote = message.remote();
    for (at, len) in pieces(message.len, bounce.len()) {
        let bytes = &mut bounce[..len];
        listening(peer)?;
        remote.read(peer.accessor(), AccessNeed::RemoteRead, at, bytes).map_err(|fault| refuse_access(peer, fault))?;
        local.write(at, bytes)?;
    }
    Ok(())
}

fn atomic(peer: &Qp, message: &RdmaMessage, local: &LocalMemory<'_>, op: AtomicOp) -> Result<(), WorkFailure> {
    let before = aligned(peer, message, AccessNeed::RemoteAtomic, op)?;
    local.write(0, &before.to_ne_bytes())
}

/// Executes one access to 8 aligned bytes.
fn aligned(peer: &Qp, message: &RdmaMessage, need: AccessNeed, op: AtomicOp) -> Result<u64, WorkFailure> {
    listening(peer)?;
    if !message.remote_addr.is_multiple_of(8) {
        return Err(refuse(peer, WorkStatus::RemoteInvalidRequest, WorkFault::Misaligned));
    }
    message.remote().atomic(peer.accessor(), need, op).map_err(|fault| refuse_access(peer, fault))
}

/// A flush checks a range of no bytes too: only reads and writes skip that check.
fn flush(peer: &Qp, message: &RdmaMessage, placement: FlushPlacement, level: FlushLevel) -> Result<(), WorkFailure> {
    listening(peer)?;
    // ORDERING: earlier writes were copied by this thread, or by a thread that ran the send queue
    // before it. The fence orders them before every access of a thread that learns of this flush's
    // completion by other means than a completion queue.
    fence(Ordering::SeqCst);
    let need = match placement {
        FlushPlacement::Global => AccessNeed::FlushGlobal,
        FlushPlacement::Persistent => AccessNeed::FlushPersistent,
    };
    message.remote().flush(peer.accessor(), need, level).map_err(|fault| refuse_access(peer, fault))
}

fn send(
    peer: &Qp,
    message: &RdmaMessage,
    invalidate: Option<u32>,
    local: &LocalMemory<'_>,
    bounce: &mut [u8],
) -> Result<(), WorkFailure> {
    listening(peer)?;
    let Some(taken) = peer.take_receive() else {
        // A queue pair that went to error just now has lost its receives: it is silent, not out of
        // receives.
        listening(peer)?;
        return Err(WorkFailure { status: WorkStatus::RnrRetryExceeded, fault: WorkFault::NoReceive });
    };
    let receive = taken.request;
    if message.len > receive.local.len {
        peer.complete_receive(receive.wr_id, WorkStatus::LocalLengthError, 0, WorkFault::Length);
        return Err(refuse(peer, WorkStatus::RemoteInvalidRequest, WorkFault::Length));
    }
    match place(peer, &receive, message.len, local, bounce) {
        Ok(()) => {}
        Err(FailedSide::Requester(failure)) => {
            taken.put_back();
            return Err(failure);
        }
        Err(FailedSide::Receiver(fault)) => {
            let failure = WorkFailure::local(fault);
            peer.complete_receive(receive.wr_id, failure.status, 0, fault);
            return Err(refuse(peer, WorkStatus::RemoteOperationError, WorkFault::ReceiveMemory));
        }
    }
    if let Some(rkey) = invalidate
        && let Err(fault) = local::invalidate_window(peer, rkey)
    {
        peer.complete_receive(receive.wr_id, WorkStatus::RemoteInvalidRequest, 0, fault);
        return Err(refuse(peer, WorkStatus::RemoteAccessError, fault));
    }
    if !peer.complete_message(receive.wr_id, message.len, invalidate) {
        return Err(refuse(peer, WorkStatus::RemoteOperationError, WorkFault::ReceiveOverrun));
    }
    Ok(())
}

/// The side on which a send failed.
enum FailedSide {
    /// The requester, or the transport.
    Requester(WorkFailure),
    /// The memory of the receive.
    Receiver(WorkFault),
}

fn place(
    peer: &Qp,
    receive: &ReceiveRequest,
    len: u32,
    local: &LocalMemory<'_>,
    bounce: &mut [u8],
) -> Result<(), FailedSide> {
    // The whole receive must be accessible, not only the part that this message fills.
    let into = KeyedRange { key: receive.local.lkey, addr: receive.local.addr, len: receive.local.len };
    into.check(peer.accessor(), AccessNeed::LocalWrite).map_err(FailedSide::Receiver)?;
    for (at, len) in pieces(len, bounce.len()) {
        let bytes = &mut bounce[..len];
        local.read(at, bytes).map_err(FailedSide::Requester)?;
        listening(peer).map_err(FailedSide::Requester)?;
        into.write(peer.accessor(), AccessNeed::LocalWrite, at, bytes).map_err(FailedSide::Receiver)?;
    }
    Ok(())
}
