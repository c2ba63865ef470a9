//! Random sequences of operations on the real kernel and on the simulated machine, compared.
//!
//! It owns the claim that the simulation's ordinary leases and files are Linux's. Reading order: `generate` (what is tried),
//! `pair` (how two machines are compared), `shrink` (what is left of a difference), `text` (how it is told). Invariants: a sequence
//! depends on (seed, index) and on what both machines agreed on; sequences contain no break timeouts; what could not be run is
//! never counted as agreement. Kernel counterpart: the kernel.

mod generate;
mod pair;
mod shrink;
#[cfg(test)]
mod tests;
mod text;

use std::collections::BTreeMap;
use std::rc::Rc;

use emulator::runtime::rng;
use fs_sim::Sabotage;
use fs_sim::design::{Axes, VolumeOptions};
use rand::RngExt;

use crate::linux::{Host, Linux, LinuxConfig, LongBreakTime};
use crate::race::StopFlag;
use crate::scenario::machine::{Machine, Trouble};
use crate::scenario::sim::Simulation;
use crate::scenario::{FileSetup, Setup};
use generate::{Flavour, Move, View};
use pair::{Pair, Stop};

/// The device of a simulated machine: far more than a sequence's files need.
const DEVICE: u64 = 16 << 20;
/// The fewest and most steps of a sequence.
const STEPS: std::ops::RangeInclusive<usize> = 4..=16;

/// What to compare.
#[derive(Clone, Debug)]
pub struct AgreementConfig {
    /// How many sequences.
    pub sequences: u64,
    /// What they come from.
    pub seed: u64,
    /// The real machine.
    pub linux: LinuxConfig,
    /// The simulated machine's design. Nothing that sequences do should depend on it.
    pub axes: Axes,
    /// Rules broken in the simulated machine on purpose: then there should be a difference.
    pub sabotage: Sabotage,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgreementReport {
    /// Sequences begun.
    pub run: u64,
    /// Those on which both machines agreed to the end.
    pub agreed: u64,
    /// Those in which it could not be told whether a call was blocked.
    pub inconclusive: u64,
    /// How often operations came to what, such as `open blocks`; and what was seen beside them: `signals SIGIO`, `lease none`.
    pub outcomes: BTreeMap<String, u64>,
    /// Why no sequence could be run, or no further one.
    pub not_run: Option<String>,
    /// The first difference, after which there is no further sequence.
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
    /// Which sequence of the seed.
    pub index: u64,
    /// The shortest one found, as a scenario: it states what the real kernel does.
    pub scenario: String,
    /// What the real kernel answers to the last step.
    pub linux: String,
    /// What the simulation answers.
    pub simulation: String,
}

/// A way to make a machine.
type Maker<'m> = dyn Fn(&Setup) -> Result<Box<dyn Machine + 'm>, Trouble> + 'm;

/// How the two machines are made; the left one's word counts.
struct Makers<'m> {
    left: &'m Maker<'m>,
    right: &'m Maker<'m>,
}

impl<'m> Makers<'m> {
    fn pair(&self, files: &[FileSetup], view: View) -> Result<Pair<'m>, Stop> {
        let setup = Setup {
            device: DEVICE,
            options: VolumeOptions::default(),
            memlock: None,
            files: files.to_vec(),
            linux: true,
        };
        let cannot = |trouble: Trouble| Stop::NotRun(trouble.to_string());
        let (left, right) = ((self.left)(&setup).map_err(cannot)?, (self.right)(&setup).map_err(cannot)?);
        Ok(Pair::new(left, right, view))
    }
}

/// Compares the simulation with the real kernel. Ends early at a difference, at the stop flag, or where it can't run.
pub fn run(config: &AgreementConfig, stop: &StopFlag) -> AgreementReport {
    on_linux(config, |host, range| {
        let linux = |setup: &Setup| linux(host, setup);
        let simulation = |setup: &Setup| {
            Simulation::new(setup, config.axes, config.sabotage).map(|machine| Box::new(machine) as Box<dyn Machine>)
        };
        compare(&Makers { left: &linux, right: &simulation }, range, config.seed, config.sequences, stop)
    })
}

/// Compares the real kernel with itself: what a sequence comes to there must not be chance, or no comparison says anything.
pub fn run_against_itself(config: &AgreementConfig, stop: &StopFlag) -> AgreementReport {
    on_linux(config, |host, range| {
        let linux = |setup: &Setup| linux(host, setup);
        compare(&Makers { left: &linux, right: &linux }, range, config.seed, config.sequences, stop)
    })
}

fn on_linux(
    config: &AgreementConfig,
    body: impl FnOnce(&Rc<Host>, generate::Range) -> AgreementReport,
) -> AgreementReport {
    let start = || -> Result<_, Trouble> { Ok((LongBreakTime::hold()?, Host::start(config.linux.clone())?)) };
    match start() {
        Ok((_long, host)) => body(&host, generate::Range { moves_ranges: host.file_system().moves_ranges }),
        Err(trouble) => AgreementReport { not_run: Some(trouble.to_string()), ..AgreementReport::default() },
    }
}

fn linux<'m>(host: &Rc<Host>, setup: &Setup) -> Result<Box<dyn Machine + 'm>, Trouble> {
    Ok(Box::new(Linux::new(host, setup, &[])?))
}

/// Compares any two machines.
fn compare(makers: &Makers<'_>, range: generate::Range, seed: u64, sequences: u64, stop: &StopFlag) -> AgreementReport {
    let mut report = AgreementReport::default();
    for index in 0..sequences {
        if stop.is_set() {
            break;
        }
        report.run += 1;
        match sequence(makers, range, seed, index, &mut report.outcomes) {
            Ok(()) => report.agreed += 1,
            Err((_, Stop::Inconclusive(_))) => report.inconclusive += 1,
            Err((_, Stop::NotRun(why))) => {
                report.run -= 1;
                report.not_run = Some(why);
                break;
            }
            Err((tried, Stop::Differ { .. })) => {
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

/// Files and steps.
#[derive(Clone, Debug)]
struct Tried {
    files: Vec<FileSetup>,
    processes: usize,
    steps: Vec<Move>,
}

/// Chooses and makes the steps of one sequence.
fn sequence(
    makers: &Makers<'_>,
    range: generate::Range,
    seed: u64,
    index: u64,
    outcomes: &mut BTreeMap<String, u64>,
) -> Result<(), (Tried, Stop)> {
    let mut rng = rng::stream(seed, "agreement", index);
    let files = generate::files(&mut rng);
    let mut tried = Tried { files, processes: rng.random_range(2..=3), steps: Vec::new() };
    let mut pair = match makers.pair(&tried.files, View::new(tried.processes)) {
        Ok(pair) => pair,
        Err(stop) => return Err((tried, stop)),
    };
    let flavour = if rng.random_range(0..3) < 2 { Flavour::Leases } else { Flavour::Contents };
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
        Some(wrong) => Err((tried, Stop::Differ { left: "nothing wrong".to_owned(), right: wrong.clone() })),
    }
}
