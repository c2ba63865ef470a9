//! One race from its configuration to its result: a machine for each design, the supervisor, the judgement.

use emulator::World;
use emulator::device::Device;
use emulator::sync::Arc;
use fs_sim::file_ops::open::Flags;
use fs_sim::{Config, Kernel, Sabotage};
use reports::JobSummary;
use reports::result::RunResult;

use super::config::{DesignRun, RaceConfig, RaceError, RaceProgress, RaceReport, Snapshot, StopFlag};
use super::job::Job;
use super::shared::{RaceShared, RunLimits};
use super::{oracle, outcome, supervisor};

/// Runs a race under each of its designs.
///
/// # Errors
/// [`RaceError`]: it could not be run. A broken invariant is no error but [`RaceReport::failed`].
pub fn run(config: RaceConfig, progress: &dyn RaceProgress, stop: &StopFlag) -> Result<RaceReport, RaceError> {
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
        let shared = new_machine(&job, design, config.seed, config.sabotage, RunLimits::default())?;
        progress.machine(&shared.kernel);
        let mut tell = |snapshot: &Snapshot| progress.snapshot(snapshot);
        let ended = supervisor::supervise(&shared, config.duration_per_design, stop, &mut tell, None);
        report.result.interrupted |= ended.interrupted;
        let (result, latencies) = outcome::judge(&shared, design, ended);
        progress.finished(index, of, &result);
        report.result.designs.push(result);
        report.latencies.push(latencies);
    }
    report.failed = report.result.has_violations();
    Ok(report)
}

/// A machine under `design`, with the job's files in place.
pub(super) fn new_machine(
    job: &Job,
    design: &DesignRun,
    seed: u64,
    sabotage: Sabotage,
    limits: RunLimits,
) -> Result<Arc<RaceShared>, RaceError> {
    let device = Device::memory(job.device_bytes)?;
    let config = Config { options: job.volume, sabotage, ..Config::new(design.axes) };
    let kernel = Kernel::new(Arc::new(World::real(seed)), device, config)?;
    make_files(&kernel, job)?;
    Ok(Arc::new(RaceShared::new(kernel, job.clone(), seed, limits)))
}

/// Makes the job's files, each at its full size and filled with what belongs there.
fn make_files(kernel: &Arc<Kernel>, job: &Job) -> Result<(), RaceError> {
    /// Who writes what is there at the start: no actor's number reaches it.
    const SETUP: u8 = u8::MAX;
    const CHUNK: u64 = 1 << 20;
    let admin = kernel.spawn();
    let mut buffer = Vec::new();
    for index in 0..job.files.count {
        let name = RaceShared::file_name(index);
        let mut make = || {
            let fd = admin.open(&name, Flags::create())?;
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
