//! What a race is asked to do, and what it reports while it runs and afterwards.
//!
//! It owns the public types of a race; nothing here runs. Invariant: none of them holds a lock or a thread.

use std::time::Duration;

use emulator::device::OpenError;
use emulator::sync::Arc;
use emulator::sync::atomic::{AtomicBool, Ordering};
use fs_sim::design::Axes;
use fs_sim::{Errno, Kernel, Sabotage};
use reports::result::RunResult;
use reports::{DesignResult, OpLatencies};

use super::job::Job;

/// A design as a race runs it.
#[derive(Clone, Debug)]
pub struct DesignRun {
    /// What results call it. Decides nothing.
    pub name: String,
    /// What it does.
    pub axes: Axes,
    /// It is there to show that the detectors see: stale DMA and foreign bytes are expected, and their absence is a violation.
    pub negative_control: bool,
}

/// A race to be run.
#[derive(Clone, Debug)]
pub struct RaceConfig {
    /// What the actors do.
    pub job: Job,
    /// Under which designs, in this order.
    pub designs: Vec<DesignRun>,
    /// What every choice is drawn from.
    pub seed: u64,
    /// How long each design runs.
    pub duration_per_design: Duration,
    /// How many actors, if not as many as the job says; the roles in proportion.
    pub threads: Option<u32>,
    /// Rules broken on purpose; nothing in a real run.
    pub sabotage: Sabotage,
}

/// What a race found.
#[derive(Clone, Debug)]
pub struct RaceReport {
    /// For `result.json`.
    pub result: RunResult,
    /// The call times of each design, in the order of `result.designs`.
    pub latencies: Vec<OpLatencies>,
    /// Whether an invariant was broken: exit code 1.
    pub failed: bool,
}

/// Why a race could not be run.
#[derive(Debug, thiserror::Error)]
pub enum RaceError {
    /// No design was named.
    #[error("a race needs a design to run under; name one, or `all`")]
    NoDesign,
    /// The number of threads can't be had.
    #[error("{0}")]
    Threads(String),
    /// The device could not be made.
    #[error("the device could not be made: {0}")]
    Device(#[from] OpenError),
    /// The machine's tables could not be mapped.
    #[error("the pin table and the ledger could not be mapped: {0}; a smaller [device] size needs less")]
    Machine(#[from] std::io::Error),
    /// The files could not be made.
    #[error("the job's files could not be made: {errno} at `{name}`")]
    Files {
        /// The file.
        name: String,
        /// Why.
        errno: Errno,
    },
}

/// Asks a race to come to its end early. Clones are one flag; setting it is async-signal-safe.
#[derive(Clone, Debug, Default)]
pub struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// A flag that is not set.
    pub fn new() -> StopFlag {
        StopFlag::default()
    }

    /// Sets it. The race ends within a few milliseconds, and is reported as far as it came.
    pub fn stop(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether it is set.
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
    /// DMA accesses carried out.
    pub dma: u64,
    /// Stale ones among them.
    pub stale: u64,
}

/// Whoever wants to see how a race comes along. Called from the thread that called [`run`].
pub trait RaceProgress {
    /// Design number `index` of `of` (from 0) begins, for `duration`.
    fn started(&self, index: usize, of: usize, design: &DesignRun, duration: Duration) {
        let _ = (index, of, design, duration);
    }

    /// The machine of the design that has just begun.
    fn machine(&self, kernel: &Arc<Kernel>) {
        let _ = kernel;
    }

    /// How the present design stands; a few times a second.
    fn snapshot(&self, snapshot: &Snapshot) {
        let _ = snapshot;
    }

    /// A design has come to its end.
    fn finished(&self, index: usize, of: usize, result: &DesignResult) {
        let _ = (index, of, result);
    }
}

/// Nobody looks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quiet;

impl RaceProgress for Quiet {}
