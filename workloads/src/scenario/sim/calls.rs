//! Operations as calls on the simulated kernel.
//!
//! It owns the way from an operation to a call: names replaced by things, on the worker's thread the call itself, its result in
//! words. Invariant: a call touches nothing of the scenario; all it knows was taken along when it began.

use emulator::sync::Arc;
use emulator::sync::atomic::Ordering;
use fs_sim::base::numbers::{Fd, Pid};
use fs_sim::{Errno, Task};
use rdma_sim::Mr;

use super::things::{Made, OpenContext, QpEnd, Thing, Window};
use super::{Simulation, files, holders, processes, rdma};
use crate::ops::{Op, Param, Verb};
use crate::scenario::machine::Trouble;

/// What came of a call.
pub(super) struct Done {
    pub(super) outcome: String,
    pub(super) made: Option<Made>,
}

/// A call's success.
#[derive(Default)]
pub(super) struct Reply {
    pub(super) value: Option<String>,
    pub(super) made: Option<Made>,
}

impl Reply {
    pub(super) fn value(value: impl Into<String>) -> Result<Reply, Stop> {
        Ok(Reply { value: Some(value.into()), made: None })
    }

    pub(super) fn made(thing: Thing) -> Result<Reply, Stop> {
        Ok(Reply { value: None, made: Some(Made::Thing(thing)) })
    }
}

/// A call's failure.
pub(super) enum Stop {
    Errno(Errno),
    /// The status of a completion, or another word.
    Word(String),
}

impl From<Errno> for Stop {
    fn from(errno: Errno) -> Stop {
        Stop::Errno(errno)
    }
}

/// An operation, ready to be called; see the module.
pub(super) struct Call {
    pub(super) op: Op,
    /// What its arguments stand for: one for each, where it is a name of a thing.
    things: Vec<Option<Thing>>,
    pids: Vec<Option<Pid>>,
    /// For `recv`: everything there is that a descriptor can be of, to recognise what is received.
    pub(super) known: Vec<Thing>,
    /// A task of the process at the other end, for `connect`.
    pub(super) peer: Option<Arc<Task>>,
}

impl Call {
    pub(super) fn new(op: &Op, machine: &Simulation) -> Result<Call, Trouble> {
        let mut things = Vec::new();
        let mut pids = Vec::new();
        for (n, (_, param)) in op.verb.params().iter().enumerate() {
            let (mut thing, mut pid) = (None, None);
            match param {
                Param::Bound(_) => {
                    let name = op.name(n);
                    let unmade = || {
                        Trouble::Script(format!("`{name}` was not made: the step that makes it failed or still waits"))
                    };
                    thing = Some(machine.names.get(name).cloned().ok_or_else(unmade)?);
                }
                Param::Process => pid = Some(machine.process(op.name(n))?.pid()),
                _ => {}
            }
            things.push(thing);
            pids.push(pid);
        }
        let known = match op.verb {
            Verb::Recv => machine.names.values().filter(|thing| thing.fd().is_some()).cloned().collect(),
            _ => Vec::new(),
        };
        let mut call = Call { op: op.clone(), things, pids, known, peer: None };
        if op.verb == Verb::Connect {
            call.peer = call.holder_of_peer(machine)?;
        }
        Ok(call)
    }

    /// A task of a process that holds the second context.
    fn holder_of_peer(&self, machine: &Simulation) -> Result<Option<Arc<Task>>, Trouble> {
        let Some(Thing::Context(peer)) = self.things.get(1).and_then(Option::as_ref) else { return Ok(None) };
        let held_by = peer.context.fd_holders().processes();
        let name = held_by.iter().find_map(|pid| machine.pids.get(pid));
        let name = name.ok_or_else(|| Trouble::Script("nobody holds the peer's context any more".to_owned()))?;
        Ok(Some(Arc::clone(machine.process(name)?)))
    }

    /// Performs it, on the worker's thread.
    pub(super) fn run(self, task: &Task) -> Done {
        let result = self.perform(task);
        // A process that died in a call never sees what it came to.
        if task.process().is_dying() && self.op.verb != Verb::Exit {
            return Done { outcome: "killed".to_owned(), made: None };
        }
        let (outcome, made) = match result {
            Ok(Reply { value: None, made }) => ("ok".to_owned(), made),
            Ok(Reply { value: Some(value), made }) => (format!("ok {value}"), made),
            Err(Stop::Errno(errno)) => (errno.to_string(), None),
            Err(Stop::Word(word)) => (word, None),
        };
        Done { outcome, made }
    }

    fn perform(&self, task: &Task) -> Result<Reply, Stop> {
        match self.op.verb {
            Verb::Memlock => Ok(files::memlock(self, task)?),
            verb if verb.section() == "RDMA" => rdma::perform(self, task),
            verb if verb.section() == "Files" => files::perform(self, task),
            verb if verb.section() == "Other holders of pages" => holders::perform(self, task),
            verb if verb.section() == "The system" => holders::system(self, task),
            _ => processes::perform(self, task),
        }
    }

    /// The `n`th argument's descriptor.
    pub(super) fn fd(&self, n: usize) -> Result<Fd, Stop> {
        self.things.get(n).and_then(Option::as_ref).and_then(Thing::fd).ok_or(Stop::Errno(Errno::EBADF))
    }

    pub(super) fn pid(&self, n: usize) -> Pid {
        self.pids.get(n).copied().flatten().expect("the signature names a process here")
    }

    /// The `n`th argument, a mapping: its address and length.
    pub(super) fn map(&self, n: usize) -> Result<(u64, u64), Stop> {
        match self.thing(n) {
            Some(Thing::Map { va, len }) => Ok((*va, *len)),
            _ => Err(Stop::Errno(Errno::EINVAL)),
        }
    }

    pub(super) fn context(&self, n: usize) -> Result<&OpenContext, Stop> {
        match self.thing(n) {
            Some(Thing::Context(context)) => Ok(context),
            _ => Err(Stop::Errno(Errno::EINVAL)),
        }
    }

    pub(super) fn region(&self, n: usize) -> Result<&Arc<Mr>, Stop> {
        match self.thing(n) {
            Some(Thing::Region(mr)) => Ok(mr),
            _ => Err(Stop::Errno(Errno::EINVAL)),
        }
    }

    pub(super) fn qp(&self, n: usize) -> Result<&QpEnd, Stop> {
        match self.thing(n) {
            Some(Thing::Qp(qp)) => Ok(qp),
            _ => Err(Stop::Errno(Errno::EINVAL)),
        }
    }

    /// The address and key by which a peer names the `n`th argument, a region or a window.
    pub(super) fn remote(&self, n: usize) -> Result<(u64, u32), Stop> {
        match self.thing(n) {
            Some(Thing::Region(mr)) => Ok((mr.va(), mr.rkey())),
            // ORDERING: Relaxed: the machine was at rest since it was bound.
            Some(Thing::Window(window)) => Ok((window.base.load(Ordering::Relaxed), window.mw.rkey())),
            _ => Err(Stop::Errno(Errno::EINVAL)),
        }
    }

    pub(super) fn window(&self, n: usize) -> Result<&Window, Stop> {
        match self.thing(n) {
            Some(Thing::Window(window)) => Ok(window),
            _ => Err(Stop::Errno(Errno::EINVAL)),
        }
    }

    /// It is in the table of operations, and nobody here performs it.
    pub(super) fn unknown(&self) -> Stop {
        Stop::Word(format!("`{}` is not simulated", self.op.verb))
    }

    pub(super) fn thing(&self, n: usize) -> Option<&Thing> {
        self.things.get(n).and_then(Option::as_ref)
    }
}
