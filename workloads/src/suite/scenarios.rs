//! The suite: the scenarios that daxlab brings along, and runs of many scenarios under many
//! designs.
//!
//! It owns the list of built-in scenarios and the sharing out of a run to threads. Invariant: the
//! order of a report's rows and cells is that of the scenarios and designs asked for, whichever
//! thread ran them.

use std::collections::BTreeMap;

use crate::input::designs::DesignEntry;
use crate::input::{InputError, Source, shown};
use emulator::sync::atomic::{AtomicUsize, Ordering};
use emulator::sync::{Mutex, thread};
use fs_sim::Sabotage;
use reports::scenarios::{CellFailure, CellVerdict, ScenarioCell, ScenarioReport, ScenarioRow};

use super::run::{self, StepResult};
use crate::language::Scenario;
use crate::language::condition::DesignSubject;
use crate::machines::machine::{Machine, Trouble};
use crate::machines::simulated::{ReusedParts, Simulation};

include!(concat!(env!("OUT_DIR"), "/scenarios.rs"));

/// The built-in scenarios, in the order of their ids.
///
/// # Errors
/// One of them is wrong: a bug, which a test would have found.
pub fn built_in(designs: &[&str]) -> Result<Vec<Scenario>, InputError> {
    let mut scenarios: Vec<Scenario> = BUILT_IN
        .iter()
        .map(|(name, text)| Scenario::parse(&Source::new(*name, *text), designs))
        .collect::<Result<_, _>>()?;
    scenarios.sort_by_key(|scenario| order(&scenario.id));
    Ok(scenarios)
}

/// `S7b` after `S7a`, before `S12`; what has no number last.
fn order(id: &str) -> (String, u64, String) {
    let letters: String = id.chars().take_while(|c| !c.is_ascii_digit()).collect();
    let digits: String = id.chars().skip(letters.chars().count()).take_while(char::is_ascii_digit).collect();
    let rest = id.get(letters.len() + digits.len()..).unwrap_or_default().to_owned();
    let rank = if letters == "S" { String::new() } else { letters };
    (rank, digits.parse().unwrap_or(u64::MAX), rest)
}

/// The scenario with this id, in upper or lower case.
pub fn find<'s>(scenarios: &'s [Scenario], id: &str) -> Option<&'s Scenario> {
    scenarios.iter().find(|scenario| scenario.id.eq_ignore_ascii_case(id))
}

/// Checks that no two scenarios have one id: results are told by it.
///
/// # Errors
/// The second scenario of an id, in upper or lower case, with the place of both.
pub fn check_ids(scenarios: &[Scenario]) -> Result<(), InputError> {
    let mut seen: BTreeMap<String, &Scenario> = BTreeMap::new();
    for scenario in scenarios {
        if let Some(first) = seen.insert(scenario.id.to_ascii_lowercase(), scenario) {
            let (line, column) = first.source.line_column(first.id_at.start);
            let title = format!("a second scenario is called `{}`", shown(&scenario.id));
            let help = format!("the first is at {}:{line}:{column}; give each an id of its own", first.source.name());
            return Err(scenario.source.error(scenario.id_at.clone(), title).help(help));
        }
    }
    Ok(())
}

/// Runs every scenario under every design on simulated machines, on as many threads as the machine
/// has processors.
///
/// # Errors
/// A scenario states no outcome for a design, or two, or asks for what can't be.
pub fn run_simulated(scenarios: &[Scenario], designs: &[DesignEntry]) -> Result<ScenarioReport, InputError> {
    run_simulated_on(scenarios, designs, thread::parallelism())
}

/// As [`run_simulated`], with `workers` machines at once.
///
/// # Errors
/// As [`run_simulated`].
pub fn run_simulated_on(
    scenarios: &[Scenario],
    designs: &[DesignEntry],
    workers: usize,
) -> Result<ScenarioReport, InputError> {
    run_cells(scenarios, designs, workers, Sabotage::default())
}

/// The same on kernels with rules broken. Only tests break one.
///
/// # Errors
/// As [`run_simulated`].
#[doc(hidden)]
pub fn run_sabotaged_for_tests(
    scenarios: &[Scenario],
    designs: &[DesignEntry],
    sabotage: Sabotage,
) -> Result<ScenarioReport, InputError> {
    run_cells(scenarios, designs, thread::parallelism(), sabotage)
}

fn run_cells(
    scenarios: &[Scenario],
    designs: &[DesignEntry],
    workers: usize,
    sabotage: Sabotage,
) -> Result<ScenarioReport, InputError> {
    let subjects: Vec<DesignSubject> = designs
        .iter()
        .map(|entry| DesignSubject { name: entry.design.name.clone(), axes: entry.design.axes, linux: None })
        .collect();
    for scenario in scenarios {
        run::check(scenario, &subjects)?;
    }
    let cells = scenarios.len() * subjects.len();
    let (next, parts) = (AtomicUsize::new(0), ReusedParts::default());
    let done: Mutex<Vec<Option<Result<ScenarioCell, InputError>>>> = Mutex::new((0..cells).map(|_| None).collect());
    let work = || {
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= cells {
                return;
            }
            let (scenario, subject) = (&scenarios[n / subjects.len()], &subjects[n % subjects.len()]);
            let machine = Simulation::made_of(&parts, &scenario.setup, subject.axes, sabotage);
            let cell = cell(scenario, subject, machine.map(|machine| Box::new(machine) as Box<dyn Machine>));
            done.lock()[n] = Some(cell);
        }
    };
    thread::scope(|scope| {
        for _ in 1..workers.min(cells) {
            // Fewer threads take longer, and do the same.
            if thread::try_spawn_scoped(scope, work).is_err() {
                break;
            }
        }
        work();
    });
    let mut cells = std::mem::take(&mut *done.lock()).into_iter().flatten();
    let mut report = ScenarioReport::new("simulation", subjects.iter().map(|subject| subject.name.clone()).collect());
    for scenario in scenarios {
        let cells: Vec<ScenarioCell> = cells.by_ref().take(subjects.len()).collect::<Result<_, _>>()?;
        report.scenarios.push(row(scenario, cells));
    }
    Ok(report)
}

/// A row of a report.
pub fn row(scenario: &Scenario, cells: Vec<ScenarioCell>) -> ScenarioRow {
    ScenarioRow {
        id: scenario.id.clone(),
        title: scenario.title.clone(),
        file: scenario.source.name().to_owned(),
        cells,
    }
}

/// Runs one scenario under one design on a machine (or tells why there is none).
///
/// # Errors
/// As [`run::run`].
pub fn cell(
    scenario: &Scenario,
    subject: &DesignSubject,
    machine: Result<Box<dyn Machine + '_>, Trouble>,
) -> Result<ScenarioCell, InputError> {
    let machine = match machine {
        Ok(machine) => machine,
        Err(Trouble::Script(what)) => return Err(scenario.source.error_overall(what)),
        Err(Trouble::CannotRun(why) | Trouble::Inconclusive(why)) => {
            return Ok(told(subject, CellVerdict::NotRun, why));
        }
    };
    Ok(match run::run(scenario, subject, machine)? {
        StepResult::Passed { outcomes } => {
            let mut seen: Vec<String> = Vec::new();
            for outcome in outcomes {
                if !seen.contains(&outcome) {
                    seen.push(outcome);
                }
            }
            ScenarioCell {
                design: subject.name.clone(),
                verdict: CellVerdict::Passed,
                outcome: seen.join(", "),
                failure: None,
            }
        }
        StepResult::NotApplicable { step, outcome } => ScenarioCell {
            design: subject.name.clone(),
            verdict: CellVerdict::NotApplicable,
            outcome: format!("{step}: {outcome}"),
            failure: None,
        },
        StepResult::Failed(failure) => ScenarioCell {
            design: subject.name.clone(),
            verdict: CellVerdict::Failed,
            outcome: failure.got.clone(),
            failure: Some(CellFailure {
                line: failure.line,
                text: failure.text,
                expected: failure.expected,
                got: failure.got,
                state: failure.state,
            }),
        },
        StepResult::NotRun(why) => told(subject, CellVerdict::NotRun, why),
        StepResult::Inconclusive(why) => told(subject, CellVerdict::Inconclusive, why),
    })
}

fn told(subject: &DesignSubject, verdict: CellVerdict, why: String) -> ScenarioCell {
    let failure = CellFailure { got: why, ..CellFailure::default() };
    ScenarioCell { design: subject.name.clone(), verdict, outcome: String::new(), failure: Some(failure) }
}
