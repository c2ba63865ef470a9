//! What is left of a difference.
//!
//! It owns the search for a shorter sequence that still differs. Invariants: every candidate is run on fresh machines; at most
//! [`RUNS_MAX`] are; the result differs, however it does. Kernel counterpart: none; Hypothesis and proptest, for the style.

use super::generate::{Move, View};
use super::pair::{Pair, Stop};
use super::{Difference, Makers, Tried, text};
use crate::ops::{Arg, BindingKind, Op, Param, Verb, WrongArguments};

/// The most candidates tried.
const RUNS_MAX: u32 = 400;

/// The shortest sequence found that differs, as a scenario. None if the difference does not come back.
pub(super) fn shortest(makers: &Makers<'_>, tried: Tried, index: u64) -> Option<Difference> {
    let mut runs = 0;
    let mut differs = |candidate: &Tried| {
        runs += 1;
        if runs > RUNS_MAX { None } else { difference(makers, candidate, index) }
    };
    let mut best = tried;
    let mut found = differs(&best)?;
    loop {
        let mut shorter = false;
        // From the end, where steps are that nothing else needs.
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

/// The same with a simpler step `n`: without a flag, for reading only, or on a thing that was made earlier.
fn simpler(tried: &Tried, n: usize) -> Result<Vec<Tried>, WrongArguments> {
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
        let (Arg::Name(name), Some((_, Param::Bound(_)))) = (arg, params.get(at)) else { continue };
        let makes = |step: &Move| step.bind.is_some() && step.op.verb().binds() != Some(BindingKind::Process);
        let makers = tried.steps[..n].iter().filter(|step| makes(step));
        // Only what comes before its own maker: so this ends.
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

/// Runs a sequence; what differs, if anything does. Steps that can't be made (their thing was never made) are left out.
fn difference(makers: &Makers<'_>, tried: &Tried, index: u64) -> Option<Difference> {
    let mut pair: Pair<'_> = makers.pair(&tried.files, View::new(tried.processes)).ok()?;
    let mut differs = None;
    for step in &tried.steps {
        if !pair.view.allows(step) {
            continue;
        }
        match pair.make(step) {
            Ok(()) => {}
            Err(Stop::Differ { left, right }) => {
                differs = Some((left, right));
                break;
            }
            Err(Stop::NotRun(_) | Stop::Inconclusive(_)) => break,
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
