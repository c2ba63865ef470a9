//! The comparison of many sequences.
//!
//! Invariant: it ends at the first difference, and no sequence runs after it.

use std::collections::BTreeMap;
use std::rc::Rc;

use emulator::runtime::rng;
use rand::RngExt;

use super::config::{AgreementConfig, AgreementReport, Difference, MetException};
use super::exceptions::NamedException;
use super::generate;
use super::makers::{MachineMakers, TriedSequence};
use super::pair::SequenceStop;
use super::support::{SequenceFlavour, Support};
use super::view::AgreedView;
use super::{exceptions, shrink, text};
use crate::language::Setup;
use crate::language::condition::DesignSubject;
use crate::machines::linux::{FileSystem, Host, LinuxMachine, LongBreakTime};
use crate::machines::machine::{Machine, Trouble};
use crate::machines::simulated::Simulation;
use crate::race::StopFlag;
use crate::suite::linux;

/// The fewest and the most steps of a sequence.
const STEPS: std::ops::RangeInclusive<usize> = 4..=16;
/// How many more it has if pages are to be held or registered: several calls come before the
/// first is.
const STEPS_TO_HOLD: usize = 8;

/// How often a sequence is made whose outcome can't be told.
const ATTEMPTS: u32 = 3;
/// How many inconclusive sequences are told with their reasons.
const UNCLEAR_MAX: usize = 3;

/// Compares the simulation with the real kernel. It ends early at a difference, at the stop flag,
/// or if a sequence can't be run.
pub fn run(config: &AgreementConfig, stop: &StopFlag) -> AgreementReport {
    on_linux(config, |host, support| {
        let subject = linux::subject(linux::running(host));
        let axes = config.axes.unwrap_or(subject.axes);
        let known = match known(host, &subject) {
            Ok(known) => known,
            Err(why) => return AgreementReport { not_run: Some(why), ..AgreementReport::default() },
        };
        let (exceptions, met): (Vec<_>, Vec<_>) = known.shown.into_iter().unzip();
        let KnownKernel { verbs, on_demand, .. } = known;
        let support = Support { exceptions: &exceptions, verbs, on_demand, ..support };
        let linux = |setup: &Setup| linux_machine(host, setup);
        let simulation =
            |setup: &Setup| Simulation::new(setup, axes).map(|machine| Box::new(machine) as Box<dyn Machine>);
        let makers = MachineMakers { left: &linux, right: &simulation };
        let report = compare(&makers, support, config.seed, config.sequences, stop);
        AgreementReport { exceptions: met, ..report }
    })
}

/// What a kernel was asked before the first sequence.
struct KnownKernel {
    shown: Vec<(&'static NamedException, MetException)>,
    verbs: bool,
    on_demand: bool,
}

fn known(host: &Rc<Host>, subject: &DesignSubject) -> Result<KnownKernel, String> {
    let shown = exceptions::shown(host, subject)?;
    let verbs = exceptions::can(host, subject, exceptions::VERBS)?;
    let on_demand = verbs && exceptions::can(host, subject, exceptions::ON_DEMAND)?;
    Ok(KnownKernel { shown, verbs, on_demand })
}

/// Compares the real kernel with itself. If a sequence had random outcomes there, no comparison
/// with it would mean anything.
pub fn run_against_itself(config: &AgreementConfig, stop: &StopFlag) -> AgreementReport {
    on_linux(config, |host, support| {
        let linux = |setup: &Setup| linux_machine(host, setup);
        compare(&MachineMakers { left: &linux, right: &linux }, support, config.seed, config.sequences, stop)
    })
}

fn on_linux(config: &AgreementConfig, body: impl FnOnce(&Rc<Host>, Support<'_>) -> AgreementReport) -> AgreementReport {
    let start = || -> Result<_, Trouble> { Ok((LongBreakTime::hold()?, Host::start(config.linux.clone())?)) };
    match start() {
        Ok((_long, host)) => {
            let FileSystem { moves_ranges, dax, .. } = *host.file_system();
            body(&host, Support { moves_ranges, dax, ..Support::default() })
        }
        Err(trouble) => AgreementReport { not_run: Some(trouble.to_string()), ..AgreementReport::default() },
    }
}

fn linux_machine<'m>(host: &Rc<Host>, setup: &Setup) -> Result<Box<dyn Machine + 'm>, Trouble> {
    Ok(Box::new(LinuxMachine::new(host, setup, &[])?))
}

/// Compares any two machines.
pub(super) fn compare(
    makers: &MachineMakers<'_>,
    support: Support<'_>,
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
        let mut made = sequence(makers, support, seed, index, &mut report.outcomes);
        for _ in 1..ATTEMPTS {
            // The kernel was too busy to tell.
            if matches!(made, Err((_, SequenceStop::Inconclusive(_)))) {
                made = sequence(makers, support, seed, index, &mut report.outcomes);
            }
        }
        match made {
            Ok(()) => report.agreed += 1,
            Err((tried, SequenceStop::Inconclusive(why))) => {
                report.inconclusive += 1;
                if report.unclear.len() < UNCLEAR_MAX {
                    let steps: Vec<String> = tried.steps.iter().map(text::step).collect();
                    report.unclear.push(format!("sequence {index}: {why}, after {}", steps.join("; ")));
                }
            }
            Err((_, SequenceStop::NotRun(why))) => {
                report.run -= 1;
                report.not_run = Some(why);
                break;
            }
            Err((tried, SequenceStop::Differ { .. })) => {
                let found = shrink::shortest(makers, support, tried.clone(), index);
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
    support: Support<'_>,
    seed: u64,
    index: u64,
    outcomes: &mut BTreeMap<String, u64>,
) -> Result<(), (TriedSequence, SequenceStop)> {
    let mut rng = rng::stream(seed, "agreement", index);
    let flavour = match rng.random_range(0..9) {
        // Drawn where files have no DAX too, so that a seed means much the same everywhere.
        0..2 if support.dax => SequenceFlavour::HeldPages,
        2..4 if support.dax => SequenceFlavour::Registrations,
        0..6 => SequenceFlavour::Leases,
        _ => SequenceFlavour::Contents,
    };
    let files = generate::files(&mut rng, flavour);
    // What can be registered where does not depend on who else is there.
    let processes = if flavour == SequenceFlavour::Registrations { 1 } else { rng.random_range(2..=3) };
    let mut tried = TriedSequence { files, processes, steps: Vec::new() };
    let mut pair = match makers.pair(&tried.files, AgreedView::new(tried.processes)) {
        Ok(pair) => pair,
        Err(stop) => return Err((tried, stop)),
    };
    let holds = matches!(flavour, SequenceFlavour::HeldPages | SequenceFlavour::Registrations);
    let more = if holds { STEPS_TO_HOLD } else { 0 };
    for _ in 0..rng.random_range(STEPS) + more {
        let Some(step) = generate::next(&mut rng, &pair.view, support, flavour) else { break };
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
