//! The comparison of many sequences.
//!
//! Invariant: it ends at the first difference, and no sequence runs after it.

use std::collections::BTreeMap;
use std::rc::Rc;

use emulator::runtime::rng;
use rand::RngExt;

use super::config::{AgreementConfig, AgreementReport, Difference};
use super::generate::{self, AgreedView, RangeSupport, SequenceFlavour};
use super::makers::{MachineMakers, TriedSequence};
use super::pair::SequenceStop;
use super::{shrink, text};
use crate::language::Setup;
use crate::machines::linux::{Host, LinuxMachine, LongBreakTime};
use crate::machines::machine::{Machine, Trouble};
use crate::machines::simulated::Simulation;
use crate::race::StopFlag;

/// The fewest and the most steps of a sequence.
const STEPS: std::ops::RangeInclusive<usize> = 4..=16;

/// Compares the simulation with the real kernel. It ends early at a difference, at the stop flag,
/// or if a sequence can't be run.
pub fn run(config: &AgreementConfig, stop: &StopFlag) -> AgreementReport {
    on_linux(config, |host, range| {
        let linux = |setup: &Setup| linux(host, setup);
        let simulation =
            |setup: &Setup| Simulation::new(setup, config.axes).map(|machine| Box::new(machine) as Box<dyn Machine>);
        compare(&MachineMakers { left: &linux, right: &simulation }, range, config.seed, config.sequences, stop)
    })
}

/// Compares the real kernel with itself. If a sequence had random outcomes there, no comparison
/// with it would mean anything.
pub fn run_against_itself(config: &AgreementConfig, stop: &StopFlag) -> AgreementReport {
    on_linux(config, |host, range| {
        let linux = |setup: &Setup| linux(host, setup);
        compare(&MachineMakers { left: &linux, right: &linux }, range, config.seed, config.sequences, stop)
    })
}

fn on_linux(
    config: &AgreementConfig,
    body: impl FnOnce(&Rc<Host>, RangeSupport) -> AgreementReport,
) -> AgreementReport {
    let start = || -> Result<_, Trouble> { Ok((LongBreakTime::hold()?, Host::start(config.linux.clone())?)) };
    match start() {
        Ok((_long, host)) => body(&host, RangeSupport { moves_ranges: host.file_system().moves_ranges }),
        Err(trouble) => AgreementReport { not_run: Some(trouble.to_string()), ..AgreementReport::default() },
    }
}

fn linux<'m>(host: &Rc<Host>, setup: &Setup) -> Result<Box<dyn Machine + 'm>, Trouble> {
    Ok(Box::new(LinuxMachine::new(host, setup, &[])?))
}

/// Compares any two machines.
pub(super) fn compare(
    makers: &MachineMakers<'_>,
    range: RangeSupport,
    seed: u64,
    sequences: u64,
    stop: &StopFlag,
) -> AgreementReport {
    let mut report = AgreementReport::default();
    for index in 0..sequences {
        if stop.is_set() {
            break;
        }
        report.run += 1;
        match sequence(makers, range, seed, index, &mut report.outcomes) {
            Ok(()) => report.agreed += 1,
            Err((_, SequenceStop::Inconclusive(_))) => report.inconclusive += 1,
            Err((_, SequenceStop::NotRun(why))) => {
                report.run -= 1;
                report.not_run = Some(why);
                break;
            }
            Err((tried, SequenceStop::Differ { .. })) => {
                let found = shrink::shortest(makers, tried.clone(), index);
                report.difference = Some(found.unwrap_or_else(|| Difference {
                    index,
                    scenario: tried.steps.iter().map(|step| text::step(step) + "\n").collect(),
                    linux: "the difference did not occur again".to_owned(),
                    simulation: "both machines agreed when the steps were repeated".to_owned(),
                }));
                break;
            }
        }
    }
    report
}

/// Generates and makes the steps of one sequence.
fn sequence(
    makers: &MachineMakers<'_>,
    range: RangeSupport,
    seed: u64,
    index: u64,
    outcomes: &mut BTreeMap<String, u64>,
) -> Result<(), (TriedSequence, SequenceStop)> {
    let mut rng = rng::stream(seed, "agreement", index);
    let files = generate::files(&mut rng);
    let mut tried = TriedSequence { files, processes: rng.random_range(2..=3), steps: Vec::new() };
    let mut pair = match makers.pair(&tried.files, AgreedView::new(tried.processes)) {
        Ok(pair) => pair,
        Err(stop) => return Err((tried, stop)),
    };
    let flavour = if rng.random_range(0..3) < 2 { SequenceFlavour::Leases } else { SequenceFlavour::Contents };
    for _ in 0..rng.random_range(STEPS) {
        let Some(step) = generate::next(&mut rng, &pair.view, range, flavour) else { break };
        tried.steps.push(step.clone());
        if let Err(stop) = pair.make(&step) {
            pair.finish();
            return Err((tried, stop));
        }
    }
    for (outcome, count) in &pair.outcomes {
        *outcomes.entry(outcome.clone()).or_default() += count;
    }
    match pair.finish().first() {
        None => Ok(()),
        Some(wrong) => Err((tried, SequenceStop::Differ { left: "nothing wrong".to_owned(), right: wrong.clone() })),
    }
}
