//! What one actor counts. Each actor counts for itself without sharing; the supervisor merges the
//! counts after the actor has ended.
//!
//! It owns the definition of an operation: one finished simulated system call or RDMA work request.
//! Refusals by the design are counted apart: calls that fail with an errno of [`is_refusal`], and
//! work requests that complete with a remote access error. A call that fails for another reason, or
//! that a signal ends, counts as neither. Kernel counterpart: per-CPU counters.

use emulator::runtime::clock::Nanos;
use fs_sim::{Errno, Task};
use reports::{Latency, OpLatencies, RaceCounters};

use super::oracle::ForeignPayload;

/// The most foreign words that one actor keeps as text.
const EXAMPLES_MAX: usize = 8;

/// The operations whose time is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TimedCall {
    Truncate,
    Punch,
    Register,
    Deregister,
    Dma,
    /// Of an on-demand region; counted as [`TimedCall::Register`] too.
    RegisterOnDemand,
    /// Through an on-demand region; counted as [`TimedCall::Dma`] too.
    DmaOnDemand,
    /// Through a memory window; counted as [`TimedCall::Dma`] too.
    DmaWindow,
    BindWindow,
    UnbindWindow,
    MappedRead,
    MappedWrite,
    Vmsplice,
    SendZeroCopy,
    RegisterUmem,
    UmemReceive,
    UmemTransmit,
    RegisterBuffers,
    ReadFixed,
    WriteFixed,
    GuestAttach,
    GuestStore,
    GuestLoad,
    GuestFlush,
    GuestDetach,
    LayoutGet,
    LayoutWrite,
    LayoutRead,
    LayoutReturn,
    Collapse,
    Insert,
    Reflink,
    Dedupe,
    Exchange,
    Unshare,
    Defragment,
}

/// How many operations there are.
const CALLS: usize = TimedCall::ALL.len();
/// How many of them every race lists, also without a call.
const CALLS_OF_EVERY_RACE: usize = 5;

impl TimedCall {
    /// All operations in the order of their definition, with the names that results have.
    const ALL: [(TimedCall, &'static str); 36] = [
        (TimedCall::Truncate, "truncate"),
        (TimedCall::Punch, "punch"),
        (TimedCall::Register, "register"),
        (TimedCall::Deregister, "deregister"),
        (TimedCall::Dma, "dma"),
        (TimedCall::RegisterOnDemand, "register_on_demand"),
        (TimedCall::DmaOnDemand, "dma_on_demand"),
        (TimedCall::DmaWindow, "dma_window"),
        (TimedCall::BindWindow, "bind_window"),
        (TimedCall::UnbindWindow, "unbind_window"),
        (TimedCall::MappedRead, "mapped_read"),
        (TimedCall::MappedWrite, "mapped_write"),
        (TimedCall::Vmsplice, "vmsplice"),
        (TimedCall::SendZeroCopy, "send_zero_copy"),
        (TimedCall::RegisterUmem, "register_umem"),
        (TimedCall::UmemReceive, "umem_receive"),
        (TimedCall::UmemTransmit, "umem_transmit"),
        (TimedCall::RegisterBuffers, "register_buffers"),
        (TimedCall::ReadFixed, "read_fixed"),
        (TimedCall::WriteFixed, "write_fixed"),
        (TimedCall::GuestAttach, "guest_attach"),
        (TimedCall::GuestStore, "guest_store"),
        (TimedCall::GuestLoad, "guest_load"),
        (TimedCall::GuestFlush, "guest_flush"),
        (TimedCall::GuestDetach, "guest_detach"),
        (TimedCall::LayoutGet, "layout_get"),
        (TimedCall::LayoutWrite, "layout_write"),
        (TimedCall::LayoutRead, "layout_read"),
        (TimedCall::LayoutReturn, "layout_return"),
        (TimedCall::Collapse, "collapse"),
        (TimedCall::Insert, "insert"),
        (TimedCall::Reflink, "reflink"),
        (TimedCall::Dedupe, "dedupe"),
        (TimedCall::Exchange, "exchange"),
        (TimedCall::Unshare, "unshare"),
        (TimedCall::Defragment, "defragment"),
    ];
}

/// Whether a design refuses a call by this errno.
pub(super) fn is_refusal(errno: Errno) -> bool {
    use Errno::{EAGAIN, EBUSY, EDEADLK, EOPNOTSUPP, EPERM, ETXTBSY};
    matches!(errno, EPERM | EAGAIN | EBUSY | ETXTBSY | EDEADLK | EOPNOTSUPP)
}

/// The times of each operation.
#[derive(Debug)]
struct CallTimes([Latency; CALLS]);

impl Default for CallTimes {
    fn default() -> Self {
        CallTimes(std::array::from_fn(|_| Latency::default()))
    }
}

/// The counts of one actor; see the module.
#[derive(Debug, Default)]
pub(super) struct ActorStats {
    pub(super) counters: RaceCounters,
    latencies: CallTimes,
    /// Reads that returned a word which no entitled writer wrote.
    pub(super) foreign_reads: u64,
    /// The first of them, as text.
    pub(super) foreign_examples: Vec<String>,
    /// Broken invariants that the actor itself saw.
    pub(super) broken: Vec<String>,
    /// Processes that this actor killed because its own step said so.
    pub(super) chosen_kills: u64,
}

impl ActorStats {
    /// Counts a finished call.
    pub(super) fn call<T>(&mut self, result: Result<T, Errno>) -> Result<T, Errno> {
        match &result {
            Ok(_) => self.counters.operations += 1,
            Err(errno) if is_refusal(*errno) => self.counters.refusals += 1,
            Err(_) => {}
        }
        result
    }

    /// Makes a call, counts it, and records its time if it succeeds. The time of a refused call
    /// would measure only how fast the design refuses.
    pub(super) fn timed<T>(
        &mut self,
        what: TimedCall,
        task: &Task,
        call: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        self.timed_as(what, None, task, call)
    }

    /// As [`ActorStats::timed`], and records the time as that of `also` too.
    pub(super) fn timed_as<T>(
        &mut self,
        what: TimedCall,
        also: Option<TimedCall>,
        task: &Task,
        call: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        self.measured((what, also), task, call, |_| true)
    }

    /// As [`ActorStats::timed`], but records the time only of a call whose result `counts`.
    pub(super) fn timed_if<T>(
        &mut self,
        what: TimedCall,
        task: &Task,
        call: impl FnOnce() -> Result<T, Errno>,
        counts: impl FnOnce(&T) -> bool,
    ) -> Result<T, Errno> {
        self.measured((what, None), task, call, counts)
    }

    fn measured<T>(
        &mut self,
        (what, also): (TimedCall, Option<TimedCall>),
        task: &Task,
        call: impl FnOnce() -> Result<T, Errno>,
        counts: impl FnOnce(&T) -> bool,
    ) -> Result<T, Errno> {
        task.take_waited();
        let world = task.kernel().world();
        let start = world.now();
        let result = call();
        let time = world.now().since(start);
        let waited = task.take_waited();
        self.count_timed(what, result.as_ref().err().copied(), waited);
        if result.as_ref().is_ok_and(counts) {
            for what in [what].into_iter().chain(also) {
                self.record(what, time, waited);
            }
        }
        self.call(result)
    }

    fn record(&mut self, what: TimedCall, time: u64, waited: bool) {
        self.latencies.0[what as usize].record(time, waited);
    }

    fn count_timed(&mut self, what: TimedCall, errno: Option<Errno>, waited: bool) {
        let counters = &mut self.counters;
        let refused = u64::from(errno == Some(Errno::ETXTBSY));
        let interrupted = u64::from(errno == Some(Errno::EINTR));
        match what {
            TimedCall::Truncate => {
                counters.truncate_attempts += 1;
                counters.truncate_done += u64::from(errno.is_none());
                counters.truncate_etxtbsy += refused;
                counters.truncate_eintr += interrupted;
                counters.truncate_waited += u64::from(waited);
            }
            TimedCall::Punch => {
                counters.punch_attempts += 1;
                counters.punch_done += u64::from(errno.is_none());
                counters.punch_etxtbsy += refused;
                counters.punch_eintr += interrupted;
                counters.punch_waited += u64::from(waited);
            }
            TimedCall::Register => {
                counters.registrations_granted += u64::from(errno.is_none());
                counters.registrations_refused += u64::from(errno.is_some_and(|errno| errno != Errno::Dead));
            }
            TimedCall::Deregister => counters.deregistrations += u64::from(errno.is_none()),
            _ => {}
        }
    }

    /// Counts a work request that moved `bytes`, posted at `start` and completed at `end`. It is
    /// counted as each of `through` too.
    pub(super) fn dma(&mut self, bytes: u64, start: Nanos, end: Nanos, waited: bool, through: &[TimedCall]) {
        self.counters.operations += 1;
        self.counters.dma_operations += 1;
        self.counters.dma_bytes += bytes;
        for what in [TimedCall::Dma].iter().chain(through) {
            self.record(*what, end.since(start), waited);
        }
    }

    /// Counts a read through `by` whose contents failed the check.
    pub(super) fn checked(&mut self, by: &str, check: Result<(), ForeignPayload>) {
        if let Err(foreign) = check {
            self.foreign_reads += 1;
            if self.foreign_examples.len() < EXAMPLES_MAX {
                self.foreign_examples.push(format!("{by} returned {foreign}"));
            }
        }
    }

    /// Adds the counts of another actor.
    pub(super) fn merge(&mut self, other: ActorStats) {
        self.counters.merge(&other.counters);
        for (mine, theirs) in self.latencies.0.iter_mut().zip(&other.latencies.0) {
            mine.merge(theirs);
        }
        self.foreign_reads += other.foreign_reads;
        self.foreign_examples.extend(other.foreign_examples);
        self.broken.extend(other.broken);
        self.chosen_kills += other.chosen_kills;
    }

    /// The recorded times, under the names that reports look for. Of the operations that the
    /// built-in job does not have, those that were called.
    pub(super) fn latencies(&self) -> OpLatencies {
        let mut all = OpLatencies::new();
        for (at, ((_, name), times)) in TimedCall::ALL.iter().zip(&self.latencies.0).enumerate() {
            let called = !times.unwaited().is_empty() || !times.waited().is_empty();
            if at < CALLS_OF_EVERY_RACE || called {
                *all.operation(name) = times.clone();
            }
        }
        all
    }
}
