//! What a scenario needs of a machine, simulated or real.
//!
//! It owns the words between a run and the machine it drives. Invariant: after each call the
//! machine is quiescent: every operation begun has ended or is blocked, which is a fact and not a
//! guess. Kernel counterpart: the system call boundary.

use std::time::Duration;

use crate::language::{Actor, Query};
use crate::ops::Op;

/// Where an operation stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Over, with this outcome: `ok`, `ok VALUE`, an errno, `killed`.
    Done(String),
    /// Blocked, for this reason (empty where the machine can't tell).
    Blocked(String),
}

/// Why a machine can't go on with a scenario.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// The scenario asks for what can't be: an operation of a dead process, a name that an earlier
    /// failure left unbound.
    #[error("{0}")]
    Script(String),
    /// The machine can't do it (no permission, no lease support): the scenario is not run.
    #[error("{0}")]
    CannotRun(String),
    /// Whether a call is blocked could not be told.
    #[error("{0}")]
    Inconclusive(String),
}

/// The machine that this program runs on gives no thread.
#[derive(Debug, thiserror::Error)]
#[error(
    "no thread could be created: {0}; raise the limit of processes (`ulimit -u`) or of memory, or run less at once"
)]
pub(crate) struct NoThread(pub(crate) std::io::Error);

/// A machine that scenarios run on.
pub trait Machine {
    /// Lets `actor` perform `op` and bind its result to `bind`; a process is started when it is
    /// first heard of. Returns when the machine is quiescent again, also as far as other blocked
    /// operations go.
    ///
    /// # Errors
    /// [`Trouble`]; the machine is good for nothing but [`Machine::finish`] then.
    fn perform(&mut self, actor: &Actor, op: &Op, bind: Option<&str>) -> Result<Progress, Trouble>;

    /// Where the operation of `actor` stands that was blocked when it was begun. Once it is
    /// [`Progress::Done`] it is forgotten.
    ///
    /// # Errors
    /// [`Trouble`].
    fn progress(&mut self, actor: &Actor) -> Result<Progress, Trouble>;

    /// Sends a signal from outside.
    ///
    /// # Errors
    /// [`Trouble`].
    fn kill(&mut self, process: &str, signal: &'static str) -> Result<(), Trouble>;

    /// Lets time pass.
    ///
    /// # Errors
    /// [`Trouble`].
    fn advance(&mut self, span: Duration) -> Result<(), Trouble>;

    /// Looks at the machine; the answer in the words that scenarios use.
    ///
    /// # Errors
    /// [`Trouble`].
    fn ask(&mut self, query: &Query) -> Result<String, Trouble>;

    /// Leases, pins and blocked calls at this moment, for a report.
    fn state(&self) -> Vec<String>;

    /// Ends every process; broken invariants and deadlocks found, in words.
    fn finish(self: Box<Self>) -> Vec<String>;
}
