//! Contexts: a program's opening of the NIC, an open description like a file's, and the end of everything made on it.
//!
//! It owns the lists of a context's objects and the context's state. Invariants: an object is on its list from before its
//! maker returns until it is destroyed; a context is open, then perhaps aborted, then closed, never back; whoever ends it
//! finds on the lists every object made before, and every object's maker that comes later finds the state changed. So no
//! region outlives its context, whichever of `reg_mr`, revocation, close and death comes first. Kernel counterpart:
//! `struct ib_uverbs_file`, `uverbs_destroy_ufile_hw`, `ib_uverbs_disassociate_ucontext`.
//!
//! # Passing
//! A context travels as any descriptor does; the design's `pass_context` is asked at `sendmsg`, `recvmsg` and `fork`. Under
//! `deny` the sender's fd_holders is recorded before the context's file pins are counted, and a registration counts its pin
//! before it looks at the fd_holders: of two that race at least one is refused.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::task::Poll;

use emulator::race_point;
use emulator::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use emulator::sync::{Arc, Mutex};
use emulator::wait::{WaitFor, WaitQueue};
use fs_sim::base::numbers::{Fd, Pid};
use fs_sim::design::PassRule;
use fs_sim::holders::holder::PinHolder;
use fs_sim::pinning::admission::LongTermUser;
use fs_sim::pinning::registration::{PinRequest, Registration};
use fs_sim::vfs::fd_holders::FdHolders;
use fs_sim::vfs::open_file::{Deferred, OpenObject, Passing};
use fs_sim::{Errno, Kernel, Task};

use super::cq::{self, Cq};
use super::mr::{AccessFlags, Mr};
use super::mw::Mw;
use super::pd::Pd;
use super::qp::{self, Qp, QpConfig};
use crate::Nic;
use crate::regions::Region;

/// How many domains, completion queues and queue pairs a context may have, each.
pub const OBJECTS_MAX: usize = 1 << 16;

/// How many asynchronous events wait to be taken; of more only the number is kept. The fatal one always has its place.
pub const EVENTS_MAX: usize = 64;

/// Something that happened to a context outside any request. `enum ib_event_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AsyncEvent {
    /// The context was aborted: its queue pairs are in error, its regions revoked.
    Fatal,
    /// A completion found this queue full.
    CqError {
        /// The queue's number.
        cq: u32,
    },
    /// This queue pair refused its peer's key, range or access and went to error.
    QpAccess {
        /// The queue pair's number.
        qp_num: u32,
    },
    /// This queue pair refused its peer's request as malformed and went to error.
    QpRequest {
        /// The queue pair's number.
        qp_num: u32,
    },
    /// This queue pair failed on its own side while it answered its peer.
    QpFatal {
        /// The queue pair's number.
        qp_num: u32,
    },
}

const OPEN: u32 = 0;
const ABORTED: u32 = 1;
const CLOSED: u32 = 2;

#[derive(Default)]
pub(super) struct Objects {
    /// Domains, and how many regions, windows and queue pairs use each.
    pub(super) pds: BTreeMap<u32, u32>,
    /// Completion queues, and how often queue pairs use each.
    cqs: BTreeMap<u32, (Arc<Cq>, u32)>,
    qps: BTreeMap<u32, Arc<Qp>>,
    pub(super) mrs: BTreeMap<u32, Arc<Mr>>,
    /// The keys of regions whose registration is being changed.
    pub(super) changing: BTreeSet<u32>,
    /// Memory windows, by the index in their keys.
    pub(super) mws: BTreeMap<u32, Arc<Mw>>,
}

/// See the module.
pub struct Context {
    number: u64,
    nic: Arc<Nic>,
    kernel: Arc<Kernel>,
    fd_holders: Arc<FdHolders>,
    state: AtomicU32,
    objects: Mutex<Objects>,
    events: Mutex<VecDeque<AsyncEvent>>,
    /// Where those wait who wait for an event.
    arrived: WaitQueue,
    /// Regions whose file pages are pinned, from before the first look at the fd_holders to after the last unpin.
    file_pins: AtomicU64,
    drained: WaitQueue,
}

impl Context {
    /// Opens the NIC. The context lives as long as a descriptor (or a message in a queue) refers to it.
    ///
    /// # Errors
    /// EMFILE.
    pub fn open(task: &Task) -> Result<(Fd, Arc<Context>), Errno> {
        let nic = Nic::of(task.kernel());
        let (fd, object) = task.install_object(|fd_holders| {
            Arc::new(Context {
                number: nic.number_context(),
                nic,
                kernel: Arc::clone(task.kernel()),
                fd_holders,
                state: AtomicU32::new(OPEN),
                objects: Mutex::new(Objects::default()),
                events: Mutex::new(VecDeque::new()),
                arrived: WaitQueue::new(),
                file_pins: AtomicU64::new(0),
                drained: WaitQueue::new(),
            })
        })?;
        object.as_any().downcast().map(|context| (fd, context)).map_err(|_| Errno::EINVAL)
    }

    /// The context open as `fd`, such as after it was received.
    ///
    /// # Errors
    /// EBADF if nothing is open there, EINVAL if it is something else.
    pub fn of(task: &Task, fd: Fd) -> Result<Arc<Context>, Errno> {
        task.object(fd)?.as_any().downcast().map_err(|_| Errno::EINVAL)
    }

    /// Its number, unique on the NIC and never reused.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The machine it is on.
    pub fn kernel(&self) -> &Arc<Kernel> {
        &self.kernel
    }

    /// The NIC it is on.
    pub fn nic(&self) -> &Arc<Nic> {
        &self.nic
    }

    /// Who holds it.
    pub fn fd_holders(&self) -> &Arc<FdHolders> {
        &self.fd_holders
    }

    /// Whether it was aborted by a revocation, and perhaps closed since: nothing works on it but taking things down.
    pub fn is_aborted(&self) -> bool {
        self.state.load(Ordering::SeqCst) != OPEN
    }

    /// How many of its regions pin pages of files.
    pub fn file_pins(&self) -> u64 {
        self.file_pins.load(Ordering::SeqCst)
    }

    /// Takes the oldest asynchronous event. `ibv_get_async_event`, without waiting.
    pub fn poll_event(&self) -> Option<AsyncEvent> {
        self.events.lock().pop_front()
    }

    /// Takes the oldest asynchronous event, waiting interruptibly until there is one. Each event goes to one taker.
    /// `ibv_get_async_event`.
    ///
    /// # Errors
    /// EBADF (the caller does not hold the context, or it was closed meanwhile), EINTR.
    pub fn wait_event(&self, task: &Task) -> Result<AsyncEvent, Errno> {
        self.check_caller(task)?;
        let ready = || match self.poll_event() {
            Some(event) => Poll::Ready(Ok(event)),
            None if self.state.load(Ordering::SeqCst) == CLOSED => Poll::Ready(Err(Errno::EBADF)),
            None => Poll::Pending,
        };
        let how = WaitFor::interruptible("an asynchronous event");
        match self.arrived.wait(self.kernel.world(), task.waiter(), how, ready) {
            Ok(event) => event,
            Err(_) if task.process().is_dying() => Err(Errno::Dead),
            Err(_) => Err(Errno::EINTR),
        }
    }

    pub(crate) fn raise(&self, event: AsyncEvent) {
        let kept = {
            let mut events = self.events.lock();
            let room = events.len() < EVENTS_MAX || event == AsyncEvent::Fatal;
            if room {
                events.push_back(event);
            }
            room
        };
        if kept {
            self.arrived.wake_all();
        } else {
            self.nic.counters.events_lost.add(1);
        }
    }

    /// Where those wait who wait for a region to be released.
    pub(crate) fn drained(&self) -> &WaitQueue {
        &self.drained
    }

    pub(super) fn file_pin_made(&self) {
        self.file_pins.fetch_add(1, Ordering::SeqCst);
    }

    /// Whether the design forbids a file's pins in this context, as it is held now, to `task`. To be asked after
    /// [`Context::file_pin_made`].
    pub(super) fn denies_file_pins(&self, task: &Task) -> bool {
        self.kernel.axes().pass_context == PassRule::Deny && self.fd_holders.shared_beyond(task.pid())
    }

    pub(crate) fn file_pin_gone(&self) {
        self.file_pins.fetch_sub(1, Ordering::SeqCst);
    }

    /// Whether `task` may call on this context at all.
    pub(super) fn check_caller(&self, task: &Task) -> Result<(), Errno> {
        if task.process().is_dying() {
            return Err(Errno::Dead);
        }
        if self.fd_holders.processes().contains(&task.pid()) { Ok(()) } else { Err(Errno::EBADF) }
    }

    /// Runs `change` on the lists of an open context.
    ///
    /// # Errors
    /// EIO if it was aborted, EBADF if it was closed; else what `change` says.
    pub(super) fn add<R>(&self, change: impl FnOnce(&mut Objects) -> Result<R, Errno>) -> Result<R, Errno> {
        let mut objects = self.objects.lock();
        // Looked at under the lock: whoever changes the state takes the lock after, and finds what we add.
        match self.state.load(Ordering::SeqCst) {
            OPEN => change(&mut objects),
            ABORTED => Err(Errno::EIO),
            _ => Err(Errno::EBADF),
        }
    }

    /// Runs `change` on the lists of a context in any state.
    pub(super) fn with_objects<R>(&self, change: impl FnOnce(&mut Objects) -> R) -> R {
        change(&mut self.objects.lock())
    }

    /// Makes a protection domain.
    ///
    /// # Errors
    /// EBADF (the caller does not hold the context), EIO (aborted), ENOMEM.
    pub fn alloc_pd(self: &Arc<Self>, task: &Task) -> Result<Arc<Pd>, Errno> {
        self.check_caller(task)?;
        let number = self.nic.number_pd()?;
        self.add(|objects| {
            if objects.pds.len() >= OBJECTS_MAX {
                return Err(Errno::ENOMEM);
            }
            objects.pds.insert(number, 0);
            Ok(Arc::new(Pd::new(number, self.number)))
        })
    }

    /// Takes a protection domain down.
    ///
    /// # Errors
    /// EBADF, EINVAL (not this context's), EBUSY (regions, windows or queue pairs use it).
    pub fn dealloc_pd(&self, task: &Task, pd: &Arc<Pd>) -> Result<(), Errno> {
        self.check_caller(task)?;
        let mut objects = self.objects.lock();
        match objects.pds.get(&pd.number()) {
            None => Err(Errno::EINVAL),
            Some(0) => {
                objects.pds.remove(&pd.number());
                Ok(())
            }
            Some(_) => Err(Errno::EBUSY),
        }
    }

    /// Makes a completion queue for up to `depth` completions.
    ///
    /// # Errors
    /// EBADF, EIO, ENOMEM; EINVAL if `depth` is 0 or above [`cq::DEPTH_MAX`].
    pub fn create_cq(self: &Arc<Self>, task: &Task, depth: u32) -> Result<Arc<Cq>, Errno> {
        self.check_caller(task)?;
        if depth == 0 || depth > cq::DEPTH_MAX {
            return Err(Errno::EINVAL);
        }
        let made = Arc::new(Cq::new(self.nic.number_cq()?, depth, Arc::clone(self)));
        self.add(|objects| {
            if objects.cqs.len() >= OBJECTS_MAX {
                return Err(Errno::ENOMEM);
            }
            objects.cqs.insert(made.number(), (Arc::clone(&made), 0));
            Ok(())
        })?;
        Ok(made)
    }

    /// Takes a completion queue down.
    ///
    /// # Errors
    /// EBADF, EINVAL (not this context's), EBUSY (queue pairs use it).
    pub fn destroy_cq(&self, task: &Task, cq: &Arc<Cq>) -> Result<(), Errno> {
        self.check_caller(task)?;
        let mut objects = self.objects.lock();
        match objects.cqs.get(&cq.number()) {
            None => Err(Errno::EINVAL),
            Some((_, 0)) => {
                objects.cqs.remove(&cq.number());
                Ok(())
            }
            Some(_) => Err(Errno::EBUSY),
        }
    }

    /// Makes a reliable connected queue pair, in RESET.
    ///
    /// # Errors
    /// EBADF, EIO, ENOMEM; EINVAL if the domain or a completion queue is not this context's, or a bound is 0 or above
    /// [`qp::WORK_MAX`].
    pub fn create_qp(self: &Arc<Self>, task: &Task, pd: &Arc<Pd>, config: QpConfig) -> Result<Arc<Qp>, Errno> {
        self.check_caller(task)?;
        let in_bounds = |bound: u32| (1..=qp::WORK_MAX).contains(&bound);
        if !in_bounds(config.max_send) || !in_bounds(config.max_recv) {
            return Err(Errno::EINVAL);
        }
        let cqs = [config.send_cq.number(), config.recv_cq.number()];
        let made = Arc::new(Qp::new(self.nic.number_qp()?, pd.number(), config, Arc::clone(self)));
        self.add(|objects| {
            if objects.qps.len() >= OBJECTS_MAX {
                return Err(Errno::ENOMEM);
            }
            if !objects.pds.contains_key(&pd.number()) || !cqs.iter().all(|cq| objects.cqs.contains_key(cq)) {
                return Err(Errno::EINVAL);
            }
            objects.count_qp(&made, true);
            objects.qps.insert(made.number(), Arc::clone(&made));
            Ok(())
        })?;
        Ok(made)
    }

    /// Takes a queue pair down: requests that still wait vanish without completion, the peer hears nothing any more.
    ///
    /// # Errors
    /// EBADF, EINVAL (not this context's, or destroyed before).
    pub fn destroy_qp(&self, task: &Task, qp: &Arc<Qp>) -> Result<(), Errno> {
        self.check_caller(task)?;
        {
            let mut objects = self.objects.lock();
            let qp = objects.qps.remove(&qp.number()).ok_or(Errno::EINVAL)?;
            objects.count_qp(&qp, false);
        }
        qp.destroy();
        Ok(())
    }

    /// Registers `len` bytes of the caller's memory at `va`. File pages pass the design's gate and are pinned (or, on demand,
    /// faulted in at each access) until the region is deregistered or revoked or the context is closed.
    ///
    /// # Errors
    /// EBADF (the caller does not hold the context), EIO (aborted); EINVAL (remote write or atomic without local write;
    /// `flush_persistent` on memory that is not persistent, as `rxe` has it; length 0, or beyond the mapping; a domain that is not this context's); EPERM (the gate; or `pass_context = deny`, file
    /// pages, and somebody else holds the context too); whatever else [`Task::register`] says. Refused, nothing stays pinned.
    pub fn reg_mr(
        self: &Arc<Self>,
        task: &Task,
        pd: &Arc<Pd>,
        va: u64,
        len: u64,
        access: AccessFlags,
    ) -> Result<Arc<Mr>, Errno> {
        self.check_caller(task)?;
        access.check()?;
        if len == 0 {
            return Err(Errno::EINVAL);
        }
        // Counted as a use first: from here on the domain stays.
        self.add(|objects| objects.pds.get_mut(&pd.number()).map(|uses| *uses += 1).ok_or(Errno::EINVAL))?;
        let registered = self.register_region(task, pd, va, len, access);
        if registered.is_err() {
            self.objects.lock().release_pd(pd.number());
        }
        registered
    }

    /// Gets hold of the memory that `mr` describes, for `mr` to answer for.
    pub(super) fn register_memory(&self, task: &Task, mr: &Arc<Mr>) -> Result<Registration, Errno> {
        let access = mr.access();
        let want = PinRequest { va: mr.va(), len: mr.len(), write: access.local_write, user: LongTermUser::Rdma };
        let memory = match access.on_demand {
            true => task.register_on_demand(want)?,
            false => task.register(want, Arc::clone(mr) as Arc<dyn PinHolder>)?,
        };
        match memory {
            // Refused before anything depends on it; anonymous memory is nobody's to give back.
            Registration::Anonymous { .. } if access.flush_persistent => Err(Errno::EINVAL),
            memory => Ok(memory),
        }
    }

    fn register_region(
        self: &Arc<Self>,
        task: &Task,
        pd: &Arc<Pd>,
        va: u64,
        len: u64,
        access: AccessFlags,
    ) -> Result<Arc<Mr>, Errno> {
        let key = self.nic.regions.reserve()?;
        let mr = Arc::new(Mr::new(key, pd.number(), access, va, len, Arc::clone(self)));
        let memory = self.register_memory(task, &mr).inspect_err(|_| self.nic.regions.cancel(key))?;
        race_point!("reg_mr: committed, not stored");
        let pins_file = matches!(memory, Registration::Pinned(_));
        if pins_file {
            self.file_pin_made();
        }
        self.nic.regions.install(key, Region { mr: Arc::clone(&mr), memory });
        race_point!("reg_mr: stored, not listed");
        let denied = pins_file && self.denies_file_pins(task);
        let listed = match denied {
            true => Err(Errno::EPERM),
            // An abort or close since the commit could not find the region: it is taken back here.
            false => self.add(|objects| {
                objects.mrs.insert(key, Arc::clone(&mr));
                Ok(())
            }),
        };
        match listed {
            Ok(()) => {
                self.nic.counters.mrs_registered.add(1);
                Ok(mr)
            }
            Err(errno) => {
                let mut deferred = Deferred::default();
                self.end_region(&mr, &mut deferred);
                self.kernel.run_deferred(deferred);
                Err(errno)
            }
        }
    }

    /// Ends a region's registration. Returns when the last copy in flight has ended and its pages are unpinned.
    ///
    /// # Errors
    /// EBADF, EINVAL (not this context's, deregistered before, or an old handle of a changed region), EBUSY (windows are bound
    /// to it, or its registration is being changed).
    pub fn dereg_mr(&self, task: &Task, mr: &Arc<Mr>) -> Result<(), Errno> {
        self.check_caller(task)?;
        {
            let mut objects = self.objects.lock();
            let listed = objects.mrs.get(&mr.key()).is_some_and(|listed| Arc::ptr_eq(listed, mr));
            if !listed {
                return Err(Errno::EINVAL);
            }
            if objects.changing.contains(&mr.key()) {
                return Err(Errno::EBUSY);
            }
            mr.refuse_windows()?;
            objects.mrs.remove(&mr.key());
            objects.release_pd(mr.pd());
        }
        let mut deferred = Deferred::default();
        self.end_region(mr, &mut deferred);
        self.kernel.run_deferred(deferred);
        // A copy in flight is finite: it holds no other region's gate while it waits for anything.
        let how = WaitFor::uninterruptible("copies in flight");
        let ready = || if mr.is_released() { Poll::Ready(()) } else { Poll::Pending };
        let _only_by_its_condition = self.drained.wait(self.kernel.world(), task.waiter(), how, ready);
        Ok(())
    }

    /// Shuts a region that is on no list any more, and lets its key go.
    fn end_region(&self, mr: &Arc<Mr>, deferred: &mut Deferred) {
        self.nic.regions.close(mr.key(), deferred);
        self.nic.regions.forget(mr.key());
    }

    /// Aborts the context, once and for good: queue pairs to error, work flushed, every region revoked, a fatal event.
    /// Returns at once; a region with a copy in flight is released by the last to leave it.
    pub(crate) fn abort(&self, kernel: &Arc<Kernel>) {
        if self.state.compare_exchange(OPEN, ABORTED, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            return;
        }
        race_point!("abort: marked, not carried out");
        let (qps, mrs, mws) = {
            let objects = self.objects.lock();
            let qps: Vec<Arc<Qp>> = objects.qps.values().cloned().collect();
            let mrs: Vec<Arc<Mr>> = objects.mrs.values().cloned().collect();
            let mws: Vec<Arc<Mw>> = objects.mws.values().cloned().collect();
            (qps, mrs, mws)
        };
        let counters = &self.nic.counters;
        counters.contexts_aborted.add(1);
        for qp in qps {
            qp.fail();
        }
        for mw in mws {
            mw.unbind();
        }
        let mut deferred = Deferred::default();
        for mr in mrs {
            // Said before it is done: whoever finds the key refused can ask why.
            mr.set_revoked();
            if self.nic.regions.close(mr.key(), &mut deferred) {
                counters.mrs_aborted.add(1);
            }
        }
        self.raise(AsyncEvent::Fatal);
        kernel.run_deferred(deferred);
    }

    /// Whether leases of `pid` of its own cover every file range that this context pins.
    fn is_covered_for(&self, kernel: &Kernel, pid: Pid) -> bool {
        let (mrs, changing): (Vec<Arc<Mr>>, bool) = {
            let objects = self.objects.lock();
            (objects.mrs.values().cloned().collect(), !objects.changing.is_empty())
        };
        // What a region under change pins is on no list yet: nobody can vouch for it.
        !changing
            && mrs.iter().all(|mr| match self.nic.regions.enter(mr.key()).as_deref() {
                Ok(Region { memory: Registration::Pinned(pinned), .. }) => pinned.is_covered_for(kernel, pid),
                // What is not pinned, or no longer, needs no lease.
                Ok(_) | Err(_) => true,
            })
    }
}

impl Objects {
    pub(super) fn release_pd(&mut self, pd: u32) {
        if let Some(uses) = self.pds.get_mut(&pd) {
            *uses -= 1;
        }
    }

    fn count_qp(&mut self, qp: &Qp, made: bool) {
        let count = |uses: &mut u32| if made { *uses += 1 } else { *uses -= 1 };
        if let Some(uses) = self.pds.get_mut(&qp.pd()) {
            count(uses);
        }
        for cq in [qp.send_cq().number(), qp.recv_cq().number()] {
            if let Some((_, uses)) = self.cqs.get_mut(&cq) {
                count(uses);
            }
        }
    }
}

impl OpenObject for Context {
    /// The context's close: queue pairs, windows, regions, completion queues, domains, in this order; the pins go with the regions.
    /// Never waits: a region with a copy in flight is released by the last to leave it.
    fn release(&self, _kernel: &Arc<Kernel>, deferred: &mut Deferred) {
        self.state.store(CLOSED, Ordering::SeqCst);
        race_point!("close: marked, not carried out");
        let objects = std::mem::take(&mut *self.objects.lock());
        for qp in objects.qps.values() {
            qp.destroy();
        }
        for mw in objects.mws.values() {
            self.nic.windows.remove(mw);
        }
        for mr in objects.mrs.values() {
            self.end_region(mr, deferred);
        }
        self.arrived.wake_all();
    }

    fn may_pass(&self, kernel: &Kernel, pass: Passing) -> bool {
        match (kernel.axes().pass_context, pass) {
            (PassRule::Allow, _) => true,
            (PassRule::Deny, Passing::Send) => self.file_pins() == 0,
            // Judged when it was sent, and `reg_mr` is refused while it is queued.
            (PassRule::Deny, Passing::Receive(_)) => true,
            (PassRule::Deny, Passing::Fork) => false,
            (PassRule::ReceiverLease, Passing::Receive(pid)) => self.is_covered_for(kernel, pid),
            (PassRule::ReceiverLease, Passing::Send | Passing::Fork) => true,
        }
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}
