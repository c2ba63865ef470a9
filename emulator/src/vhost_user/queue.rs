//! The request queue: descriptor chains in, one flush for all of them, used entries out.
//!
//! It owns the requests that were taken from the daemon's queue and not answered. Invariants: a
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
//! The daemon's queue thread takes requests under the crate's lock of the queue and puts answers
//! back under it, and flushes without it. In between the queue is *busy*, and
//! [`RequestQueue::stop`] waits.

use std::task::Poll;

use vhost_user_backend::VringT;
use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{DescriptorChain, Queue as SplitRing, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemory, GuestMemoryMmap, Permissions};

use super::FlushError;
use super::pmem::{self, PmemRequest, REQUEST_BYTES, RESPONSE_BYTES};
use super::stats::VhostCounters;
use super::vring::{PmemVring, SharedMemory};
use super::wake::BackendWaits;
use crate::runtime::sync::machine::Ordering;
use crate::runtime::sync::{Arc, Mutex};
use crate::runtime::wait::WaitQueue;

/// The most descriptors in the table, and so the most requests under way.
pub(super) const SIZE_MAX: u16 = 1024;
/// The longest chain. A driver needs 2 descriptors, and 8 if it gives every byte its own.
const CHAIN_MAX: usize = 32;

#[derive(Debug, Default)]
struct QueueRun {
    /// Requests were taken and not yet answered.
    busy: bool,
    /// The connection ended.
    over: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct RequestQueue {
    memory: SharedMemory,
    counters: Arc<VhostCounters>,
    run: Mutex<QueueRun>,
    /// Woken when the queue is no longer busy.
    idle: WaitQueue,
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

/// What to do after requests were answered.
#[derive(Clone, Copy, Debug, Default)]
struct QueueAnswered {
    /// The guest wants an interrupt.
    interrupt: bool,
    /// A request came before the guest knew that it has to tell of the next.
    again: bool,
}

/// Why a queue is broken.
#[derive(Debug, thiserror::Error)]
enum QueueBroken {
    #[error("its rings do not lie in the guest's memory")]
    Outside,
    #[error(transparent)]
    Ring(#[from] virtio_queue::Error),
}

impl RequestQueue {
    /// For the queue whose rings and buffers lie in `memory`.
    pub(super) fn new(memory: SharedMemory, counters: Arc<VhostCounters>) -> RequestQueue {
        RequestQueue { memory, counters, run: Mutex::default(), idle: WaitQueue::new() }
    }

    /// Blocks until the requests under way were answered. The queue takes no further ones: its
    /// caller has stopped it.
    pub(super) fn stop(&self, waits: &BackendWaits) {
        waits.until(&self.idle, "requests under way", None, || {
            if self.run.lock().busy { Poll::Pending } else { Poll::Ready(()) }
        });
    }

    /// The connection ended: nothing more is taken, and nothing more is written to the guest's
    /// memory.
    pub(super) fn end(&self) {
        self.run.lock().over = true;
    }

    /// Answering failed. No caller waits for the requests under way any more.
    pub(super) fn abandon(&self) {
        *self.run.lock() = QueueRun { busy: false, over: true };
        self.idle.wake_all();
    }

    /// Answers all waiting requests until none is left and the guest will kick for the next one.
    /// `batch` is scratch. A guest that keeps sending requests keeps the thread here, but no lock:
    /// [`RequestQueue::stop`] and [`RequestQueue::end`] come through.
    pub(super) fn drain(&self, vring: &PmemVring, flush: &Flush<'_>, batch: &mut Vec<BufferChain>) {
        self.counters.kicks.add(vring.take_kicks());
        while self.round(vring, flush, batch) {}
    }

    /// Answers what waits now; false if there was nothing, and nothing to look for until the guest
    /// tells.
    pub(super) fn round(&self, vring: &PmemVring, flush: &Flush<'_>, batch: &mut Vec<BufferChain>) -> bool {
        match self.look(vring, batch) {
            QueuePoll::Requests => {
                let flushed = flush_once(flush, &self.counters, batch);
                self.answer(vring, batch, flushed)
            }
            QueuePoll::Again => true,
            QueuePoll::Nothing => false,
        }
    }

    /// Takes what waits into `batch`.
    fn look(&self, vring: &PmemVring, batch: &mut Vec<BufferChain>) -> QueuePoll {
        let memory = self.memory.memory();
        let mut state = vring.get_mut();
        if vring.is_broken() || !state.is_enabled() || !state.get_queue().ready() || self.run.lock().over {
            return QueuePoll::Nothing;
        }
        match look(state.get_queue_mut(), &memory, batch) {
            Ok(look) => {
                // Under the queue's lock: a caller that stopped the queue before sees no requests
                // taken, one that stops it later sees that it is busy.
                self.run.lock().busy = look == QueuePoll::Requests;
                look
            }
            Err(why) => {
                drop(state);
                self.break_down(vring, &why);
                QueuePoll::Nothing
            }
        }
    }

    /// Gives the chains of `batch` back. Returns whether more requests are there already; if not,
    /// the guest tells of the next.
    fn answer(&self, vring: &PmemVring, batch: &[BufferChain], flushed: bool) -> bool {
        let memory = self.memory.memory();
        let answered = {
            let mut state = vring.get_mut();
            let over = self.run.lock().over;
            if over { Ok(QueueAnswered::default()) } else { answer(state.get_queue_mut(), &memory, batch, flushed) }
        };
        let answered = answered.unwrap_or_else(|why| {
            self.break_down(vring, &why);
            QueueAnswered::default()
        });
        if answered.interrupt {
            self.counters.notifications.add(1);
            vring.interrupt();
        }
        // After the interrupt: a queue that was stopped has no call descriptor any more.
        self.run.lock().busy = false;
        self.idle.wake_all();
        answered.again
    }

    fn break_down(&self, vring: &PmemVring, why: &QueueBroken) {
        self.counters.problem(format!("the guest's request queue is broken: {why}"));
        vring.break_down();
    }
}

fn look(
    ring: &mut SplitRing,
    memory: &GuestMemoryMmap,
    batch: &mut Vec<BufferChain>,
) -> Result<QueuePoll, QueueBroken> {
    take(ring, memory, batch)?;
    if !batch.is_empty() {
        return Ok(QueuePoll::Requests);
    }
    // Asks the guest for a notification at the next request, and looks whether one came before the
    // guest knew of that: for this one there is no notification.
    Ok(if ring.enable_notification(memory)? { QueuePoll::Again } else { QueuePoll::Nothing })
}

fn take(ring: &mut SplitRing, memory: &GuestMemoryMmap, batch: &mut Vec<BufferChain>) -> Result<(), QueueBroken> {
    batch.clear();
    if !ring.is_valid(memory) {
        return Err(QueueBroken::Outside);
    }
    ring.disable_notification(memory)?;
    // As many as the table has, at most: the iterator refuses an index that runs further ahead.
    batch.extend(ring.iter(memory)?.map(|chain| parse(chain, memory)));
    Ok(())
}

/// Gives chains back, and asks the guest to tell of the next request.
fn answer(
    ring: &mut SplitRing,
    memory: &GuestMemoryMmap,
    batch: &[BufferChain],
    flushed: bool,
) -> Result<QueueAnswered, QueueBroken> {
    for chain in batch {
        let answer = pmem::answer(chain.request, flushed).to_bytes();
        let written = chain.response.is_some_and(|response| write(memory, response, answer));
        ring.add_used(memory, chain.head, if written { RESPONSE_BYTES as u32 } else { 0 })?;
    }
    let mut interrupt = ring.needs_notification(memory)?;
    if !ring.event_idx_enabled() {
        let flags = memory.load::<u16>(GuestAddress(ring.avail_ring()), Ordering::Relaxed);
        let flags = u16::from_le(flags.map_err(virtio_queue::Error::GuestMemory)?);
        interrupt = u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0;
    }
    Ok(QueueAnswered { interrupt, again: ring.enable_notification(memory)? })
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
            // The reasons why nothing is mapped, or late, were reported earlier.
            if !matches!(why, FlushError::Unmapped | FlushError::Late) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::sync::thread;
    use crate::runtime::world::World;

    struct Waiting {
        queue: RequestQueue,
        vring: PmemVring,
        memory: GuestMemoryMmap,
        waits: BackendWaits,
    }

    /// A queue of 4 with one FLUSH in it: table at 0, available ring at 0x100, used ring at 0x200.
    fn waiting() -> Waiting {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        for (at, addr, flags, next) in [(0_u64, 0x400_u64, 1_u16, 1_u16), (16, 0x410, 2, 0)] {
            memory.write_obj(addr, GuestAddress(at)).unwrap();
            memory.write_obj(4_u32, GuestAddress(at + 8)).unwrap();
            memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
            memory.write_obj(next, GuestAddress(at + 14)).unwrap();
        }
        memory.write_obj(1_u16, GuestAddress(0x102)).unwrap();
        let shared = SharedMemory::new(memory.clone());
        let vring = PmemVring::new(shared.clone(), SIZE_MAX).unwrap();
        vring.set_queue_size(4);
        vring.set_queue_info(0, 0x100, 0x200).unwrap();
        vring.set_enabled(true);
        vring.set_queue_ready(true);
        let waits = BackendWaits::new(Arc::new(World::real(0)));
        Waiting { queue: RequestQueue::new(shared, Arc::default()), vring, memory, waits }
    }

    #[test]
    fn a_stop_waits_until_what_was_taken_is_answered() {
        let Waiting { queue, vring, memory, waits } = waiting();
        let mut batch = Vec::new();
        assert_eq!(queue.look(&vring, &mut batch), QueuePoll::Requests);
        vring.set_queue_ready(false);
        thread::scope(|scope| {
            let stop = scope.spawn(|| queue.stop(&waits));
            while !queue.idle.has_sleepers() {
                assert!(!stop.is_finished(), "it did not wait");
                thread::yield_now();
            }
            assert_eq!(memory.read_obj::<u16>(GuestAddress(0x202)).unwrap(), 0);
            queue.answer(&vring, &batch, true);
            stop.join().unwrap();
        });
        assert_eq!(vring.queue_next_avail(), 1);
        assert_eq!(memory.read_obj::<u16>(GuestAddress(0x202)).unwrap(), 1);
        memory.write_obj(2_u16, GuestAddress(0x102)).unwrap();
        assert_eq!(queue.look(&vring, &mut batch), QueuePoll::Nothing, "it does not run");
    }

    #[test]
    fn a_request_that_comes_while_the_guest_is_asked_to_tell_is_seen() {
        for event_idx in [false, true] {
            let Waiting { queue, vring, memory, .. } = waiting();
            vring.set_queue_event_idx(event_idx);
            let mut batch = Vec::new();
            assert_eq!(queue.look(&vring, &mut batch), QueuePoll::Requests);
            queue.answer(&vring, &batch, true);
            let mut state = vring.get_mut();
            let ring = state.get_queue_mut();
            take(ring, &memory, &mut batch).unwrap();
            assert!(batch.is_empty());
            // No notification was requested, and none is sent.
            memory.write_obj(2_u16, GuestAddress(0x102)).unwrap();
            assert!(ring.enable_notification(&memory).unwrap());
            assert_eq!(look(ring, &memory, &mut batch).unwrap(), QueuePoll::Requests);
            ring.set_next_avail(2);
            assert_eq!(look(ring, &memory, &mut batch).unwrap(), QueuePoll::Nothing);
        }
    }

    #[test]
    fn an_abandoned_queue_keeps_nobody() {
        let Waiting { queue, vring, memory, waits } = waiting();
        let mut batch = Vec::new();
        assert_eq!(queue.look(&vring, &mut batch), QueuePoll::Requests);
        queue.abandon();
        queue.stop(&waits);
        queue.answer(&vring, &batch, true);
        assert_eq!(memory.read_obj::<u16>(GuestAddress(0x202)).unwrap(), 0, "the guest is not written to any more");
    }
}
