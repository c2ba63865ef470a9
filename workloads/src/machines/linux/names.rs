//! What the names of a scenario stand for on the real kernel.
//!
//! Invariant: a name stands for the kernel's own number.

use std::collections::{BTreeMap, BTreeSet};

use crate::machines::machine::Trouble;

/// What a name stands for.
#[derive(Clone, Debug)]
pub(super) enum NamedThing {
    /// A descriptor's number.
    Fd(i32),
    /// A ring's descriptor, and the address of its fixed buffer.
    Ring { fd: i32, buffer: u64 },
    /// A mapping, and the processes that have it.
    Map { at: u64, len: u64, owners: BTreeSet<String> },
    /// A running program, by its key among the processes.
    Program(String),
    /// A RAM disk of the scenario.
    Disk(usize),
    /// I/O in flight, and the process that has submitted it.
    Io { number: u32, owner: String },
    /// An open device, and the process that opened it.
    Context { fd: i32, owner: String },
    /// A region.
    Region(LinuxRegion),
    /// A memory window.
    Window(LinuxWindow),
    /// An end of a connection, by its number in [`ScenarioNames::pairs`].
    Pair(usize),
}

/// A region of a context, and what it covers.
#[derive(Clone, Copy, Debug)]
pub(super) struct LinuxRegion {
    pub(super) context: i32,
    pub(super) number: u32,
    pub(super) lkey: u32,
    pub(super) rkey: u32,
    pub(super) at: u64,
    pub(super) len: u64,
}

/// A window of a context, and where it begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct LinuxWindow {
    pub(super) context: i32,
    pub(super) number: u32,
    pub(super) key: u32,
    pub(super) at: u64,
}

/// An end of a connection.
#[derive(Clone, Debug)]
pub(super) struct PairEnd {
    /// The process that has the queue pair.
    pub(super) owner: String,
    pub(super) context: i32,
    pub(super) number: u32,
    /// The other end.
    pub(super) peer: usize,
}

/// The names of a scenario.
#[derive(Debug, Default)]
pub(super) struct ScenarioNames {
    pub(super) things: BTreeMap<String, NamedThing>,
    pub(super) pids: BTreeMap<String, i32>,
    /// The ends of all connections that were made.
    pub(super) pairs: Vec<PairEnd>,
    /// The names of all requests that were posted, by their numbers.
    pub(super) works: Vec<String>,
}

impl ScenarioNames {
    /// What `name` stands for.
    pub(super) fn get(&self, name: &str) -> Result<&NamedThing, Trouble> {
        let unmade = || {
            Trouble::Script(format!(
                "`{name}` is not there: the step that makes it failed, still waits or was left out by `when`, or the power was cut since"
            ))
        };
        self.things.get(name).ok_or_else(unmade)
    }

    /// The number of the descriptor `name`.
    pub(super) fn fd(&self, name: &str) -> Result<i32, Trouble> {
        match self.get(name)? {
            NamedThing::Fd(fd) | NamedThing::Ring { fd, .. } | NamedThing::Context { fd, .. } => Ok(*fd),
            _ => Err(Trouble::Script(format!("`{name}` is not a descriptor"))),
        }
    }

    /// The address of the mapping `name`.
    pub(super) fn address(&self, name: &str) -> Result<u64, Trouble> {
        match self.get(name)? {
            NamedThing::Map { at, .. } => Ok(*at),
            _ => Err(Trouble::Script(format!("`{name}` is not a mapping"))),
        }
    }

    /// The descriptor and the buffer's address of the ring `name`.
    pub(super) fn ring(&self, name: &str) -> Result<(i32, u64), Trouble> {
        match self.get(name)? {
            NamedThing::Ring { fd, buffer } => Ok((*fd, *buffer)),
            // `send` does not tell what it sends.
            _ => Err(Trouble::CannotRun("a ring that was received is not used on a real Linux".to_owned())),
        }
    }

    /// The number of the I/O `name`, and the process that has submitted it.
    pub(super) fn io(&self, name: &str) -> Result<(u32, String), Trouble> {
        match self.get(name)? {
            NamedThing::Io { number, owner } => Ok((*number, owner.clone())),
            _ => Err(Trouble::Script(format!("`{name}` is not I/O in flight"))),
        }
    }

    /// The number of the process `name`, dead or alive.
    pub(super) fn pid(&self, name: &str) -> Result<i32, Trouble> {
        let unknown = || Trouble::Script(format!("there is no process `{name}` yet"));
        self.pids.get(name).copied().ok_or_else(unknown)
    }
}
