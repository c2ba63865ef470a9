//! Random sequences of operations on the real kernel and on the simulated machine, compared.
//!
//! It owns the claim that the simulation's ordinary leases and files behave like Linux's. Reading
//! order: `generate` (chooses the steps), `pair` (compares two machines), `shrink` (shortens a
//! sequence that shows a difference), `text` (writes it as a scenario). Invariants: a sequence
//! depends on the seed, its index, and what both machines agreed on. Sequences contain no break
//! timeouts. A sequence that could not be run never counts as agreement. Kernel counterpart: the
//! kernel itself.

mod generate;
mod pair;
mod shrink;
#[cfg(test)]
mod tests;
mod text;

use std::collections::BTreeMap;
use std::rc::Rc;

use emulator::rng;
use fs_sim::Sabotage;
use fs_sim::design::{Axes, VolumeOptions};
use rand::RngExt;

use crate::linux::{Host, LinuxConfig, LinuxMachine, LongBreakTime};
use crate::race::StopFlag;
use crate::scenario::machine::{Machine, Trouble};
use crate::scenario::sim::Simulation;
use crate::scenario::{FileSetup, Setup};
use generate::{AgreedView, AgreementStep, SequenceFlavour};
use pair::{MachinePair, SequenceStop};

/// The size of a simulated machine's device in bytes: far more than the files of a sequence need.
const DEVICE: u64 = 16 << 20;
/// The fewest and the most steps of a sequence.
const STEPS: std::ops::RangeInclusive<usize> = 4..=16;

/// What to compare.
#[derive(Clone, Debug)]
pub struct AgreementConfig {
    /// The number of sequences.
    pub sequences: u64,
    /// The seed of all sequences.
    pub seed: u64,
    /// The real machine.
    pub linux: LinuxConfig,
    /// The simulated machine's design. No operation of a sequence should depend on it.
    pub axes: Axes,
    /// Rules broken on purpose in the simulated machine, which must then show a difference.
    pub sabotage: Sabotage,
}

/// The result of a comparison.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgreementReport {
    /// Sequences that were started.
    pub run: u64,
    /// Sequences on which both machines agreed to the end.
    pub agreed: u64,
    /// Sequences in which the driver could not decide whether a call was blocked.
    pub inconclusive: u64,
    /// How often each outcome of an operation occurred, such as `open blocks`, and how often other
    /// observations did: `signals SIGIO`, `lease none`.
    pub outcomes: BTreeMap<String, u64>,
    /// Why no sequence, or no further sequence, could be run.
    pub not_run: Option<String>,
    /// The first difference. No sequence is run after it.
    pub difference: Option<Difference>,
}

impl AgreementReport {
    /// Whether the machines differ, or more than 0.1 % of the sequences were inconclusive.
    pub fn failed(&self) -> bool {
        self.difference.is_some() || self.inconclusive * 1000 > self.run
    }
}

/// A sequence on which the machines differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The index of the sequence under its seed.
    pub index: u64,
    /// The shortest sequence found that shows the difference, as a scenario that states what the
    /// real kernel does.
    pub scenario: String,
    /// The real kernel's answer to the last step.
    pub linux: String,
    /// The simulation's answer.
    pub simulation: String,
}

/// Makes one machine.
type MachineMaker<'m> = dyn Fn(&Setup) -> Result<Box<dyn Machine + 'm>, Trouble> + 'm;

/// How both machines are made. The left one is the reference.
struct MachineMakers<'m> {
    left: &'m MachineMaker<'m>,
    right: &'m MachineMaker<'m>,
}

impl<'m> MachineMakers<'m> {
    fn pair(&self, files: &[FileSetup], view: AgreedView) -> Result<MachinePair<'m>, SequenceStop> {
        let setup = Setup {
            device: DEVICE,
            options: VolumeOptions::default(),
            memlock: None,
            files: files.to_vec(),
            linux: true,
        };
        let cannot = |trouble: Trouble| SequenceStop::NotRun(trouble.to_string());
        let (left, right) = ((self.left)(&setup).map_err(cannot)?, (self.right)(&setup).map_err(cannot)?);
        Ok(MachinePair::new(left, right, view))
    }
}

/// Compares the simulation with the real kernel. It ends early at a difference, at the stop flag,
/// or if a sequence can't be run.
pub fn run(config: &AgreementConfig, stop: &StopFlag) -> AgreementReport {
    on_linux(config, |host, range| {
        let linux = |setup: &Setup| linux(host, setup);
        let simulation = |setup: &Setup| {
            Simulation::new(setup, config.axes, config.sabotage).map(|machine| Box::new(machine) as Box<dyn Machine>)
        };
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
    body: impl FnOnce(&Rc<Host>, generate::RangeSupport) -> AgreementReport,
) -> AgreementReport {
    let start = || -> Result<_, Trouble> { Ok((LongBreakTime::hold()?, Host::start(config.linux.clone())?)) };
    match start() {
        Ok((_long, host)) => body(&host, generate::RangeSupport { moves_ranges: host.file_system().moves_ranges }),
        Err(trouble) => AgreementReport { not_run: Some(trouble.to_string()), ..AgreementReport::default() },
    }
}

fn linux<'m>(host: &Rc<Host>, setup: &Setup) -> Result<Box<dyn Machine + 'm>, Trouble> {
    Ok(Box::new(LinuxMachine::new(host, setup, &[])?))
}

/// Compares any two machines.
fn compare(
    makers: &MachineMakers<'_>,
    range: generate::RangeSupport,
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
                    linux: "differed once, and not again".to_owned(),
                    simulation: "the same steps agree when they are made again".to_owned(),
                }));
                break;
            }
        }
    }
    report
}

/// A sequence: its files and steps.
#[derive(Clone, Debug)]
struct TriedSequence {
    files: Vec<FileSetup>,
    processes: usize,
    steps: Vec<AgreementStep>,
}

/// Generates and makes the steps of one sequence.
fn sequence(
    makers: &MachineMakers<'_>,
    range: generate::RangeSupport,
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
