//! One race from its configuration to its result.
//!
//! For each design it makes a machine, lets the supervisor run the actors on it, and judges the
//! outcome. Invariant: designs share nothing but the seed and the job.

use emulator::World;
use emulator::device::Device;
use emulator::sync::Arc;
use fs_sim::syscalls::open::OpenFlags;
use fs_sim::{Kernel, KernelConfig, Sabotage};
use reports::result::RunResult;
use reports::{DesignResult, JobSummary, OpLatencies};

use super::config::{DesignRun, RaceConfig, RaceError, RaceProgress, RaceReport, Snapshot, StopFlag};
use super::job::Job;
use super::oracle::{PayloadFile, Payloads};
use super::shared::{RaceShared, RunLimits};
use super::{outcome, supervisor};

/// Runs a race under each of its designs.
///
/// Returns when the last design has ended, or soon after `stop` is set.
///
/// # Errors
/// [`RaceError`]: the race could not be run under any design. If it could under some, the report
/// has these, and [`RaceReport::cut_off`]. A broken invariant is not an error: it is in the result,
/// and [`RaceReport::failed`] is set.
///
/// # Example
/// ```
/// use std::time::Duration;
/// use workloads::input::Source;
/// use workloads::race::job::Job;
/// use workloads::race::{DesignRun, Quiet, RaceConfig, StopFlag, run};
///
/// let text = "[files]\ncount = 2\n[registrants]\ncount = 1\n[truncaters]\ncount = 1\n";
/// let presets = fs_sim::design::presets();
/// let kara = presets.iter().find(|preset| preset.name == "kara").unwrap();
/// let config = RaceConfig {
///     job: Job::parse(&Source::new("tiny.toml", text)).unwrap(),
///     designs: vec![DesignRun {
///         name: kara.name.to_owned(),
///         axes: kara.axes,
///         negative_control: kara.negative_control,
///     }],
///     seed: 7,
///     duration_per_design: Duration::from_millis(50),
///     threads: None,
/// };
/// let report = run(config, &Quiet, &StopFlag::new()).unwrap();
/// assert!(!report.failed);
/// assert_eq!(report.result.designs[0].name, "kara");
/// ```
pub fn run(config: RaceConfig, progress: &dyn RaceProgress, stop: &StopFlag) -> Result<RaceReport, RaceError> {
    run_sabotaged(config, Sabotage::default(), progress, stop)
}

/// [`run`] with rules of the kernel broken. Only tests break one.
pub(super) fn run_sabotaged(
    config: RaceConfig,
    sabotage: Sabotage,
    progress: &dyn RaceProgress,
    stop: &StopFlag,
) -> Result<RaceReport, RaceError> {
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
    let result = RunResult::new(config.seed, summary);
    let mut report = RaceReport { result, latencies: Vec::new(), failed: false, cut_off: None };
    let of = config.designs.len();
    for (index, design) in config.designs.iter().enumerate() {
        if stop.is_set() {
            report.result.interrupted = true;
            break;
        }
        progress.started(index, of, design, config.duration_per_design);
        match run_design(&job, design, &config, sabotage, progress, stop) {
            Ok((interrupted, result, latencies)) => {
                report.result.interrupted |= interrupted;
                progress.finished(index, of, &result);
                report.result.designs.push(result);
                report.latencies.push(latencies);
            }
            Err(error) if index == 0 => return Err(error),
            Err(error) => {
                report.result.interrupted = true;
                report.cut_off = Some(Arc::new(error));
                break;
            }
        }
    }
    report.failed = report.result.has_violations();
    Ok(report)
}

/// Runs the job under one design: whether it was interrupted, and what was found.
fn run_design(
    job: &Job,
    design: &DesignRun,
    config: &RaceConfig,
    sabotage: Sabotage,
    progress: &dyn RaceProgress,
    stop: &StopFlag,
) -> Result<(bool, DesignResult, OpLatencies), RaceError> {
    let shared = new_machine(job, design, config.seed, sabotage, RunLimits::default())?;
    progress.machine(&shared.kernel);
    let mut report_progress = |snapshot: &Snapshot| progress.snapshot(snapshot);
    let mut ended = supervisor::supervise(&shared, config.duration_per_design, stop, &mut report_progress, None);
    if let Some(error) = ended.no_thread.take() {
        return Err(error);
    }
    let interrupted = ended.interrupted;
    let (result, latencies) = outcome::judge(&shared, design, ended);
    Ok((interrupted, result, latencies))
}

/// A simulated machine under `design`, with the job's files in place.
pub(super) fn new_machine(
    job: &Job,
    design: &DesignRun,
    seed: u64,
    sabotage: Sabotage,
    limits: RunLimits,
) -> Result<Arc<RaceShared>, RaceError> {
    let device = Device::memory(job.device_bytes)?;
    let mut config = KernelConfig::new(design.axes).sabotaged_for_tests(sabotage);
    config.options = job.volume;
    let kernel = Kernel::new(Arc::new(World::real(seed)), device, config)?;
    let payloads = Payloads::new(job.files.moved, job.files.size);
    make_files(&kernel, &payloads, job)?;
    Ok(Arc::new(RaceShared::new(kernel, payloads, job.clone(), seed, limits)))
}

/// Makes the job's files, each at its full size and filled with the payload that belongs there.
fn make_files(kernel: &Arc<Kernel>, payloads: &Payloads, job: &Job) -> Result<(), RaceError> {
    /// The writer number of the initial contents. No actor has this number.
    const SETUP: u8 = u8::MAX;
    const CHUNK: u64 = 1 << 20;
    let admin = kernel.spawn();
    let mut buffer = Vec::new();
    for index in 0..job.files.count {
        let name = RaceShared::file_name(index);
        let mut make = || {
            let fd = admin.open(&name, OpenFlags::create())?;
            let ino = admin.stat(fd)?.ino.0;
            let file = if index < job.files.moved { PayloadFile::Moved(index) } else { PayloadFile::Inode(ino) };
            for offset in (0..job.files.size).step_by(CHUNK as usize) {
                buffer.resize(CHUNK.min(job.files.size - offset) as usize, 0);
                payloads.fill(&mut buffer, file, offset, SETUP, 0);
                admin.write(fd, offset, &buffer)?;
            }
            admin.close(fd)
        };
        make().map_err(|errno| RaceError::Files { name: name.clone(), errno })?;
    }
    admin.exit();
    Ok(())
}
