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

use super::oracle::ForeignWord;

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
}

impl TimedCall {
    const ALL: [(TimedCall, &'static str); 5] = [
        (TimedCall::Truncate, "truncate"),
        (TimedCall::Punch, "punch"),
        (TimedCall::Register, "register"),
        (TimedCall::Deregister, "deregister"),
        (TimedCall::Dma, "dma"),
    ];
}

/// Whether a design refuses a call by this errno.
pub(super) fn is_refusal(errno: Errno) -> bool {
    use Errno::{EAGAIN, EBUSY, EDEADLK, EOPNOTSUPP, EPERM, ETXTBSY};
    matches!(errno, EPERM | EAGAIN | EBUSY | ETXTBSY | EDEADLK | EOPNOTSUPP)
}

/// The counts of one actor; see the module.
#[derive(Debug, Default)]
pub(super) struct ActorStats {
    pub(super) counters: RaceCounters,
    latencies: [Latency; 5],
    /// Reads that returned a word which no entitled writer wrote.
    pub(super) foreign_reads: u64,
    /// The first of them, as text.
    pub(super) foreign_examples: Vec<String>,
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
        task.take_waited();
        let world = task.kernel().world();
        let start = world.now();
        let result = call();
        let time = world.now().since(start);
        let waited = task.take_waited();
        self.count_timed(what, result.as_ref().err().copied(), waited);
        if result.is_ok() {
            self.latencies[what as usize].record(time, waited);
        }
        self.call(result)
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
            TimedCall::Dma => {}
        }
    }

    /// Counts a work request that moved `bytes`, posted at `start` and completed at `end`.
    pub(super) fn dma(&mut self, bytes: u64, start: Nanos, end: Nanos, waited: bool) {
        self.counters.operations += 1;
        self.counters.dma_operations += 1;
        self.counters.dma_bytes += bytes;
        self.latencies[TimedCall::Dma as usize].record(end.since(start), waited);
    }

    /// Counts a read through `by` whose contents failed the check.
    pub(super) fn checked(&mut self, by: &str, check: Result<(), ForeignWord>) {
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
        for (mine, theirs) in self.latencies.iter_mut().zip(&other.latencies) {
            mine.merge(theirs);
        }
        self.foreign_reads += other.foreign_reads;
        self.foreign_examples.extend(other.foreign_examples);
        self.chosen_kills += other.chosen_kills;
    }

    /// The recorded times, under the names that reports look for.
    pub(super) fn latencies(&self) -> OpLatencies {
        let mut all = OpLatencies::new();
        for (what, name) in TimedCall::ALL {
            *all.operation(name) = self.latencies[what as usize].clone();
        }
        all
    }
}
