//! Running a scenario: step by step on a machine, each outcome held against the stated one.
//!
//! It owns the verdict. Invariants: before anything runs, every step is known to have exactly one
//! stated outcome under every design asked for ([`check`]); a run stops at the first outcome that
//! is not the stated one, with the machine's state of that moment. Kernel counterpart:
//! packetdrill's `run_script`.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use crate::input::InputError;

use crate::language::condition::DesignSubject;
use crate::language::{Action, Actor, Alternative, Query, STUCK, Scenario, Step};
use crate::machines::machine::{Machine, Progress, Trouble};

/// The time that passes at the end over calls that were stated to be stuck: ten years.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// What came of a scenario under one design.
#[derive(Debug)]
pub enum StepResult {
    /// Every outcome was as stated.
    Passed {
        /// The outcomes of its questions.
        outcomes: Vec<String>,
    },
    /// The design refuses the setup, as stated.
    NotApplicable {
        /// The refusing step's operation.
        step: String,
        /// Its outcome.
        outcome: String,
    },
    /// An outcome was not as stated, or an invariant was broken.
    Failed(Failure),
    /// The machine can't run it.
    NotRun(String),
    /// Whether calls were blocked could not be told.
    Inconclusive(String),
}

/// Something came out otherwise than stated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// 1-based line.
    pub line: usize,
    /// The line.
    pub text: String,
    /// The stated outcome.
    pub expected: String,
    /// What came out.
    pub got: String,
    /// Leases, pins and blocked calls at that moment.
    pub state: Vec<String>,
}

/// Checks that under every one of `subjects` each step has exactly one stated outcome and a
/// question is reached, or the design refuses the setup.
///
/// # Errors
/// A step with none or several for a design, at its place.
pub fn check(scenario: &Scenario, subjects: &[DesignSubject]) -> Result<(), InputError> {
    subjects.iter().try_for_each(|subject| check_one(scenario, subject))
}

fn check_one(scenario: &Scenario, subject: &DesignSubject) -> Result<(), InputError> {
    let mut asked = false;
    for step in applicable(scenario, subject) {
        let stated = stated(scenario, step, subject)?;
        asked |= step.asks;
        if stated.ends {
            return Ok(());
        }
    }
    match asked {
        true => Ok(()),
        false => Err(scenario
            .source
            .error(
                scenario.id_at.clone(),
                format!("{} asks nothing under {}: no `=>` is reached", scenario.id, subject.name),
            )
            .help("let each design reach a step with `=>`, or end with `n/a`")),
    }
}

/// What a scenario states for a step.
#[derive(Debug, PartialEq, Eq)]
pub struct Statement<'s> {
    /// Where the step stands, in bytes.
    at: usize,
    outcome: &'s str,
    ends: bool,
}

/// What a scenario does, and states of it, under a design. Designs that it states the same for
/// need only one run on a machine that is no design.
///
/// # Errors
/// As [`check`].
pub fn statements<'s>(scenario: &'s Scenario, subject: &DesignSubject) -> Result<Vec<Statement<'s>>, InputError> {
    check_one(scenario, subject)?;
    let steps = scenario.steps.iter().filter(|step| applies(step, subject));
    let statement = |step: &'s Step| {
        let Alternative { outcome, ends, .. } = stated(scenario, step, subject)?;
        Ok(Statement { at: step.span.start, outcome, ends: *ends })
    };
    steps.map(statement).collect()
}

fn applies(step: &Step, subject: &DesignSubject) -> bool {
    step.guard.as_ref().is_none_or(|guard| guard.holds(subject))
}

pub(super) fn applicable<'s>(scenario: &'s Scenario, subject: &'s DesignSubject) -> impl Iterator<Item = &'s Step> {
    scenario.steps.iter().filter(|step| applies(step, subject))
}

/// The one outcome that is stated for a design.
fn stated<'s>(scenario: &Scenario, step: &'s Step, subject: &DesignSubject) -> Result<&'s Alternative, InputError> {
    let holds = |alternative: &&Alternative| alternative.condition.as_ref().is_some_and(|c| c.holds(subject));
    let mut by_condition = step.expected.iter().filter(holds);
    match (by_condition.next(), by_condition.next()) {
        (Some(one), None) => Ok(one),
        (Some(_), Some(second)) => Err(scenario
            .source
            .error(second.span.clone(), format!("a second outcome for {}", subject.name))
            .help("let the conditions of a step exclude each other")),
        (None, _) => step.expected.iter().find(|alternative| alternative.condition.is_none()).ok_or_else(|| {
            scenario
                .source
                .error(step.span.clone(), format!("no outcome is stated for {}", subject.name))
                .help("add one without a condition, or one for this design")
        }),
    }
}

/// Whether `got` is what `expected` states: a plain `ok` is any success, and a plain `blocks` any
/// reason. A real Linux tells no reason.
fn agrees(expected: &str, got: &str, linux: bool) -> bool {
    let general = matches!(expected, "ok" | "blocks");
    let untold = linux && got == "blocks" && expected.starts_with("blocks ");
    expected == got || untold || (general && got.split(' ').next() == Some(expected))
}

/// Runs `scenario` on `machine` under the design of `subject`.
///
/// # Errors
/// The scenario asks for the impossible (see [`Trouble::Script`]); at its place.
pub fn run(
    scenario: &Scenario,
    subject: &DesignSubject,
    machine: Box<dyn Machine + '_>,
) -> Result<StepResult, InputError> {
    check_one(scenario, subject)?;
    let (blocked, stuck) = (BTreeMap::new(), BTreeMap::new());
    let mut run = Run { scenario, subject, machine, blocked, stuck, outcomes: Vec::new(), judged_stale: false };
    let verdict = run.steps();
    let violations = run.machine.finish();
    let verdict = verdict?;
    if matches!(&verdict, StepResult::Passed { outcomes } if outcomes.is_empty()) {
        let title = format!("{} asks nothing under {}: no `=>` came to anything", scenario.id, subject.name);
        let help = "`returns` says nothing where the call did not block: ask in a step that every design reaches";
        return Err(scenario.source.error(scenario.id_at.clone(), title).help(help));
    }
    if let (StepResult::Passed { .. } | StepResult::NotApplicable { .. }, Some(_)) = (&verdict, violations.first()) {
        return Ok(StepResult::Failed(Failure {
            line: scenario.source.text().lines().count(),
            text: "(the end)".to_owned(),
            expected: "no invariant broken".to_owned(),
            got: violations.join("; "),
            state: Vec::new(),
        }));
    }
    Ok(verdict)
}

struct Run<'s> {
    scenario: &'s Scenario,
    subject: &'s DesignSubject,
    machine: Box<dyn Machine + 's>,
    /// Who is in a blocked call, and where it began.
    blocked: BTreeMap<Actor, Range<usize>>,
    /// Who was stated to be stuck, and where.
    stuck: BTreeMap<Actor, Range<usize>>,
    outcomes: Vec<String>,
    judged_stale: bool,
}

/// How a step ended.
enum Came {
    /// To these words.
    Out(String),
    /// It does not concern this design.
    ToNothing,
}

impl<'s> Run<'s> {
    fn steps(&mut self) -> Result<StepResult, InputError> {
        for step in applicable(self.scenario, self.subject) {
            let stated = stated(self.scenario, step, self.subject)?;
            let got = match self.act(step) {
                Ok(Came::Out(got)) => got,
                Ok(Came::ToNothing) => continue,
                Err(Trouble::Script(what)) => return Err(self.scenario.source.error(step.span.clone(), what)),
                Err(Trouble::CannotRun(what)) => return Ok(StepResult::NotRun(what)),
                Err(Trouble::Inconclusive(what)) => return Ok(StepResult::Inconclusive(what)),
            };
            if !agrees(&stated.outcome, &got, self.subject.linux.is_some()) {
                return Ok(StepResult::Failed(self.failure(&step.span, &stated.outcome, got)));
            }
            if stated.ends {
                let outcome = got;
                return Ok(StepResult::NotApplicable { step: words_of(&step.action), outcome });
            }
            if step.asks {
                self.outcomes.push(stated.outcome.split(' ').next().unwrap_or_default().to_owned());
            }
        }
        self.last_look()
    }

    /// What the end must be: no stale DMA that no step stated, and no call of which no step stated
    /// what came.
    fn last_look(&mut self) -> Result<StepResult, InputError> {
        let query = Query { subject: crate::language::QuerySubject::Stale, of: String::new() };
        let stale = self.machine.ask(&query).is_ok_and(|answer| answer == "some");
        if stale && !self.judged_stale {
            let last = self.scenario.steps.last().expect("a parsed scenario has steps");
            return Ok(StepResult::Failed(self.failure(&last.span, "no stale DMA", "stale DMA".to_owned())));
        }
        match self.leftover() {
            Ok(None) => Ok(StepResult::Passed { outcomes: std::mem::take(&mut self.outcomes) }),
            Ok(Some(failure)) => Ok(StepResult::Failed(failure)),
            Err(Trouble::Script(what)) => Err(self.scenario.source.error_overall(what)),
            Err(Trouble::CannotRun(what)) => Ok(StepResult::NotRun(what)),
            Err(Trouble::Inconclusive(what)) => Ok(StepResult::Inconclusive(what)),
        }
    }

    /// The first call that ends otherwise than stated: it is blocked, or no step states what came
    /// of it, unless its process is gone; or it was stated to be stuck and ends when time passes.
    fn leftover(&mut self) -> Result<Option<Failure>, Trouble> {
        let open: Vec<(Actor, Range<usize>)> = self.blocked.clone().into_iter().collect();
        for (actor, at) in open.iter().filter(|(actor, _)| !self.stuck.contains_key(actor)) {
            let (expected, got) = match self.machine.progress(actor)? {
                Progress::Blocked(reason) => {
                    (format!("an end of the call, stated by `returns`, or `expect stuck {actor}`"), blocks(&reason))
                }
                Progress::Done(outcome) if outcome == "killed" => continue,
                Progress::Done(outcome) => ("`returns`, to state what came of the call".to_owned(), outcome),
            };
            return Ok(Some(self.failure(at, &expected, got)));
        }
        if !self.stuck.is_empty() {
            self.machine.advance(FOREVER)?;
        }
        for (actor, at) in self.stuck.clone() {
            let got = match self.blocked.contains_key(&actor) {
                true => self.machine.progress(&actor)?,
                false => Progress::Done("its call returned later".to_owned()),
            };
            if let Progress::Done(outcome) = got {
                return Ok(Some(self.failure(&at, STUCK, outcome)));
            }
        }
        Ok(None)
    }

    fn act(&mut self, step: &Step) -> Result<Came, Trouble> {
        let came = match &step.action {
            Action::Perform { actor, op, bind } => {
                if let Some(since) = self.blocked.get(actor) {
                    let (line, _) = self.scenario.source.line_column(since.start);
                    return Err(Trouble::Script(match self.machine.progress(actor)? {
                        Progress::Done(outcome) => {
                            format!(
                                "{actor}'s call of line {line} has come to `{outcome}`: state it by `returns` first"
                            )
                        }
                        Progress::Blocked(_) => format!(
                            "{actor} is still in the call of line {line}: let it return first, or use another thread, \
                             such as `{actor}.2`"
                        ),
                    }));
                }
                match self.machine.perform(actor, op, bind.as_deref())? {
                    Progress::Done(outcome) => outcome,
                    Progress::Blocked(reason) => {
                        self.blocked.insert(actor.clone(), step.span.clone());
                        blocks(&reason)
                    }
                }
            }
            Action::Returns(actor) => {
                if !self.blocked.contains_key(actor) {
                    return Ok(Came::ToNothing);
                }
                match self.machine.progress(actor)? {
                    Progress::Done(outcome) => {
                        self.blocked.remove(actor);
                        outcome
                    }
                    Progress::Blocked(reason) => blocks(&reason),
                }
            }
            Action::Kill { process, signal } => {
                self.machine.kill(process, signal)?;
                "ok".to_owned()
            }
            Action::Advance(span) => {
                self.machine.advance(*span)?;
                "ok".to_owned()
            }
            Action::Expect(query) => {
                self.judged_stale |= query.subject == crate::language::QuerySubject::Stale;
                self.machine.ask(query)?
            }
            Action::Stuck(actor) => self.look_whether_stuck(actor, &step.span)?,
        };
        Ok(Came::Out(came))
    }

    /// [`STUCK`] if the actor is blocked here.
    fn look_whether_stuck(&mut self, actor: &Actor, at: &Range<usize>) -> Result<String, Trouble> {
        if !self.blocked.contains_key(actor) {
            return Ok("no call in progress".to_owned());
        }
        Ok(match self.machine.progress(actor)? {
            Progress::Done(outcome) => outcome,
            Progress::Blocked(_) => {
                self.stuck.insert(actor.clone(), at.clone());
                STUCK.to_owned()
            }
        })
    }

    /// A failure of what stands at `at`.
    fn failure(&self, at: &Range<usize>, expected: &str, got: String) -> Failure {
        let source = &self.scenario.source;
        Failure {
            line: source.line_column(at.start).0,
            text: source.text()[at.clone()].to_owned(),
            expected: expected.to_owned(),
            got,
            state: self.machine.state(),
        }
    }
}

fn blocks(reason: &str) -> String {
    if reason.is_empty() { "blocks".to_owned() } else { format!("blocks {reason}") }
}

fn words_of(action: &Action) -> String {
    match action {
        Action::Perform { op, .. } => op.verb().name().to_owned(),
        Action::Returns(_) => "returns".to_owned(),
        Action::Kill { .. } => "kill".to_owned(),
        Action::Advance(_) => "advance".to_owned(),
        Action::Expect(query) => format!("expect {}", query.subject.facts().0),
        Action::Stuck(_) => format!("expect {STUCK}"),
    }
}
