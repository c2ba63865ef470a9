//! Two machines that make the same steps.
//!
//! It owns the comparison. Invariant: after every step both machines have reported the same
//! outcome, the same blocked calls, the same handled signals, the same living and dead processes,
//! and the same lease on every descriptor. The first difference ends the sequence. Kernel
//! counterpart: none.

use std::collections::BTreeMap;

use super::text::{self, ScenarioLine};
use super::view::{AgreedView, AgreementStep};
use crate::language::{Actor, Query, QuerySubject};
use crate::machines::machine::{Machine, Progress, Trouble};
use crate::ops::{FdName, Op};

/// Why a sequence stops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum SequenceStop {
    /// The machines differ at the last line.
    Differ { left: String, right: String },
    /// One of the machines can't make the step.
    NotRun(String),
    /// The driver could not decide whether a call is blocked.
    Inconclusive(String),
}

/// The pair; see the module. The left machine is the reference.
pub(super) struct MachinePair<'m> {
    left: Box<dyn Machine + 'm>,
    right: Box<dyn Machine + 'm>,
    pub(super) view: AgreedView,
    blocked: BTreeMap<String, AgreementStep>,
    pub(super) lines: Vec<ScenarioLine>,
    /// How often each outcome, handled signal and death occurred.
    pub(super) outcomes: BTreeMap<String, u64>,
}

type MachineAnswer = Result<String, Trouble>;

impl<'m> MachinePair<'m> {
    pub(super) fn new(left: Box<dyn Machine + 'm>, right: Box<dyn Machine + 'm>, view: AgreedView) -> MachinePair<'m> {
        let (blocked, lines, outcomes) = (BTreeMap::new(), Vec::new(), BTreeMap::new());
        MachinePair { left, right, view, blocked, lines, outcomes }
    }

    /// Lets both machines make `step`, and compares everything that can be observed.
    ///
    /// # Errors
    /// [`SequenceStop`].
    pub(super) fn make(&mut self, step: &AgreementStep) -> Result<(), SequenceStop> {
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
        match outcome.starts_with("ok") {
            true => self.view.note(step),
            false => self.view.note_failure(step),
        }
        self.returns()?;
        self.lives()?;
        self.signals()?;
        self.leases()
    }

    /// Asks both machines the same and returns their common answer.
    fn both(
        &mut self,
        text: String,
        mut ask: impl FnMut(&mut dyn Machine) -> MachineAnswer,
    ) -> Result<String, SequenceStop> {
        let left = answer(ask(&mut *self.left))?;
        let right = answer(ask(&mut *self.right))?;
        self.lines.push(ScenarioLine { text, outcome: left.clone() });
        match left == right {
            true => Ok(left),
            false => Err(SequenceStop::Differ { left, right }),
        }
    }

    /// Checks blocked calls that may have returned.
    fn returns(&mut self) -> Result<(), SequenceStop> {
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

    fn lives(&mut self) -> Result<(), SequenceStop> {
        for name in self.living() {
            let alive = self.look(QuerySubject::Process, &name)? == "alive";
            if alive {
                self.lines.pop();
            } else {
                self.count("process dead");
                self.view.processes.entry(name).and_modify(|known| known.dead = true);
            }
        }
        Ok(())
    }

    fn signals(&mut self) -> Result<(), SequenceStop> {
        for name in self.living().into_iter().filter(|name| self.view.can_act(name)).collect::<Vec<_>>() {
            let handled = self.look(QuerySubject::Signals, &name)?;
            if handled == "none" {
                self.lines.pop();
            } else {
                handled.split(' ').for_each(|signal| self.count(&format!("signals {signal}")));
            }
        }
        Ok(())
    }

    /// Compares the lease on every descriptor, as seen by a process that has the descriptor and can
    /// act.
    fn leases(&mut self) -> Result<(), SequenceStop> {
        let mut looks = Vec::new();
        for (fd, owners) in self.view.fds.iter().filter(|(fd, _)| !self.view.memory_files.contains(*fd)) {
            let looker = owners.iter().find(|owner| self.view.can_act(owner));
            looks.extend(looker.map(|looker| (looker.clone(), fd.clone())));
        }
        for (process, fd) in looks {
            let op = Op::GetLease { fd: FdName(fd) };
            let actor = actor(&process);
            let step = AgreementStep { process, op, bind: None };
            let lease = self.both(text::step(&step), |machine| machine.perform(&actor, &step.op, None).map(words))?;
            self.count(&format!("lease {}", lease.trim_start_matches("ok ")));
            self.lines.pop();
        }
        Ok(())
    }

    fn count(&mut self, what: &str) {
        *self.outcomes.entry(what.to_owned()).or_default() += 1;
    }

    fn look(&mut self, subject: QuerySubject, of: &str) -> Result<String, SequenceStop> {
        let query = Query { subject, of: of.to_owned() };
        self.both(format!("expect {} {of}", subject.facts().0), |machine| {
            let answer = machine.ask(&query)?;
            Ok(if subject == QuerySubject::Signals { each_once(&answer) } else { answer })
        })
    }

    fn living(&self) -> Vec<String> {
        let living = self.view.processes.iter().filter(|(_, known)| known.met && !known.dead);
        living.map(|(name, _)| name.clone()).collect()
    }

    /// The processes that are in a blocked call.
    pub(super) fn blocked(&self) -> impl Iterator<Item = &str> {
        self.blocked.keys().map(String::as_str)
    }

    /// Ends both machines and returns what was found wrong with them.
    pub(super) fn finish(self) -> Vec<String> {
        let mut wrong = self.left.finish();
        wrong.extend(self.right.finish());
        wrong
    }
}

const BLOCKS: &str = "blocks";

/// Signals, each once. Whether a handler runs before the next equal signal arrives, so that the two
/// don't merge, depends on the scheduler.
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

/// Only the simulation knows why a call blocks, so the reason is not compared.
fn words(progress: Progress) -> String {
    match progress {
        Progress::Done(outcome) => outcome,
        Progress::Blocked(_) => BLOCKS.to_owned(),
    }
}

/// If one machine refuses the question as a script's mistake, the other machine must refuse it too.
fn answer(answer: MachineAnswer) -> Result<String, SequenceStop> {
    match answer {
        Ok(outcome) => Ok(outcome),
        Err(Trouble::Script(why)) => Ok(format!("(refused: {why})")),
        Err(Trouble::CannotRun(why)) => Err(SequenceStop::NotRun(why)),
        Err(Trouble::Inconclusive(why)) => Err(SequenceStop::Inconclusive(why)),
    }
}
