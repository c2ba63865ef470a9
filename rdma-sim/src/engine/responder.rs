//! The responder: what the peer's queue pair does with a message.
//!
//! It owns the remote side's checks and the refusals. Invariants: a pair that can't answer (gone, not ready, in error) is
//! silent, at every piece of a message, unless its context was aborted: then it refuses; a refusal puts the refusing pair into error and says so by an event; a receive is
//! taken by one message, and completed, or put back if the message never came whole. Kernel counterpart: `rxe_responder`
//! (drivers/infiniband/sw/rxe/rxe_resp.c).
//!
//! SEMANTICS section 7 names "queue pair to error" for remote access errors; this pair goes to error for the two other
//! refusals as well, as InfiniBand has it (volume 1, 9.9.3: class A and C faults of a responder) and `rxe` does. Without a
//! receive it does not: that is the requester's failure alone.

use emulator::sync::atomic::{Ordering, fence};
use fs_sim::base::atomic_op::AtomicOp;

use super::local;
use super::protection::{Need, Range};
use super::requester::LocalMemory;
use crate::transport::{Failure, Message};
use crate::verbs::context::AsyncEvent;
use crate::verbs::qp::Qp;
use crate::verbs::state::QpState;
use crate::verbs::work::{Fault, FlushLevel, Op, Placement, Receive, Status};

/// Executes a message at `peer`, on the requester's thread. `bounce` holds the bytes on their way.
pub(crate) fn execute(peer: &Qp, message: &Message, local: &LocalMemory<'_>, bounce: &mut [u8]) -> Result<(), Failure> {
    match message.op {
        Op::Write => write(peer, message, local, bounce),
        Op::Read => read(peer, message, local, bounce),
        Op::Send => send(peer, message, None, local, bounce),
        Op::SendWithInvalidate { rkey } => send(peer, message, Some(rkey), local, bounce),
        Op::CompareSwap { compare, swap } => atomic(peer, message, local, AtomicOp::CompareSwap(compare, swap)),
        Op::FetchAdd { add } => atomic(peer, message, local, AtomicOp::FetchAdd(add)),
        Op::AtomicWrite { value } => aligned(peer, message, Need::RemoteWrite, AtomicOp::Store(value)).map(|_| ()),
        Op::Flush { placement, level } => flush(peer, message, placement, level),
        // What stays on the requester's side is no message; a transport that carries it anyway finds it malformed.
        Op::BindMw(_) | Op::LocalInvalidate { .. } => Err(refuse(peer, Status::RemoteInvalidRequest, Fault::Access)),
    }
}

fn listening(peer: &Qp) -> Result<(), Failure> {
    match peer.state() {
        state if state.answers() => Ok(()),
        // Its memory was taken away, not its voice: later access is a remote access error, as SEMANTICS section 5 has it.
        QpState::Error if peer.context().is_aborted() => {
            Err(Failure { status: Status::RemoteAccessError, fault: Fault::Revoked })
        }
        _ => Err(Failure::SILENT),
    }
}

/// Puts the refusing pair into error, and turns what it found into what the requester hears.
fn refuse(peer: &Qp, status: Status, fault: Fault) -> Failure {
    peer.fail();
    let qp_num = peer.number();
    peer.context().raise(match status {
        Status::RemoteAccessError => AsyncEvent::QpAccess { qp_num },
        Status::RemoteInvalidRequest => AsyncEvent::QpRequest { qp_num },
        _ => AsyncEvent::QpFatal { qp_num },
    });
    Failure { status, fault }
}

/// A fault under a remote address.
fn refuse_access(peer: &Qp, fault: Fault) -> Failure {
    let status = match fault {
        Fault::Device => Status::RemoteOperationError,
        Fault::Misaligned => Status::RemoteInvalidRequest,
        _ => Status::RemoteAccessError,
    };
    refuse(peer, status, fault)
}

/// The pieces of a message, as (first byte, length): none for an empty one.
fn pieces(len: u32, bounce: usize) -> impl Iterator<Item = (u64, usize)> {
    let len = len as usize;
    (0..len).step_by(bounce).map(move |at| (at as u64, bounce.min(len - at)))
}

fn write(peer: &Qp, message: &Message, local: &LocalMemory<'_>, bounce: &mut [u8]) -> Result<(), Failure> {
    if message.len == 0 {
        return listening(peer);
    }
    let remote = message.remote();
    for (at, len) in pieces(message.len, bounce.len()) {
        let bytes = &mut bounce[..len];
        local.read(at, bytes)?;
        listening(peer)?;
        remote.write(peer, Need::RemoteWrite, at, bytes).map_err(|fault| refuse_access(peer, fault))?;
    }
    Ok(())
}

fn read(peer: &Qp, message: &Message, local: &LocalMemory<'_>, bounce: &mut [u8]) -> Result<(), Failure> {
    if message.len == 0 {
        return listening(peer);
    }
    let remote = message.remote();
    for (at, len) in pieces(message.len, bounce.len()) {
        let bytes = &mut bounce[..len];
        listening(peer)?;
        remote.read(peer, Need::RemoteRead, at, bytes).map_err(|fault| refuse_access(peer, fault))?;
        local.write(at, bytes)?;
    }
    Ok(())
}

fn atomic(peer: &Qp, message: &Message, local: &LocalMemory<'_>, op: AtomicOp) -> Result<(), Failure> {
    let before = aligned(peer, message, Need::RemoteAtomic, op)?;
    local.write(0, &before.to_ne_bytes())
}

/// An access to 8 aligned bytes at once.
fn aligned(peer: &Qp, message: &Message, need: Need, op: AtomicOp) -> Result<u64, Failure> {
    listening(peer)?;
    if !message.remote_addr.is_multiple_of(8) {
        return Err(refuse(peer, Status::RemoteInvalidRequest, Fault::Misaligned));
    }
    message.remote().atomic(peer, need, op).map_err(|fault| refuse_access(peer, fault))
}

/// A range of no bytes is checked like any other: only reads and writes may skip that.
fn flush(peer: &Qp, message: &Message, placement: Placement, level: FlushLevel) -> Result<(), Failure> {
    listening(peer)?;
    // ORDERING: the writes before were copied by this thread, or by one that handed the turn on; the fence puts them before
    // whatever anybody does who learns of this flush's completion by other means than a completion queue.
    fence(Ordering::SeqCst);
    let need = match placement {
        Placement::Global => Need::FlushGlobal,
        Placement::Persistent => Need::FlushPersistent,
    };
    message.remote().flush(peer, need, level).map_err(|fault| refuse_access(peer, fault))
}

fn send(
    peer: &Qp,
    message: &Message,
    invalidate: Option<u32>,
    local: &LocalMemory<'_>,
    bounce: &mut [u8],
) -> Result<(), Failure> {
    listening(peer)?;
    let Some(receive) = peer.take_receive() else {
        // Silent rather than not ready if it failed, and lost its receives, just now.
        listening(peer)?;
        return Err(Failure { status: Status::RnrRetryExceeded, fault: Fault::NoReceive });
    };
    if message.len > receive.local.len {
        peer.complete_receive(receive.wr_id, Status::LocalLengthError, 0, Fault::Length);
        return Err(refuse(peer, Status::RemoteInvalidRequest, Fault::Length));
    }
    match place(peer, &receive, message.len, local, bounce) {
        Ok(()) => {}
        Err(Lost::Message(failure)) => {
            peer.return_receive(receive);
            return Err(failure);
        }
        Err(Lost::Receive(fault)) => {
            let failure = Failure::local(fault);
            peer.complete_receive(receive.wr_id, failure.status, 0, fault);
            return Err(refuse(peer, Status::RemoteOperationError, Fault::ReceiveMemory));
        }
    }
    if let Some(rkey) = invalidate
        && let Err(fault) = local::invalidate_window(peer, rkey)
    {
        peer.complete_receive(receive.wr_id, Status::RemoteInvalidRequest, 0, fault);
        return Err(refuse(peer, Status::RemoteAccessError, fault));
    }
    if !peer.complete_message(receive.wr_id, message.len, invalidate) {
        return Err(refuse(peer, Status::RemoteOperationError, Fault::ReceiveOverrun));
    }
    Ok(())
}

/// Which side of a send failed.
enum Lost {
    /// The requester's, or the way.
    Message(Failure),
    /// The receive's memory.
    Receive(Fault),
}

fn place(peer: &Qp, receive: &Receive, len: u32, local: &LocalMemory<'_>, bounce: &mut [u8]) -> Result<(), Lost> {
    // The whole receive must be good, not just the part that this message fills.
    let into = Range { key: receive.local.lkey, addr: receive.local.addr, len: receive.local.len };
    into.check(peer, Need::LocalWrite).map_err(Lost::Receive)?;
    for (at, len) in pieces(len, bounce.len()) {
        let bytes = &mut bounce[..len];
        local.read(at, bytes).map_err(Lost::Message)?;
        listening(peer).map_err(Lost::Message)?;
        into.write(peer, Need::LocalWrite, at, bytes).map_err(Lost::Receive)?;
    }
    Ok(())
}
