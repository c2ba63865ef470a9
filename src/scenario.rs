//! `daxlab scenario`: the suite, and a user's own scenarios.
//!
//! It owns the command's arguments. Everything is parsed and checked before anything runs.

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use emulator::sync::thread;
use reports::scenarios::{self, CellVerdict};
use workloads::input::designs::{DesignCatalogue, DesignEntry};
use workloads::input::{InputError, Source};
use workloads::language::Scenario;
use workloads::suite;
use workloads::suite::guest_kernels::{rank_designs_on_guests, run_on_guests};
use workloads::suite::linux::{self, Statements, run_on_linux};

use crate::linux_args::{GuestArgs, KernelArgs, guest_error, guest_run};
use crate::{exit, numbers, random};

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
    /// Make random sequences of operations on a real kernel and in the simulation, which must come
    /// to the same
    Random(random::RandomArgs),
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
    #[command(flatten)]
    kernel: KernelArgs,
    #[command(flatten)]
    guest: GuestArgs,
    /// With `--on kernel` or `guest`: hold the kernel against what the scenarios state for each
    /// preset, and rank the presets by agreement
    #[arg(long)]
    which_design: bool,
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
        ScenarioCommand::Random(args) => random::run(&args),
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
    if args.which_design {
        return rank_designs(&scenarios, args);
    }
    let report = match args.on {
        MachineChoice::Simulation => {
            let workers = args.jobs.map_or_else(thread::parallelism, usize::from);
            suite::scenarios::run_simulated_on(&scenarios, &designs, workers)?
        }
        MachineChoice::Kernel => run_on_linux(&scenarios, Statements::OfLinux, &args.kernel.config())?,
        MachineChoice::Guest => run_on_guests(&scenarios, &guest_run(&args.guest), &exit::note).map_err(guest_error)?,
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

/// Ranks the presets by how far a real kernel does what scenarios state for them.
fn rank_designs(scenarios: &[Scenario], args: &RunArgs) -> anyhow::Result<ExitCode> {
    let ranking = match args.on {
        MachineChoice::Guest => {
            rank_designs_on_guests(scenarios, &guest_run(&args.guest), &exit::note).map_err(guest_error)?
        }
        _ => linux::rank_designs(scenarios, &args.kernel.config())?,
    };
    exit::print(&match args.format {
        Format::Json => serde_json::to_string_pretty(&ranking)? + "\n",
        _ => ranking.text(),
    })?;
    match ranking.told() {
        true => Ok(ExitCode::SUCCESS),
        false => Err(exit::CannotRun("no scenario could be run that tells designs apart".to_owned()).into()),
    }
}

/// Checks that what was given fits the machine.
fn check_machine(args: &RunArgs) -> anyhow::Result<()> {
    if args.on != MachineChoice::Kernel {
        args.kernel.check_unused()?;
    }
    if args.on != MachineChoice::Guest {
        args.guest.check_unused()?;
    }
    match args.on {
        MachineChoice::Kernel | MachineChoice::Guest if args.jobs.is_some() => {
            anyhow::bail!("-j: on a real kernel the scenarios themselves say what may run at once; leave it away");
        }
        MachineChoice::Kernel | MachineChoice::Guest if args.design != "all" => {
            anyhow::bail!("--design {}: a real kernel is no design; leave --design or --on away", args.design);
        }
        MachineChoice::Simulation if args.which_design => {
            anyhow::bail!("--which-design asks what a real kernel does: it needs --on kernel or --on guest");
        }
        _ if args.which_design && matches!(args.format, Format::Junit) => {
            anyhow::bail!("--which-design passes and fails nothing: it has no --format junit");
        }
        _ => Ok(()),
    }
}

/// Whether a word names a file rather than a built-in scenario.
fn is_path(word: &str) -> bool {
    word.contains('/') || word.ends_with(".scn")
}
