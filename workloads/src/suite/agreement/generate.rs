//! Random sequences of operations.
//!
//! It owns the choice of the next step. Invariants: a step names only processes that can act and
//! things that they have, according to what both machines agree on so far ([`AgreedView`]). The
//! choice depends only on the seed and on that agreement. Kernel counterpart: trinity, with
//! knowledge of leases.

use emulator::runtime::rng::Rng;
use rand::RngExt;

use super::exceptions::NamedException;
use super::view::{AgreedView, AgreementStep};
use crate::language::{Contents, FileSetup};
use crate::ops::{Arg, BindingKind, ByteRange, Op, Verb};

/// The unit of sizes and offsets: the block size of ext4, tmpfs and the simulation.
const BLOCK: u64 = fs_sim::BLOCK;
/// The largest size that a step chooses, in blocks.
const BLOCKS: u64 = 6;
/// The most processes of a sequence.
const PROCESSES_MAX: usize = 4;

/// What the file systems of both machines support, and what sequences leave out.
#[derive(Clone, Copy, Default)]
pub(super) struct Support<'m> {
    /// Whether they support zero, collapse and insert range.
    pub(super) moves_ranges: bool,
    /// Whether the files are accessed by DAX: then a change waits for held pages.
    pub(super) dax: bool,
    /// Known differences.
    pub(super) exceptions: &'m [&'m NamedException],
}

impl Support<'_> {
    pub(super) fn excludes(&self, view: &AgreedView, step: &AgreementStep) -> bool {
        self.exceptions.iter().any(|exception| exception.meets(view, step))
    }
}

/// The files of a sequence: `data`, and sometimes `more`. A file with held pages is one that can be
/// mapped whole.
pub(super) fn files(rng: &mut Rng, flavour: SequenceFlavour) -> Vec<FileSetup> {
    let contents = [Contents::Byte(b'a'), Contents::Byte(b'a'), Contents::Hole, Contents::Unwritten];
    let count = if rng.random_range(0..3) == 0 { 2 } else { 1 };
    let file = |name: &str, rng: &mut Rng| FileSetup {
        name: name.to_owned(),
        size: rng.random_range(0..=4) * BLOCK,
        contents: contents[rng.random_range(0..contents.len())],
    };
    if flavour == SequenceFlavour::HeldPages {
        return vec![FileSetup { size: HELD_FILE, ..file("data", rng) }];
    }
    ["data", "more"].into_iter().take(count).map(|name| file(name, rng)).collect()
}

/// The main subject of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SequenceFlavour {
    /// Which process has which lease, and which process waits for which.
    Leases,
    /// The contents of a file, read and written through descriptors and mappings.
    Contents,
    /// Pages of one file that pipes hold, and who waits for them.
    HeldPages,
}

/// The weights of operations in each flavour: (operation, leases, contents, held pages).
const WEIGHTS: &[(Verb, u32, u32, u32)] = &[
    (Verb::Open, 30, 20, 12),
    (Verb::SetLease, 30, 4, 0),
    (Verb::Close, 12, 6, 4),
    (Verb::Dup, 4, 2, 0),
    (Verb::Dup2, 3, 2, 0),
    (Verb::Fork, 3, 3, 0),
    (Verb::Send, 4, 1, 0),
    (Verb::Recv, 4, 1, 0),
    (Verb::GetLease, 1, 1, 0),
    (Verb::SetOwn, 3, 1, 0),
    (Verb::SetSig, 3, 1, 0),
    (Verb::Kill, 3, 1, 5),
    (Verb::Signal, 1, 1, 0),
    (Verb::Exit, 1, 1, 1),
    (Verb::Truncate, 5, 6, 8),
    (Verb::Ftruncate, 2, 8, 8),
    (Verb::Fallocate, 1, 6, 6),
    (Verb::Punch, 1, 6, 8),
    (Verb::Zero, 1, 5, 6),
    (Verb::Collapse, 1, 5, 6),
    (Verb::Insert, 1, 5, 6),
    (Verb::Read, 1, 10, 6),
    (Verb::Write, 1, 12, 6),
    (Verb::Mmap, 2, 14, 14),
    (Verb::Munmap, 2, 4, 5),
    (Verb::Load, 1, 14, 5),
    (Verb::Store, 1, 14, 5),
    (Verb::Unlink, 1, 2, 0),
    (Verb::Rename, 1, 2, 0),
    (Verb::Link, 1, 2, 0),
    (Verb::Chmod, 1, 1, 0),
    (Verb::Utime, 1, 1, 0),
    (Verb::Stat, 1, 3, 1),
    (Verb::Fstat, 1, 3, 1),
    (Verb::Fsync, 1, 2, 2),
    (Verb::Msync, 1, 2, 0),
    (Verb::Vmsplice, 0, 0, 25),
    (Verb::Drain, 0, 0, 10),
];

/// The percentage of steps in which a process without descriptors opens a file, one without a
/// mapping maps the file whose pages are to be held, and one with a mapping holds a page while no
/// process does.
const BEGINS_FIRST: u32 = 75;
/// The size of a file whose pages are to be held.
const HELD_FILE: u64 = 4 * BLOCK;

/// Chooses the next step; none if no process can act.
pub(super) fn next(
    rng: &mut Rng,
    view: &AgreedView,
    support: Support<'_>,
    flavour: SequenceFlavour,
) -> Option<AgreementStep> {
    let able: Vec<&String> = view.processes.keys().filter(|name| view.can_act(name)).collect();
    let process = one(rng, &able)?.to_string();
    let opened = view.fds_of(&process).next().is_some();
    let beginning = match flavour {
        _ if !opened => Some(Verb::Open),
        SequenceFlavour::HeldPages if view.maps_of(&process).next().is_none() => Some(Verb::Mmap),
        SequenceFlavour::HeldPages if !view.pages_are_held() => Some(Verb::Vmsplice),
        _ => None,
    };
    if let Some(verb) = beginning
        && rng.random_range(0..100) < BEGINS_FIRST
    {
        let step = chosen(rng, view, (support, flavour), &process, verb)?;
        return Some(step).filter(|step| !support.excludes(view, step));
    }
    let weight = |(verb, leases, contents, held): &(Verb, u32, u32, u32)| match flavour {
        SequenceFlavour::Leases => (*verb, *leases),
        SequenceFlavour::Contents => (*verb, *contents),
        SequenceFlavour::HeldPages => (*verb, *held),
    };
    let weights: Vec<(Verb, u32)> = WEIGHTS.iter().map(weight).collect();
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
        let step = chosen(rng, view, (support, flavour), &process, verb?.0);
        if let Some(step) = step.filter(|step| !support.excludes(view, step)) {
            return Some(step);
        }
    }
    None
}

/// A step with this operation, if the process has what the operation needs.
fn chosen(
    rng: &mut Rng,
    view: &AgreedView,
    (support, flavour): (Support<'_>, SequenceFlavour),
    process: &str,
    verb: Verb,
) -> Option<AgreementStep> {
    let fds: Vec<&str> = view.fds_of(process).collect();
    let maps: Vec<&str> = view.maps_of(process).collect();
    let living: Vec<&str> =
        view.processes.iter().filter(|(_, known)| known.met && !known.dead).map(|(name, _)| name.as_str()).collect();
    let name = |name: &str| Arg::Name(name.to_owned());
    let held = flavour == SequenceFlavour::HeldPages;
    let file = |rng: &mut Rng| if held { "data" } else { file(rng) };
    let args = match verb {
        // A descriptor that waits for nothing, and one that truncates.
        Verb::Open if held => {
            let trunc = if rng.random_range(0..8) == 0 { vec!["trunc"] } else { Vec::new() };
            vec![name("data"), Arg::Word("rw"), Arg::Words(trunc)]
        }
        Verb::Mmap if held => {
            let whole = Arg::Range(ByteRange { offset: 0, len: HELD_FILE });
            vec![name(one(rng, &fds)?), whole, Arg::Words(Vec::new())]
        }
        Verb::Vmsplice => {
            let map = one(rng, &maps)?;
            let page = rng.random_range(0..view.maps.get(*map)?.0.div_ceil(BLOCK).max(1));
            vec![name(map), Arg::Range(ByteRange { offset: page * BLOCK, len: BLOCK })]
        }
        Verb::Drain => {
            let own: Vec<&str> =
                view.pipes.iter().filter(|(_, owner)| *owner == process).map(|(pipe, _)| pipe.as_str()).collect();
            vec![name(one(rng, &own)?)]
        }
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
        Verb::Zero | Verb::Collapse | Verb::Insert if !support.moves_ranges => return None,
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
        BindingKind::Pipe => format!("p{number}"),
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
