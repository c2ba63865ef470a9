//! Scenarios of the suite on the real kernel.
//!
//! It owns the sharing out: scenarios in which no time passes one after the other, those in which it does side by side, all under
//! one shortened break time. Invariant: what this kernel can't do is told as not run, whatever else was run.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use emulator::sync::Mutex;
use emulator::sync::thread;
use fs_sim::design::{Axes, LeaseRules, presets};
use fs_sim::input::InputError;
use reports::scenarios::{Cell, ScenarioReport};

use super::{BreakTime, Host, Linux, LinuxConfig, LongBreakTime};
use crate::ops::Op;
use crate::scenario::condition::Subject;
use crate::scenario::machine::{Machine, Trouble};
use crate::scenario::{Action, Scenario, run, suite};

/// The most scenarios with passing time that run side by side.
const SIDE_BY_SIDE: usize = 16;

/// What conditions are judged for on the real kernel: it knows no layout leases for users and grants no long-term pin.
pub fn subject() -> Subject {
    let is_linux = |axes: &Axes| axes.lease_rules == LeaseRules::None;
    let axes = presets().iter().map(|preset| preset.axes).find(is_linux);
    Subject { name: "linux".to_owned(), axes: axes.expect("a preset without layout leases"), linux: true }
}

/// Runs `scenarios` on the real kernel: its processes are made by `program`, its files are in `dir`.
///
/// # Errors
/// One of them is not for Linux, states no outcome, or asks for what can't be.
pub fn run_on_linux(scenarios: &[Scenario], program: &Path, dir: &Path) -> Result<ScenarioReport, InputError> {
    let subject = subject();
    for scenario in scenarios {
        if !scenario.setup.linux {
            return Err(scenario
                .source
                .error_overall(format!("{} is not for a real Linux", scenario.id))
                .help("a scenario says so by the line `linux`, and then uses only what docs/scenarios.md marks"));
        }
        run::check(scenario, std::slice::from_ref(&subject))?;
    }
    let config = LinuxConfig { program: PathBuf::from(program), dir: PathBuf::from(dir), break_time: None };
    let mut cells: Vec<Option<Result<Cell, InputError>>> = scenarios.iter().map(|_| None).collect();
    let (timed, plain): (Vec<usize>, Vec<usize>) = (0..scenarios.len()).partition(|n| time_passes(&scenarios[*n]));
    let host = Host::start(config.clone());
    // Nobody else shortens the host's break time while breaks are not to time out.
    let long = LongBreakTime::hold();
    for n in plain {
        cells[n] = Some(one(&scenarios[n], &subject, &host));
    }
    drop((host, long));
    if !timed.is_empty() {
        // What can't be shortened is told by every one that asks for it.
        let break_time = BreakTime::shorten(program).ok();
        let config = LinuxConfig { break_time, ..config };
        let done = Mutex::new(&mut cells);
        for group in timed.chunks(SIDE_BY_SIDE) {
            thread::scope(|scope| {
                for n in group {
                    let (config, subject, done) = (config.clone(), &subject, &done);
                    scope.spawn(move || {
                        let host = Host::start(config);
                        let cell = one(&scenarios[*n], subject, &host);
                        done.lock()[*n] = Some(cell);
                    });
                }
            });
        }
    }
    let mut report = ScenarioReport::new("the real kernel", vec![subject.name]);
    for (scenario, cell) in scenarios.iter().zip(cells.into_iter().flatten()) {
        report.scenarios.push(suite::row(scenario, vec![cell?]));
    }
    Ok(report)
}

fn one(scenario: &Scenario, subject: &Subject, host: &Result<Rc<Host>, Trouble>) -> Result<Cell, InputError> {
    let machine = match host {
        Ok(host) => Linux::new(host, &scenario.setup, &programs(scenario)),
        Err(trouble) => Err(trouble.clone()),
    };
    suite::cell(scenario, subject, machine.map(|machine| Box::new(machine) as Box<dyn Machine>))
}

fn time_passes(scenario: &Scenario) -> bool {
    scenario.steps.iter().any(|step| matches!(step.action, Action::Advance(_)))
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
