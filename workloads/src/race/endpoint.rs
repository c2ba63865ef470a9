//! One program's view of the NIC: a loopback pair of queue pairs on a context, a local buffer, and
//! bursts of work requests.
//!
//! It owns the objects that it makes on the context; closing the context destroys them. Invariant:
//! the payload of a WRITE is made for the file and offset that its region was registered for, and
//! the bytes of a READ are checked against the same file and offset. Whether the region still
//! belongs to that file is what the race tests, not this module.

use emulator::sync::Arc;
use fs_sim::vfs::anon::AnonMemory;
use fs_sim::{Errno, Task};
use rdma_sim::{
    AccessFlags, Completion, Context, Cq, Mr, Pd, Qp, QpConfig, QpState, Sge, WorkOperation, WorkRequest, WorkStatus,
};

use super::job::DMA_BYTES_MAX;
use super::op_stream::{DmaRequest, DmaRequests, DmaVerb};
use super::oracle::{self, Payloads};
use super::region::RegionHandle;
use super::stats::{ActorStats, TimedCall};

/// How a burst ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BurstResult {
    /// All requests completed successfully.
    Done,
    /// One request failed. The queue pairs work again.
    Failed,
    /// The context does not work any more.
    Dead,
}

/// Local memory of a process, large enough for the longest request.
#[derive(Clone)]
pub(super) struct LocalBuffer {
    va: u64,
    memory: Arc<AnonMemory>,
}

impl LocalBuffer {
    /// Its address.
    pub(super) fn va(&self) -> u64 {
        self.va
    }

    /// Its bytes.
    pub(super) fn memory(&self) -> &AnonMemory {
        &self.memory
    }

    pub(super) fn map(task: &Task) -> Result<LocalBuffer, Errno> {
        let (va, memory) = task.mmap_anonymous(DMA_BYTES_MAX)?;
        Ok(LocalBuffer { va, memory })
    }
}

/// The queue pairs and the buffer; see the module.
pub(super) struct Endpoint {
    pub(super) context: Arc<Context>,
    pub(super) pd: Arc<Pd>,
    cq: Arc<Cq>,
    qp: Arc<Qp>,
    peer: Arc<Qp>,
    buffer: LocalBuffer,
    local: Arc<Mr>,
    /// Bytes on their way between the buffer and the oracle.
    staging: Vec<u8>,
    sequence: u64,
}

/// Queue depth. Each request is executed while it is posted, so the depth is never reached.
const QUEUE: u32 = 16;

impl Endpoint {
    /// Makes the objects on `context`: a completion queue, two connected queue pairs, the
    /// registered buffer.
    pub(super) fn new(task: &Task, context: Arc<Context>, pd: Arc<Pd>, buffer: LocalBuffer) -> Result<Endpoint, Errno> {
        let cq = context.create_cq(task, 2 * QUEUE)?;
        let config = QpConfig { send_cq: Arc::clone(&cq), recv_cq: Arc::clone(&cq), max_send: QUEUE, max_recv: QUEUE };
        let qp = context.create_qp(task, &pd, config.clone())?;
        let peer = context.create_qp(task, &pd, config)?;
        // Connecting fails only if the context was aborted or closed a moment ago.
        Qp::connect(&qp, &peer).map_err(|_| Errno::EIO)?;
        let local = context.reg_mr(task, &pd, buffer.va, DMA_BYTES_MAX, AccessFlags::LOCAL_WRITE)?;
        Ok(Endpoint { context, pd, cq, qp, peer, buffer, local, staging: Vec::new(), sequence: 0 })
    }

    /// Posts `count` of `requests` on the region, one after the other, until one fails.
    pub(super) fn burst(
        &mut self,
        stats: &mut ActorStats,
        task: &Task,
        (payloads, writer): (&Payloads, u8),
        handle: &RegionHandle,
        requests: DmaRequests,
        count: u64,
    ) -> BurstResult {
        for request in requests.take(count as usize) {
            if !self.request(stats, task, (payloads, writer), handle, request) {
                return self.recover();
            }
        }
        BurstResult::Done
    }

    /// Executes one work request; false if it failed.
    fn request(
        &mut self,
        stats: &mut ActorStats,
        task: &Task,
        (payloads, writer): (&Payloads, u8),
        handle: &RegionHandle,
        request: DmaRequest,
    ) -> bool {
        let (first, len, rkey) = handle.reached();
        let verb = if handle.writable { request.verb } else { DmaVerb::Read };
        let (at, bytes) = match verb {
            DmaVerb::Write | DmaVerb::Read => {
                let bytes = request.length.min(len / oracle::WORD * oracle::WORD);
                (request.place.below((len - bytes) / oracle::WORD + 1) * oracle::WORD, bytes)
            }
            // Every region and window begins at a line of its file and has at least one line.
            DmaVerb::CompareSwap | DmaVerb::FetchAdd => {
                (oracle::sequence_word_at(request.place.below(len / oracle::LINE) * oracle::LINE), oracle::WORD)
            }
        };
        let at = first + at;
        let place = handle.offset + at;
        self.sequence += 1;
        let op = match verb {
            DmaVerb::Write => {
                self.staging.resize(bytes as usize, 0);
                payloads.fill(&mut self.staging, handle.file, place, writer, self.sequence);
                if self.buffer.memory.write(0, &self.staging).is_err() {
                    return false;
                }
                WorkOperation::Write
            }
            DmaVerb::Read => WorkOperation::Read,
            DmaVerb::CompareSwap => {
                let swap = payloads.sequence_word(handle.file, place, self.sequence);
                WorkOperation::CompareSwap { compare: 0, swap }
            }
            DmaVerb::FetchAdd => WorkOperation::FetchAdd { add: 1 },
        };
        let local = self.local_part(bytes);
        let remote_addr = handle.mr.va() + at;
        let request = WorkRequest { wr_id: self.sequence, op, local, remote_addr, rkey, signaled: true };
        self.post(stats, task, request, handle.counted_as())
            && self.check_read(stats, payloads, handle, op, place, bytes)
    }

    /// Posts a request and takes its completion; false unless it completed successfully.
    fn post(&mut self, stats: &mut ActorStats, task: &Task, request: WorkRequest, through: &[TimedCall]) -> bool {
        let world = task.kernel().world();
        task.take_waited();
        let start = world.now();
        if self.qp.post_send(request).is_err() {
            return false;
        }
        // No other thread uses this queue pair, so the request is executed before `post_send`
        // returns.
        let completion = self.cq.poll_one();
        let end = world.now();
        match completion {
            Some(done) if done.status == WorkStatus::Success && done.wr_id == request.wr_id => {
                stats.dma(u64::from(request.local.len), start, end, task.take_waited(), through);
                true
            }
            Some(done) => {
                stats.counters.refusals += u64::from(done.status == WorkStatus::RemoteAccessError);
                false
            }
            None => false,
        }
    }

    fn check_read(
        &mut self,
        stats: &mut ActorStats,
        payloads: &Payloads,
        handle: &RegionHandle,
        op: WorkOperation,
        place: u64,
        bytes: u64,
    ) -> bool {
        if op != WorkOperation::Read {
            return true;
        }
        self.staging.resize(bytes as usize, 0);
        if self.buffer.memory.read(0, &mut self.staging).is_err() {
            return false;
        }
        stats.checked("an RDMA READ", payloads.check(&self.staging, handle.file, place));
        true
    }

    /// The number of the next request.
    pub(super) fn next_number(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    /// The queue pair on which requests to regions are posted.
    pub(super) fn queue(&self) -> &Qp {
        &self.qp
    }

    /// The queue pair that answers them.
    pub(super) fn peer(&self) -> &Qp {
        &self.peer
    }

    /// The first `len` bytes of the local buffer.
    pub(super) fn local_part(&self, len: u64) -> Sge {
        Sge { lkey: self.local.lkey(), addr: self.buffer.va, len: len as u32 }
    }

    /// The oldest completion.
    pub(super) fn take_completion(&self) -> Option<Completion> {
        self.cq.poll_one()
    }

    /// After a failure: moves both queue pairs through RESET back to RTS.
    pub(super) fn recover(&mut self) -> BurstResult {
        if self.context.is_aborted() || self.qp.state() == QpState::Destroyed {
            return BurstResult::Dead;
        }
        let reset = self.qp.reset().and_then(|()| self.peer.reset());
        // Drops the completions of flushed requests; no request waits for them.
        while self.cq.poll_one().is_some() {}
        match reset.and_then(|()| Qp::connect(&self.qp, &self.peer)) {
            Ok(()) => BurstResult::Failed,
            Err(_) => BurstResult::Dead,
        }
    }
}
