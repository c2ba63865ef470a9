//! Random sequences of operations.
//!
//! It owns the choice of the next step. Invariants: a step names only processes that can act and
//! things that they have, according to what both machines agree on so far ([`AgreedView`]). The
//! choice depends only on the seed and on that agreement. Kernel counterpart: trinity, with
//! knowledge of leases.

use std::collections::{BTreeMap, BTreeSet};

use emulator::runtime::rng::Rng;
use rand::RngExt;

use crate::language::{Contents, FileSetup};
use crate::ops::{Arg, BindingKind, ByteRange, Op, Param, Parameter, Verb};

/// The unit of sizes and offsets: the block size of ext4, tmpfs and the simulation.
const BLOCK: u64 = fs_sim::BLOCK;
/// The largest size that a step chooses, in blocks.
const BLOCKS: u64 = 6;
/// The most processes of a sequence.
const PROCESSES_MAX: usize = 4;

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

/// What both machines agree on so far.
#[derive(Clone, Debug, Default)]
pub(super) struct AgreedView {
    pub(super) processes: BTreeMap<String, KnownProcess>,
    /// Descriptors, each with the processes that have it.
    pub(super) fds: BTreeMap<String, BTreeSet<String>>,
    /// Mappings, each with its length and the processes that have it.
    pub(super) maps: BTreeMap<String, (u64, BTreeSet<String>)>,
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
    fn fds_of<'a>(&'a self, process: &'a str) -> impl Iterator<Item = &'a str> {
        self.fds.iter().filter(move |(_, owners)| owners.contains(process)).map(|(name, _)| name.as_str())
    }

    fn maps_of<'a>(&'a self, process: &'a str) -> impl Iterator<Item = &'a str> {
        self.maps.iter().filter(move |(_, (_, owners))| owners.contains(process)).map(|(name, _)| name.as_str())
    }

    /// Whether a step can be made now.
    pub(super) fn allows(&self, step: &AgreementStep) -> bool {
        let fits = |(arg, parameter): (&Arg, &Parameter)| match (arg, parameter.syntax) {
            (Arg::Name(name), Param::Process) => {
                let known = self.processes.get(name);
                known.is_some_and(|known| known.met && !known.dead)
            }
            (Arg::Name(name), Param::Bound(_)) => {
                let fds = self.fds.get(name).is_some_and(|owners| owners.contains(&step.process));
                fds || self.maps.get(name).is_some_and(|(_, owners)| owners.contains(&step.process))
            }
            _ => true,
        };
        self.can_act(&step.process) && step.op.args().iter().zip(step.op.verb().params()).all(fits)
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
            (Op::Mmap { range, .. }, Some(name)) => {
                self.maps.insert(name.clone(), (range.len, BTreeSet::from([who()])));
            }
            (op @ (Op::Open { .. } | Op::Dup { .. } | Op::Recv {}), Some(name)) => {
                self.fds.insert(name.clone(), BTreeSet::from([who()]));
                if *op == (Op::Recv {}) {
                    self.processes.entry(who()).and_modify(|known| known.inbox = known.inbox.saturating_sub(1));
                }
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

/// What the file systems of both machines support.
#[derive(Clone, Copy, Debug)]
pub(super) struct RangeSupport {
    /// Whether they support zero, collapse and insert range.
    pub(super) moves_ranges: bool,
}

/// The files of a sequence: `data`, and sometimes `more`.
pub(super) fn files(rng: &mut Rng) -> Vec<FileSetup> {
    let contents = [Contents::Byte(b'a'), Contents::Byte(b'a'), Contents::Hole, Contents::Unwritten];
    let count = if rng.random_range(0..3) == 0 { 2 } else { 1 };
    let file = |name: &str, rng: &mut Rng| FileSetup {
        name: name.to_owned(),
        size: rng.random_range(0..=4) * BLOCK,
        contents: contents[rng.random_range(0..contents.len())],
    };
    ["data", "more"].into_iter().take(count).map(|name| file(name, rng)).collect()
}

/// The main subject of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SequenceFlavour {
    /// Which process has which lease, and which process waits for which.
    Leases,
    /// The contents of a file, read and written through descriptors and mappings.
    Contents,
}

/// The weights of operations in either flavour: (operation, leases, contents).
const WEIGHTS: &[(Verb, u32, u32)] = &[
    (Verb::Open, 30, 20),
    (Verb::SetLease, 30, 4),
    (Verb::Close, 12, 6),
    (Verb::Dup, 4, 2),
    (Verb::Dup2, 3, 2),
    (Verb::Fork, 3, 3),
    (Verb::Send, 4, 1),
    (Verb::Recv, 4, 1),
    (Verb::GetLease, 1, 1),
    (Verb::SetOwn, 3, 1),
    (Verb::SetSig, 3, 1),
    (Verb::Kill, 3, 1),
    (Verb::Signal, 1, 1),
    (Verb::Exit, 1, 1),
    (Verb::Truncate, 5, 6),
    (Verb::Ftruncate, 2, 8),
    (Verb::Fallocate, 1, 6),
    (Verb::Punch, 1, 6),
    (Verb::Zero, 1, 5),
    (Verb::Collapse, 1, 5),
    (Verb::Insert, 1, 5),
    (Verb::Read, 1, 10),
    (Verb::Write, 1, 12),
    (Verb::Mmap, 2, 14),
    (Verb::Munmap, 2, 4),
    (Verb::Load, 1, 14),
    (Verb::Store, 1, 14),
    (Verb::Unlink, 1, 2),
    (Verb::Rename, 1, 2),
    (Verb::Link, 1, 2),
    (Verb::Chmod, 1, 1),
    (Verb::Utime, 1, 1),
    (Verb::Stat, 1, 3),
    (Verb::Fstat, 1, 3),
    (Verb::Fsync, 1, 2),
    (Verb::Msync, 1, 2),
];

/// The percentage of steps in which a process without descriptors opens a file.
const OPENS_FIRST: u32 = 75;

/// Chooses the next step; none if no process can act.
pub(super) fn next(
    rng: &mut Rng,
    view: &AgreedView,
    range: RangeSupport,
    flavour: SequenceFlavour,
) -> Option<AgreementStep> {
    let able: Vec<&String> = view.processes.keys().filter(|name| view.can_act(name)).collect();
    let process = one(rng, &able)?.to_string();
    if view.fds_of(&process).next().is_none() && rng.random_range(0..100) < OPENS_FIRST {
        return chosen(rng, view, range, &process, Verb::Open);
    }
    let weights: Vec<(Verb, u32)> = WEIGHTS
        .iter()
        .map(|(verb, leases, contents)| (*verb, if flavour == SequenceFlavour::Leases { *leases } else { *contents }))
        .collect();
    let total: u32 = weights.iter().map(|(_, weight)| weight).sum();
    // Many operations need a thing that the process may not have. Then another operation is drawn.
    for _ in 0..100 {
        let mut drawn = rng.random_range(0..total);
        let verb = weights.iter().find(|(_, weight)| match drawn.checked_sub(*weight) {
            Some(rest) => {
                drawn = rest;
                false
            }
            None => true,
        });
        if let Some(step) = chosen(rng, view, range, &process, verb?.0) {
            return Some(step);
        }
    }
    None
}

/// A step with this operation, if the process has what the operation needs.
fn chosen(rng: &mut Rng, view: &AgreedView, range: RangeSupport, process: &str, verb: Verb) -> Option<AgreementStep> {
    let fds: Vec<&str> = view.fds_of(process).collect();
    let maps: Vec<&str> = view.maps_of(process).collect();
    let living: Vec<&str> =
        view.processes.iter().filter(|(_, known)| known.met && !known.dead).map(|(name, _)| name.as_str()).collect();
    let name = |name: &str| Arg::Name(name.to_owned());
    let args = match verb {
        Verb::Open => {
            let access = *one(rng, &["r", "r", "r", "rw", "rw", "w", "w", "path"])?;
            let file = file(rng);
            let create = if file == "data" { 5 } else { 60 };
            let flags = [("create", create), ("excl", 2), ("trunc", 8), ("nonblock", 30)];
            let flags = flags.iter().filter(|(_, percent)| rng.random_range(0..100) < *percent).map(|(flag, _)| *flag);
            let flags = flags.collect();
            vec![name(file), Arg::Word(access), Arg::Words(flags)]
        }
        Verb::SetLease => {
            vec![name(one(rng, &fds)?), Arg::Word(one(rng, &["read", "read", "write", "write", "unlock"])?)]
        }
        Verb::Close | Verb::Dup | Verb::GetLease | Verb::Fstat | Verb::Fsync => vec![name(one(rng, &fds)?)],
        Verb::Dup2 => vec![name(one(rng, &fds)?), name(one(rng, &fds)?)],
        Verb::Fork if view.processes.len() >= PROCESSES_MAX => return None,
        Verb::Fork | Verb::Exit => Vec::new(),
        Verb::Recv if view.processes.get(process)?.inbox == 0 && rng.random_range(0..8) > 0 => return None,
        Verb::Recv => Vec::new(),
        Verb::Send => vec![name(one(rng, &living)?), name(one(rng, &fds)?)],
        Verb::SetOwn => vec![name(one(rng, &fds)?), name(one(rng, &living)?)],
        Verb::SetSig => vec![name(one(rng, &fds)?), Arg::Word(one(rng, &["SIGUSR1", "SIGUSR1", "SIGIO", "SIGTERM"])?)],
        Verb::Kill => vec![name(one(rng, &living)?), Arg::Word(one(rng, &["SIGUSR1", "SIGUSR1", "SIGKILL"])?)],
        Verb::Signal => vec![Arg::Word("SIGIO"), Arg::Word(one(rng, &["handler", "ignore", "default"])?)],
        Verb::Truncate => vec![name(file(rng)), size(rng)],
        Verb::Ftruncate => vec![name(one(rng, &fds)?), size(rng)],
        Verb::Zero | Verb::Collapse | Verb::Insert if !range.moves_ranges => return None,
        Verb::Punch | Verb::Collapse | Verb::Insert => vec![name(one(rng, &fds)?), blocks(rng)],
        Verb::Fallocate | Verb::Zero => {
            let keep = if rng.random_range(0..2) == 0 { vec!["keep_size"] } else { Vec::new() };
            vec![name(one(rng, &fds)?), blocks(rng), Arg::Words(keep)]
        }
        Verb::Read => vec![name(one(rng, &fds)?), blocks(rng)],
        Verb::Write => vec![name(one(rng, &fds)?), blocks(rng), Arg::Byte(*one(rng, b"xyz")?)],
        Verb::Mmap => {
            let read_only = if rng.random_range(0..2) == 0 { vec!["ro"] } else { Vec::new() };
            vec![name(one(rng, &fds)?), blocks(rng), Arg::Words(read_only)]
        }
        Verb::Munmap => vec![name(one(rng, &maps)?), Arg::Absent],
        Verb::Load | Verb::Store | Verb::Msync => {
            let map = one(rng, &maps)?;
            // The access stays within one page: what an access has moved before a fault in its
            // middle is unspecified.
            let page = rng.random_range(0..view.maps.get(*map)?.0.div_ceil(BLOCK).max(1));
            let range = Arg::Range(ByteRange { offset: page * BLOCK, len: BLOCK });
            let byte = (verb == Verb::Store).then_some(Arg::Byte(*one(rng, b"stu")?));
            [name(map), range].into_iter().chain(byte).collect()
        }
        Verb::Unlink | Verb::Chmod | Verb::Utime | Verb::Stat => vec![name(file(rng))],
        Verb::Rename | Verb::Link => vec![name(file(rng)), name(file(rng))],
        _ => return None,
    };
    let number = view.named + 1;
    let bind = verb.binds().map(|kind| match kind {
        BindingKind::Process => format!("P{number}"),
        BindingKind::Map => format!("m{number}"),
        _ => format!("f{number}"),
    });
    Some(AgreementStep { process: process.to_owned(), op: Op::from_args(verb, &args).ok()?, bind })
}

fn one<'a, T>(rng: &mut Rng, all: &'a [T]) -> Option<&'a T> {
    match all.len() {
        0 => None,
        len => all.get(rng.random_range(0..len)),
    }
}

fn file(rng: &mut Rng) -> &'static str {
    ["data", "data", "data", "data", "data", "data", "data", "more", "new"][rng.random_range(0..9)]
}

/// A size, mostly of whole blocks.
fn size(rng: &mut Rng) -> Arg {
    let odd = if rng.random_range(0..4) == 0 { rng.random_range(1..BLOCK) } else { 0 };
    Arg::Number(rng.random_range(0..BLOCKS) * BLOCK + odd)
}

fn blocks(rng: &mut Rng) -> Arg {
    Arg::Range(ByteRange { offset: rng.random_range(0..BLOCKS) * BLOCK, len: rng.random_range(1..=3) * BLOCK })
}
