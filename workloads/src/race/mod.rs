//! The race: registrations and DMA against layout changes, on real threads, under one design after the other.
//!
//! It owns a run from its configuration to its result. Invariants: every design meets the same choices, drawn from one seed
//! ([`crate::choices`]); every design has a machine of its own; a run ends by its clock or the stop flag within a bound,
//! whatever its actors are blocked on; what is broken (SEMANTICS section 8) is in the result and makes the run fail. There
//! is no kernel counterpart; fio and stress-ng are the relatives.
//!
//! `docs/race.md` describes the roles, what is counted, and how the verdict comes about.

mod arena;
mod changers;
mod direct_io;
mod endpoint;
mod outcome;
mod registrant;
mod supervisor;
mod tally;
#[cfg(all(test, not(any(daxlab_loom, daxlab_shuttle))))]
mod tests;

use std::time::Duration;

use emulator::World;
use emulator::device::{Device, OpenError};
use emulator::sync::Arc;
use emulator::sync::atomic::{AtomicBool, Ordering};
use fs_sim::design::Axes;
use fs_sim::syscalls::open::OpenFlags;
use fs_sim::{Errno, Kernel, KernelConfig, Sabotage};
use reports::result::RunResult;
use reports::{DesignResult, JobSummary, OpLatencies};

use crate::job::Job;
use crate::oracle;
use arena::{Arena, Limits};

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

impl Snapshot {
    fn of(arena: &Arena, elapsed_ns: u64) -> Snapshot {
        let mut snapshot = Snapshot { elapsed_ns, stale: arena.kernel.counters.stale_dma.get(), ..Snapshot::default() };
        for slot in &arena.slots {
            // ORDERING: Relaxed: a status line.
            snapshot.operations += slot.live.operations.load(Ordering::Relaxed);
            snapshot.truncates += slot.live.truncates.load(Ordering::Relaxed);
            snapshot.registrations += slot.live.registrations.load(Ordering::Relaxed);
            snapshot.dma += slot.live.dma.load(Ordering::Relaxed);
        }
        snapshot
    }
}

/// Whoever wants to see how a race comes along. Called from the thread that called [`run`].
pub trait Progress {
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

impl Progress for Quiet {}

/// Runs a race under each of its designs.
///
/// # Errors
/// [`RaceError`]: it could not be run. A broken invariant is no error but [`RaceReport::failed`].
pub fn run(config: RaceConfig, progress: &dyn Progress, stop: &StopFlag) -> Result<RaceReport, RaceError> {
    let job = match config.threads {
        Some(threads) => config.job.with_threads(threads).map_err(RaceError::Threads)?,
        None => config.job.clone(),
    };
    if config.designs.is_empty() {
        return Err(RaceError::NoDesign);
    }
    let duration_ns = u64::try_from(config.duration_per_design.as_nanos()).unwrap_or(u64::MAX);
    let mut summary = JobSummary::new(&job.name, duration_ns, job.actors().len() as u32);
    summary.parameters = job.parameters().clone();
    let mut report = RaceReport { result: RunResult::new(config.seed, summary), latencies: Vec::new(), failed: false };
    let of = config.designs.len();
    for (index, design) in config.designs.iter().enumerate() {
        if stop.is_set() {
            report.result.interrupted = true;
            break;
        }
        progress.started(index, of, design, config.duration_per_design);
        let arena = arena(&job, design, config.seed, config.sabotage, Limits::default())?;
        progress.machine(&arena.kernel);
        let mut tell = |snapshot: &Snapshot| progress.snapshot(snapshot);
        let ended = supervisor::supervise(&arena, config.duration_per_design, stop, &mut tell, None);
        report.result.interrupted |= ended.interrupted;
        let (result, latencies) = outcome::judge(&arena, design, ended);
        progress.finished(index, of, &result);
        report.result.designs.push(result);
        report.latencies.push(latencies);
    }
    report.failed = report.result.has_violations();
    Ok(report)
}

/// A machine under `design`, with the job's files in place.
fn arena(
    job: &Job,
    design: &DesignRun,
    seed: u64,
    sabotage: Sabotage,
    limits: Limits,
) -> Result<Arc<Arena>, RaceError> {
    let device = Device::memory(job.device_bytes)?;
    let config = KernelConfig { options: job.volume, sabotage, ..KernelConfig::new(design.axes) };
    let kernel = Kernel::new(Arc::new(World::real(seed)), device, config)?;
    make_files(&kernel, job)?;
    Ok(Arc::new(Arena::new(kernel, job.clone(), seed, limits)))
}

/// Makes the job's files, each at its full size and filled with what belongs there.
fn make_files(kernel: &Arc<Kernel>, job: &Job) -> Result<(), RaceError> {
    /// Who writes what is there at the start: no actor's number reaches it.
    const SETUP: u8 = u8::MAX;
    const CHUNK: u64 = 1 << 20;
    let admin = kernel.spawn();
    let mut buffer = Vec::new();
    for index in 0..job.files.count {
        let name = Arena::file_name(index);
        let mut make = || {
            let fd = admin.open(&name, OpenFlags::create())?;
            let ino = admin.stat(fd)?.ino.0;
            for offset in (0..job.files.size).step_by(CHUNK as usize) {
                buffer.resize(CHUNK.min(job.files.size - offset) as usize, 0);
                oracle::fill(&mut buffer, ino, offset, SETUP, 0);
                admin.write(fd, offset, &buffer)?;
            }
            admin.close(fd)
        };
        make().map_err(|errno| RaceError::Files { name: name.clone(), errno })?;
    }
    admin.exit();
    Ok(())
}
