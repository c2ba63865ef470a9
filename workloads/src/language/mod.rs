//! The language of scenarios: scripts of simulated processes, operations and expected outcomes.
//!
//! It owns the text and its meaning as a value: `lex` and `parse` turn text into a [`Scenario`];
//! [`condition`] says under which designs an outcome is stated. Invariants: a scenario that was
//! parsed names only operations, kinds and designs that exist; its steps run in the order of their
//! lines. A machine ([`crate::machines`]) performs the steps, and [`crate::suite::run`] compares
//! the outcomes. Kernel counterpart: scripts of packetdrill and `xfs_io`, for the style.

pub mod condition;
mod lex;
mod parse;

use std::ops::Range;
use std::time::Duration;

use crate::input::Source;
use fs_sim::design::VolumeOptions;

use crate::ops::{Arg, Op, Param};
use condition::Condition;

/// A parsed scenario.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// `S18`: what stands before the colon of the first line, or the file's name without its
    /// ending.
    pub id: String,
    /// Where the id stands, in bytes of the source; the whole first line if it is the file's name.
    pub id_at: Range<usize>,
    /// What stands after it.
    pub title: String,
    /// Where it was read from.
    pub source: Source,
    /// The machine it starts with.
    pub setup: Setup,
    /// What happens, in order.
    pub steps: Vec<Step>,
}

/// The machine that a scenario starts with.
#[derive(Clone, Debug, PartialEq)]
pub struct Setup {
    /// The device's size in bytes.
    pub device: u64,
    /// The volume's options.
    pub options: VolumeOptions,
    /// `RLIMIT_MEMLOCK` of every process, in bytes; none is no limit.
    pub memlock: Option<u64>,
    /// The files that are there.
    pub files: Vec<FileSetup>,
    /// Whether it can run on a real Linux too.
    pub linux: bool,
    /// Whether that Linux must have a file system with DAX.
    pub dax: bool,
}

/// A file that is there at the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSetup {
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// What it holds.
    pub contents: Contents,
}

/// What a file holds at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents {
    /// This byte everywhere.
    Byte(u8),
    /// No block.
    Hole,
    /// Allocated, unwritten blocks.
    Unwritten,
}

/// A process of a scenario, or one thread of it: `A`, `A.2`. `system` is the machine itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Actor {
    /// The process's name.
    pub process: String,
    /// Which of its threads; the first is 1.
    pub thread: u32,
}

/// The actor that is the machine itself: an ordinary process that is always there.
pub const SYSTEM: &str = "system";

impl std::fmt::Display for Actor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.thread {
            1 => f.write_str(&self.process),
            thread => write!(f, "{}.{thread}", self.process),
        }
    }
}

/// The processes that an operation names. A process starts when it is first heard of, also as an
/// argument.
pub fn processes_named(op: &Op) -> Vec<String> {
    let args = op.args().into_iter().zip(op.verb().params());
    args.filter_map(|(arg, parameter)| match (arg, parameter.syntax) {
        (Arg::Name(name), Param::Process) => Some(name),
        _ => None,
    })
    .collect()
}

/// One line of a scenario.
#[derive(Clone, Debug)]
pub struct Step {
    /// Where it stands, in bytes of the source.
    pub span: Range<usize>,
    /// Only under designs for which this holds.
    pub guard: Option<Condition>,
    /// What happens.
    pub action: Action,
    /// What must come of it: never empty.
    pub expected: Vec<Alternative>,
    /// Whether it is the question that the scenario asks (`=>`): its outcome is shown in the
    /// matrix.
    pub asks: bool,
}

/// What happens in a step.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// An actor performs an operation.
    Perform {
        /// Who.
        actor: Actor,
        /// What.
        op: Op,
        /// The name that its result gets.
        bind: Option<String>,
    },
    /// An actor's blocked call has returned. Speaks of the designs under which it blocked.
    Returns(Actor),
    /// A signal comes from outside.
    Kill {
        /// To whom.
        process: String,
        /// Which.
        signal: &'static str,
    },
    /// Time passes.
    Advance(Duration),
    /// A look at the machine.
    Expect(Query),
    /// An actor is blocked here, and for ever: also at the scenario's end, whatever time passes.
    Stuck(Actor),
}

/// A look at the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// At what.
    pub subject: QuerySubject,
    /// Of which file or process; empty where the subject needs none.
    pub of: String,
}

/// The word of [`Action::Stuck`]: `expect stuck B`.
pub const STUCK: &str = "stuck";

/// What can be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuerySubject {
    /// The signals a process has been sent and handled since the last look.
    Signals,
    /// The addresses that SIGBUS has told a process.
    Poisoned,
    /// A file's bad blocks.
    Badblocks,
    /// How many lines of a file a power cut would take back.
    Unflushed,
    /// Whether a process lives.
    Process,
    /// Whether a process is blocked, and on what.
    Blocked,
    /// A file's layout leases.
    Leases,
    /// How many long-term pins (registrations) a file has.
    Pins,
    /// Who stands against a layout change of a file.
    Blockers,
    /// How many blocks are orphaned.
    Orphans,
    /// Whether stale DMA was seen.
    Stale,
    /// How often exclusivity was broken.
    BrokenExclusivity,
    /// Locked memory of a process.
    Locked,
    /// A file's size.
    Size,
    /// How many blocks a file has.
    Blocks,
}

/// What the argument of a look is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// A file.
    File,
    /// A process.
    Process,
    /// Nothing.
    Nothing,
}

impl QuerySubject {
    /// All of them.
    pub const ALL: [QuerySubject; 15] = [
        QuerySubject::Signals,
        QuerySubject::Poisoned,
        QuerySubject::Process,
        QuerySubject::Blocked,
        QuerySubject::Leases,
        QuerySubject::Pins,
        QuerySubject::Blockers,
        QuerySubject::Orphans,
        QuerySubject::Stale,
        QuerySubject::BrokenExclusivity,
        QuerySubject::Locked,
        QuerySubject::Size,
        QuerySubject::Blocks,
        QuerySubject::Badblocks,
        QuerySubject::Unflushed,
    ];

    /// Its word, what it is about, whether a real Linux can tell, and what it tells.
    pub fn facts(self) -> (&'static str, Of, bool, &'static str) {
        match self {
            QuerySubject::Signals => {
                ("signals", Of::Process, true, "Signals handled since the last look, oldest first; `none`.")
            }
            QuerySubject::Poisoned => (
                "poisoned",
                Of::Process,
                false,
                "Where the signals SIGBUS point to that it handled since the last look, as `m+4KiB`, oldest first; `none`.",
            ),
            QuerySubject::Badblocks => {
                ("badblocks", Of::File, false, "The blocks of the file that are bad, as `[1..2) [4..8)`; `none`.")
            }
            QuerySubject::Unflushed => (
                "unflushed",
                Of::File,
                false,
                "How many lines of 64 bytes of the file a power cut would take back now: stored to, and not written back since. 0 under `platform=eadr`.",
            ),
            QuerySubject::Process => ("process", Of::Process, true, "`alive` or `dead`."),
            QuerySubject::Blocked => {
                ("blocked", Of::Process, false, "What the process's calls wait for, in quotes; `no` if none does.")
            }
            QuerySubject::Leases => (
                "leases",
                Of::File,
                false,
                "Layout leases as `A:read+U`, with `[first..end)` in blocks unless whole, and `:breaking` or `:zombie`; `none`.",
            ),
            QuerySubject::Pins => {
                ("pins", Of::File, false, "How many pages long-term pins hold, counted per registration.")
            }
            QuerySubject::Blockers => (
                "blockers",
                Of::File,
                false,
                "What refuses a layout change of the file or makes it wait, by the names of the scenario: a lease as `A:f:read+U` (`A(B:ctx):read+U:zombie` if others than its taker could release it), a pin as `A:ctx:mr[0..512)`; `none`.",
            ),
            QuerySubject::Orphans => ("orphans", Of::Nothing, false, "How many blocks are orphaned."),
            QuerySubject::Stale => ("stale", Of::Nothing, false, "`some` if stale DMA was seen so far, else `none`."),
            QuerySubject::BrokenExclusivity => (
                "broken_exclusivity",
                Of::Nothing,
                false,
                "How many exclusive leases were granted so far while pins of an exclusive lease that was lost were alive in their range.",
            ),
            QuerySubject::Locked => ("locked", Of::Process, true, "How many pages of memory the process has locked."),
            QuerySubject::Size => ("size", Of::File, true, "The file's size."),
            QuerySubject::Blocks => ("blocks", Of::File, true, "How many blocks the file has."),
        }
    }
}

/// One stated outcome.
#[derive(Clone, Debug)]
pub struct Alternative {
    /// Where it stands.
    pub span: Range<usize>,
    /// The outcome in words: `ok`, `ok read`, `ETXTBSY`, `blocks`.
    pub outcome: String,
    /// The scenario ends here for such a design: it refuses the setup.
    pub ends: bool,
    /// For which designs; none: for all that no other alternative names.
    pub condition: Option<Condition>,
}
