//! Runs scenarios on the real kernel.
//!
//! It owns the schedule: scenarios in which no time passes run one after the other; scenarios in
//! which time passes run side by side, under one shortened break time; those that leave a process
//! that nothing can end run last. Invariant: a scenario that this kernel can't run is reported as
//! not run, whatever the others did.

use std::rc::Rc;

use crate::input::InputError;
use emulator::sync::{Mutex, thread};
use fs_sim::design::{Axes, EvictRule, LeaseRules, Preset, further_presets, presets};
use reports::scenarios::{DesignRanking, KernelRanking, ScenarioCell, ScenarioReport};

use crate::language::condition::{DesignSubject, LinuxSubject, kernel_version};
use crate::language::{Action, Scenario};
use crate::machines::linux::{BreakTime, FileSystem, Host, LinuxConfig, LinuxMachine, LongBreakTime};
use crate::machines::machine::{Machine, NoThread, Trouble};
use crate::ops::Op;
use crate::suite::{run, scenarios};

/// The most scenarios with passing time that run side by side.
const SIDE_BY_SIDE: usize = 16;

/// The first version that waits for the held pages of a file at its end
/// (`dax_break_layout_final`).
const EVICTION_WAITS: (u32, u32) = (6, 15);

/// What conditions of scenarios see on a real kernel: the preset that stands for it. Linux has no
/// layout leases for users.
pub(super) fn subject(linux: LinuxSubject) -> DesignSubject {
    let eviction = if linux.version < EVICTION_WAITS { EvictRule::Proceed } else { EvictRule::Wait };
    let stands = |axes: &Axes| axes.lease_rules == LeaseRules::None && axes.evict_while_pinned == eviction;
    let axes = presets().iter().chain(further_presets()).map(|preset| preset.axes).find(stands);
    DesignSubject { name: "linux".to_owned(), axes: axes.expect("a preset for each Linux"), linux: Some(linux) }
}

/// What the real kernel is held against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Statements {
    /// What scenarios state for Linux, in one column.
    OfLinux,
    /// What they state for each preset, in a column each: which design does this kernel behave
    /// like?
    OfPresets,
}

impl Statements {
    /// The columns, for a certain Linux.
    fn subjects(self, linux: &LinuxSubject) -> Vec<DesignSubject> {
        let of = |preset: &Preset| {
            let (name, axes) = (preset.name.to_owned(), preset.axes);
            DesignSubject { name, axes, linux: Some(linux.clone()) }
        };
        match self {
            Statements::OfLinux => vec![subject(linux.clone())],
            Statements::OfPresets => presets().iter().chain(further_presets()).map(of).collect(),
        }
    }
}

/// Runs `scenarios` on the real kernel, by this configuration but for its break time. Where several
/// designs state the same, the scenario runs once for them.
///
/// # Errors
/// A scenario is not for Linux, states no outcome, or asks for the impossible.
pub fn run_on_linux(
    scenarios: &[Scenario],
    statements: Statements,
    config: &LinuxConfig,
) -> Result<ScenarioReport, InputError> {
    check(scenarios, statements)?;
    let config = LinuxConfig { break_time: None, ..config.clone() };
    let mut cells: Vec<Option<Result<Vec<ScenarioCell>, InputError>>> = scenarios.iter().map(|_| None).collect();
    let (last, others): (Vec<usize>, Vec<usize>) = (0..scenarios.len()).partition(|n| states_stuck(&scenarios[*n]));
    let (timed, plain): (Vec<usize>, Vec<usize>) = others.into_iter().partition(|n| time_passes(&scenarios[*n]));
    let host = Host::start(config.clone());
    let columns = statements.subjects(&LinuxSubject::default()).into_iter().map(|subject| subject.name).collect();
    // Keeps other runs from shortening the break time while no break may time out.
    let long = LongBreakTime::hold();
    for n in plain {
        cells[n] = Some(row(&scenarios[n], statements, &host));
    }
    drop((host, long));
    if !timed.is_empty() || !last.is_empty() {
        // If it can't be shortened, every scenario that needs it reports that.
        let break_time = BreakTime::shorten(&config.program).ok();
        let config = LinuxConfig { break_time, ..config };
        let done = Mutex::new(&mut cells);
        for group in timed.chunks(SIDE_BY_SIDE) {
            thread::scope(|scope| {
                for n in group {
                    let (config, done) = (config.clone(), &done);
                    let spawned = thread::try_spawn_scoped(scope, move || {
                        let host = Host::start(config);
                        let row = row(&scenarios[*n], statements, &host);
                        done.lock()[*n] = Some(row);
                    });
                    if let Err(error) = spawned {
                        let no_host = Err(Trouble::CannotRun(NoThread(error).to_string()));
                        let row = row(&scenarios[*n], statements, &no_host);
                        done.lock()[*n] = Some(row);
                    }
                }
            });
        }
        for n in last {
            // Each has a host of its own, which ends with it. A process that is left does not
            // disturb the next scenario.
            cells[n] = Some(row(&scenarios[n], statements, &Host::start(config.clone())));
        }
    }
    let mut report = ScenarioReport::new("the real kernel", columns);
    for (scenario, cells) in scenarios.iter().zip(cells.into_iter().flatten()) {
        report.scenarios.push(scenarios::row(scenario, cells?));
    }
    Ok(report)
}

/// Runs `scenarios` as [`run_on_linux`], against what they state for each preset, and ranks the
/// presets.
///
/// # Errors
/// As [`run_on_linux`].
pub fn rank_designs(scenarios: &[Scenario], config: &LinuxConfig) -> Result<DesignRanking, InputError> {
    let report = run_on_linux(scenarios, Statements::OfPresets, config)?;
    Ok(DesignRanking::new(vec![KernelRanking::of(&release(), report)]))
}

/// Checks that scenarios are for a real Linux, and state an outcome for each step.
///
/// # Errors
/// One does not say so, or states none or two.
pub(super) fn check(scenarios: &[Scenario], statements: Statements) -> Result<(), InputError> {
    let old = LinuxSubject::default();
    let new = LinuxSubject { version: EVICTION_WAITS, ..LinuxSubject::default() };
    let subjects: Vec<DesignSubject> = [old, new].iter().flat_map(|linux| statements.subjects(linux)).collect();
    scenarios.iter().try_for_each(|scenario| {
        check_for_linux(scenario)?;
        run::check(scenario, &subjects)
    })
}

fn check_for_linux(scenario: &Scenario) -> Result<(), InputError> {
    if scenario.setup.linux {
        return Ok(());
    }
    Err(scenario
        .source
        .error(scenario.id_at.clone(), format!("{} is not for a real Linux", scenario.id))
        .help("a scenario says so by the line `linux`, and then uses only what docs/scenarios.md marks"))
}

/// The release of the Linux that runs here, as `uname -r` prints it.
pub fn release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// The Linux that runs here, with the file system of `host`.
pub(super) fn running(host: &Rc<Host>) -> LinuxSubject {
    let version = kernel_version(&release()).unwrap_or_default();
    let FileSystem { name, memory, .. } = host.file_system();
    LinuxSubject { file_system: name.clone(), memory: *memory, version }
}

/// A scenario's cells, one for each column.
fn row(
    scenario: &Scenario,
    statements: Statements,
    host: &Result<Rc<Host>, Trouble>,
) -> Result<Vec<ScenarioCell>, InputError> {
    let linux = host.as_ref().map_or_else(|_| LinuxSubject::default(), running);
    let mut cells: Vec<ScenarioCell> = Vec::new();
    let mut stated = Vec::new();
    for subject in statements.subjects(&linux) {
        let statements = run::statements(scenario, &subject)?;
        let same = stated.iter().position(|earlier| *earlier == statements);
        cells.push(match same {
            Some(n) => ScenarioCell { design: subject.name, ..cells[n].clone() },
            None => {
                let machine = machine(scenario, host);
                scenarios::cell(scenario, &subject, machine)?
            }
        });
        stated.push(statements);
    }
    Ok(cells)
}

/// A machine for a scenario.
fn machine<'h>(scenario: &Scenario, host: &'h Result<Rc<Host>, Trouble>) -> Result<Box<dyn Machine + 'h>, Trouble> {
    let host = host.as_ref().map_err(Trouble::clone)?;
    // A kernel may do so where the scenario does not state it.
    let leaves = states_stuck(scenario);
    if leaves && !host.is_disposable() {
        let why = "it leaves a process that nothing but a restart ends: only guests run it (`--on guest`)";
        return Err(Trouble::CannotRun(why.to_owned()));
    }
    let machine = LinuxMachine::new(host, &scenario.setup, &programs(scenario))?;
    Ok(Box::new(if leaves { machine.leaving_processes() } else { machine }))
}

fn time_passes(scenario: &Scenario) -> bool {
    scenario.steps.iter().any(|step| matches!(step.action, Action::Advance(_)))
}

/// Whether a step states, for some kernel, that a call never ends.
fn states_stuck(scenario: &Scenario) -> bool {
    scenario.steps.iter().any(|step| matches!(step.action, Action::Stuck(_)))
}

/// The files that a scenario runs as programs.
fn programs(scenario: &Scenario) -> Vec<String> {
    let mut programs: Vec<String> = Vec::new();
    for step in &scenario.steps {
        if let Action::Perform { op: Op::Exec { file }, .. } = &step.action
            && !programs.contains(&file.0)
        {
            programs.push(file.0.clone());
        }
    }
    programs
}
