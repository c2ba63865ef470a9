//! What a race is asked to do, and what it reports while it runs and afterwards.
//!
//! It owns the public types of a race; nothing here runs. Invariant: no lock and no thread lives in
//! any of them, so a caller can keep and clone them freely.

use std::time::Duration;

use emulator::device::OpenError;
use emulator::sync::Arc;
use emulator::sync::atomic::{AtomicBool, Ordering};
use fs_sim::design::Axes;
use fs_sim::{Errno, Kernel};
use reports::result::RunResult;
use reports::{DesignResult, OpLatencies};

use super::job::Job;

/// A design as a race runs it.
#[derive(Clone, Debug)]
pub struct DesignRun {
    /// The name in results. No code decides anything by it.
    pub name: String,
    /// What it does.
    pub axes: Axes,
    /// True for the negative control. It must show that the detectors work: stale DMA and foreign
    /// bytes are expected, and a run without stale DMA is a violation.
    pub negative_control: bool,
}

/// A race that can be run by [`run`](super::run()).
#[derive(Clone, Debug)]
pub struct RaceConfig {
    /// What the actors do.
    pub job: Job,
    /// The designs, run in this order.
    pub designs: Vec<DesignRun>,
    /// Every step of every actor is drawn from this seed.
    pub seed: u64,
    /// How long each design runs.
    pub duration_per_design: Duration,
    /// The number of actors, the roles in proportion to the job's counts. None: as many as the job
    /// says.
    pub threads: Option<u32>,
}

/// What a race found.
#[derive(Clone, Debug)]
pub struct RaceReport {
    /// The content of `result.json`.
    pub result: RunResult,
    /// The call times of each design, in the order of `result.designs`.
    pub latencies: Vec<OpLatencies>,
    /// Whether an invariant was broken; the command line then exits with code 1.
    pub failed: bool,
    /// Why the race ended before its last design, if this machine could not go on. The result has
    /// the designs that were run until then.
    pub cut_off: Option<Arc<RaceError>>,
}

/// Why a race could not be run.
#[derive(Debug, thiserror::Error)]
pub enum RaceError {
    /// No design was named.
    #[error("a race needs a design to run under; name one, or `all`")]
    NoDesign,
    /// The number of threads is out of bounds.
    #[error("{0}")]
    Threads(String),
    /// The device could not be made.
    #[error("the device could not be made: {0}")]
    Device(#[from] OpenError),
    /// The pin table and the ledger could not be mapped.
    #[error("the pin table and the ledger could not be mapped: {0}; a smaller [device] size needs less")]
    Machine(#[from] std::io::Error),
    /// This machine gives no thread for an actor.
    #[error(
        "no thread could be created for actor {actor} of {of}: {source}; raise the limit of processes (`ulimit -u`) or of \
         memory, or run fewer actors by `--threads`"
    )]
    Thread {
        /// The actor's number, from 1.
        actor: usize,
        /// How many there are.
        of: usize,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// The files could not be made.
    #[error("the job's files could not be made: {errno} at `{name}`")]
    Files {
        /// The file's name.
        name: String,
        /// The errno of the call that failed.
        errno: Errno,
    },
}

/// Asks a race to end early. All clones share one flag. Setting it is async-signal-safe.
#[derive(Clone, Debug, Default)]
pub struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// A flag that is not set.
    pub fn new() -> StopFlag {
        StopFlag::default()
    }

    /// Sets the flag. The race ends within a few milliseconds; the result covers what ran until
    /// then.
    pub fn stop(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether the flag is set.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// How a design's run stands at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Nanoseconds since its start.
    pub elapsed_ns: u64,
    /// Operations finished.
    pub operations: u64,
    /// Truncates done.
    pub truncates: u64,
    /// Registrations granted.
    pub registrations: u64,
    /// Completed RDMA work requests.
    pub dma: u64,
    /// Accesses that reached a block after it had left its file or offset.
    pub stale: u64,
}

/// Receives the progress of a race. [`run`](super::run()) calls these methods from its own thread.
pub trait RaceProgress {
    /// Design number `index` of `of` (from 0) begins, for `duration`.
    fn started(&self, index: usize, of: usize, design: &DesignRun, duration: Duration) {
        let _ = (index, of, design, duration);
    }

    /// The machine of the design that has just started.
    fn machine(&self, kernel: &Arc<Kernel>) {
        let _ = kernel;
    }

    /// How the current design stands; called about five times a second.
    fn snapshot(&self, snapshot: &Snapshot) {
        let _ = snapshot;
    }

    /// A design's run has ended.
    fn finished(&self, index: usize, of: usize, result: &DesignResult) {
        let _ = (index, of, result);
    }
}

/// Ignores all progress.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quiet;

impl RaceProgress for Quiet {}
