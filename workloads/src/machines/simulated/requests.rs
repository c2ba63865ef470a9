//! Requests: what an operation posts to a send queue, and the memory of its own side.
//!
//! It owns the translation of operations into work requests, and the operations that wait for their
//! completion. Invariant: the memory of a request lives until the request is completed, or its
//! context is closed.

use emulator::sync::Arc;
use fs_sim::base::numbers::Pid;
use fs_sim::vfs::anon::AnonMemory;
use fs_sim::{Errno, Task};
use rdma_sim::{
    AccessFlags, Completion, FlushLevel, FlushPlacement, Mr, PostError, QpState, RnrRetry, Sge, WindowBind,
    WorkOperation, WorkRequest, WorkStatus,
};

use super::bindings::{OpenContext, QpEnd, Window, snake};
use super::calls::{Call, CallFailure, Reply};
use super::rdma::check;
use super::windows;
use crate::ops::{FlushScope, Op, describe_bytes};

/// What goes to the send queue.
pub(super) enum Posting {
    /// A work request of this operation.
    Send(WorkOperation),
    /// The binding of a window of type 1.
    BindType1(Window, WindowBind),
    /// The binding of a window of type 2.
    BindType2(Window, WindowBind),
}

/// This side's end of a request.
#[derive(Clone, Copy)]
enum Local {
    /// No memory; this length.
    Length(u32),
    /// A buffer of the request's own, filled with a byte if it is to be sent, or named by a key
    /// that is no region's.
    Buffer { len: u64, byte: Option<u8>, bad_key: bool },
}

/// A request, ready to be posted.
pub(super) struct Request<'c> {
    pub(super) end: &'c QpEnd,
    posting: Posting,
    /// Address and key at the peer.
    remote: (u64, u32),
    local: Local,
}

/// The memory of a request: anonymous memory, registered for it alone.
pub(super) struct RequestBuffer {
    memory: Arc<AnonMemory>,
    mr: Arc<Mr>,
    va: u64,
    len: u64,
    /// The process that mapped it.
    pid: Pid,
}

/// A key of the slot that is never used: 0 is no region's.
const NO_KEY: u32 = 0;

impl RequestBuffer {
    fn new(own: &OpenContext, task: &Task, len: u64, byte: Option<u8>) -> Result<RequestBuffer, Errno> {
        let (va, memory) = task.mmap_anonymous(len.max(1))?;
        let filled = byte.map_or(Ok(()), |byte| memory.write(0, &vec![byte; len as usize]));
        let registered =
            filled.and_then(|()| own.context.reg_mr(task, &own.pd, va, len.max(1), AccessFlags::LOCAL_WRITE));
        match registered {
            Ok(mr) => Ok(RequestBuffer { memory, mr, va, len, pid: task.pid() }),
            Err(errno) => {
                task.munmap(va, len.max(1))?;
                Err(errno)
            }
        }
    }

    /// Its bytes.
    fn bytes(&self) -> Result<Vec<u8>, Errno> {
        let mut bytes = vec![0; self.len as usize];
        self.memory.read(0, &mut bytes)?;
        Ok(bytes)
    }

    /// Deregisters and unmaps it. The region may be gone with its context or NIC, the mapping with
    /// the process that made it.
    pub(super) fn release(self, task: &Task) {
        let _gone_already = self.mr.context().dereg_mr(task, &self.mr);
        if self.pid == task.pid() {
            let _gone_already = task.munmap(self.va, self.len.max(1));
        }
    }
}

/// The request that the call's operation makes.
pub(super) fn request<'c>(call: &'c Call) -> Result<Request<'c>, CallFailure> {
    let buffer = |len: u64, byte: Option<u8>| Local::Buffer { len, byte, bad_key: false };
    let at = |qp: &str, remote: &str, offset: u64, operation, local| {
        let (va, rkey) = call.remote(remote)?;
        let remote = (va.wrapping_add(offset), rkey);
        Ok(Request { end: call.qp(qp)?, posting: Posting::Send(operation), remote, local })
    };
    let own = |qp: &str, posting, local| Ok(Request { end: call.qp(qp)?, posting, remote: (0, 0), local });
    match &call.op {
        Op::RdmaWrite { qp, remote, range, byte, flags } | Op::PostWrite { qp, remote, range, byte, flags } => {
            let local = Local::Buffer { len: range.len, byte: Some(*byte), bad_key: flags.bad_key };
            at(qp, remote, range.offset, WorkOperation::Write, local)
        }
        Op::RdmaRead { qp, remote, range, flags } | Op::PostRead { qp, remote, range, flags } => {
            let local = Local::Buffer { len: range.len, byte: None, bad_key: flags.bad_key };
            at(qp, remote, range.offset, WorkOperation::Read, local)
        }
        Op::FetchAdd { qp, remote, offset, add } | Op::PostFetchAdd { qp, remote, offset, add } => {
            at(qp, remote, offset.0, WorkOperation::FetchAdd { add: *add }, buffer(8, None))
        }
        Op::Cas { qp, remote, offset, compare, swap } | Op::PostCas { qp, remote, offset, compare, swap } => {
            let swap = WorkOperation::CompareSwap { compare: *compare, swap: *swap };
            at(qp, remote, offset.0, swap, buffer(8, None))
        }
        Op::AtomicWrite { qp, remote, offset, value } | Op::PostAtomicWrite { qp, remote, offset, value } => {
            at(qp, remote, offset.0, WorkOperation::AtomicWrite { value: *value }, Local::Length(0))
        }
        Op::Flush { qp, remote, range, placement } | Op::PostFlush { qp, remote, range, placement } => {
            // The length in a request has 32 bits.
            let len = u32::try_from(range.len).map_err(|_| Errno::EINVAL)?;
            at(qp, remote, range.offset, flush(*placement, FlushLevel::Range), Local::Length(len))
        }
        Op::FlushRegion { qp, remote, placement } => {
            at(qp, remote, 0, flush(*placement, FlushLevel::Mr), Local::Length(0))
        }
        Op::RdmaSend { qp, length, byte } | Op::PostSend { qp, length, byte } => {
            own(qp, Posting::Send(WorkOperation::Send), buffer(length.0, Some(*byte)))
        }
        Op::SendInvalidate { qp, window, length, byte } | Op::PostSendInvalidate { qp, window, length, byte } => {
            let rkey = call.window(window)?.mw.rkey();
            own(qp, Posting::Send(WorkOperation::SendWithInvalidate { rkey }), buffer(length.0, Some(*byte)))
        }
        Op::BindMw { qp, window, mr, range, flags } | Op::PostBindMw { qp, window, mr, range, flags } => {
            let posting = windows::binding(call.window(window)?, call.region(mr)?, *range, *flags)?;
            own(qp, posting, Local::Length(0))
        }
        Op::Invalidate { qp, window } | Op::PostInvalidate { qp, window } => {
            own(qp, windows::invalidation(call.window(window)?), Local::Length(0))
        }
        _ => Err(call.unknown()),
    }
}

fn flush(scope: FlushScope, level: FlushLevel) -> WorkOperation {
    let placement = match scope {
        FlushScope::Global => FlushPlacement::Global,
        FlushScope::Persistent => FlushPlacement::Persistent,
    };
    WorkOperation::Flush { placement, level }
}

impl Request<'_> {
    /// Makes the memory of this side, if the request needs any.
    pub(super) fn buffer(&self, task: &Task) -> Result<Option<RequestBuffer>, Errno> {
        let made = check(&self.end.own, task).and_then(|()| match self.local {
            Local::Length(_) => Ok(None),
            Local::Buffer { len, byte, .. } => RequestBuffer::new(&self.end.own, task, len, byte).map(Some),
        });
        made.inspect_err(|_| self.without_effect())
    }

    /// Its local end, with the memory that was made for it.
    pub(super) fn local(&self, buffer: Option<&RequestBuffer>) -> Sge {
        match (self.local, buffer) {
            (Local::Buffer { bad_key, .. }, Some(buffer)) => {
                let lkey = if bad_key { NO_KEY } else { buffer.mr.lkey() };
                Sge { lkey, addr: buffer.va, len: buffer.len as u32 }
            }
            (Local::Length(len), _) => Sge { lkey: NO_KEY, addr: 0, len },
            (Local::Buffer { .. }, None) => Sge::default(),
        }
    }

    /// Posts it.
    pub(super) fn post(&self, wr_id: u64, local: Sge) -> Result<(), CallFailure> {
        let qp = &self.end.qp;
        let (remote_addr, rkey) = self.remote;
        let send = |op| qp.post_send(WorkRequest { wr_id, op, local, remote_addr, rkey, signaled: true });
        let posted = match &self.posting {
            Posting::Send(operation) => send(*operation),
            Posting::BindType1(window, bind) => qp.bind_mw(wr_id, &window.mw, *bind, true).map(|_| ()),
            Posting::BindType2(_, bind) => send(WorkOperation::BindMw(*bind)),
        };
        posted.map_err(|error: PostError| {
            self.without_effect();
            CallFailure::Errno(error.errno())
        })
    }

    /// The window that it binds, if that needs to be told of a failure.
    pub(super) fn window(&self) -> Option<&Window> {
        match &self.posting {
            Posting::BindType2(window, _) => Some(window),
            Posting::Send(_) | Posting::BindType1(..) => None,
        }
    }

    /// It has not bound its window, if it is to bind one.
    fn without_effect(&self) {
        if let Some(window) = self.window() {
            window.not_bound();
        }
    }

    /// Whether it could not be executed at once.
    fn must_wait(&self) -> bool {
        let QpEnd { qp, peer_qp, .. } = self.end;
        let sends = matches!(
            self.posting,
            Posting::Send(WorkOperation::Send) | Posting::Send(WorkOperation::SendWithInvalidate { .. })
        );
        qp.state() == QpState::SendQueueDrained
            || qp.waiting_sends() > 0
            || (sends
                && qp.state() == QpState::ReadyToSend
                && qp.rnr_retry() == RnrRetry::Forever
                && peer_qp.state().answers()
                && peer_qp.posted_receives() == 0)
    }
}

/// What a successful request gave, in words: bytes read, or what was there before an atomic.
pub(super) fn value(done: &Completion, buffer: Option<&RequestBuffer>) -> Result<Option<String>, Errno> {
    use rdma_sim::WorkOpcode::{CompareSwap, FetchAdd, Read, Recv};
    Ok(match (done.opcode, buffer) {
        (Read, Some(buffer)) => {
            let bytes = buffer.bytes()?;
            Some(describe_bytes(&bytes, bytes.len()))
        }
        (CompareSwap | FetchAdd, Some(buffer)) => {
            let before = buffer.bytes()?.first_chunk().map_or(0, |eight| u64::from_ne_bytes(*eight));
            Some(before.to_string())
        }
        (Recv, _) => {
            let invalidated = if done.invalidated.is_some() { ":invalidated" } else { "" };
            Some(format!("{}{invalidated}", crate::input::Size(u64::from(done.byte_len))))
        }
        _ => None,
    })
}

/// The word of a completion's status.
pub(super) fn status(status: WorkStatus) -> String {
    snake(&format!("{status:?}"))
}

/// One request of this process, from post to completion.
pub(super) fn perform(call: &Call, task: &Task) -> Result<Reply, CallFailure> {
    let request = request(call)?;
    if request.must_wait() {
        request.without_effect();
        return Err(CallFailure::Errno(Errno::EAGAIN));
    }
    let buffer = request.buffer(task)?;
    let work = &request.end.own.work;
    let wr_id = work.number();
    let posted = request.post(wr_id, request.local(buffer.as_ref()));
    let completion =
        posted.and_then(|()| work.take(&request.end.own.cq, wr_id).ok_or(CallFailure::Errno(Errno::EAGAIN)));
    let value = match &completion {
        Ok(done) if done.status == WorkStatus::Success => value(done, buffer.as_ref()),
        _ => Ok(None),
    };
    if let Some(buffer) = buffer {
        buffer.release(task);
    }
    match completion?.status {
        WorkStatus::Success => Ok(Reply { value: value?, made: None }),
        failed => {
            request.without_effect();
            Err(CallFailure::Word(status(failed)))
        }
    }
}
