//! A context with its objects.
//!
//! Invariant: a context is used by the descriptor that opened it.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::command::{self, UverbsCommand};
use super::device::SoftRoce;
use super::ring::SharedQueue;
use super::uapi::{
    AllocateWindow, Buffer, CqCreated, CreateCq, CreateQp, Data, Destination, DeviceQueried, ModifyQp, NotifyCq,
    PostSend, QpCreated, QpQueues, QueryDevice, QueuePlace, ReceiveElement, Register, Registered, Reregister,
    Reregistered, SendElement, Uapi, WindowAllocated, WorkCompletion,
};
use super::wire::{Completed, RegionAccess, VerbsAnswer, VerbsFailure, Work};
use super::work::{self, WorkBuffer};

/// The lowest number of this module's own descriptors: above those that a scenario's get, so that
/// those have the numbers that they would have without verbs.
const OWN_FDS: i32 = 300;
/// How many requests a queue holds, as in the simulation.
const REQUESTS: u32 = 64;
/// How many completions.
const COMPLETIONS: u32 = 4 * REQUESTS;
/// The size of `struct ib_uverbs_send_wr`, of which none is sent: rxe finds them in its queue.
const REQUEST_SIZE: u32 = 56;
/// How long one completion may take. The device gives up a silent peer after some seconds.
const COMPLETION_MAX: Timespec = Timespec { tv_sec: 30, tv_nsec: 0 };
/// The name of the request that the process itself waits for: no posted one has it.
const OWN_WORK: u64 = u64::MAX;

/// `IB_ACCESS_*` of include/rdma/ib_verbs.h.
mod access {
    pub(super) const LOCAL_WRITE: u32 = 1;
    pub(super) const REMOTE_WRITE: u32 = 2;
    pub(super) const REMOTE_READ: u32 = 4;
    pub(super) const REMOTE_ATOMIC: u32 = 8;
    pub(super) const MW_BIND: u32 = 16;
    pub(super) const ON_DEMAND: u32 = 64;
    pub(super) const FLUSH: u32 = 256 | 512;
    pub(super) const REMOTE: u32 = REMOTE_WRITE | REMOTE_READ | REMOTE_ATOMIC;
}

/// An open device; see the module.
#[derive(Debug)]
pub(super) struct DeviceContext {
    /// The descriptor, which is the scenario's.
    fd: i32,
    device: SoftRoce,
    /// Tells that a completion has come.
    channel: OwnedFd,
    pd: u32,
    cq: u32,
    completions: SharedQueue,
    pairs: BTreeMap<u32, QueuePair>,
    /// What was posted and is not completed.
    posted: BTreeMap<u64, Posted>,
    /// Completions that came before the scenario asked for them.
    arrived: VecDeque<Completed>,
}

#[derive(Debug)]
struct QueuePair {
    send: SharedQueue,
    receive: SharedQueue,
}

/// A request that was posted.
#[derive(Debug)]
enum Posted {
    Send {
        work: Work,
        local: Option<WorkMemory>,
    },
    /// It is completed by what the peer sends, if it sends.
    Receive,
}

/// Registered memory of this side.
#[derive(Debug)]
struct WorkMemory {
    buffer: WorkBuffer,
    region: u32,
}

impl DeviceContext {
    /// Opens the device; the descriptor is the first value.
    pub(super) fn open() -> Result<(i32, DeviceContext), VerbsFailure> {
        let device = SoftRoce::find().map_err(VerbsFailure::Lacks)?;
        let file = rustix::fs::open(&device.path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        command::start(file.as_fd())?;
        // The word stands for the address of the answer, which has another way here.
        let (pd, ()): (u32, ()) = command::call(file.as_fd(), UverbsCommand::AllocatePd, &0_u64)?;
        let (channel, ()): (u32, ()) = command::call(file.as_fd(), UverbsCommand::CreateChannel, &0_u64)?;
        let channel_now = take(channel)?;
        let create = CreateCq { entries: COMPLETIONS, channel, ..CreateCq::zeroed() };
        let (cq, place): (CqCreated, QueuePlace) = command::call(file.as_fd(), UverbsCommand::CreateCq, &create)?;
        let completions = SharedQueue::map::<WorkCompletion>(file.as_fd(), place)?;
        let channel = rustix::io::fcntl_dupfd_cloexec(&channel_now, OWN_FDS)?;
        let fd = file.into_raw_fd();
        let context = DeviceContext {
            fd,
            device,
            channel,
            pd,
            cq: cq.handle,
            completions,
            pairs: BTreeMap::new(),
            posted: BTreeMap::new(),
            arrived: VecDeque::new(),
        };
        Ok((fd, context))
    }

    fn file(&self) -> BorrowedFd<'static> {
        // SAFETY: the kernel gave the number to `open`, and the process forgets a context before it
        // closes the descriptor.
        unsafe { BorrowedFd::borrow_raw(self.fd) }
    }

    fn call<Answer: Uapi, Driver: Uapi>(
        &self,
        command: UverbsCommand,
        of: &impl Uapi,
    ) -> Result<(Answer, Driver), Errno> {
        command::call(self.file(), command, of)
    }

    fn tell(&self, command: UverbsCommand, of: &impl Uapi) -> Result<(), VerbsFailure> {
        let ((), ()) = self.call(command, of)?;
        Ok(())
    }

    pub(super) fn register(
        &self,
        (start, length): (u64, u64),
        wanted: RegionAccess,
    ) -> Result<VerbsAnswer, VerbsFailure> {
        let made = self.new_region((start, length), rights(wanted));
        if wanted.on_demand && made.is_err() && !self.has_on_demand()? {
            let why = "rdma_rxe of this kernel has no on-demand regions, which came with Linux 6.15".to_owned();
            return Err(VerbsFailure::Lacks(why));
        }
        let (number, lkey, rkey) = made?;
        Ok(VerbsAnswer::Region { number, lkey, rkey })
    }

    /// The number and the keys of a new region.
    fn new_region(&self, (start, length): (u64, u64), access: u32) -> Result<(u32, u32, u32), Errno> {
        let register = Register { start, length, address: start, pd: self.pd, access, ..Register::zeroed() };
        let (made, ()): (Registered, ()) = self.call(UverbsCommand::Register, &register)?;
        Ok((made.handle, made.lkey, made.rkey))
    }

    /// Whether the device has on-demand regions (`IB_ODP_SUPPORT`).
    fn has_on_demand(&self) -> Result<bool, Errno> {
        let (told, ()): (DeviceQueried, ()) = self.call(UverbsCommand::QueryDevice, &QueryDevice::zeroed())?;
        Ok(told.on_demand & 1 != 0)
    }

    pub(super) fn reregister(
        &self,
        region: u32,
        translation: Option<(u64, u64)>,
        wanted: Option<RegionAccess>,
    ) -> Result<VerbsAnswer, VerbsFailure> {
        const TRANSLATION: u32 = 1;
        const ACCESS: u32 = 4;
        let mut change = Reregister { handle: region, pd: self.pd, ..Reregister::zeroed() };
        if let Some((start, length)) = translation {
            change = Reregister { flags: change.flags | TRANSLATION, start, length, address: start, ..change };
        }
        if let Some(wanted) = wanted {
            change = Reregister { flags: change.flags | ACCESS, access: rights(wanted), ..change };
        }
        let (made, ()): (Reregistered, ()) = self.call(UverbsCommand::Reregister, &change)?;
        Ok(VerbsAnswer::Region { number: region, lkey: made.lkey, rkey: made.rkey })
    }

    pub(super) fn deregister(&self, region: u32) -> Result<(), VerbsFailure> {
        self.tell(UverbsCommand::Deregister, &region)
    }

    pub(super) fn prefetch(&self, lkey: u32, (at, len): (u64, u32), write: bool) -> Result<(), VerbsFailure> {
        Ok(command::advise(self.file(), self.pd, write, Buffer { at, len, lkey })?)
    }

    pub(super) fn allocate_window(&self, type2: bool) -> Result<VerbsAnswer, VerbsFailure> {
        let kind = if type2 { 2 } else { 1 };
        let allocate = AllocateWindow { pd: self.pd, kind, ..AllocateWindow::zeroed() };
        let (made, ()): (WindowAllocated, ()) = self.call(UverbsCommand::AllocateWindow, &allocate)?;
        Ok(VerbsAnswer::Window { number: made.handle, key: made.rkey })
    }

    pub(super) fn deallocate_window(&self, window: u32) -> Result<(), VerbsFailure> {
        self.tell(UverbsCommand::DeallocateWindow, &window)
    }

    pub(super) fn create_pair(&mut self) -> Result<VerbsAnswer, VerbsFailure> {
        const RELIABLE_CONNECTION: u8 = 2;
        let create = CreateQp {
            pd: self.pd,
            send_cq: self.cq,
            recv_cq: self.cq,
            max_send: REQUESTS,
            max_recv: REQUESTS,
            max_send_sge: 1,
            max_recv_sge: 1,
            kind: RELIABLE_CONNECTION,
            ..CreateQp::zeroed()
        };
        let (made, queues): (QpCreated, QpQueues) = self.call(UverbsCommand::CreateQp, &create)?;
        let send = SharedQueue::map::<SendElement>(self.file(), queues.send)?;
        let receive = SharedQueue::map::<ReceiveElement>(self.file(), queues.receive)?;
        self.pairs.insert(made.handle, QueuePair { send, receive });
        Ok(VerbsAnswer::Pair { number: made.handle, wire: made.number })
    }

    /// Connects a queue pair to another one of the same device.
    pub(super) fn connect_pair(&self, pair: u32, peer: u32, rnr_wait: bool) -> Result<(), VerbsFailure> {
        // IB_QP_STATE, PKEY_INDEX, PORT, ACCESS_FLAGS.
        const INIT: u32 = 1 | 1 << 4 | 1 << 5 | 1 << 3;
        // IB_QP_STATE, AV, PATH_MTU, RQ_PSN, MIN_RNR_TIMER, MAX_DEST_RD_ATOMIC, DEST_QPN.
        const READY_TO_RECEIVE: u32 = 1 | 1 << 7 | 1 << 8 | 1 << 12 | 1 << 15 | 1 << 17 | 1 << 20;
        // IB_QP_STATE, TIMEOUT, RETRY_CNT, RNR_RETRY, MAX_QP_RD_ATOMIC, SQ_PSN.
        const READY_TO_SEND: u32 = 1 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 13 | 1 << 16;
        const PORT: u8 = 1;
        const MTU_4096: u8 = 5;
        // 4.096 µs times two to this power: half a second, so that a busy machine is in time.
        const TIMEOUT: u8 = 17;
        const HOPS: u8 = 64;
        let to = Destination {
            gid: self.device.gid,
            source_gid_index: self.device.gid_index,
            hop_limit: HOPS,
            is_global: 1,
            port: PORT,
            ..Destination::zeroed()
        };
        let modify = ModifyQp { handle: pair, port: PORT, ..ModifyQp::zeroed() };
        let rights = access::LOCAL_WRITE | access::REMOTE | access::FLUSH;
        self.tell(UverbsCommand::ModifyQp, &ModifyQp { mask: INIT, state: 1, access: rights, ..modify })?;
        let receive = ModifyQp { mask: READY_TO_RECEIVE, state: 2, to, peer, mtu: MTU_4096, ..modify };
        self.tell(UverbsCommand::ModifyQp, &ModifyQp { max_peer_reads: 1, rnr_timer: 1, ..receive })?;
        let send = ModifyQp { mask: READY_TO_SEND, state: 3, timeout: TIMEOUT, retries: 7, max_reads: 1, ..modify };
        self.tell(UverbsCommand::ModifyQp, &ModifyQp { rnr_retries: if rnr_wait { 7 } else { 0 }, ..send })
    }

    /// Posts a request and waits for its completion.
    pub(super) fn perform(&mut self, pair: u32, work: Work) -> Result<VerbsAnswer, VerbsFailure> {
        self.post(pair, OWN_WORK, work)?;
        loop {
            let completed = self.next_completion()?;
            if completed.id == OWN_WORK {
                return Ok(VerbsAnswer::Completed(Some(completed)));
            }
            self.arrived.push_back(completed);
        }
    }

    pub(super) fn post(&mut self, pair: u32, id: u64, work: Work) -> Result<(), VerbsFailure> {
        let queue = self.pairs.get(&pair).ok_or(Errno::INVAL)?;
        let bad_key = matches!(work, Work::Write { bad_key: true, .. } | Work::Read { bad_key: true, .. });
        let mut local = None;
        let mut place = None;
        if let Some((len, byte)) = work::buffer_of(&work) {
            let buffer = WorkBuffer::new(len, byte)?;
            let (at, len) = buffer.place();
            let (region, lkey, _) = self.new_region((at, len), access::LOCAL_WRITE)?;
            let lkey = if bad_key { !lkey } else { lkey };
            place = Some(Buffer { at, len: u32::try_from(len).map_err(|_| Errno::INVAL)?, lkey });
            local = Some(WorkMemory { buffer, region });
        }
        let pushed = work::element(id, &work, place).and_then(|element| queue.send.push(&element, REQUESTS));
        if let Err(errno) = pushed {
            self.release(local)?;
            return Err(errno.into());
        }
        // The device may complete it as soon as it is told.
        self.posted.insert(id, Posted::Send { work, local });
        let post = PostSend { qp: pair, request_size: REQUEST_SIZE, ..PostSend::zeroed() };
        match self.call::<u32, ()>(UverbsCommand::PostSend, &post) {
            Ok(_) => Ok(()),
            Err(errno) => {
                if let Some(Posted::Send { local, .. }) = self.posted.remove(&id) {
                    self.release(local)?;
                }
                Err(errno.into())
            }
        }
    }

    pub(super) fn post_receive(&mut self, pair: u32, id: u64, buffer: Buffer) -> Result<(), VerbsFailure> {
        let queue = self.pairs.get(&pair).ok_or(Errno::INVAL)?;
        queue.receive.push(&ReceiveElement { id, data: Data::of(buffer), ..ReceiveElement::zeroed() }, REQUESTS)?;
        self.posted.insert(id, Posted::Receive);
        Ok(())
    }

    /// The oldest completion of what was posted. If a request of the send queue is under way, it is
    /// waited for.
    pub(super) fn poll(&mut self) -> Result<VerbsAnswer, VerbsFailure> {
        let under_way = |posted: &Posted| matches!(posted, Posted::Send { .. });
        let completed = match self.arrived.pop_front() {
            Some(completed) => Some(completed),
            None if self.posted.values().any(under_way) => Some(self.next_completion()?),
            None => match self.completions.pop() {
                Some(completion) => Some(self.conclude(completion)?),
                None => None,
            },
        };
        Ok(VerbsAnswer::Completed(completed))
    }

    /// Waits for a completion.
    fn next_completion(&mut self) -> Result<Completed, VerbsFailure> {
        loop {
            if let Some(completion) = self.completions.pop() {
                return self.conclude(completion);
            }
            self.tell(UverbsCommand::NotifyCq, &NotifyCq { cq: self.cq, solicited: 0 })?;
            // It may have come before the notification was asked for.
            if let Some(completion) = self.completions.pop() {
                return self.conclude(completion);
            }
            let mut channel = [PollFd::new(&self.channel, PollFlags::IN)];
            match poll(&mut channel, Some(&COMPLETION_MAX)) {
                Ok(0) => {
                    let waits = self.posted.values().find(|posted| matches!(posted, Posted::Send { .. }));
                    return Err(VerbsFailure::Unfinished(format!("the device does not complete {waits:?}")));
                }
                Ok(_) => {
                    // `struct ib_uverbs_comp_event_desc`.
                    let mut event = [0; 8];
                    rustix::io::retry_on_intr(|| rustix::io::read(&self.channel, &mut event))?;
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// What a completion says, and the end of what its request used.
    fn conclude(&mut self, completion: WorkCompletion) -> Result<Completed, VerbsFailure> {
        const WITH_INVALIDATE: u32 = 1 << 3;
        let good = completion.status == 0;
        let mut completed = Completed {
            id: completion.id,
            status: work::status(completion.status),
            value: None,
            invalidated: good && completion.flags & WITH_INVALIDATE != 0,
        };
        match self.posted.remove(&completion.id) {
            Some(Posted::Send { work, local }) => {
                completed.value = good.then(|| work::value(&work, local.as_ref().map(|local| &local.buffer))).flatten();
                self.release(local)?;
            }
            Some(Posted::Receive) if good => {
                completed.value = Some(crate::input::Size(completion.len.into()).to_string());
            }
            Some(Posted::Receive) | None => {}
        }
        Ok(completed)
    }

    fn release(&self, local: Option<WorkMemory>) -> Result<(), VerbsFailure> {
        local.map_or(Ok(()), |local| self.deregister(local.region))
    }
}

/// The flags of a registration.
fn rights(wanted: RegionAccess) -> u32 {
    let flag = |set: bool, flag: u32| if set { flag } else { 0 };
    let basic = if wanted.read_only { access::REMOTE_READ } else { access::LOCAL_WRITE | access::REMOTE };
    basic
        | flag(wanted.on_demand, access::ON_DEMAND)
        | flag(wanted.window, access::MW_BIND)
        | flag(wanted.flush, access::FLUSH)
}

/// Takes a descriptor that the kernel has made.
fn take(number: u32) -> Result<OwnedFd, Errno> {
    let number = i32::try_from(number).map_err(|_| Errno::BADF)?;
    // SAFETY: the kernel has just made it for this process, and nothing else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
