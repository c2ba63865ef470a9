//! Reliable connected queue pairs.
//!
//! It owns a queue pair's state and its two queues. Invariants: every accepted request that is
//! signaled or fails is completed exactly once and in the order posted, unless the queue pair is
//! reset or destroyed; after the first failure every later request is flushed; the state moves only
//! by the table of [`super::qp_state`]. Kernel counterpart: `struct ib_qp`, `rxe_qp.c`.
//!
//! An entry of the send queue is free again when its request has been executed (as in `rxe`), not
//! when its completion was polled. The depth of the completion queue bounds the completions.
//!
//! A request can wait in the send queue between its posting and its execution: in SQD, and a send
//! whose peer has no receive posted, if [`RnrRetry::Forever`] is set. Later requests wait behind
//! it. The thread that ends the wait executes them: `ibv_modify_qp` to RTS, the peer's
//! [`Qp::post_recv`], or an end of either queue pair.

use std::collections::VecDeque;

use emulator::race_point;
use emulator::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use emulator::sync::{Arc, Mutex, Weak};

use fs_sim::Kernel;

use super::combining_queue::CombiningQueue;
use super::cq::Cq;
use super::owner::QueueOwner;
use super::qp_state::{QpEvent, QpState, QpTransitionError};
use super::requester::{self, PeerLink, SendEngine, SendWork};
use super::work::{Completion, PostError, ReceiveRequest, WorkRequest, check_len};
use crate::memory::access::{QpIdentity, Sge};
use crate::memory::fault::WorkFault;
use crate::memory::mw::{Mw, MwType, WindowBind};
use crate::memory::nic::Nic;
use crate::memory::protection::MemoryAccessor;
use crate::transport::operation::{WorkOpcode, WorkOperation, WorkStatus};
use crate::transport::{InProcess, Responder, Transport, WaitingSender};

/// The most requests that a send or receive queue can be made for.
pub const WORK_MAX: u32 = 1 << 14;

/// What a queue pair is made with.
#[derive(Clone)]
pub struct QpConfig {
    /// The completion queue of sends.
    pub send_cq: Arc<Cq>,
    /// The completion queue of receives. It may be the same queue.
    pub recv_cq: Arc<Cq>,
    /// The most sends that wait: while another thread executes the send queue, or in a held queue.
    pub max_send: u32,
    /// The most receives that wait for a message.
    pub max_recv: u32,
}

/// How often a send is tried again for which the peer has no receive posted. The `rnr_retry` of
/// `ibv_modify_qp`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RnrRetry {
    /// 0: it fails at once.
    #[default]
    Never,
    /// 7: it waits in the send queue until the peer has posted a receive.
    Forever,
}

/// The receives of a queue pair.
#[derive(Default)]
struct ReceiveQueue {
    posted: VecDeque<ReceiveRequest>,
    /// One has been taken out and is not completed yet. Meanwhile no other one is completed, so
    /// completions come in the order posted.
    completing: bool,
    /// Counts the resets. A receive that was taken before the last one is no longer the queue's.
    resets: u64,
    /// Send queues that wait until a receive is posted here, or until this queue pair ends.
    waiting: Vec<Weak<dyn WaitingSender>>,
}

/// A reliable connected queue pair.
///
/// ```
/// # use emulator::World;
/// # use emulator::device::Device;
/// # use emulator::sync::Arc;
/// # use fs_sim::design::presets;
/// # use fs_sim::{Kernel, KernelConfig};
/// use rdma_sim::{AccessFlags, Context, Qp, QpConfig, QpState, Sge};
/// use rdma_sim::{WorkOperation, WorkRequest, WorkStatus};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let config = KernelConfig::new(presets()[0].axes);
/// # let kernel = Kernel::new(Arc::new(World::manual(1)), Device::memory(2 << 20)?, config)?;
/// # let task = kernel.spawn();
/// let (_fd, context) = Context::open(&task)?;
/// let pd = context.alloc_pd(&task)?;
/// let cq = context.create_cq(&task, 16)?;
/// let (send_cq, recv_cq) = (Arc::clone(&cq), Arc::clone(&cq));
/// let config = QpConfig { send_cq, recv_cq, max_send: 8, max_recv: 8 };
/// let a = context.create_qp(&task, &pd, config.clone())?;
/// let b = context.create_qp(&task, &pd, config)?;
/// Qp::connect(&a, &b)?;
///
/// let (va, memory) = task.mmap_anonymous(4096)?;
/// let mr = context.reg_mr(&task, &pd, va, 4096, AccessFlags::ALL)?;
/// memory.write(0, b"8 bytes!")?;
/// let local = Sge { lkey: mr.lkey(), addr: va, len: 8 };
/// let (wr_id, op, remote_addr, rkey) = (1, WorkOperation::Write, va + 64, mr.rkey());
/// a.post_send(WorkRequest { wr_id, op, local, remote_addr, rkey, signaled: true })?;
///
/// let done = cq.poll_one().ok_or("no completion")?;
/// assert_eq!((done.wr_id, done.status), (1, WorkStatus::Success));
/// assert_eq!(a.state(), QpState::ReadyToSend);
/// # Ok(())
/// # }
/// ```
pub struct Qp {
    number: u32,
    pd: u32,
    config: QpConfig,
    owner: Arc<dyn QueueOwner>,
    nic: Arc<Nic>,
    kernel: Arc<Kernel>,
    state: AtomicU32,
    /// Whether `rnr_retry` is [`RnrRetry::Forever`].
    waits_for_receive: AtomicBool,
    sends: CombiningQueue<SendWork, SendEngine>,
    receives: Mutex<ReceiveQueue>,
    /// Itself, for the peer to end a wait.
    this: Weak<Qp>,
}

impl Qp {
    pub(crate) fn new(number: u32, pd: u32, config: QpConfig, owner: Arc<dyn QueueOwner>) -> Arc<Qp> {
        let (nic, kernel) = (Arc::clone(owner.nic()), Arc::clone(owner.kernel()));
        Arc::new_cyclic(|this| Qp {
            number,
            pd,
            config,
            owner,
            nic,
            kernel,
            state: AtomicU32::new(QpState::START as u32),
            waits_for_receive: AtomicBool::new(false),
            sends: CombiningQueue::new(SendEngine::default()),
            receives: Mutex::new(ReceiveQueue::default()),
            this: Weak::clone(this),
        })
    }

    /// Its number, unique on the NIC.
    pub fn number(&self) -> u32 {
        self.number
    }

    pub(crate) fn pd(&self) -> u32 {
        self.pd
    }

    /// The completion queue of its sends.
    pub fn send_cq(&self) -> &Arc<Cq> {
        &self.config.send_cq
    }

    /// The completion queue of its receives.
    pub fn recv_cq(&self) -> &Arc<Cq> {
        &self.config.recv_cq
    }

    /// Its context, as this layer sees it.
    pub(crate) fn owner(&self) -> &Arc<dyn QueueOwner> {
        &self.owner
    }

    pub(crate) fn nic(&self) -> &Nic {
        &self.nic
    }

    pub(crate) fn identity(&self) -> QpIdentity {
        QpIdentity { number: self.number, pd: self.pd }
    }

    /// Its access to the memory of its machine.
    pub(crate) fn accessor(&self) -> MemoryAccessor<'_> {
        MemoryAccessor { nic: &self.nic, kernel: &self.kernel, qp: self.identity() }
    }

    /// Its state.
    pub fn state(&self) -> QpState {
        QpState::from_word(self.state.load(Ordering::SeqCst))
    }

    /// Moves the state by the table, and returns the state before. The only way to change it.
    fn advance(&self, event: QpEvent) -> Result<QpState, QpTransitionError> {
        let next = |word| QpState::from_word(word).next(event).ok().map(|to| to as u32);
        match self.state.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next) {
            Ok(before) => Ok(QpState::from_word(before)),
            Err(word) => Err(QpTransitionError { qp_num: self.number, found: QpState::from_word(word), event }),
        }
    }

    /// Connects two queue pairs of this machine, both in RESET, and moves them to RTS.
    ///
    /// # Errors
    /// [`QpTransitionError`] if one of them is in another state. Transitions made before that stay.
    pub fn connect(a: &Arc<Qp>, b: &Arc<Qp>) -> Result<(), QpTransitionError> {
        let transport: Arc<dyn Transport> = Arc::new(InProcess);
        for qp in [a, b] {
            qp.initialise()?;
        }
        a.attach(b, Arc::clone(&transport))?;
        b.attach(a, transport)?;
        for qp in [a, b] {
            qp.start()?;
        }
        Ok(())
    }

    /// RESET to INIT: from now on the queue pair accepts receives.
    ///
    /// # Errors
    /// [`QpTransitionError`].
    pub fn initialise(&self) -> Result<(), QpTransitionError> {
        self.advance(QpEvent::Initialise).map(|_| ())
    }

    /// INIT to RTR: the queue pair answers `peer` and, from RTS on, sends to it over `transport`.
    ///
    /// # Errors
    /// [`QpTransitionError`].
    pub fn attach(&self, peer: &Arc<Qp>, transport: Arc<dyn Transport>) -> Result<(), QpTransitionError> {
        self.advance(QpEvent::Attach)?;
        let link = PeerLink { peer: Arc::clone(peer) as Arc<dyn Responder>, transport };
        self.sends.command(SendWork::Attach(link), |engine, work| requester::run(self, engine, work));
        Ok(())
    }

    /// RTR or SQD to RTS: from now on the queue pair accepts and executes sends. This thread
    /// executes those that waited.
    ///
    /// # Errors
    /// [`QpTransitionError`].
    pub fn start(&self) -> Result<(), QpTransitionError> {
        if self.advance(QpEvent::Start)? == QpState::SendQueueDrained {
            self.resume_sends();
        }
        Ok(())
    }

    /// RTS to SQD: the request that a thread executes now goes on; every later one waits in the
    /// queue until [`Qp::start`]. The queue pair still answers its peer. Returns at once and raises
    /// no event, as without `en_sqd_async_notify`.
    ///
    /// # Errors
    /// [`QpTransitionError`].
    pub fn drain_sends(&self) -> Result<(), QpTransitionError> {
        self.advance(QpEvent::Drain).map(|_| ())
    }

    /// Sets how often a send is tried again that finds no receive. At first it is
    /// [`RnrRetry::Never`].
    pub fn set_rnr_retry(&self, retry: RnrRetry) {
        self.waits_for_receive.store(retry == RnrRetry::Forever, Ordering::SeqCst);
    }

    /// The number of sends that wait: in a held queue, or behind a request that another thread
    /// executes.
    pub fn waiting_sends(&self) -> usize {
        self.sends.waiting()
    }

    /// Has the send queue look again at what it waits for.
    fn resume_sends(&self) {
        self.sends.resume(|engine, work| requester::run(self, engine, work));
    }

    /// Whether a send that finds no receive waits for one at `peer`: true if `peer` will end the
    /// wait, false if the send fails, or can be tried again now.
    pub(crate) fn awaits_receive(&self, peer: &dyn Responder) -> bool {
        let this = Weak::clone(&self.this);
        peer.await_receive(this)
    }

    /// How often a send is tried again that finds no receive.
    pub fn rnr_retry(&self) -> RnrRetry {
        match self.waits_for_receive.load(Ordering::SeqCst) {
            true => RnrRetry::Forever,
            false => RnrRetry::Never,
        }
    }

    /// The number of receives that are posted and not used.
    pub fn posted_receives(&self) -> usize {
        self.receives.lock().posted.len()
    }

    /// To ERR: queued work is flushed. No effect if the queue pair is in error or destroyed.
    pub fn fail(&self) {
        if self.begin_failure() {
            self.flush();
        }
    }

    /// Puts several queue pairs into ERR before it flushes the first one. So a send that waits for
    /// a receive of another one of them is flushed too.
    pub(crate) fn fail_all(qps: &[Arc<Qp>]) {
        for qp in qps {
            qp.begin_failure();
        }
        for qp in qps {
            qp.flush();
        }
    }

    /// To ERR, nothing flushed yet. True if the caller must flush.
    pub(crate) fn begin_failure(&self) -> bool {
        self.advance(QpEvent::Fail).is_ok_and(|before| before != QpState::Error)
    }

    /// Flushes what a queue pair in ERR has queued. A second call finds nothing.
    fn flush(&self) {
        race_point!("qp: in error, not flushed");
        // A thread that posts or completes a receive reads the state under the same lock: it
        // flushes what this thread does not. The thread that runs the send queue flushes the sends;
        // of a held queue this thread is that one.
        let waiting = std::mem::take(&mut self.receives.lock().waiting);
        self.flush_receives();
        self.resume_sends();
        end_waits(waiting);
    }

    /// To RESET: queued work vanishes without completion, and the connection is dropped.
    ///
    /// # Errors
    /// [`QpTransitionError`] if the queue pair is destroyed, or if its context was aborted: then it
    /// stays in ERR.
    pub fn reset(&self) -> Result<(), QpTransitionError> {
        let aborted = || QpTransitionError { qp_num: self.number, found: QpState::Error, event: QpEvent::Reset };
        if self.owner.is_aborted() {
            return Err(aborted());
        }
        self.advance(QpEvent::Reset)?;
        self.forget_work();
        // An abort first marks the context, then puts every queue pair into error. So either that
        // comes after the transition above, or the mark is visible here.
        if self.owner.is_aborted() {
            self.fail();
            return Err(aborted());
        }
        Ok(())
    }

    /// Destroys the queue pair. Idempotent.
    pub(crate) fn destroy(&self) {
        if self.advance(QpEvent::Destroy).is_ok() {
            self.forget_work();
        }
    }

    fn forget_work(&self) {
        let waiting = {
            let mut receives = self.receives.lock();
            receives.posted.clear();
            receives.completing = false;
            receives.resets += 1;
            std::mem::take(&mut receives.waiting)
        };
        self.sends.command(SendWork::Detach, |engine, work| requester::run(self, engine, work));
        end_waits(waiting);
    }

    /// Posts a request to the send queue. The posting thread executes it, and also what other
    /// threads post meanwhile. If another thread already runs the queue, that thread executes the
    /// request. When this returns, no other thread runs the queue and the queue is not held, the
    /// completion is in its completion queue.
    ///
    /// # Errors
    /// [`PostError`]; nothing is queued. In ERR requests are accepted, and completed as flushed. In
    /// SQD they are accepted and wait.
    pub fn post_send(&self, request: WorkRequest) -> Result<(), PostError> {
        let state = self.state();
        if !state.accepts_sends() {
            return Err(PostError::NotReady { qp_num: self.number, state });
        }
        check_len(request.op, request.local.len)?;
        if let WorkOperation::BindMw(bind) = request.op {
            self.check_window(bind.rkey, MwType::Type2)?;
        }
        self.submit(request)
    }

    /// Posts the binding of a type 1 window to the send queue, behind earlier requests. Returns the
    /// window's new key (`bind.rkey` is ignored). The key opens the window once the binding has
    /// completed. A binding of no bytes unbinds the window.
    ///
    /// # Errors
    /// [`PostError`]; nothing is queued. A binding that the region does not permit completes with
    /// [`WorkStatus::MemoryWindowBindError`], and the queue pair goes to error.
    pub fn bind_mw(&self, wr_id: u64, mw: &Mw, bind: WindowBind, signaled: bool) -> Result<u32, PostError> {
        let state = self.state();
        if !state.accepts_sends() {
            return Err(PostError::NotReady { qp_num: self.number, state });
        }
        self.check_window(mw.rkey(), MwType::Type1)?;
        let bind = WindowBind { rkey: mw.issue_rkey(), ..bind };
        let (op, local) = (WorkOperation::BindMw(bind), Sge::default());
        self.submit(WorkRequest { wr_id, op, local, remote_addr: 0, rkey: 0, signaled })?;
        Ok(bind.rkey)
    }

    fn check_window(&self, rkey: u32, kind: MwType) -> Result<(), PostError> {
        let expected = match kind {
            MwType::Type1 => "a window of type 1",
            MwType::Type2 => "a window of type 2",
        };
        let found = self.nic.windows.find(rkey).is_some_and(|window| window.kind() == kind);
        if found { Ok(()) } else { Err(PostError::Window { rkey, expected }) }
    }

    fn submit(&self, request: WorkRequest) -> Result<(), PostError> {
        let bound = self.config.max_send;
        self.sends
            .submit(SendWork::Request(request), bound as usize, |engine, work| requester::run(self, engine, work))
            .map_err(|_| PostError::Full { qp_num: self.number, bound })
    }

    /// Posts a receive: memory for one message. Accepted from INIT on; in ERR completed as flushed.
    /// This thread executes the peer's send that waited for it.
    ///
    /// # Errors
    /// [`PostError`]; nothing is queued.
    pub fn post_recv(&self, receive: ReceiveRequest) -> Result<(), PostError> {
        let qp_num = self.number;
        let waiting = {
            let mut receives = self.receives.lock();
            let state = self.state();
            if matches!(state, QpState::Reset | QpState::Destroyed) {
                return Err(PostError::NotReady { qp_num, state });
            }
            if receives.posted.len() >= self.config.max_recv as usize {
                return Err(PostError::Full { qp_num, bound: self.config.max_recv });
            }
            receives.posted.push_back(receive);
            if state == QpState::Error { None } else { Some(std::mem::take(&mut receives.waiting)) }
        };
        match waiting {
            Some(waiting) => end_waits(waiting),
            None => self.flush_receives(),
        }
        Ok(())
    }

    /// Registers a send queue that waits for a receive. False if there is nothing to wait for: a
    /// receive is posted, or this queue pair does not answer.
    pub(crate) fn add_waiting(&self, sender: Weak<dyn WaitingSender>) -> bool {
        let mut receives = self.receives.lock();
        if !receives.posted.is_empty() || !self.state().answers() {
            return false;
        }
        let same = |other: &Weak<dyn WaitingSender>| std::ptr::addr_eq(other.as_ptr(), sender.as_ptr());
        receives.waiting.retain(|other| other.strong_count() > 0 && !same(other));
        receives.waiting.push(sender);
        true
    }

    /// Takes the oldest receive, for a message that has arrived.
    pub(crate) fn take_receive(&self) -> Option<TakenReceive<'_>> {
        let mut receives = self.receives.lock();
        let request = if receives.completing { None } else { receives.posted.pop_front() }?;
        receives.completing = true;
        Some(TakenReceive { qp: self, request, resets: receives.resets })
    }

    /// Completes the receives of a queue pair in ERR as flushed, the oldest first. Where another
    /// thread completes one, that thread goes on with the rest.
    fn flush_receives(&self) {
        loop {
            let taken = match self.state() {
                QpState::Error => self.take_receive(),
                _ => None,
            };
            let Some(taken) = taken else { return };
            self.flush_receive(taken.request);
            taken.leave();
        }
    }

    fn flush_receive(&self, receive: ReceiveRequest) {
        if self.state() != QpState::Error {
            return;
        }
        // The queue pair is already in error, so a full completion queue has no further effect on
        // it.
        let _lost = self.config.recv_cq.push(Completion {
            wr_id: receive.wr_id,
            status: WorkStatus::Flushed,
            opcode: WorkOpcode::Recv,
            byte_len: 0,
            qp_num: self.number,
            vendor_err: WorkFault::Behind,
            invalidated: None,
        });
    }

    /// Completes a receive. Returns false if the completion queue had no room.
    pub(crate) fn complete_receive(
        &self,
        wr_id: u64,
        status: WorkStatus,
        byte_len: u32,
        vendor_err: WorkFault,
    ) -> bool {
        let (opcode, qp_num, invalidated) = (WorkOpcode::Recv, self.number, None);
        let done = Completion { wr_id, status, opcode, byte_len, qp_num, vendor_err, invalidated };
        self.config.recv_cq.push(done).is_ok()
    }

    /// Completes a receive with success. `invalidated`: the key that the message invalidated.
    /// Returns false if the completion queue had no room.
    pub(crate) fn complete_message(&self, wr_id: u64, byte_len: u32, invalidated: Option<u32>) -> bool {
        let (opcode, qp_num, vendor_err) = (WorkOpcode::Recv, self.number, WorkFault::None);
        let done = Completion { wr_id, status: WorkStatus::Success, opcode, byte_len, qp_num, vendor_err, invalidated };
        self.config.recv_cq.push(done).is_ok()
    }

    /// Completes a send. If the completion queue has no room, the queue pair goes to error.
    pub(crate) fn complete_send(
        &self,
        wr_id: u64,
        op: WorkOperation,
        status: WorkStatus,
        byte_len: u32,
        vendor_err: WorkFault,
    ) {
        let (opcode, qp_num, invalidated) = (op.opcode(), self.number, None);
        let done = Completion { wr_id, status, opcode, byte_len, qp_num, vendor_err, invalidated };
        if self.config.send_cq.push(done).is_err() {
            self.fail();
        }
    }
}

/// A receive that a thread has taken out of its queue, to complete it.
pub(crate) struct TakenReceive<'q> {
    qp: &'q Qp,
    /// What was posted.
    pub(crate) request: ReceiveRequest,
    /// Of the queue, when it was taken.
    resets: u64,
}

impl TakenReceive<'_> {
    /// Puts it back, because the message did not arrive whole.
    pub(crate) fn put_back(self) {
        let waiting = {
            let mut receives = self.qp.receives.lock();
            if receives.resets == self.resets {
                receives.posted.push_front(self.request);
            }
            // In ERR it is flushed with the others.
            if self.qp.state().answers() { std::mem::take(&mut receives.waiting) } else { Vec::new() }
        };
        drop(self);
        end_waits(waiting);
    }

    /// Lets the next one be taken.
    fn leave(self) {
        self.completed();
        std::mem::forget(self);
    }

    fn completed(&self) {
        let mut receives = self.qp.receives.lock();
        if receives.resets == self.resets {
            receives.completing = false;
        }
    }
}

impl Drop for TakenReceive<'_> {
    fn drop(&mut self) {
        self.completed();
        self.qp.flush_receives();
    }
}

impl WaitingSender for Qp {
    fn try_again(&self) {
        self.resume_sends();
    }
}

/// Has each of these send queues look again. The caller holds no lock.
fn end_waits(waiting: Vec<Weak<dyn WaitingSender>>) {
    for sender in waiting.iter().filter_map(Weak::upgrade) {
        sender.try_again();
    }
}
