//! `daxlab race`: the truncate/pin race under every design.
//!
//! It owns the command's arguments. Everything is checked before anything runs or is written: job,
//! designs, output folder.

use std::io::{ErrorKind, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use emulator::sync::Arc;
use reports::{OutputFolder, RunResult, RunWriteError, text};
use workloads::input::Duration;
use workloads::input::designs::DesignCatalogue;
use workloads::messages::peers::AllowedPeers;
use workloads::messages::socket::ListenError;
use workloads::race::job::Job;
use workloads::race::{self, DesignRun, RaceConfig, RaceError, StopFlag};
use workloads::serving::control::{ControlServer, Questions};

use crate::exit;
use crate::numbers;
use crate::progress::StatusLine;

/// The widest table printed where the terminal's width is unknown.
const WIDTH: usize = 120;

/// Arguments of `daxlab race`.
#[derive(Debug, Args)]
pub(crate) struct RaceArgs {
    /// Job file (TOML); without it the built-in job runs
    #[arg(value_name = "JOB.toml")]
    job: Option<PathBuf>,
    /// Designs to run: names of presets, TOML files, or `all`
    #[arg(long, value_name = "D,…|all", default_value = "all")]
    design: String,
    /// How long each design runs, with a unit: `10s`, `500ms`
    #[arg(long, value_name = "TIME")]
    duration: Option<Duration>,
    /// How many actor threads; the job's roles are scaled in proportion
    #[arg(long, value_name = "N", value_parser = numbers::within(0..=u32::MAX, "in decimal digits"))]
    threads: Option<u32>,
    /// Seed of every random choice; printed by every run
    #[arg(long, value_name = "S", value_parser = numbers::any)]
    seed: Option<u64>,
    /// Folder for result.json, *.hlog, *.hgrm and report.html
    #[arg(long, value_name = "DIR", default_value = "daxlab-out")]
    out: PathBuf,
    /// Listen at this socket: `daxlab ctl SOCKET blockers FILE` asks the race that runs
    #[arg(long, value_name = "SOCKET")]
    control: Option<PathBuf>,
    /// A short run: about a second per design
    #[arg(long)]
    quick: bool,
}

/// Runs the command.
///
/// # Errors
/// Wrong input (exit code 2), or the machine can't run it (exit code 3).
pub(crate) fn run(args: RaceArgs) -> anyhow::Result<ExitCode> {
    let job = match &args.job {
        Some(path) => Job::read(path)?,
        None => Job::built_in(),
    };
    let job = if args.quick { job.quick() } else { job };
    let job = match args.threads {
        Some(threads) => job.with_threads(threads).map_err(anyhow::Error::msg)?,
        None => job,
    };
    let duration_per_design = args.duration.map_or(job.duration, |duration| duration.0);
    if duration_per_design.is_zero() {
        anyhow::bail!("--duration 0s would race nothing; say how long each design runs, such as 500ms or 10s");
    }
    let mut catalogue = DesignCatalogue::default();
    let designs = catalogue.resolve(&args.design)?;
    let designs = designs
        .into_iter()
        .map(|entry| DesignRun {
            name: entry.design.name,
            axes: entry.design.axes,
            negative_control: entry.negative_control,
        })
        .collect();
    let config =
        RaceConfig { duration_per_design, seed: args.seed.or(job.seed).unwrap_or(1), designs, threads: None, job };
    let seed = config.seed;
    let folder = OutputFolder::claim(&args.out).map_err(not_written)?;

    let questions = Arc::new(Questions::default());
    let _control = args.control.as_deref().map(|path| listen(path, Arc::clone(&questions))).transpose()?;
    let stop = StopFlag::default();
    let handler = stop.clone();
    exit::on_interrupt(move || handler.stop())?;
    let started = emulator::runtime::clock::since_epoch();
    exit::note(&format!("seed {seed}"));
    let status = StatusLine::new(questions);
    let report = race::run(config, &status, &stop).map_err(|error| cannot_run(Arc::new(error)))?;
    drop(status);

    // What was found comes first: a full disk costs the files, not the run.
    let printed = exit::print(&table(&report.result));
    let written = folder.write(&report.result, &report.latencies, started).map_err(not_written);
    match &written {
        Ok(_) => exit::note(&format!("seed {seed}; results in {}", args.out.display())),
        Err(_) => exit::note(&format!("seed {seed}")),
    }
    let complete = report.cut_off.map_or(Ok(()), |error| Err(cannot_run(error)));
    exit::after_results(report.failed, [printed, written.map(drop), complete])
}

/// The comparison as stdout gets it.
fn table(result: &RunResult) -> String {
    let terminal = std::io::stdout().is_terminal();
    let width = terminal_size::terminal_size().filter(|_| terminal).map_or(WIDTH, |(width, _)| usize::from(width.0));
    text::tables(result, &text::TableOptions { width, ansi: terminal })
}

/// A folder of other things is the user's to change; what the operating system refuses is not.
fn not_written(error: RunWriteError) -> anyhow::Error {
    match error.is_wrong_input() {
        true => anyhow::anyhow!("--out: {error}"),
        false => exit::CannotRun(format!("--out: {error}")).into(),
    }
}

/// Listens at `path`. A path that can't be a socket is the user's to change; a machine that can't
/// make one is not.
fn listen(path: &Path, questions: Arc<Questions>) -> anyhow::Result<ControlServer> {
    ControlServer::listen(path, AllowedPeers::with(&[]), questions, Box::new(exit::note)).map_err(|error| match error {
        ListenError::Os { ref source, .. } if source.kind() != ErrorKind::NotFound => {
            exit::CannotRun(format!("--control: {error}")).into()
        }
        ListenError::Locked { .. } | ListenError::Unlocked { .. } => {
            exit::CannotRun(format!("--control: {error}")).into()
        }
        error => anyhow::anyhow!("--control: {error}"),
    })
}

/// Whose turn it is: a request that can't be met is the user's, a machine that can't meet it is
/// not.
fn cannot_run(error: Arc<RaceError>) -> anyhow::Error {
    match *error {
        RaceError::NoDesign | RaceError::Threads(_) => anyhow::anyhow!("{error}"),
        RaceError::Device(_) | RaceError::Machine(_) | RaceError::Thread { .. } | RaceError::Files { .. } => {
            exit::CannotRun(error.to_string()).into()
        }
    }
}
