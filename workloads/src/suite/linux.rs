//! Runs scenarios on the real kernel.
//!
//! It owns the schedule: scenarios in which no time passes run one after the other; scenarios in
//! which time passes run side by side, under one shortened break time; those that leave a process
//! that nothing can end run last. Invariant: a scenario that this kernel can't run is reported as
//! not run, whatever the others did.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::input::InputError;
use emulator::sync::{Mutex, thread};
use fs_sim::design::{Axes, LeaseRules, presets};
use reports::scenarios::{ScenarioCell, ScenarioReport};

use crate::language::condition::{DesignSubject, LinuxSubject, kernel_version};
use crate::language::{Action, Scenario};
use crate::machines::linux::{BreakTime, Host, LinuxConfig, LinuxMachine, LongBreakTime};
use crate::machines::machine::{Machine, NoThread, Trouble};
use crate::ops::Op;
use crate::suite::{run, scenarios};

/// The most scenarios with passing time that run side by side.
const SIDE_BY_SIDE: usize = 16;

/// What conditions of scenarios see on the real kernel: no layout leases for users, and no
/// long-term pins.
pub fn subject() -> DesignSubject {
    subject_on(LinuxSubject::default())
}

/// The same of a certain Linux.
fn subject_on(linux: LinuxSubject) -> DesignSubject {
    let is_linux = |axes: &Axes| axes.lease_rules == LeaseRules::None;
    let axes = presets().iter().map(|preset| preset.axes).find(is_linux);
    DesignSubject { name: "linux".to_owned(), axes: axes.expect("a preset without layout leases"), linux: Some(linux) }
}

/// Runs `scenarios` on the real kernel. `program` makes its processes; its files are in `dir`;
/// `disposable` says that this Linux is thrown away afterwards.
///
/// # Errors
/// A scenario is not for Linux, states no outcome, or asks for the impossible.
pub fn run_on_linux(
    scenarios: &[Scenario],
    program: &Path,
    dir: &Path,
    disposable: bool,
) -> Result<ScenarioReport, InputError> {
    let subject = subject();
    for scenario in scenarios {
        check(scenario)?;
        run::check(scenario, std::slice::from_ref(&subject))?;
    }
    let config = LinuxConfig { program: PathBuf::from(program), dir: PathBuf::from(dir), break_time: None, disposable };
    let mut cells: Vec<Option<Result<ScenarioCell, InputError>>> = scenarios.iter().map(|_| None).collect();
    let (last, others): (Vec<usize>, Vec<usize>) = (0..scenarios.len()).partition(|n| states_stuck(&scenarios[*n]));
    let (timed, plain): (Vec<usize>, Vec<usize>) = others.into_iter().partition(|n| time_passes(&scenarios[*n]));
    let host = Host::start(config.clone());
    // Keeps other runs from shortening the break time while no break may time out.
    let long = LongBreakTime::hold();
    for n in plain {
        cells[n] = Some(one(&scenarios[n], &host));
    }
    drop((host, long));
    if !timed.is_empty() || !last.is_empty() {
        // If it can't be shortened, every scenario that needs it reports that.
        let break_time = BreakTime::shorten(program).ok();
        let config = LinuxConfig { break_time, ..config };
        let done = Mutex::new(&mut cells);
        for group in timed.chunks(SIDE_BY_SIDE) {
            thread::scope(|scope| {
                for n in group {
                    let (config, done, done_here) = (config.clone(), &done, &done);
                    let spawned = thread::try_spawn_scoped(scope, move || {
                        let host = Host::start(config);
                        let cell = one(&scenarios[*n], &host);
                        done.lock()[*n] = Some(cell);
                    });
                    if let Err(error) = spawned {
                        let no_host = Err(Trouble::CannotRun(NoThread(error).to_string()));
                        let cell = one(&scenarios[*n], &no_host);
                        done_here.lock()[*n] = Some(cell);
                    }
                }
            });
        }
        for n in last {
            // Each has a host of its own, which ends with it. A process that is left does not
            // disturb the next scenario.
            cells[n] = Some(one(&scenarios[n], &Host::start(config.clone())));
        }
    }
    let mut report = ScenarioReport::new("the real kernel", vec![subject.name]);
    for (scenario, cell) in scenarios.iter().zip(cells.into_iter().flatten()) {
        report.scenarios.push(scenarios::row(scenario, vec![cell?]));
    }
    Ok(report)
}

/// Checks that a scenario is for a real Linux.
///
/// # Errors
/// It does not say so.
pub(super) fn check(scenario: &Scenario) -> Result<(), InputError> {
    if scenario.setup.linux {
        return Ok(());
    }
    Err(scenario
        .source
        .error(scenario.id_at.clone(), format!("{} is not for a real Linux", scenario.id))
        .help("a scenario says so by the line `linux`, and then uses only what docs/scenarios.md marks"))
}

fn one(scenario: &Scenario, host: &Result<Rc<Host>, Trouble>) -> Result<ScenarioCell, InputError> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let linux = LinuxSubject {
        file_system: host.as_ref().map_or(String::new(), |host| host.file_system().name.clone()),
        version: kernel_version(&release).unwrap_or_default(),
    };
    let subject = subject_on(linux);
    let leaves = run::applicable(scenario, &subject).any(|step| matches!(step.action, Action::Stuck(_)));
    let machine = match host {
        Ok(host) if leaves && !host.is_disposable() => Err(Trouble::CannotRun(
            "it leaves a process that nothing but a restart ends: only guests run it (`--on guest`)".to_owned(),
        )),
        Ok(host) => LinuxMachine::new(host, &scenario.setup, &programs(scenario))
            .map(|machine| if leaves { machine.leaving_processes() } else { machine }),
        Err(trouble) => Err(trouble.clone()),
    };
    scenarios::cell(scenario, &subject, machine.map(|machine| Box::new(machine) as Box<dyn Machine>))
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
