//! Shortens a sequence that shows a difference.
//!
//! It owns the search for a shorter sequence on which the machines still differ. Invariants: every
//! candidate runs on fresh machines; at most [`RUNS_MAX`] candidates run; the result shows a
//! difference, not necessarily the original one. Kernel counterpart: none; the method is that of
//! Hypothesis and proptest.

use super::config::Difference;
use super::makers::{MachineMakers, TriedSequence};
use super::pair::{MachinePair, SequenceStop};
use super::support::Support;
use super::text;
use super::view::{AgreedView, AgreementStep};
use crate::ops::{Arg, BindingKind, Op, Param, Verb, WrongArguments};

/// The most candidates that are run.
const RUNS_MAX: u32 = 400;

/// The shortest sequence found on which the machines differ, as a scenario. None if the difference
/// does not occur again.
pub(super) fn shortest(
    makers: &MachineMakers<'_>,
    support: Support<'_>,
    tried: TriedSequence,
    index: u64,
) -> Option<Difference> {
    let mut runs = 0;
    let mut differs = |candidate: &TriedSequence| {
        runs += 1;
        if runs > RUNS_MAX { None } else { difference(makers, support, candidate, index) }
    };
    let mut best = tried;
    let mut found = differs(&best)?;
    loop {
        let mut shorter = false;
        // It starts at the end, where the steps are that no other step needs.
        for n in (0..best.steps.len()).rev() {
            let mut candidate = best.clone();
            candidate.steps.remove(n);
            if let Some(difference) = differs(&candidate) {
                (best, found, shorter) = (candidate, difference, true);
            }
        }
        for n in 0..best.steps.len() {
            for candidate in simpler(&best, n).unwrap_or_default() {
                if let Some(difference) = differs(&candidate) {
                    (best, found, shorter) = (candidate, difference, true);
                    break;
                }
            }
        }
        if best.files.len() > 1 {
            let mut candidate = best.clone();
            candidate.files.truncate(1);
            if let Some(difference) = differs(&candidate) {
                (best, found, shorter) = (candidate, difference, true);
            }
        }
        if !shorter {
            return Some(found);
        }
    }
}

/// The same sequence with a simpler step `n`: without a flag, read-only, or on a thing that was
/// made earlier.
fn simpler(tried: &TriedSequence, n: usize) -> Result<Vec<TriedSequence>, WrongArguments> {
    let mut candidates = Vec::new();
    let args = tried.steps[n].op.args();
    let verb = tried.steps[n].op.verb();
    let with = |at: usize, arg: Arg| {
        let mut changed = args.clone();
        changed[at] = arg;
        Op::from_args(verb, &changed)
    };
    for (at, arg) in args.iter().enumerate() {
        let params = verb.params();
        let (Arg::Name(name), Some(Param::Bound(_))) = (arg, params.get(at).map(|parameter| parameter.syntax)) else {
            continue;
        };
        let makes = |step: &AgreementStep| step.bind.is_some() && step.op.verb().binds() != Some(BindingKind::Process);
        let makers = tried.steps[..n].iter().filter(|step| makes(step));
        // Only things made before the present one are tried, so the search ends.
        for maker in makers.take_while(|step| step.bind.as_ref() != Some(name)) {
            let mut candidate = tried.clone();
            candidate.steps[n].process.clone_from(&maker.process);
            candidate.steps[n].op = with(at, Arg::Name(maker.bind.clone().unwrap_or_default()))?;
            candidates.push(candidate);
        }
    }
    for (at, arg) in args.iter().enumerate() {
        if let Arg::Words(words) = arg {
            for gone in 0..words.len() {
                let mut fewer = words.clone();
                fewer.remove(gone);
                let mut candidate = tried.clone();
                candidate.steps[n].op = with(at, Arg::Words(fewer))?;
                candidates.push(candidate);
            }
        }
        if let (Arg::Word("rw"), Verb::Open) = (arg, verb) {
            let mut candidate = tried.clone();
            candidate.steps[n].op = with(at, Arg::Word("r"))?;
            candidates.push(candidate);
        }
    }
    Ok(candidates)
}

/// Runs a sequence and returns the difference, if there is one. Steps that can't be made, because
/// the thing they need was never made, are left out, and so are those that would now meet a known
/// difference.
fn difference(
    makers: &MachineMakers<'_>,
    support: Support<'_>,
    tried: &TriedSequence,
    index: u64,
) -> Option<Difference> {
    let mut pair: MachinePair<'_> = makers.pair(&tried.files, AgreedView::new(tried.processes)).ok()?;
    let mut differs = None;
    for step in &tried.steps {
        if !pair.view.allows(step) || support.excludes(&pair.view, step) {
            continue;
        }
        match pair.make(step) {
            Ok(()) => {}
            Err(SequenceStop::Differ { left, right }) => {
                differs = Some((left, right));
                break;
            }
            Err(SequenceStop::NotRun(_) | SequenceStop::Inconclusive(_)) => break,
        }
    }
    let blocked: Vec<String> = pair.blocked().map(str::to_owned).collect();
    let lines = pair.lines.clone();
    let wrong = pair.finish();
    let (linux, simulation) =
        differs.or_else(|| wrong.first().map(|wrong| ("nothing wrong".to_owned(), wrong.clone())))?;
    let title = format!("difference-{index}: the real kernel and the simulation differ");
    let scenario = text::scenario(&title, &tried.files, &lines, &simulation, &blocked);
    Some(Difference { index, scenario, linux, simulation })
}
