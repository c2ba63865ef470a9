//! What both machines of a sequence agree on so far.
//!
//! It owns who is there, and who has what. Invariant: it changes only by steps that came to the
//! same on both machines. Kernel counterpart: none.

use std::collections::{BTreeMap, BTreeSet};

use crate::ops::{Arg, BindingKind, Op, Param, Parameter};

/// One step of a sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AgreementStep {
    /// The acting process.
    pub(super) process: String,
    /// The operation.
    pub(super) op: Op,
    /// The name given to the result.
    pub(super) bind: Option<String>,
}

/// What choices depend on about one process.
#[derive(Clone, Debug, Default)]
pub(super) struct KnownProcess {
    /// It has taken a step. Before its first step the process does not exist and can't be named.
    pub(super) met: bool,
    pub(super) dead: bool,
    pub(super) blocked: bool,
    /// Descriptors that were sent to it and that it has not received.
    pub(super) inbox: u32,
}

/// A region.
#[derive(Clone, Debug)]
pub(super) struct KnownRegion {
    pub(super) context: String,
    /// In bytes.
    pub(super) len: u64,
    /// It is faulted in at each access.
    pub(super) on_demand: bool,
}

/// A connection.
#[derive(Clone, Debug)]
pub(super) struct KnownPair {
    /// The context on this side.
    pub(super) own: String,
    /// The context on the other side.
    pub(super) peer: String,
}

/// What both machines agree on so far.
#[derive(Clone, Debug, Default)]
pub(super) struct AgreedView {
    pub(super) processes: BTreeMap<String, KnownProcess>,
    /// Descriptors, each with the processes that have it.
    pub(super) fds: BTreeMap<String, BTreeSet<String>>,
    /// Those of them that are files without DAX, of which the simulation knows no leases.
    pub(super) memory_files: BTreeSet<String>,
    /// Mappings, each with its length and the processes that have it.
    pub(super) maps: BTreeMap<String, (u64, BTreeSet<String>)>,
    /// Those of them that are private.
    pub(super) private_maps: BTreeSet<String>,
    /// Pipes with pages of a mapping that are not read yet, each with the process that has it.
    pub(super) pipes: BTreeMap<String, String>,
    /// Open NICs, each with the process that has it.
    pub(super) contexts: BTreeMap<String, String>,
    /// Regions.
    pub(super) regions: BTreeMap<String, KnownRegion>,
    /// Connections on which no transfer has failed.
    pub(super) pairs: BTreeMap<String, KnownPair>,
    /// The number of names given so far.
    pub(super) named: u32,
}

impl AgreedView {
    /// The first two or three processes. Each comes into existence with its first step.
    pub(super) fn new(processes: usize) -> AgreedView {
        let names = ["A", "B", "C"].into_iter().take(processes);
        AgreedView {
            processes: names.map(|name| (name.to_owned(), KnownProcess::default())).collect(),
            ..AgreedView::default()
        }
    }

    pub(super) fn can_act(&self, process: &str) -> bool {
        self.processes.get(process).is_some_and(|known| !known.dead && !known.blocked)
    }

    /// The descriptors of `process`.
    pub(super) fn fds_of<'a>(&'a self, process: &'a str) -> impl Iterator<Item = &'a str> {
        self.fds.iter().filter(move |(_, owners)| owners.contains(process)).map(|(name, _)| name.as_str())
    }

    pub(super) fn maps_of<'a>(&'a self, process: &'a str) -> impl Iterator<Item = &'a str> {
        self.maps.iter().filter(move |(_, (_, owners))| owners.contains(process)).map(|(name, _)| name.as_str())
    }

    /// Whether there is one mapping at most.
    pub(super) fn is_mapped_once(&self) -> bool {
        let lives = |owner: &String| !self.processes.get(owner).is_some_and(|known| known.dead);
        self.maps.values().filter(|(_, owners)| owners.iter().any(lives)).count() <= 1
    }

    /// The NICs that `process` has opened.
    pub(super) fn contexts_of<'a>(&'a self, process: &'a str) -> impl Iterator<Item = &'a str> {
        self.contexts.iter().filter(move |(_, owner)| *owner == process).map(|(name, _)| name.as_str())
    }

    /// Whether a process holds pages of a file.
    pub(super) fn holds(&self, process: &str) -> bool {
        self.pipes
            .iter()
            .any(|(_, owner)| owner == process && !self.processes.get(owner).is_some_and(|known| known.dead))
    }

    /// Whether any process does.
    pub(super) fn pages_are_held(&self) -> bool {
        self.processes.keys().any(|process| self.holds(process))
    }

    /// Whether a step can be made now.
    pub(super) fn allows(&self, step: &AgreementStep) -> bool {
        let fits = |(arg, parameter): (&Arg, &Parameter)| match (arg, parameter.syntax) {
            (Arg::Name(name), Param::Process) => {
                let known = self.processes.get(name);
                known.is_some_and(|known| known.met && !known.dead)
            }
            (Arg::Name(name), Param::Bound(kinds)) => kinds.iter().any(|kind| self.has(&step.process, *kind, name)),
            _ => true,
        };
        self.can_act(&step.process) && step.op.args().iter().zip(step.op.verb().params()).all(fits)
    }

    /// Whether a process has a thing of this kind by this name.
    fn has(&self, process: &str, kind: BindingKind, name: &str) -> bool {
        match kind {
            BindingKind::Fd => self.fds.get(name).is_some_and(|owners| owners.contains(process)),
            BindingKind::Map => self.maps.get(name).is_some_and(|(_, owners)| owners.contains(process)),
            BindingKind::Pipe => self.pipes.get(name).is_some_and(|owner| owner == process),
            BindingKind::Context => self.contexts.get(name).is_some_and(|owner| owner == process),
            // A region is named by whoever accesses it.
            BindingKind::Region => self.regions.contains_key(name),
            BindingKind::Qp => {
                let pair = self.pairs.get(name);
                pair.is_some_and(|pair| self.contexts.get(&pair.own).is_some_and(|owner| owner == process))
            }
            _ => false,
        }
    }

    /// Records a step that was made and failed: a failed transfer ends its connection.
    pub(super) fn note_failure(&mut self, step: &AgreementStep) {
        if let Op::RdmaRead { qp, .. } | Op::RdmaWrite { qp, .. } | Op::FetchAdd { qp, .. } = &step.op {
            self.pairs.remove(&qp.0);
        }
    }

    /// Records a step that was made and succeeded.
    pub(super) fn note(&mut self, step: &AgreementStep) {
        let who = || step.process.clone();
        match (&step.op, &step.bind) {
            (Op::Fork {}, Some(child)) => {
                self.processes.insert(child.clone(), KnownProcess { met: true, ..KnownProcess::default() });
                let all = self.fds.values_mut().chain(self.maps.values_mut().map(|(_, owners)| owners));
                for owners in all.filter(|owners| owners.contains(&step.process)) {
                    owners.insert(child.clone());
                }
            }
            (Op::MmapAnon { length }, Some(name)) => {
                self.maps.insert(name.clone(), (length.0, BTreeSet::from([who()])));
            }
            (Op::RdmaOpen {}, Some(name)) => {
                self.contexts.insert(name.clone(), who());
            }
            (Op::RegMr { context, range, flags, .. }, Some(name)) => {
                let region = KnownRegion { context: context.0.clone(), len: range.len, on_demand: flags.on_demand };
                self.regions.insert(name.clone(), region);
            }
            (Op::DeregMr { mr }, _) => {
                self.regions.remove(&mr.0);
            }
            (Op::Connect { own, peer, .. }, Some(name)) => {
                self.pairs.insert(name.clone(), KnownPair { own: own.0.clone(), peer: peer.0.clone() });
            }
            (Op::Mmap { range, flags, .. }, Some(name)) => {
                if flags.private {
                    self.private_maps.insert(name.clone());
                }
                self.maps.insert(name.clone(), (range.len, BTreeSet::from([who()])));
            }
            (
                op @ (Op::Open { .. } | Op::Memfd { .. } | Op::Tmpfile { .. } | Op::Dup { .. } | Op::Recv {}),
                Some(name),
            ) => {
                if matches!(op, Op::Memfd { .. } | Op::Tmpfile { .. }) {
                    self.memory_files.insert(name.clone());
                }
                self.fds.insert(name.clone(), BTreeSet::from([who()]));
                if *op == (Op::Recv {}) {
                    self.processes.entry(who()).and_modify(|known| known.inbox = known.inbox.saturating_sub(1));
                }
            }
            (Op::Vmsplice { .. }, Some(name)) => {
                self.pipes.insert(name.clone(), who());
            }
            (Op::Drain { pipe }, _) => {
                self.pipes.remove(&pipe.0);
            }
            (Op::Close { fd }, _) => {
                self.fds.entry(fd.0.clone()).and_modify(|owners| {
                    owners.remove(&step.process);
                });
            }
            (Op::Munmap { map, .. }, _) => {
                self.maps.entry(map.0.clone()).and_modify(|(_, owners)| {
                    owners.remove(&step.process);
                });
            }
            (Op::Send { process, .. }, _) => {
                self.processes.entry(process.0.clone()).and_modify(|known| known.inbox += 1);
            }
            _ => {}
        }
    }
}
