//! Two machines that are made to do the same.
//!
//! It owns the comparison. Invariant: after every step both machines have told the same outcome, the same blocked calls, the same
//! handled signals, the same lives and deaths, and the same lease on every descriptor; the first that differs ends the run.
//! Kernel counterpart: none.

use std::collections::BTreeMap;

use super::generate::{Move, View};
use super::text;
use crate::ops::{FdName, Op};
use crate::scenario::machine::{Machine, Progress, Trouble};
use crate::scenario::{Actor, Query, Subject};

/// Why a sequence goes no further.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// The machines differ, at the last line.
    Differ { left: String, right: String },
    /// One of them can't do it.
    NotRun(String),
    /// Whether a call is blocked could not be told.
    Inconclusive(String),
}

/// A line of a scenario, and what came of it on both machines.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) text: String,
    pub(super) outcome: String,
}

/// See the module. The left machine is the one whose word counts.
pub(super) struct Pair<'m> {
    left: Box<dyn Machine + 'm>,
    right: Box<dyn Machine + 'm>,
    pub(super) view: View,
    blocked: BTreeMap<String, Move>,
    pub(super) lines: Vec<Line>,
    /// What operations came to, signals that were handled, and deaths, with how often.
    pub(super) outcomes: BTreeMap<String, u64>,
}

type Answer = Result<String, Trouble>;

impl<'m> Pair<'m> {
    pub(super) fn new(left: Box<dyn Machine + 'm>, right: Box<dyn Machine + 'm>, view: View) -> Pair<'m> {
        let (blocked, lines, outcomes) = (BTreeMap::new(), Vec::new(), BTreeMap::new());
        Pair { left, right, view, blocked, lines, outcomes }
    }

    /// Makes both do `step`, and compares everything that can be seen.
    ///
    /// # Errors
    /// [`Stop`].
    pub(super) fn make(&mut self, step: &Move) -> Result<(), Stop> {
        let actor = actor(&step.process);
        let text = text::step(step);
        let outcome = self.both(text, |machine| machine.perform(&actor, &step.op, step.bind.as_deref()).map(words))?;
        self.count(&format!("{} {}", step.op.verb(), first_word(&outcome)));
        self.view.named += 1;
        let known = self.view.processes.entry(step.process.clone()).or_default();
        known.met = true;
        if outcome == BLOCKS {
            known.blocked = true;
            self.blocked.insert(step.process.clone(), step.clone());
        }
        if outcome.starts_with("ok") {
            self.view.note(step);
        }
        self.returns()?;
        self.lives()?;
        self.signals()?;
        self.leases()
    }

    /// Asks both the same; their one answer.
    fn both(&mut self, text: String, mut ask: impl FnMut(&mut dyn Machine) -> Answer) -> Result<String, Stop> {
        let left = answer(ask(&mut *self.left))?;
        let right = answer(ask(&mut *self.right))?;
        self.lines.push(Line { text, outcome: left.clone() });
        match left == right {
            true => Ok(left),
            false => Err(Stop::Differ { left, right }),
        }
    }

    /// Calls that were blocked, and may have returned.
    fn returns(&mut self) -> Result<(), Stop> {
        let blocked: Vec<String> = self.blocked.keys().cloned().collect();
        for name in blocked {
            let actor = actor(&name);
            let outcome = self.both(format!("{name}: returns"), |machine| machine.progress(&actor).map(words))?;
            if outcome == BLOCKS {
                self.lines.pop();
                continue;
            }
            let step = self.blocked.remove(&name);
            self.count(&format!("returns {}", first_word(&outcome)));
            if let Some(known) = self.view.processes.get_mut(&name) {
                known.blocked = false;
            }
            if let (Some(step), true) = (step, outcome.starts_with("ok")) {
                self.view.note(&step);
            }
        }
        Ok(())
    }

    fn lives(&mut self) -> Result<(), Stop> {
        for name in self.living() {
            let alive = self.look(Subject::Process, &name)? == "alive";
            if alive {
                self.lines.pop();
            } else {
                self.count("process dead");
                self.view.processes.entry(name).and_modify(|known| known.dead = true);
            }
        }
        Ok(())
    }

    fn signals(&mut self) -> Result<(), Stop> {
        for name in self.living().into_iter().filter(|name| self.view.can_act(name)).collect::<Vec<_>>() {
            let handled = self.look(Subject::Signals, &name)?;
            if handled == "none" {
                self.lines.pop();
            } else {
                handled.split(' ').for_each(|signal| self.count(&format!("signals {signal}")));
            }
        }
        Ok(())
    }

    /// The lease on every descriptor, by a process that has it and can look.
    fn leases(&mut self) -> Result<(), Stop> {
        let mut looks = Vec::new();
        for (fd, owners) in &self.view.fds {
            let looker = owners.iter().find(|owner| self.view.can_act(owner));
            looks.extend(looker.map(|looker| (looker.clone(), fd.clone())));
        }
        for (process, fd) in looks {
            let op = Op::GetLease { fd: FdName(fd) };
            let actor = actor(&process);
            let step = Move { process, op, bind: None };
            let lease = self.both(text::step(&step), |machine| machine.perform(&actor, &step.op, None).map(words))?;
            self.count(&format!("lease {}", lease.trim_start_matches("ok ")));
            self.lines.pop();
        }
        Ok(())
    }

    fn count(&mut self, what: &str) {
        *self.outcomes.entry(what.to_owned()).or_default() += 1;
    }

    fn look(&mut self, subject: Subject, of: &str) -> Result<String, Stop> {
        let query = Query { subject, of: of.to_owned() };
        self.both(format!("expect {} {of}", subject.facts().0), |machine| {
            let answer = machine.ask(&query)?;
            Ok(if subject == Subject::Signals { each_once(&answer) } else { answer })
        })
    }

    fn living(&self) -> Vec<String> {
        let living = self.view.processes.iter().filter(|(_, known)| known.met && !known.dead);
        living.map(|(name, _)| name.clone()).collect()
    }

    /// Who is in a blocked call.
    pub(super) fn blocked(&self) -> impl Iterator<Item = &str> {
        self.blocked.keys().map(String::as_str)
    }

    /// Ends both; what was found wrong with them.
    pub(super) fn finish(self) -> Vec<String> {
        let mut wrong = self.left.finish();
        wrong.extend(self.right.finish());
        wrong
    }
}

const BLOCKS: &str = "blocks";

/// Signals without those that came before in the same step: whether the handler of one runs before the next comes, so that
/// they don't merge, is a matter of processors.
fn each_once(signals: &str) -> String {
    let mut seen: Vec<&str> = Vec::new();
    for signal in signals.split(' ') {
        if !seen.contains(&signal) {
            seen.push(signal);
        }
    }
    seen.join(" ")
}

fn actor(process: &str) -> Actor {
    Actor { process: process.to_owned(), thread: 1 }
}

fn first_word(outcome: &str) -> &str {
    outcome.split(' ').next().unwrap_or_default()
}

/// Why it blocks, only the simulation can tell.
fn words(progress: Progress) -> String {
    match progress {
        Progress::Done(outcome) => outcome,
        Progress::Blocked(_) => BLOCKS.to_owned(),
    }
}

/// What a script can't ask for is an answer too: the other machine must say so as well.
fn answer(answer: Answer) -> Result<String, Stop> {
    match answer {
        Ok(outcome) => Ok(outcome),
        Err(Trouble::Script(why)) => Ok(format!("(refused: {why})")),
        Err(Trouble::CannotRun(why)) => Err(Stop::NotRun(why)),
        Err(Trouble::Inconclusive(why)) => Err(Stop::Inconclusive(why)),
    }
}
