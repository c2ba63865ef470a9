//! `daxlab scenario`: the suite, and a user's own scenarios.
//!
//! It owns the command's arguments. Everything is parsed and checked before anything runs.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum, ValueHint};
use emulator::sync::thread;
use reports::scenarios::{self, CellVerdict, ScenarioReport};
use workloads::input::designs::{DesignCatalogue, DesignEntry};
use workloads::input::{InputError, Source};
use workloads::language::Scenario;
use workloads::suite;
use workloads::suite::guest_kernels::{
    DaxFileSystem, GuestKernels, GuestRun, GuestRunError, MachineError, run_on_guests,
};
use workloads::suite::linux::run_on_linux;

use crate::exit;
use crate::numbers;

/// Run scenarios under every design and hold their outcomes against the stated ones
#[derive(Debug, Args)]
pub(crate) struct ScenarioArgs {
    #[command(subcommand)]
    command: ScenarioCommand,
}

#[derive(Debug, Subcommand)]
enum ScenarioCommand {
    /// List the built-in scenarios
    List,
    /// Print a built-in scenario
    Show {
        /// Its id, such as S18
        #[arg(value_name = "ID")]
        id: String,
    },
    /// Run built-in scenarios (without arguments: all), or files of your own
    Run(RunArgs),
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Ids of built-in scenarios, or paths of files
    #[arg(value_name = "ID|FILE")]
    what: Vec<String>,
    /// Designs to run under: names of presets, TOML files, or `all`
    #[arg(long, value_name = "D,…|all", default_value = "all")]
    design: String,
    /// The machine to run on; `kernel` runs the scenarios that say `linux` on this machine's own
    /// kernel, `guest` on kernels under QEMU, on file systems with DAX
    #[arg(long, value_enum, default_value_t = MachineChoice::Simulation)]
    on: MachineChoice,
    /// With `--on kernel`: the directory for temporary files, whose file system is tested [default:
    /// the system's]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// With `--on kernel`: this Linux is thrown away afterwards, as a guest is. Scenarios may leave
    /// processes that nothing can end, and overwrite RAM disks
    #[arg(long, hide = true)]
    disposable: bool,
    /// With `--on guest`: this kernel instead of Debian's (bzImage); it needs --modules
    #[arg(long, value_name = "IMAGE", requires = "modules", value_hint = ValueHint::FilePath)]
    kernel: Option<PathBuf>,
    /// With `--kernel`: the folder below which its modules lie
    #[arg(long, value_name = "DIR", requires = "kernel", value_hint = ValueHint::DirPath)]
    modules: Option<PathBuf>,
    /// With `--on guest`: the file systems, each booted with each kernel [default: xfs,ext4]
    #[arg(long, value_name = "FS,…", value_enum, value_delimiter = ',')]
    file_system: Vec<FileSystemChoice>,
    /// How many scenarios run at once; the results are in the order asked for [default: as many as
    /// there are processors]
    #[arg(short = 'j', long, value_name = "N", value_parser = numbers::within(1..=JOBS_MAX, "without it there are as many as processors"))]
    jobs: Option<u16>,
    /// How to print the results
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum MachineChoice {
    /// The simulated kernel, under every design asked for
    Simulation,
    /// This machine's own Linux kernel
    Kernel,
    /// Linux kernels in guests, on persistent memory
    Guest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FileSystemChoice {
    /// XFS mounted with dax=always
    Xfs,
    /// ext4 mounted with dax=always
    Ext4,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// One line a scenario, then a matrix
    Text,
    /// Every cell, for programs
    Json,
    /// JUnit XML, for CI systems
    Junit,
}

/// The most scenarios that run at once. Each has a device and some threads.
const JOBS_MAX: u16 = 256;
/// The widest matrix printed where the terminal's width is unknown.
const WIDTH: usize = 160;

/// Runs the command.
///
/// # Errors
/// Wrong input (exit code 2).
pub(crate) fn run(args: ScenarioArgs) -> anyhow::Result<ExitCode> {
    let mut catalogue = DesignCatalogue::default();
    match args.command {
        ScenarioCommand::List => {
            let names: Vec<&str> = catalogue.names().collect();
            let lines = suite::scenarios::built_in(&names)?;
            let lines = lines.iter().map(|scenario| format!("{:<8} {}\n", scenario.id, scenario.title));
            exit::print(&lines.collect::<String>())?;
            Ok(ExitCode::SUCCESS)
        }
        ScenarioCommand::Show { id } => {
            let names: Vec<&str> = catalogue.names().collect();
            let scenarios = suite::scenarios::built_in(&names)?;
            exit::print(named(&scenarios, &id)?.source.text())?;
            Ok(ExitCode::SUCCESS)
        }
        ScenarioCommand::Run(args) => run_scenarios(&mut catalogue, &args),
    }
}

fn named<'s>(scenarios: &'s [Scenario], id: &str) -> Result<&'s Scenario, InputError> {
    suite::scenarios::find(scenarios, id).ok_or_else(|| {
        let source = Source::new("<scenario>", id);
        let ids = scenarios.iter().map(|scenario| scenario.id.as_str());
        source.unknown_word(0..id.len(), "scenario", id, ids)
    })
}

fn run_scenarios(catalogue: &mut DesignCatalogue, args: &RunArgs) -> anyhow::Result<ExitCode> {
    check_machine(args)?;
    let designs: Vec<DesignEntry> = catalogue.resolve(&args.design)?;
    let names: Vec<&str> = catalogue.names().collect();
    let built_in = suite::scenarios::built_in(&names)?;
    let mut scenarios = Vec::new();
    for what in &args.what {
        scenarios.push(match is_path(what) {
            true => Scenario::parse(&Source::read(Path::new(what))?, &names)?,
            false => named(&built_in, what)?.clone(),
        });
    }
    suite::scenarios::check_ids(&scenarios)?;
    if args.what.is_empty() {
        scenarios = built_in;
        scenarios.retain(|scenario| args.on == MachineChoice::Simulation || scenario.setup.linux);
    }
    let report = match args.on {
        MachineChoice::Simulation => {
            let workers = args.jobs.map_or_else(thread::parallelism, usize::from);
            suite::scenarios::run_simulated_on(&scenarios, &designs, workers)?
        }
        MachineChoice::Kernel => {
            let dir = args.dir.clone().unwrap_or_else(std::env::temp_dir);
            run_on_linux(&scenarios, Path::new("/proc/self/exe"), &dir, args.disposable)?
        }
        MachineChoice::Guest => on_guests(&scenarios, args)?,
    };
    let terminal = std::io::stdout().is_terminal();
    let width = terminal_size::terminal_size().filter(|_| terminal).map_or(WIDTH, |(width, _)| usize::from(width.0));
    let text = match args.format {
        Format::Text => scenarios::text(&report, width),
        Format::Json => serde_json::to_string_pretty(&report)? + "\n",
        Format::Junit => scenarios::junit(&report)?,
    };
    let printed = exit::print(&text);
    let cells: usize = report.scenarios.iter().map(|row| row.cells.len()).sum();
    if report.failed() || report.count(CellVerdict::Inconclusive) > 0 {
        return exit::after_results(true, [printed]);
    }
    printed?;
    let not_run = report.count(CellVerdict::NotRun);
    // A simulated machine lacks only what this machine did not give. What was asked for by name,
    // and everything, can't be passed over in silence either.
    let simulated = args.on == MachineChoice::Simulation;
    if not_run > 0 && (simulated || !args.what.is_empty() || not_run == cells) {
        let first =
            report.scenarios.iter().flat_map(|row| &row.cells).filter(|cell| cell.verdict == CellVerdict::NotRun);
        let first = first.filter_map(|cell| cell.failure.as_ref()).next().map_or("", |failure| failure.got.as_str());
        return Err(exit::CannotRun(format!("{not_run} of {cells} could not be run: {first}")).into());
    }
    Ok(ExitCode::SUCCESS)
}

/// Checks that what was given fits the machine.
fn check_machine(args: &RunArgs) -> anyhow::Result<()> {
    match args.on {
        MachineChoice::Simulation | MachineChoice::Guest if args.dir.is_some() => {
            anyhow::bail!("--dir is where files of this machine's own kernel go: it needs --on kernel");
        }
        MachineChoice::Simulation | MachineChoice::Guest if args.disposable => {
            anyhow::bail!("--disposable is about this machine's own kernel: it needs --on kernel");
        }
        MachineChoice::Simulation | MachineChoice::Kernel if args.kernel.is_some() => {
            anyhow::bail!("--kernel is what a guest boots: it needs --on guest");
        }
        MachineChoice::Simulation | MachineChoice::Kernel if !args.file_system.is_empty() => {
            anyhow::bail!("--file-system is what a guest mounts: it needs --on guest");
        }
        MachineChoice::Kernel | MachineChoice::Guest if args.jobs.is_some() => {
            anyhow::bail!("-j: on a real kernel the scenarios themselves say what may run at once; leave it away");
        }
        MachineChoice::Kernel | MachineChoice::Guest if args.design != "all" => {
            anyhow::bail!("--design {}: a real kernel is no design; leave --design or --on away", args.design);
        }
        _ => Ok(()),
    }
}

/// Runs scenarios on the kernels of guests.
fn on_guests(scenarios: &[Scenario], args: &RunArgs) -> anyhow::Result<ScenarioReport> {
    let kernels = match (&args.kernel, &args.modules) {
        (Some(image), Some(modules)) => GuestKernels::Own { image: image.clone(), modules: modules.clone() },
        _ => GuestKernels::Fetched,
    };
    let mut file_systems: Vec<DaxFileSystem> = Vec::new();
    let chosen = if args.file_system.is_empty() { FileSystemChoice::value_variants() } else { &args.file_system };
    for file_system in chosen {
        let file_system = match file_system {
            FileSystemChoice::Xfs => DaxFileSystem::Xfs,
            FileSystemChoice::Ext4 => DaxFileSystem::Ext4,
        };
        if !file_systems.contains(&file_system) {
            file_systems.push(file_system);
        }
    }
    let run = GuestRun { kernels, file_systems, program: PathBuf::from("/proc/self/exe") };
    run_on_guests(scenarios, &run, &exit::note).map_err(|error| match error {
        GuestRunError::Input(error) => (*error).into(),
        GuestRunError::Machine(error @ (MachineError::Input { .. } | MachineError::TooLarge(_))) => {
            anyhow::Error::new(error)
        }
        other => exit::CannotRun(other.to_string()).into(),
    })
}

/// Whether a word names a file rather than a built-in scenario.
fn is_path(word: &str) -> bool {
    word.contains('/') || word.ends_with(".scn")
}
