//! Requests in flight over several steps, and their completions.
//!
//! It owns the table of a context's posted requests. Invariants: a request is in the table from
//! before its post until its completion is polled; the memory of a request is released when its
//! completion is polled, or with its context. Kernel counterpart: the `wr_id` of `struct
//! ibv_send_wr`, `ibv_poll_cq`.

use std::collections::{BTreeMap, VecDeque};

use emulator::sync::Mutex;
use emulator::sync::atomic::{AtomicU64, Ordering};
use fs_sim::Task;
use rdma_sim::{Completion, Cq, ReceiveRequest, Sge, WorkStatus};

use super::bindings::{Thing, Window};
use super::calls::{Call, CallFailure, Reply};
use super::rdma::check;
use super::requests::{self, RequestBuffer};
use crate::ops::Op;

/// A request that was posted and whose completion was not polled.
struct PostedRequest {
    /// The name that the scenario gave it.
    name: String,
    buffer: Option<RequestBuffer>,
    /// The window that it binds, if that needs to be told of a failure.
    window: Option<Window>,
}

/// The posted requests of a context.
#[derive(Default)]
pub(super) struct WorkTable {
    next: AtomicU64,
    posted: Mutex<BTreeMap<u64, PostedRequest>>,
    /// Completions that a call took from the queue while it looked for its own, oldest first.
    taken: Mutex<VecDeque<Completion>>,
}

impl WorkTable {
    /// A number for a request.
    pub(super) fn number(&self) -> u64 {
        // ORDERING: Relaxed: only uniqueness matters.
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Takes the completion of `wr_id`, if it is there. The others stay in their order.
    pub(super) fn take(&self, cq: &Cq, wr_id: u64) -> Option<Completion> {
        while let Some(done) = cq.poll_one() {
            if done.wr_id == wr_id {
                return Some(done);
            }
            self.taken.lock().push_back(done);
        }
        let mut taken = self.taken.lock();
        let place = taken.iter().position(|done| done.wr_id == wr_id)?;
        taken.remove(place)
    }

    /// Posts a request that the scenario calls `name`.
    fn post(
        &self,
        name: &str,
        (buffer, window): (Option<RequestBuffer>, Option<Window>),
        task: &Task,
        post: impl FnOnce(u64) -> Result<(), CallFailure>,
    ) -> Result<Reply, CallFailure> {
        let wr_id = self.number();
        // Before the post: its completion can be polled at once.
        self.posted.lock().insert(wr_id, PostedRequest { name: name.to_owned(), buffer, window });
        post(wr_id).inspect_err(|_| {
            let refused = self.posted.lock().remove(&wr_id);
            if let Some(buffer) = refused.and_then(|refused| refused.buffer) {
                buffer.release(task);
            }
        })?;
        Reply::made(Thing::Work)
    }

    /// Takes the oldest completion of a posted request. One of no such request belongs to a call
    /// that ended without it, and is dropped.
    fn oldest(&self, cq: &Cq) -> Option<(Completion, PostedRequest)> {
        loop {
            let taken = self.taken.lock().pop_front();
            let done = taken.or_else(|| cq.poll_one())?;
            let posted = self.posted.lock().remove(&done.wr_id);
            if let Some(posted) = posted {
                return Some((done, posted));
            }
        }
    }
}

/// Posts a request to a send queue, and does not wait for its completion.
pub(super) fn post(call: &Call, task: &Task) -> Result<Reply, CallFailure> {
    let request = requests::request(call)?;
    let buffer = request.buffer(task)?;
    let (local, window) = (request.local(buffer.as_ref()), request.window().cloned());
    request.end.own.work.post(&call.bind, (buffer, window), task, |wr_id| request.post(wr_id, local))
}

/// Posts a receive into a part of a region.
pub(super) fn receive(call: &Call, task: &Task) -> Result<Reply, CallFailure> {
    let Op::PostRecv { qp, mr, range } = &call.op else { return Err(call.unknown()) };
    let (end, mr) = (call.qp(qp)?, call.region(mr)?);
    check(&end.own, task)?;
    let local = Sge { lkey: mr.lkey(), addr: mr.va().wrapping_add(range.offset), len: range.len as u32 };
    end.own.work.post(&call.bind, (None, None), task, |wr_id| {
        let posted = end.qp.post_recv(ReceiveRequest { wr_id, local });
        posted.map_err(|error| CallFailure::Errno(error.errno()))
    })
}

/// Takes the oldest completion of a posted request. No system call: also without the NIC.
pub(super) fn poll(call: &Call, task: &Task) -> Result<Reply, CallFailure> {
    let Op::Poll { context } = &call.op else { return Err(call.unknown()) };
    let on = call.context(context)?;
    on.context.check_holder(task)?;
    let Some((done, request)) = on.work.oldest(&on.cq) else { return Reply::value("none") };
    let PostedRequest { name, buffer, window } = request;
    let value = match done.status {
        WorkStatus::Success => requests::value(&done, buffer.as_ref()),
        _ => Ok(None),
    };
    if let Some(buffer) = buffer {
        buffer.release(task);
    }
    if let (Some(window), true) = (window, done.status != WorkStatus::Success) {
        window.not_bound();
    }
    let value = value?.map_or(String::new(), |value| format!(":{value}"));
    Reply::value(format!("{name}:{}{value}", requests::status(done.status)))
}
