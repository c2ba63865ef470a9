//! Reliable connected queue pairs.
//!
//! It owns a pair's state and its two queues. Invariants: every request taken is completed (if signaled or failed) exactly
//! once and in the order posted, unless the pair is reset or destroyed; behind the first failure everything is flushed; the
//! state moves by the table of [`super::state`] only. Kernel counterpart: `struct ib_qp`, `rxe_qp.c`.
//!
//! A slot of the send queue is free again when its request has been executed (as in `rxe`), not when its completion was
//! polled; what bounds the completions is the completion queue's depth.

use std::collections::VecDeque;

use emulator::race_point;
use emulator::sync::atomic::{AtomicU32, Ordering};
use emulator::sync::{Arc, Mutex};

use super::context::Context;
use super::cq::Cq;
use super::mw::{Bind, Mw, MwType};
use super::state::{Event, QpState, TransitionError};
use super::work::{Completion, Fault, Op, Opcode, PostError, Receive, Sge, Status, WorkRequest};
use crate::engine::requester::{self, Engine, Link, Work};
use crate::engine::turns::Turns;
use crate::transport::{InProcess, Transport};

/// The deepest send or receive queue.
pub const WORK_MAX: u32 = 1 << 14;

/// What a queue pair is made of.
#[derive(Clone)]
pub struct QpConfig {
    /// Where sends are completed.
    pub send_cq: Arc<Cq>,
    /// Where receives are completed; may be the same.
    pub recv_cq: Arc<Cq>,
    /// How many sends may be queued while another thread's are executed.
    pub max_send: u32,
    /// How many receives may be posted ahead.
    pub max_recv: u32,
}

/// See the module.
pub struct Qp {
    number: u32,
    pd: u32,
    config: QpConfig,
    context: Arc<Context>,
    state: AtomicU32,
    sends: Turns<Work, Engine>,
    receives: Mutex<VecDeque<Receive>>,
}

impl Qp {
    pub(crate) fn new(number: u32, pd: u32, config: QpConfig, context: Arc<Context>) -> Qp {
        Qp {
            number,
            pd,
            config,
            context,
            state: AtomicU32::new(QpState::Reset as u32),
            sends: Turns::new(Engine::default()),
            receives: Mutex::new(VecDeque::new()),
        }
    }

    /// Its number, unique on the NIC.
    pub fn number(&self) -> u32 {
        self.number
    }

    pub(crate) fn pd(&self) -> u32 {
        self.pd
    }

    /// Where its sends are completed.
    pub fn send_cq(&self) -> &Arc<Cq> {
        &self.config.send_cq
    }

    /// Where its receives are completed.
    pub fn recv_cq(&self) -> &Arc<Cq> {
        &self.config.recv_cq
    }

    /// Its context.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Its state.
    pub fn state(&self) -> QpState {
        QpState::from_word(self.state.load(Ordering::SeqCst))
    }

    /// Moves the state; the one before.
    fn step(&self, event: Event) -> Result<QpState, TransitionError> {
        let next = |word| QpState::from_word(word).after(event).map(|to| to as u32);
        match self.state.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next) {
            Ok(before) => Ok(QpState::from_word(before)),
            Err(word) => Err(TransitionError { qp_num: self.number, found: QpState::from_word(word), event }),
        }
    }

    /// Connects two queue pairs of this machine, both in RESET, and takes them to RTS.
    ///
    /// # Errors
    /// [`TransitionError`] if one is in no state for it; the states they had reached by then stay.
    pub fn connect(a: &Arc<Qp>, b: &Arc<Qp>) -> Result<(), TransitionError> {
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

    /// RESET to INIT: takes receives from now on.
    ///
    /// # Errors
    /// [`TransitionError`].
    pub fn initialise(&self) -> Result<(), TransitionError> {
        self.step(Event::Initialise).map(|_| ())
    }

    /// INIT to RTR: `peer` is who it hears and, from RTS on, talks to over `transport`.
    ///
    /// # Errors
    /// [`TransitionError`].
    pub fn attach(&self, peer: &Arc<Qp>, transport: Arc<dyn Transport>) -> Result<(), TransitionError> {
        self.step(Event::Attach)?;
        let link = Link { peer: Arc::clone(peer), transport };
        self.sends.command(Work::Attach(link), |engine, work| requester::run(self, engine, work));
        Ok(())
    }

    /// RTR to RTS: takes sends from now on.
    ///
    /// # Errors
    /// [`TransitionError`].
    pub fn start(&self) -> Result<(), TransitionError> {
        self.step(Event::Start).map(|_| ())
    }

    /// To ERR: what is queued is flushed. No effect on one that is in error already or gone.
    pub fn fail(&self) {
        let Ok(before) = self.step(Event::Fail) else { return };
        if before == QpState::Error {
            return;
        }
        race_point!("qp: in error, not flushed");
        // Whoever posts a receive looks at the state under the same lock: it is either in here or flushes itself. Sends are
        // flushed by whoever runs the queue.
        let flushed = std::mem::take(&mut *self.receives.lock());
        for receive in flushed {
            self.flush_receive(receive);
        }
    }

    /// To RESET: what is queued vanishes, the peer is forgotten.
    ///
    /// # Errors
    /// [`TransitionError`] if it is gone, or its context was aborted: then it stays in ERR.
    pub fn reset(&self) -> Result<(), TransitionError> {
        let aborted = || TransitionError { qp_num: self.number, found: QpState::Error, event: Event::Reset };
        if self.context.is_aborted() {
            return Err(aborted());
        }
        self.step(Event::Reset)?;
        self.forget_work();
        // An abort puts every pair into error after it is marked: either it comes after our step, or we see the mark here.
        if self.context.is_aborted() {
            self.fail();
            return Err(aborted());
        }
        Ok(())
    }

    /// The end. Idempotent.
    pub(crate) fn destroy(&self) {
        if self.step(Event::Destroy).is_ok() {
            self.forget_work();
        }
    }

    fn forget_work(&self) {
        self.receives.lock().clear();
        self.sends.command(Work::Detach, |engine, work| requester::run(self, engine, work));
    }

    /// Posts a request to the send queue. The posting thread executes it, and whatever others post meanwhile; if another
    /// thread is at it, that one will. Once this returns without another thread at work, the completion is in its queue.
    ///
    /// # Errors
    /// [`PostError`]; nothing was queued. In ERR requests are taken, and completed as flushed.
    pub fn post_send(&self, request: WorkRequest) -> Result<(), PostError> {
        let state = self.state();
        if !matches!(state, QpState::ReadyToSend | QpState::Error) {
            return Err(PostError::NotReady { qp_num: self.number, state });
        }
        request.op.check_len(request.local.len)?;
        if let Op::BindMw(bind) = request.op {
            self.check_window(bind.rkey, MwType::Type2)?;
        }
        self.submit(request)
    }

    /// Posts the binding of a type 1 window: to the send queue, behind what was posted before. The window's new key is
    /// returned (what `bind.rkey` says is not looked at); it opens once the binding has completed. Binding no bytes unbinds.
    ///
    /// # Errors
    /// [`PostError`]; nothing was queued. A binding that turns out wrong completes with
    /// [`Status::MemoryWindowBindError`], and the pair is in error.
    pub fn bind_mw(&self, wr_id: u64, mw: &Mw, bind: Bind, signaled: bool) -> Result<u32, PostError> {
        let state = self.state();
        if !matches!(state, QpState::ReadyToSend | QpState::Error) {
            return Err(PostError::NotReady { qp_num: self.number, state });
        }
        self.check_window(mw.rkey(), MwType::Type1)?;
        let bind = Bind { rkey: mw.issue_rkey(), ..bind };
        let (op, local) = (Op::BindMw(bind), Sge::default());
        self.submit(WorkRequest { wr_id, op, local, remote_addr: 0, rkey: 0, signaled })?;
        Ok(bind.rkey)
    }

    fn check_window(&self, rkey: u32, kind: MwType) -> Result<(), PostError> {
        let expected = match kind {
            MwType::Type1 => "a window of type 1",
            MwType::Type2 => "a window of type 2",
        };
        let found = self.context.nic().windows.find(rkey).is_some_and(|window| window.kind() == kind);
        if found { Ok(()) } else { Err(PostError::Window { rkey, expected }) }
    }

    fn submit(&self, request: WorkRequest) -> Result<(), PostError> {
        let bound = self.config.max_send;
        self.sends
            .submit(Work::Request(request), bound as usize, |engine, work| requester::run(self, engine, work))
            .map_err(|_| PostError::Full { qp_num: self.number, bound })
    }

    /// Posts a place for a message. Taken from INIT on; in ERR completed as flushed.
    ///
    /// # Errors
    /// [`PostError`]; nothing was queued.
    pub fn post_recv(&self, receive: Receive) -> Result<(), PostError> {
        let qp_num = self.number;
        {
            let mut receives = self.receives.lock();
            let state = self.state();
            match state {
                QpState::Reset | QpState::Destroyed => return Err(PostError::NotReady { qp_num, state }),
                QpState::Error => {}
                QpState::Init | QpState::ReadyToReceive | QpState::ReadyToSend => {
                    let bound = self.config.max_recv;
                    if receives.len() >= bound as usize {
                        return Err(PostError::Full { qp_num, bound });
                    }
                    receives.push_back(receive);
                    return Ok(());
                }
            }
        }
        self.flush_receive(receive);
        Ok(())
    }

    /// Takes the oldest receive, for a message that has come.
    pub(crate) fn take_receive(&self) -> Option<Receive> {
        self.receives.lock().pop_front()
    }

    /// Puts a receive back: the message never came whole.
    pub(crate) fn return_receive(&self, receive: Receive) {
        {
            let mut receives = self.receives.lock();
            if self.state().answers() {
                receives.push_front(receive);
                return;
            }
        }
        self.flush_receive(receive);
    }

    fn flush_receive(&self, receive: Receive) {
        if self.state() != QpState::Error {
            return;
        }
        // In error already: a completion queue without room for this can do no more to the pair.
        let _lost = self.config.recv_cq.push(Completion {
            wr_id: receive.wr_id,
            status: Status::Flushed,
            opcode: Opcode::Recv,
            byte_len: 0,
            qp_num: self.number,
            vendor_err: Fault::Behind,
            invalidated: None,
        });
    }

    /// Completes a receive; false if the completion found no room.
    pub(crate) fn complete_receive(&self, wr_id: u64, status: Status, byte_len: u32, vendor_err: Fault) -> bool {
        let (opcode, qp_num, invalidated) = (Opcode::Recv, self.number, None);
        let done = Completion { wr_id, status, opcode, byte_len, qp_num, vendor_err, invalidated };
        self.config.recv_cq.push(done).is_ok()
    }

    /// Completes a receive with success, of a message that invalidated a key or none; false if there was no room.
    pub(crate) fn complete_message(&self, wr_id: u64, byte_len: u32, invalidated: Option<u32>) -> bool {
        let (opcode, qp_num, vendor_err) = (Opcode::Recv, self.number, Fault::None);
        let done = Completion { wr_id, status: Status::Success, opcode, byte_len, qp_num, vendor_err, invalidated };
        self.config.recv_cq.push(done).is_ok()
    }

    /// Completes a send. A queue that has no room for it puts the pair into error.
    pub(crate) fn complete_send(&self, wr_id: u64, op: Op, status: Status, byte_len: u32, vendor_err: Fault) {
        let (opcode, qp_num, invalidated) = (op.opcode(), self.number, None);
        let done = Completion { wr_id, status, opcode, byte_len, qp_num, vendor_err, invalidated };
        if self.config.send_cq.push(done).is_err() {
            self.fail();
        }
    }
}
