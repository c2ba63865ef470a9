//! Tests of the comparison itself, on machines that agree and on one that lies.

use fs_sim::design::Axes;

use super::AgreementReport;
use super::compare::compare;
use super::makers::MachineMakers;
use super::support::Support;
use crate::input::Source;
use crate::input::designs::DesignCatalogue;
use crate::language::{Actor, Query, Scenario, Setup};
use crate::machines::machine::{Machine, Progress, Trouble};
use crate::machines::simulated::Simulation;
use crate::ops::{Op, Verb};
use crate::race::StopFlag;

/// A machine that answers `EAGAIN` for every second `dup`.
struct Liar(Simulation, u32);

impl Machine for Liar {
    fn perform(&mut self, actor: &Actor, op: &Op, bind: Option<&str>) -> Result<Progress, Trouble> {
        let progress = self.0.perform(actor, op, bind)?;
        self.1 += u32::from(op.verb() == Verb::Dup);
        Ok(match op.verb() {
            Verb::Dup if self.1 >= 2 => Progress::Done("EAGAIN".to_owned()),
            _ => progress,
        })
    }

    fn progress(&mut self, actor: &Actor) -> Result<Progress, Trouble> {
        self.0.progress(actor)
    }

    fn kill(&mut self, process: &str, signal: &'static str) -> Result<(), Trouble> {
        self.0.kill(process, signal)
    }

    fn advance(&mut self, span: std::time::Duration) -> Result<(), Trouble> {
        self.0.advance(span)
    }

    fn ask(&mut self, query: &Query) -> Result<String, Trouble> {
        self.0.ask(query)
    }

    fn state(&self) -> Vec<String> {
        self.0.state()
    }

    fn finish(self: Box<Self>) -> Vec<String> {
        Box::new(self.0).finish()
    }
}

fn axes() -> Axes {
    DesignCatalogue::default().entries()[0].design.axes
}

fn honest(setup: &Setup) -> Result<Box<dyn Machine>, Trouble> {
    Ok(Box::new(Simulation::new(setup, axes())?))
}

fn liar(setup: &Setup) -> Result<Box<dyn Machine>, Trouble> {
    Ok(Box::new(Liar(Simulation::new(setup, axes())?, 0)))
}

const RANGE: Support<'_> = Support { moves_ranges: true, dax: false, verbs: false, on_demand: false, exceptions: &[] };

#[test]
fn a_machine_agrees_with_itself() {
    let makers = MachineMakers { left: &honest, right: &honest };
    let report = compare(&makers, RANGE, 7, 60, &StopFlag::new());
    assert_eq!((report.run, report.agreed, report.inconclusive), (60, 60, 0));
    assert_eq!((report.not_run, report.difference), (None, None));
}

#[test]
fn a_difference_is_found_and_shrunk_to_a_scenario() {
    let makers = MachineMakers { left: &honest, right: &liar };
    let report = compare(&makers, RANGE, 7, 1000, &StopFlag::new());
    assert!(report.failed());
    let difference = report.difference.unwrap();
    assert_eq!((difference.linux.as_str(), difference.simulation.as_str()), ("ok", "EAGAIN"));
    // A descriptor and two duplicates of it: no step is missing, and none is superfluous.
    let steps: Vec<&str> = difference.scenario.lines().filter(|line| line.contains(": f")).collect();
    assert_eq!(steps.len(), 3, "{}", difference.scenario);
    assert_eq!(difference.scenario.lines().filter(|line| line.contains(" -> ") || line.contains(" => ")).count(), 3);
    let scenario = Scenario::parse(&Source::new("difference.scn", difference.scenario.as_str()), &[]).unwrap();
    assert_eq!(scenario.steps.len(), 3);
}

#[test]
fn the_same_seed_tries_the_same() {
    let tried = |seed| {
        let makers = MachineMakers { left: &honest, right: &liar };
        compare(&makers, RANGE, seed, 1000, &StopFlag::new()).difference.unwrap().scenario
    };
    assert_eq!(tried(3), tried(3));
}

#[test]
fn inconclusive_sequences_fail_a_run_when_there_are_many() {
    let report = |run, inconclusive| AgreementReport { run, inconclusive, ..AgreementReport::default() };
    assert!(!report(10_000, 10).failed());
    assert!(report(10_000, 11).failed());
}
