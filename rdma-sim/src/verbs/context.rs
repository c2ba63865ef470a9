//! Contexts: a program's opening of the NIC. A context is an open description, as a file is, and it
//! ends everything that was made on it.
//!
//! It owns the lists of a context's objects and the context's state. Invariants: an object is on
//! its list from before its maker returns until it is destroyed; a context is open, then perhaps
//! aborted, then perhaps without its NIC, then closed, never back. A task that ends the context
//! finds on the lists every object made before, and a task that makes an object later finds the
//! state changed. So no region outlives its context, whichever of `reg_mr`, revocation, removal of
//! the NIC, close and death comes first. Kernel counterpart: `struct ib_uverbs_file`,
//! `uverbs_destroy_ufile_hw`, `ib_uverbs_disassociate_ucontext`.
//!
//! # Passing
//! A context travels as any descriptor does. The design's `pass_context` decides at `sendmsg`,
//! `recvmsg` and `fork`. Under `deny` the kernel records the receiver as a holder before it counts
//! the context's file pins, and a registration counts its pin before it reads the holders. So of a
//! passing and a registration that race at least one is refused.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::task::Poll;

use emulator::race_point;
use emulator::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use emulator::sync::{Arc, Mutex};
use emulator::wait::{WaitFor, WaitQueue};
use fs_sim::base::numbers::{Fd, Pid};
use fs_sim::design::PassRule;
use fs_sim::holders::holder::PinHolder;
use fs_sim::pinning::registration::Registration;
use fs_sim::vfs::fd_holders::FdHolders;
use fs_sim::vfs::open_file::{Deferred, OpenObject, Passing};
use fs_sim::{Errno, Kernel, Task};

use super::pd::Pd;
use crate::engine::cq::{self, Cq};
use crate::engine::event::AsyncEvent;
use crate::engine::owner::QueueOwner;
use crate::engine::qp::{self, Qp, QpConfig};
use crate::memory::mr::Mr;
use crate::memory::mw::Mw;
use crate::memory::nic::Nic;
use crate::memory::owner::ObjectOwner;
use crate::memory::region_table::RegisteredRegion;

/// The most domains, completion queues, queue pairs and windows that a context may have, of each.
pub const OBJECTS_MAX: usize = 1 << 16;

/// The most asynchronous events that wait to be taken. Of further events only the number is kept,
/// except the fatal one, which always fits.
pub const EVENTS_MAX: usize = 64;

const OPEN: u32 = 0;
const ABORTED: u32 = 1;
/// The NIC was removed.
const REMOVED: u32 = 2;
const CLOSED: u32 = 3;

#[derive(Default)]
pub(super) struct ContextObjects {
    /// Domains, each with the number of regions, windows and queue pairs that use it.
    pub(super) pds: BTreeMap<u32, u32>,
    /// Completion queues, each with the number of uses by queue pairs.
    cqs: BTreeMap<u32, (Arc<Cq>, u32)>,
    qps: BTreeMap<u32, Arc<Qp>>,
    pub(super) mrs: BTreeMap<u32, Arc<Mr>>,
    /// The keys of regions whose registration is being changed.
    pub(super) changing: BTreeSet<u32>,
    /// Memory windows, by the index in their keys.
    pub(super) mws: BTreeMap<u32, Arc<Mw>>,
}

/// An open NIC; see the module.
///
/// ```
/// use emulator::World;
/// use emulator::device::Device;
/// use emulator::sync::Arc;
/// use fs_sim::design::presets;
/// use fs_sim::{Kernel, KernelConfig};
/// use rdma_sim::{AccessFlags, Context};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let config = KernelConfig::new(presets()[0].axes);
/// let kernel = Kernel::new(Arc::new(World::manual(1)), Device::memory(2 << 20)?, config)?;
/// let task = kernel.spawn();
/// let (_fd, context) = Context::open(&task)?;
/// let pd = context.alloc_pd(&task)?;
/// let (va, _memory) = task.mmap_anonymous(4096)?;
/// let mr = context.reg_mr(&task, &pd, va, 4096, AccessFlags::LOCAL_WRITE)?;
/// assert_eq!(mr.len(), 4096);
/// context.dereg_mr(&task, &mr)?;
/// assert!(mr.is_released());
/// # Ok(())
/// # }
/// ```
pub struct Context {
    number: u64,
    nic: Arc<Nic>,
    kernel: Arc<Kernel>,
    fd_holders: Arc<FdHolders>,
    state: AtomicU32,
    objects: Mutex<ContextObjects>,
    events: Mutex<VecDeque<AsyncEvent>>,
    /// The NIC was removed, and the fatal event of that is raised.
    removal_told: AtomicBool,
    /// Tasks that wait for an event.
    event_arrived: WaitQueue,
    /// The number of regions that pin file pages. A registration counts its pin before it reads
    /// `fd_holders`; the pin is counted until its last page is unpinned.
    file_pins: AtomicU64,
    drained: WaitQueue,
}

impl Context {
    /// Opens the NIC. The context exists as long as a descriptor (or a message in a socket's queue)
    /// refers to it.
    ///
    /// # Errors
    /// EMFILE; ENODEV (the NIC was removed).
    pub fn open(task: &Task) -> Result<(Fd, Arc<Context>), Errno> {
        let nic = Nic::of(task.kernel());
        if nic.is_removed() {
            return Err(Errno::ENODEV);
        }
        race_point!("open: no removal seen, not listed");
        let (fd, object) = task.install_object(|fd_holders| {
            Arc::new(Context {
                number: nic.number_context(),
                nic,
                kernel: Arc::clone(task.kernel()),
                fd_holders,
                state: AtomicU32::new(OPEN),
                objects: Mutex::new(ContextObjects::default()),
                events: Mutex::new(VecDeque::new()),
                removal_told: AtomicBool::new(false),
                event_arrived: WaitQueue::new(),
                file_pins: AtomicU64::new(0),
                drained: WaitQueue::new(),
            })
        })?;
        let context: Arc<Context> = object.as_any().downcast().map_err(|_| Errno::EINVAL)?;
        // A removal since the look above did not find this context on the list.
        if let Err(errno) = context.nic.add_context(&(Arc::clone(&context) as Arc<dyn ObjectOwner>)) {
            task.close(fd)?;
            return Err(errno);
        }
        Ok((fd, context))
    }

    /// The context that is open as `fd`, for example after a process received it.
    ///
    /// # Errors
    /// EBADF if nothing is open as `fd`, EINVAL if it is not a context.
    pub fn of(task: &Task, fd: Fd) -> Result<Arc<Context>, Errno> {
        task.object(fd)?.as_any().downcast().map_err(|_| Errno::EINVAL)
    }

    /// Its number, unique on the NIC and never reused.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The kernel of its machine.
    pub fn kernel(&self) -> &Arc<Kernel> {
        &self.kernel
    }

    /// Its NIC.
    pub fn nic(&self) -> &Arc<Nic> {
        &self.nic
    }

    /// The processes that hold it.
    pub fn fd_holders(&self) -> &Arc<FdHolders> {
        &self.fd_holders
    }

    /// Whether it was aborted by a revocation, lost its NIC, or was closed. On an aborted context
    /// only the calls that destroy objects work, without the NIC no call.
    pub fn is_aborted(&self) -> bool {
        self.state.load(Ordering::SeqCst) != OPEN
    }

    /// Whether its NIC was removed. Every call on it is EIO; its events and completions can still
    /// be taken.
    pub fn is_disassociated(&self) -> bool {
        self.state.load(Ordering::SeqCst) == REMOVED
    }

    /// The number of its regions that pin pages of files.
    pub fn file_pins(&self) -> u64 {
        self.file_pins.load(Ordering::SeqCst)
    }

    /// Takes the oldest asynchronous event. `ibv_get_async_event`, without waiting.
    pub fn poll_event(&self) -> Option<AsyncEvent> {
        self.events.lock().pop_front()
    }

    /// Takes the oldest asynchronous event, and waits interruptibly until there is one. Each event
    /// goes to one caller. `ibv_get_async_event`.
    ///
    /// # Errors
    /// EBADF (the caller does not hold the context, or it was closed meanwhile), EINTR; EIO (the
    /// NIC was removed, and no event is left).
    pub fn wait_event(&self, task: &Task) -> Result<AsyncEvent, Errno> {
        self.check_holder(task)?;
        let ready = || {
            // Read before the queue: an event that was raised earlier is then in the queue.
            let told = self.removal_told.load(Ordering::SeqCst);
            match self.poll_event() {
                Some(event) => Poll::Ready(Ok(event)),
                None if self.state.load(Ordering::SeqCst) == CLOSED => Poll::Ready(Err(Errno::EBADF)),
                None if told => Poll::Ready(Err(Errno::EIO)),
                None => Poll::Pending,
            }
        };
        let how = WaitFor::interruptible("an asynchronous event");
        match self.event_arrived.wait(self.kernel.world(), task.waiter(), how, ready) {
            Ok(event) => event,
            Err(_) if task.process().is_dying() => Err(Errno::Dead),
            Err(_) => Err(Errno::EINTR),
        }
    }

    fn queue_event(&self, event: AsyncEvent) {
        let kept = {
            let mut events = self.events.lock();
            let room = events.len() < EVENTS_MAX || event == AsyncEvent::Fatal;
            if room {
                events.push_back(event);
            }
            room
        };
        if kept {
            self.event_arrived.wake_all();
        } else {
            self.nic.counters.events_lost.add(1);
        }
    }

    /// Tasks that wait until a region is released.
    pub(super) fn drained(&self) -> &WaitQueue {
        &self.drained
    }

    pub(super) fn file_pin_made(&self) {
        self.file_pins.fetch_add(1, Ordering::SeqCst);
    }

    /// Whether the design forbids `task` to pin file pages through this context, given the
    /// processes that hold it now. Call it after [`Context::file_pin_made`].
    pub(super) fn denies_file_pins(&self, task: &Task) -> bool {
        self.kernel.axes().pass_context == PassRule::Deny && self.fd_holders.shared_beyond(task.pid())
    }

    /// Whether `task` may make a call on this context.
    ///
    /// # Errors
    /// EBADF if its process does not hold the context; EIO if the NIC was removed; `Dead` if its
    /// process is dying.
    pub(super) fn check_caller(&self, task: &Task) -> Result<(), Errno> {
        self.check_holder(task)?;
        if self.is_disassociated() { Err(Errno::EIO) } else { Ok(()) }
    }

    /// Whether `task` may take the events and completions of this context.
    ///
    /// # Errors
    /// EBADF if its process does not hold the context; `Dead` if its process is dying.
    pub fn check_holder(&self, task: &Task) -> Result<(), Errno> {
        if task.process().is_dying() {
            return Err(Errno::Dead);
        }
        if self.fd_holders.processes().contains(&task.pid()) { Ok(()) } else { Err(Errno::EBADF) }
    }

    /// Runs `change` on the lists of an open context.
    ///
    /// # Errors
    /// EIO if it was aborted or the NIC was removed, EBADF if it was closed; else the error of
    /// `change`.
    pub(super) fn add<R>(&self, change: impl FnOnce(&mut ContextObjects) -> Result<R, Errno>) -> Result<R, Errno> {
        let mut objects = self.objects.lock();
        // Read under the lock. A task that changes the state takes the lock afterwards, and finds
        // what is added here.
        match self.state.load(Ordering::SeqCst) {
            OPEN => change(&mut objects),
            ABORTED | REMOVED => Err(Errno::EIO),
            _ => Err(Errno::EBADF),
        }
    }

    /// Runs `change` on the lists of a context in any state.
    pub(super) fn with_objects<R>(&self, change: impl FnOnce(&mut ContextObjects) -> R) -> R {
        change(&mut self.objects.lock())
    }

    /// Makes a protection domain. `ibv_alloc_pd`.
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

    /// Destroys a protection domain. `ibv_dealloc_pd`.
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

    /// Makes a completion queue for up to `depth` completions. `ibv_create_cq`.
    ///
    /// # Errors
    /// EBADF, EIO, ENOMEM; EINVAL if `depth` is 0 or above [`cq::DEPTH_MAX`].
    pub fn create_cq(self: &Arc<Self>, task: &Task, depth: u32) -> Result<Arc<Cq>, Errno> {
        self.check_caller(task)?;
        if depth == 0 || depth > cq::DEPTH_MAX {
            return Err(Errno::EINVAL);
        }
        let made = Arc::new(Cq::new(self.nic.number_cq()?, depth, Arc::clone(self) as Arc<dyn QueueOwner>));
        self.add(|objects| {
            if objects.cqs.len() >= OBJECTS_MAX {
                return Err(Errno::ENOMEM);
            }
            objects.cqs.insert(made.number(), (Arc::clone(&made), 0));
            Ok(())
        })?;
        Ok(made)
    }

    /// Destroys a completion queue. `ibv_destroy_cq`.
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

    /// Makes a reliable connected queue pair, in RESET. `ibv_create_qp`.
    ///
    /// # Errors
    /// EBADF, EIO, ENOMEM; EINVAL if the domain or a completion queue is not this context's, or a
    /// bound is 0 or above [`qp::WORK_MAX`].
    pub fn create_qp(self: &Arc<Self>, task: &Task, pd: &Arc<Pd>, config: QpConfig) -> Result<Arc<Qp>, Errno> {
        self.check_caller(task)?;
        let in_bounds = |bound: u32| (1..=qp::WORK_MAX).contains(&bound);
        if !in_bounds(config.max_send) || !in_bounds(config.max_recv) {
            return Err(Errno::EINVAL);
        }
        let cqs = [config.send_cq.number(), config.recv_cq.number()];
        let made = Qp::new(self.nic.number_qp()?, pd.number(), config, Arc::clone(self) as Arc<dyn QueueOwner>);
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

    /// Destroys a queue pair. Requests that still wait vanish without completion, and the peer gets
    /// no answer any more. `ibv_destroy_qp`.
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

    /// Aborts the context, once and for good: queue pairs go to error, work is flushed, windows are
    /// unbound, every region is revoked, and a fatal event is raised. Returns at once: the last
    /// copy in flight that leaves a region releases it.
    fn abort_objects(&self, kernel: &Arc<Kernel>) {
        if self.state.compare_exchange(OPEN, ABORTED, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            return;
        }
        race_point!("abort: marked, not carried out");
        self.nic.counters.contexts_aborted.add(1);
        self.end_objects(kernel);
    }

    /// Fails the queue pairs, unbinds the windows and ends the regions of a context that is marked;
    /// raises a fatal event. The objects stay on their lists.
    fn end_objects(&self, kernel: &Arc<Kernel>) {
        let (qps, mrs, mws) = {
            let objects = self.objects.lock();
            let qps: Vec<Arc<Qp>> = objects.qps.values().cloned().collect();
            let mrs: Vec<Arc<Mr>> = objects.mrs.values().cloned().collect();
            let mws: Vec<Arc<Mw>> = objects.mws.values().cloned().collect();
            (qps, mrs, mws)
        };
        Qp::fail_all(&qps);
        for mw in mws {
            mw.unbind();
        }
        let mut deferred = Deferred::default();
        for mr in mrs {
            // Set before the gate closes: a program whose key is refused can read why.
            mr.set_revoked();
            if self.nic.regions.close(mr.key(), &mut deferred) {
                self.nic.counters.mrs_aborted.add(1);
            }
        }
        self.queue_event(AsyncEvent::Fatal);
        kernel.run_deferred(deferred);
    }

    /// Revokes the region of `key` if `holder` answers for its pins: unbinds its windows and raises
    /// an event that names it. Queue pairs and other regions stay as they are. Returns at once: the
    /// last copy in flight that leaves the region releases it.
    pub(super) fn take_region(&self, kernel: &Arc<Kernel>, key: u32, holder: &dyn PinHolder) {
        race_point!("revoke: marked, not carried out");
        let mut deferred = Deferred::default();
        if let Some(mr) = self.nic.regions.revoke(key, holder, &mut deferred) {
            self.nic.counters.mrs_aborted.add(1);
            let mws: Vec<Arc<Mw>> = self.objects.lock().mws.values().cloned().collect();
            for mw in mws {
                mw.unbind_from(&mr);
            }
            self.queue_event(AsyncEvent::RegionRevoked { rkey: mr.rkey() });
        }
        kernel.run_deferred(deferred);
    }

    /// Whether leases that `pid` itself holds cover every file range that this context pins.
    fn is_covered_for(&self, kernel: &Kernel, pid: Pid) -> bool {
        let (mrs, changing): (Vec<Arc<Mr>>, bool) = {
            let objects = self.objects.lock();
            (objects.mrs.values().cloned().collect(), !objects.changing.is_empty())
        };
        // The new pins of a region under change are on no list yet, so their cover is unknown.
        !changing
            && mrs.iter().all(|mr| match self.nic.regions.enter(mr.key()).as_deref() {
                Ok(RegisteredRegion { memory: Registration::Pinned(pinned), .. }) => pinned.is_covered_for(kernel, pid),
                // A region without pins, or with released pins, needs no lease.
                Ok(_) | Err(_) => true,
            })
    }
}

impl ContextObjects {
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
    /// Closes the context: destroys queue pairs, windows, regions (and with them the pins),
    /// completion queues and domains, in this order. Never waits: the last copy in flight that
    /// leaves a region releases it.
    fn release(&self, _kernel: &Arc<Kernel>, deferred: &mut Deferred) {
        self.state.store(CLOSED, Ordering::SeqCst);
        self.nic.remove_context(self.number);
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
        self.event_arrived.wake_all();
    }

    fn may_pass(&self, kernel: &Kernel, pass: Passing) -> bool {
        match (kernel.axes().pass_context, pass) {
            (PassRule::Allow, _) => true,
            (PassRule::Deny, Passing::Send) => self.file_pins() == 0,
            // Decided when it was sent; `reg_mr` is refused while it is queued.
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

impl ObjectOwner for Context {
    fn number(&self) -> u64 {
        self.number
    }

    fn kernel(&self) -> &Arc<Kernel> {
        &self.kernel
    }

    fn fd_holders(&self) -> &Arc<FdHolders> {
        &self.fd_holders
    }

    fn drained(&self) -> &WaitQueue {
        &self.drained
    }

    fn file_pin_gone(&self) {
        self.file_pins.fetch_sub(1, Ordering::SeqCst);
    }

    fn abort(&self, kernel: &Arc<Kernel>) {
        self.abort_objects(kernel);
    }

    fn begin_removal(&self) {
        let removed = |state| (state != CLOSED).then_some(REMOVED);
        let _closed_meanwhile = self.state.fetch_update(Ordering::SeqCst, Ordering::SeqCst, removed);
        let qps: Vec<Arc<Qp>> = self.objects.lock().qps.values().cloned().collect();
        for qp in qps {
            qp.begin_failure();
        }
    }

    fn finish_removal(&self, kernel: &Arc<Kernel>) {
        race_point!("removal: marked, not carried out");
        self.end_objects(kernel);
        self.removal_told.store(true, Ordering::SeqCst);
        self.event_arrived.wake_all();
    }

    fn revoke_region(&self, kernel: &Arc<Kernel>, key: u32, holder: &dyn PinHolder) {
        self.take_region(kernel, key, holder);
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

impl QueueOwner for Context {
    fn nic(&self) -> &Arc<Nic> {
        &self.nic
    }

    fn is_aborted(&self) -> bool {
        Context::is_aborted(self)
    }

    fn raise(&self, event: AsyncEvent) {
        self.queue_event(event);
    }
}
