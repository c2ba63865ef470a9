//! What one actor counts: its own, without sharing, merged when it has finished.
//!
//! It owns the definition of an operation: one finished simulated system call or RDMA work request. What a design refuses
//! ([`is_refusal`], and work requests answered with a remote access error) is counted apart; a call that failed for another
//! reason, or was ended by a signal, is neither. Kernel counterpart: per-CPU counters.

use emulator::runtime::clock::Nanos;
use fs_sim::{Errno, Task};
use reports::{Counters, Latency, OpLatencies};

use crate::oracle::Foreign;

/// Foreign words that one actor keeps in words.
const TOLD_MAX: usize = 8;

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Timed {
    Truncate,
    Punch,
    Register,
    Deregister,
    Dma,
}

impl Timed {
    const ALL: [(Timed, &'static str); 5] = [
        (Timed::Truncate, "truncate"),
        (Timed::Punch, "punch"),
        (Timed::Register, "register"),
        (Timed::Deregister, "deregister"),
        (Timed::Dma, "dma"),
    ];
}

/// Whether a design says no by this errno.
pub(super) fn is_refusal(errno: Errno) -> bool {
    use Errno::{EAGAIN, EBUSY, EDEADLK, EOPNOTSUPP, EPERM, ETXTBSY};
    matches!(errno, EPERM | EAGAIN | EBUSY | ETXTBSY | EDEADLK | EOPNOTSUPP)
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) counters: Counters,
    latencies: [Latency; 5],
    /// Reads that returned a word nobody entitled wrote.
    pub(super) foreign_reads: u64,
    /// The first of them, in words.
    pub(super) told: Vec<String>,
    /// Processes that this actor killed because its choices said so.
    pub(super) chosen_kills: u64,
}

impl Tally {
    /// Counts a finished call.
    pub(super) fn call<T>(&mut self, result: Result<T, Errno>) -> Result<T, Errno> {
        match &result {
            Ok(_) => self.counters.operations += 1,
            Err(errno) if is_refusal(*errno) => self.counters.refusals += 1,
            Err(_) => {}
        }
        result
    }

    /// Makes a call, counts it, and takes its time if it succeeds: that of the others would say how fast a design refuses.
    pub(super) fn timed<T>(
        &mut self,
        what: Timed,
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

    fn count_timed(&mut self, what: Timed, errno: Option<Errno>, waited: bool) {
        let counters = &mut self.counters;
        let refused = u64::from(errno == Some(Errno::ETXTBSY));
        let interrupted = u64::from(errno == Some(Errno::EINTR));
        match what {
            Timed::Truncate => {
                counters.truncate_attempts += 1;
                counters.truncate_done += u64::from(errno.is_none());
                counters.truncate_etxtbsy += refused;
                counters.truncate_eintr += interrupted;
                counters.truncate_waited += u64::from(waited);
            }
            Timed::Punch => {
                counters.punch_attempts += 1;
                counters.punch_done += u64::from(errno.is_none());
                counters.punch_etxtbsy += refused;
                counters.punch_eintr += interrupted;
                counters.punch_waited += u64::from(waited);
            }
            Timed::Register => {
                counters.registrations_granted += u64::from(errno.is_none());
                counters.registrations_refused += u64::from(errno.is_some_and(|errno| errno != Errno::Dead));
            }
            Timed::Deregister => counters.deregistrations += u64::from(errno.is_none()),
            Timed::Dma => {}
        }
    }

    /// Counts a work request that moved `bytes`, posted at `start` and completed at `end`.
    pub(super) fn dma(&mut self, bytes: u64, start: Nanos, end: Nanos, waited: bool) {
        self.counters.operations += 1;
        self.counters.dma_operations += 1;
        self.counters.dma_bytes += bytes;
        self.latencies[Timed::Dma as usize].record(end.since(start), waited);
    }

    /// Notes what a read through `by` returned.
    pub(super) fn checked(&mut self, by: &str, check: Result<(), Foreign>) {
        if let Err(foreign) = check {
            self.foreign_reads += 1;
            if self.told.len() < TOLD_MAX {
                self.told.push(format!("{by} returned {foreign}"));
            }
        }
    }

    /// Adds another actor's.
    pub(super) fn merge(&mut self, other: Tally) {
        self.counters.merge(&other.counters);
        for (mine, theirs) in self.latencies.iter_mut().zip(&other.latencies) {
            mine.merge(theirs);
        }
        self.foreign_reads += other.foreign_reads;
        self.told.extend(other.told);
        self.chosen_kills += other.chosen_kills;
    }

    /// The times, under the names that reports look for.
    pub(super) fn latencies(&self) -> OpLatencies {
        let mut all = OpLatencies::new();
        for (what, name) in Timed::ALL {
            *all.operation(name) = self.latencies[what as usize].clone();
        }
        all
    }
}
