//! The request queue: descriptor chains in, one flush for all of them, used entries out.
//!
//! It owns a split virtqueue and the guest memory that it and its buffers lie in. Invariants: a
//! FLUSH is answered with success only after a flush of the medium that began after the request was
//! taken from the queue; a chain is given back exactly once; the thread never sleeps while a
//! request waits for which no kick will come. Counterparts: `virtio_pmem_flush` in QEMU's
//! hw/virtio/virtio-pmem.c, `virtqueue_pop` and `virtio_queue_set_notification` in
//! hw/virtio/virtio.c; VirtIO 1.3 section 2.7.
//!
//! # How each chain is answered
//! | chain | answer | used length |
//! |---|---|---|
//! | 4 readable bytes or more, then 4 writable or more | FLUSH: its outcome; others: failure | 4 |
//! | fewer readable bytes | failure | 4 |
//! | fewer than 4 writable bytes, or memory not writable | none, and no flush | 0 |
//! | writable before readable, a loop, over 32 descriptors, index or address outside | none | 0 |
//!
//! A queue that contradicts itself (an index that runs ahead of the ring, a head outside the table,
//! rings outside the guest's memory) is *broken*: nothing more is taken from it until the frontend
//! sets it up anew, as after QEMU's `virtio_error`.
//!
//! # Who holds the lock
//! The queue's thread takes requests under it and puts answers back under it, and flushes without
//! it. In between the queue is *busy*, and [`RequestQueue::stop`] waits. No other guest, and no
//! other thread but the frontend's messages, ever takes it.

use std::os::fd::{AsFd, OwnedFd};
use std::task::Poll;

use rustix::fs::OFlags;
use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{DescriptorChain, Queue as SplitRing, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

use super::FlushError;
use super::pmem::{self, PmemRequest, REQUEST_BYTES, RESPONSE_BYTES};
use super::stats::VhostCounters;
use super::wake::{BackendWaits, WakeFd};
use crate::runtime::sync::machine::Ordering;
use crate::runtime::sync::{Arc, Mutex};
use crate::runtime::wait::WaitQueue;

/// The most descriptors in the table, and so the most requests under way.
pub(super) const SIZE_MAX: u16 = 1024;
/// The longest chain. A driver needs 2 descriptors, and 8 if it gives every byte its own.
const CHAIN_MAX: usize = 32;

/// See the module.
#[derive(Debug)]
pub(super) struct RequestQueue {
    state: Mutex<QueueState>,
    /// Woken when the queue is no longer busy.
    idle: WaitQueue,
    /// Rung when the thread has to look at anything but a kick.
    pub(super) wake: WakeFd,
}

#[derive(Debug)]
struct QueueState {
    ring: SplitRing,
    memory: GuestMemoryMmap,
    kick: Option<Arc<OwnedFd>>,
    call: Option<OwnedFd>,
    err: Option<OwnedFd>,
    enabled: bool,
    /// Its size is one a queue can have.
    sized: bool,
    /// Its rings are somewhere.
    placed: bool,
    /// It contradicted itself.
    broken: bool,
    /// Requests were taken and not yet answered.
    busy: bool,
    /// The connection ended.
    over: bool,
}

/// A chain that was taken from the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BufferChain {
    head: u16,
    request: Option<PmemRequest>,
    /// Where each byte of the answer goes; none for a chain that can't be answered.
    response: Option<[GuestAddress; RESPONSE_BYTES]>,
}

impl BufferChain {
    fn wants_flush(&self) -> bool {
        self.response.is_some() && self.request == Some(PmemRequest::Flush)
    }
}

/// What makes durable whatever the guest stored before.
pub(super) type Flush<'a> = dyn Fn() -> Result<(), FlushError> + 'a;

/// What a look at the queue found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum QueuePoll {
    /// Requests; the queue is busy until they are answered.
    Requests,
    /// None, but a request came while notifications were being enabled: look again.
    Again,
    /// None: the guest tells of the next, or the queue does not run.
    Nothing,
}

/// Why a queue is broken.
#[derive(Debug, thiserror::Error)]
enum QueueBroken {
    #[error("its rings do not lie in the guest's memory")]
    Outside,
    #[error(transparent)]
    Ring(#[from] virtio_queue::Error),
}

/// Where a queue's rings lie, as guest addresses.
#[derive(Clone, Copy, Debug)]
pub(super) struct RingAddresses {
    pub(super) table: u64,
    pub(super) avail: u64,
    pub(super) used: u64,
}

/// How a queue may not be set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SetupError {
    #[error("a queue of {0} descriptors: it must be a power of two, at most {SIZE_MAX}")]
    Size(u32),
    #[error("the queue's rings at guest addresses {0:#x}, {1:#x}, {2:#x}: not aligned to 16, 2 and 4 bytes")]
    Alignment(u64, u64, u64),
    #[error("the queue's rings lie outside the guest's memory")]
    Nowhere,
    #[error("the queue's used ring at guest address {0:#x}: outside the guest's memory")]
    Outside(u64),
    #[error("next request {0}: a split queue counts to 65535")]
    Base(u32),
}

impl RequestQueue {
    pub(super) fn new() -> std::io::Result<RequestQueue> {
        let ring = SplitRing::new(SIZE_MAX).map_err(std::io::Error::other)?;
        let state = QueueState {
            ring,
            memory: GuestMemoryMmap::new(),
            kick: None,
            call: None,
            err: None,
            enabled: false,
            sized: true,
            placed: false,
            broken: false,
            busy: false,
            over: false,
        };
        Ok(RequestQueue { state: Mutex::new(state), idle: WaitQueue::new(), wake: WakeFd::new()? })
    }

    /// The memory that rings and buffers lie in, from now on.
    pub(super) fn set_memory(&self, memory: GuestMemoryMmap) {
        let old = std::mem::replace(&mut self.state.lock().memory, memory);
        // Unmapping takes its time: not under the lock.
        drop(old);
    }

    pub(super) fn set_size(&self, size: u32) -> Result<(), SetupError> {
        let state = &mut *self.state.lock();
        let narrow = u16::try_from(size).ok();
        state.sized = narrow.is_some_and(|narrow| state.ring.try_set_size(narrow).is_ok());
        if state.sized { Ok(()) } else { Err(SetupError::Size(size)) }
    }

    /// Where the rings lie; none if that is not in the guest's memory. How many entries were used
    /// so far is read from the used ring, as QEMU's own backends do: SET_VRING_BASE tells only how
    /// many were taken.
    ///
    /// A guest names sizes and addresses as it likes (QEMU passes them on), so wrong ones cost it
    /// its queue and nothing else: the queue does not run until the frontend sets valid ones.
    pub(super) fn set_rings(&self, rings: Option<RingAddresses>) -> Result<(), SetupError> {
        let state = &mut *self.state.lock();
        state.placed = false;
        let RingAddresses { table, avail, used } = rings.ok_or(SetupError::Nowhere)?;
        let ring = &mut state.ring;
        ring.try_set_desc_table_address(GuestAddress(table))
            .and_then(|()| ring.try_set_avail_ring_address(GuestAddress(avail)))
            .and_then(|()| ring.try_set_used_ring_address(GuestAddress(used)))
            .map_err(|_| SetupError::Alignment(table, avail, used))?;
        let next = ring.used_idx(&state.memory, Ordering::Relaxed).map_err(|_| SetupError::Outside(used))?;
        ring.set_next_used(next.0);
        state.placed = true;
        Ok(())
    }

    /// The first request to take.
    pub(super) fn set_base(&self, base: u32) -> Result<(), SetupError> {
        let base = u16::try_from(base).map_err(|_| SetupError::Base(base))?;
        self.state.lock().ring.set_next_avail(base);
        Ok(())
    }

    pub(super) fn set_event_idx(&self, negotiated: bool) {
        self.state.lock().ring.set_event_idx(negotiated);
    }

    /// Lets requests through, or holds them back where they are.
    pub(super) fn set_enabled(&self, enabled: bool) {
        self.state.lock().enabled = enabled;
        self.wake.ring();
    }

    /// Starts the queue: `kick` tells of new requests.
    pub(super) fn start(&self, kick: OwnedFd) {
        {
            let state = &mut *self.state.lock();
            state.kick = Some(Arc::new(kick));
            state.broken = false;
            state.ring.set_ready(true);
        }
        self.wake.ring();
    }

    /// Sets the eventfd that signals answers to the guest. It is made non-blocking, so that a full
    /// one does not block the queue. It is rung at once if the queue runs already: a machine that
    /// continues after a stop starts its queue before it sets the call descriptor, and nothing else
    /// would signal the answers in between. (A guest must accept a spurious interrupt;
    /// `vu_set_vring_call_exec` in libvhost-user does the same.)
    pub(super) fn set_call(&self, call: Option<OwnedFd>) -> std::io::Result<()> {
        if let Some(call) = &call {
            make_nonblocking(call)?;
        }
        let state = &mut *self.state.lock();
        state.call = call;
        if state.ring.ready() {
            ring_bell(state.call.as_ref());
        }
        Ok(())
    }

    /// What tells the frontend that the queue is broken.
    pub(super) fn set_err(&self, err: Option<OwnedFd>) -> std::io::Result<()> {
        if let Some(err) = &err {
            make_nonblocking(err)?;
        }
        self.state.lock().err = err;
        Ok(())
    }

    /// Stops the queue, after the requests under way were answered. Returns the first request not
    /// taken.
    pub(super) fn stop(&self, waits: &BackendWaits) -> u16 {
        self.state.lock().ring.set_ready(false);
        waits.until(&self.idle, "requests under way", None, || {
            if self.state.lock().busy { Poll::Pending } else { Poll::Ready(()) }
        });
        let next = {
            let state = &mut *self.state.lock();
            state.kick = None;
            state.call = None;
            state.ring.next_avail()
        };
        self.wake.ring();
        next
    }

    /// The connection ended: nothing more is taken, and nothing more is written to the guest's
    /// memory.
    pub(super) fn end(&self) {
        self.state.lock().over = true;
        self.wake.ring();
    }

    /// The thread has ended. No caller waits for it any more.
    pub(super) fn abandon(&self) {
        {
            let state = &mut *self.state.lock();
            state.over = true;
            state.busy = false;
        }
        self.idle.wake_all();
    }

    /// What to wait for besides [`RequestQueue::wake`]; none once the connection ended.
    pub(super) fn kick(&self) -> Option<Option<Arc<OwnedFd>>> {
        let state = self.state.lock();
        (!state.over).then(|| state.kick.clone())
    }

    /// Answers all waiting requests until none is left and the guest will kick for the next one.
    /// `batch` is scratch. A guest that keeps sending requests keeps the thread here, but no lock:
    /// [`RequestQueue::stop`] and [`RequestQueue::end`] come through.
    pub(super) fn drain(&self, flush: &Flush<'_>, counters: &VhostCounters, batch: &mut Vec<BufferChain>) {
        while self.round(flush, counters, batch) {}
    }

    /// Answers what waits now; false if there was nothing, and nothing to look for until the guest
    /// tells.
    pub(super) fn round(&self, flush: &Flush<'_>, counters: &VhostCounters, batch: &mut Vec<BufferChain>) -> bool {
        let look = self.look(counters, batch);
        if look == QueuePoll::Requests {
            let flushed = flush_once(flush, counters, batch);
            self.answer(counters, batch, flushed);
        }
        look != QueuePoll::Nothing
    }

    /// Takes what waits into `batch`.
    fn look(&self, counters: &VhostCounters, batch: &mut Vec<BufferChain>) -> QueuePoll {
        let state = &mut *self.state.lock();
        if !state.runs() {
            return QueuePoll::Nothing;
        }
        match state.look(batch) {
            Ok(look) => {
                state.busy = look == QueuePoll::Requests;
                look
            }
            Err(why) => {
                state.break_down(&why, counters);
                QueuePoll::Nothing
            }
        }
    }

    /// Gives the chains of `batch` back.
    fn answer(&self, counters: &VhostCounters, batch: &[BufferChain], flushed: bool) {
        {
            let state = &mut *self.state.lock();
            state.busy = false;
            if !state.over {
                match state.answer(batch, flushed) {
                    Ok(true) => {
                        counters.notifications.add(1);
                        ring_bell(state.call.as_ref());
                    }
                    Ok(false) => {}
                    Err(why) => state.break_down(&why, counters),
                }
            }
        }
        self.idle.wake_all();
    }
}

impl QueueState {
    fn runs(&self) -> bool {
        self.ring.ready() && self.enabled && self.sized && self.placed && !self.broken && !self.over
    }

    fn break_down(&mut self, why: &QueueBroken, counters: &VhostCounters) {
        self.broken = true;
        self.busy = false;
        counters.problem(format!("the guest's request queue is broken: {why}"));
        ring_bell(self.err.as_ref());
    }

    fn look(&mut self, batch: &mut Vec<BufferChain>) -> Result<QueuePoll, QueueBroken> {
        self.take(batch)?;
        if !batch.is_empty() {
            return Ok(QueuePoll::Requests);
        }
        Ok(if self.ask_to_be_told()? { QueuePoll::Again } else { QueuePoll::Nothing })
    }

    fn take(&mut self, batch: &mut Vec<BufferChain>) -> Result<(), QueueBroken> {
        batch.clear();
        let (ring, memory) = (&mut self.ring, &self.memory);
        if !ring.is_valid(memory) {
            return Err(QueueBroken::Outside);
        }
        ring.disable_notification(memory)?;
        // As many as the table has, at most: the iterator refuses an index that runs further ahead.
        batch.extend(ring.iter(memory)?.map(|chain| parse(chain, memory)));
        Ok(())
    }

    /// Asks the guest for a notification at the next request. Returns true if a request came before
    /// the guest knew of that; for this one there is no notification.
    fn ask_to_be_told(&mut self) -> Result<bool, QueueBroken> {
        Ok(self.ring.enable_notification(&self.memory)?)
    }

    /// Returns whether the guest wants an interrupt.
    fn answer(&mut self, batch: &[BufferChain], flushed: bool) -> Result<bool, QueueBroken> {
        let (ring, memory) = (&mut self.ring, &self.memory);
        for chain in batch {
            let answer = pmem::answer(chain.request, flushed).to_bytes();
            let written = chain.response.is_some_and(|response| write(memory, response, answer));
            ring.add_used(memory, chain.head, if written { RESPONSE_BYTES as u32 } else { 0 })?;
        }
        let wanted = ring.needs_notification(memory)?;
        if ring.event_idx_enabled() {
            return Ok(wanted);
        }
        let flags: u16 = memory
            .load(GuestAddress(ring.avail_ring()), Ordering::Relaxed)
            .map_err(virtio_queue::Error::GuestMemory)?;
        Ok(u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }
}

/// Flushes once if any of `batch` asks for it; whether everything is durable.
fn flush_once(flush: &Flush<'_>, counters: &VhostCounters, batch: &[BufferChain]) -> bool {
    let count = |what: &dyn Fn(&BufferChain) -> bool| batch.iter().filter(|chain| what(chain)).count() as u64;
    let malformed = count(&|chain| chain.response.is_none());
    let flushes = count(&|chain| chain.wants_flush());
    counters.malformed.add(malformed);
    counters.unknown.add(batch.len() as u64 - malformed - flushes);
    if flushes == 0 {
        return false;
    }
    counters.requests.add(flushes);
    counters.flushes.add(1);
    counters.coalesced.add(flushes - 1);
    match flush() {
        Ok(()) => true,
        Err(why) => {
            counters.failed.add(flushes);
            // The reason why nothing is mapped was reported earlier.
            if !matches!(why, FlushError::Unmapped) {
                counters.problem(format!("a flush failed: {why}"));
            }
            false
        }
    }
}

/// What a chain asks, and where its answer goes.
fn parse(mut descriptors: DescriptorChain<&GuestMemoryMmap>, memory: &GuestMemoryMmap) -> BufferChain {
    let head = descriptors.head_index();
    let malformed = BufferChain { head, request: None, response: None };
    let (mut request, mut read) = ([0; REQUEST_BYTES], 0);
    let (mut response, mut room) = ([GuestAddress(0); RESPONSE_BYTES], 0);
    let (mut whole, mut writable) = (false, false);
    // The iterator ends a chain that contradicts itself without a word: such a one promised a next
    // descriptor.
    for descriptor in descriptors.by_ref().take(CHAIN_MAX) {
        whole = !descriptor.has_next();
        let (addr, len) = (descriptor.addr(), descriptor.len() as usize);
        let access = if descriptor.is_write_only() { Permissions::Write } else { Permissions::Read };
        if len > 0 && !memory.check_range(addr, len, access) {
            return malformed;
        }
        if descriptor.is_write_only() {
            writable = true;
            for at in 0..len.min(RESPONSE_BYTES - room) {
                response[room] = GuestAddress(addr.0 + at as u64);
                room += 1;
            }
        } else if writable {
            return malformed;
        } else {
            let more = len.min(REQUEST_BYTES - read);
            if memory.read_slice(&mut request[read..read + more], addr).is_err() {
                return malformed;
            }
            read += more;
        }
    }
    if !whole || room < RESPONSE_BYTES {
        return malformed;
    }
    BufferChain { head, request: PmemRequest::parse(&request[..read]), response: Some(response) }
}

/// Writes an answer; whether all of it lies in the guest's memory (which may be another since the
/// chain was parsed).
fn write(memory: &GuestMemoryMmap, response: [GuestAddress; RESPONSE_BYTES], answer: [u8; RESPONSE_BYTES]) -> bool {
    let together = (1..RESPONSE_BYTES).all(|at| response[at].0 == response[0].0 + at as u64);
    if together {
        return memory.write_slice(&answer, response[0]).is_ok();
    }
    response.into_iter().zip(answer).all(|(addr, byte)| memory.write_obj(byte, addr).is_ok())
}

fn make_nonblocking(fd: &OwnedFd) -> std::io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    Ok(rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK)?)
}

/// Rings an eventfd of the frontend. One that is full was rung already; one that is broken is the
/// frontend's loss.
fn ring_bell(bell: Option<&OwnedFd>) {
    if let Some(bell) = bell {
        let _rung = rustix::io::write(bell.as_fd(), &1_u64.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::sync::thread;

    /// A queue of 4 with one FLUSH in it: table at 0, available ring at 0x100, used ring at 0x200.
    fn waiting() -> (RequestQueue, GuestMemoryMmap) {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        for (at, addr, flags, next) in [(0_u64, 0x400_u64, 1_u16, 1_u16), (16, 0x410, 2, 0)] {
            memory.write_obj(addr, GuestAddress(at)).unwrap();
            memory.write_obj(4_u32, GuestAddress(at + 8)).unwrap();
            memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
            memory.write_obj(next, GuestAddress(at + 14)).unwrap();
        }
        memory.write_obj(1_u16, GuestAddress(0x102)).unwrap();
        let queue = RequestQueue::new().unwrap();
        queue.set_memory(memory.clone());
        queue.set_size(4).unwrap();
        queue.set_rings(Some(RingAddresses { table: 0, avail: 0x100, used: 0x200 })).unwrap();
        queue.set_enabled(true);
        queue.start(rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap());
        (queue, memory)
    }

    #[test]
    fn a_stop_waits_until_what_was_taken_is_answered() {
        let (queue, memory) = waiting();
        let (counters, waits, mut batch) = (VhostCounters::default(), BackendWaits::new(), Vec::new());
        assert_eq!(queue.look(&counters, &mut batch), QueuePoll::Requests);
        thread::scope(|scope| {
            let stop = scope.spawn(|| queue.stop(&waits));
            while !queue.idle.has_sleepers() {
                assert!(!stop.is_finished(), "it did not wait");
                thread::yield_now();
            }
            assert_eq!(memory.read_obj::<u16>(GuestAddress(0x202)).unwrap(), 0);
            queue.answer(&counters, &batch, true);
            assert_eq!(stop.join().unwrap(), 1);
        });
        assert_eq!(memory.read_obj::<u16>(GuestAddress(0x202)).unwrap(), 1);
        assert_eq!(queue.look(&counters, &mut batch), QueuePoll::Nothing, "it does not run");
    }

    #[test]
    fn a_request_that_comes_while_the_guest_is_asked_to_tell_is_seen() {
        for event_idx in [false, true] {
            let (queue, memory) = waiting();
            queue.set_event_idx(event_idx);
            let (counters, mut batch) = (VhostCounters::default(), Vec::new());
            assert_eq!(queue.look(&counters, &mut batch), QueuePoll::Requests);
            queue.answer(&counters, &batch, true);
            let state = &mut *queue.state.lock();
            state.take(&mut batch).unwrap();
            assert!(batch.is_empty());
            // No notification was requested, and none is sent.
            memory.write_obj(2_u16, GuestAddress(0x102)).unwrap();
            assert!(state.ask_to_be_told().unwrap());
            assert_eq!(state.look(&mut batch).unwrap(), QueuePoll::Requests);
            state.ring.set_next_avail(2);
            assert_eq!(state.look(&mut batch).unwrap(), QueuePoll::Nothing);
        }
    }

    #[test]
    fn an_abandoned_queue_keeps_nobody() {
        let (queue, memory) = waiting();
        let (counters, waits, mut batch) = (VhostCounters::default(), BackendWaits::new(), Vec::new());
        assert_eq!(queue.look(&counters, &mut batch), QueuePoll::Requests);
        queue.abandon();
        assert_eq!(queue.stop(&waits), 1);
        queue.answer(&counters, &batch, true);
        assert_eq!(memory.read_obj::<u16>(GuestAddress(0x202)).unwrap(), 0, "the guest is not written to any more");
    }
}
