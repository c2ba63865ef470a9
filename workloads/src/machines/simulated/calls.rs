//! Operations as calls on the simulated kernel.
//!
//! It owns the way from an operation to a call: names replaced by things, on the worker's thread
//! the call itself, its result in words. Invariant: a call touches nothing of the scenario; all it
//! knows was taken along when it began.

use std::collections::BTreeMap;

use emulator::sync::Arc;
use fs_sim::base::numbers::{Fd, Pid};
use fs_sim::{Errno, Task};
use rdma_sim::Mr;

use super::bindings::{Made, OpenContext, QpEnd, Thing, Window};
use super::{Simulation, files, holders, processes, rdma};
use crate::machines::machine::Trouble;
use crate::ops::{Arg, Op, Param, Verb};

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
    pub(super) fn value(value: impl Into<String>) -> Result<Reply, CallFailure> {
        Ok(Reply { value: Some(value.into()), made: None })
    }

    pub(super) fn made(thing: Thing) -> Result<Reply, CallFailure> {
        Ok(Reply { value: None, made: Some(Made::Thing(thing)) })
    }
}

/// A call's failure.
pub(super) enum CallFailure {
    Errno(Errno),
    /// The status of a completion, or another word.
    Word(String),
}

impl From<Errno> for CallFailure {
    fn from(errno: Errno) -> CallFailure {
        CallFailure::Errno(errno)
    }
}

/// An operation, ready to be called; see the module.
pub(super) struct Call {
    pub(super) op: Op,
    /// The thing behind each bound name among its arguments.
    things: BTreeMap<String, Thing>,
    /// The process behind each process name among its arguments.
    pids: BTreeMap<String, Pid>,
    /// For `recv`: everything there is that a descriptor can be of, to recognise what is received.
    pub(super) known: Vec<Thing>,
    /// For `event`: every region by its name, to name the one that an event tells of.
    pub(super) regions: Vec<(String, Arc<Mr>)>,
    /// A task of the process at the other end, for `connect`.
    pub(super) peer: Option<Arc<Task>>,
    /// The name for what it makes; `-` if it makes nothing.
    pub(super) bind: String,
}

impl Call {
    pub(super) fn new(op: &Op, bind: Option<&str>, machine: &Simulation) -> Result<Call, Trouble> {
        let (mut things, mut pids) = (BTreeMap::new(), BTreeMap::new());
        for (arg, parameter) in op.args().into_iter().zip(op.verb().params()) {
            match (arg, parameter.syntax) {
                (Arg::Name(name), Param::Bound(_)) => {
                    let thing = machine.names.get(&name).cloned().ok_or_else(|| {
                        Trouble::Script(format!("`{name}` is not there: the step that makes it failed, still waits or was left out by `when`, or the power was cut since"))
                    })?;
                    things.insert(name, thing);
                }
                (Arg::Name(name), Param::Process) => {
                    let pid = machine.process(&name)?.pid();
                    pids.insert(name, pid);
                }
                _ => {}
            }
        }
        let known = match op {
            Op::Recv {} => machine.names.values().filter(|thing| thing.fd().is_some()).cloned().collect(),
            _ => Vec::new(),
        };
        let region = |(name, thing): (&String, &Thing)| match thing {
            Thing::Region(mr) => Some((name.clone(), Arc::clone(mr))),
            _ => None,
        };
        let regions = match op {
            Op::Event { .. } => machine.names.iter().filter_map(region).collect(),
            _ => Vec::new(),
        };
        let bind = bind.unwrap_or("-").to_owned();
        let mut call = Call { op: op.clone(), things, pids, known, regions, peer: None, bind };
        if let Op::Connect { peer, .. } = op {
            call.peer = call.holder_of_peer(peer, machine)?;
        }
        Ok(call)
    }

    /// A task of a process that holds the context `peer`.
    fn holder_of_peer(&self, peer: &str, machine: &Simulation) -> Result<Option<Arc<Task>>, Trouble> {
        let Some(Thing::Context(peer)) = self.thing(peer) else { return Ok(None) };
        let held_by = peer.context.fd_holders().processes();
        let name = held_by.iter().find_map(|pid| machine.pids.get(pid));
        let name = name.ok_or_else(|| Trouble::Script("no process holds the peer's context any more".to_owned()))?;
        Ok(Some(Arc::clone(machine.process(name)?)))
    }

    /// Performs it, on the worker's thread.
    pub(super) fn run(self, task: &Task) -> Done {
        let result = self.perform(task);
        // A process that died in a call never sees what it came to.
        if task.process().is_dying() && self.op.verb() != Verb::Exit {
            return Done { outcome: "killed".to_owned(), made: None };
        }
        let (outcome, made) = match result {
            Ok(Reply { value: None, made }) => ("ok".to_owned(), made),
            Ok(Reply { value: Some(value), made }) => (format!("ok {value}"), made),
            Err(CallFailure::Errno(errno)) => (errno.to_string(), None),
            Err(CallFailure::Word(word)) => (word, None),
        };
        Done { outcome, made }
    }

    fn perform(&self, task: &Task) -> Result<Reply, CallFailure> {
        if let Op::Memlock { limit } = &self.op {
            return Ok(files::memlock(*limit, task)?);
        }
        match self.op.verb().section() {
            "RDMA" => rdma::perform(self, task),
            "Files" => files::perform(self, task),
            "Other holders of pages" => holders::perform(self, task),
            "The system" => holders::system(self, task),
            _ => processes::perform(self, task),
        }
    }

    /// The number of the descriptor `name`.
    pub(super) fn fd(&self, name: &str) -> Result<Fd, CallFailure> {
        self.thing(name).and_then(Thing::fd).ok_or(CallFailure::Errno(Errno::EBADF))
    }

    pub(super) fn pid(&self, name: &str) -> Result<Pid, CallFailure> {
        self.pids.get(name).copied().ok_or(CallFailure::Errno(Errno::ESRCH))
    }

    /// The address and length of the mapping `name`.
    pub(super) fn map(&self, name: &str) -> Result<(u64, u64), CallFailure> {
        match self.thing(name) {
            Some(Thing::Map { va, len }) => Ok((*va, *len)),
            _ => Err(CallFailure::Errno(Errno::EINVAL)),
        }
    }

    pub(super) fn context(&self, name: &str) -> Result<&OpenContext, CallFailure> {
        match self.thing(name) {
            Some(Thing::Context(context)) => Ok(context),
            _ => Err(CallFailure::Errno(Errno::EINVAL)),
        }
    }

    pub(super) fn region(&self, name: &str) -> Result<&Arc<Mr>, CallFailure> {
        match self.thing(name) {
            Some(Thing::Region(mr)) => Ok(mr),
            _ => Err(CallFailure::Errno(Errno::EINVAL)),
        }
    }

    pub(super) fn qp(&self, name: &str) -> Result<&QpEnd, CallFailure> {
        match self.thing(name) {
            Some(Thing::Qp(qp)) => Ok(qp),
            _ => Err(CallFailure::Errno(Errno::EINVAL)),
        }
    }

    /// The address and key by which a peer addresses the region or window `name`.
    pub(super) fn remote(&self, name: &str) -> Result<(u64, u32), CallFailure> {
        match self.thing(name) {
            Some(Thing::Region(mr)) => Ok((mr.va(), mr.rkey())),
            // Unbound it has no address, and its key opens nothing.
            Some(Thing::Window(window)) => Ok((window.mw.addr().unwrap_or(0), window.mw.rkey())),
            _ => Err(CallFailure::Errno(Errno::EINVAL)),
        }
    }

    pub(super) fn window(&self, name: &str) -> Result<&Window, CallFailure> {
        match self.thing(name) {
            Some(Thing::Window(window)) => Ok(window),
            _ => Err(CallFailure::Errno(Errno::EINVAL)),
        }
    }

    /// The operation is in the table, but this machine does not implement it.
    pub(super) fn unknown(&self) -> CallFailure {
        CallFailure::Word(format!("`{}` is not simulated", self.op.verb()))
    }

    pub(super) fn thing(&self, name: &str) -> Option<&Thing> {
        self.things.get(name)
    }
}
