//! Random sequences of operations.
//!
//! It owns the choice of the next step. Invariants: a step names only processes that can act and
//! things that they have, according to what both machines agree on so far ([`AgreedView`]). The
//! choice depends only on the seed and on that agreement. Kernel counterpart: trinity, with
//! knowledge of leases.

use emulator::runtime::rng::Rng;
use rand::RngExt;

use super::registrations;
use super::support::{SequenceFlavour, Support};
use super::view::{AgreedView, AgreementStep};
use crate::language::{Contents, FileSetup};
use crate::ops::{Arg, BindingKind, ByteRange, Op, Verb};

/// The unit of sizes and offsets: the block size of ext4, tmpfs and the simulation.
const BLOCK: u64 = fs_sim::BLOCK;
/// The largest size that a step chooses, in blocks.
const BLOCKS: u64 = 6;
/// The most processes of a sequence.
const PROCESSES_MAX: usize = 4;

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
    if matches!(flavour, SequenceFlavour::HeldPages | SequenceFlavour::Registrations) {
        return vec![FileSetup { size: HELD_FILE, ..file("data", rng) }];
    }
    ["data", "more"].into_iter().take(count).map(|name| file(name, rng)).collect()
}

/// The weights of operations in each flavour: (operation, [leases, contents, held pages,
/// registrations]).
const WEIGHTS: &[(Verb, [u32; 4])] = &[
    (Verb::Open, [30, 20, 12, 12]),
    (Verb::SetLease, [30, 4, 0, 0]),
    (Verb::Close, [12, 6, 4, 3]),
    (Verb::Dup, [4, 2, 0, 0]),
    (Verb::Dup2, [3, 2, 0, 0]),
    (Verb::Fork, [3, 3, 0, 0]),
    (Verb::Send, [4, 1, 0, 0]),
    (Verb::Recv, [4, 1, 0, 0]),
    (Verb::GetLease, [1, 1, 0, 0]),
    (Verb::SetOwn, [3, 1, 0, 0]),
    (Verb::SetSig, [3, 1, 0, 0]),
    (Verb::Kill, [3, 1, 5, 0]),
    (Verb::Signal, [1, 1, 0, 0]),
    (Verb::Exit, [1, 1, 1, 0]),
    (Verb::Truncate, [5, 6, 8, 4]),
    (Verb::Ftruncate, [2, 8, 8, 4]),
    (Verb::Fallocate, [1, 6, 6, 2]),
    (Verb::Punch, [1, 6, 8, 4]),
    (Verb::Zero, [1, 5, 6, 0]),
    (Verb::Collapse, [1, 5, 6, 0]),
    (Verb::Insert, [1, 5, 6, 0]),
    (Verb::Read, [1, 10, 6, 4]),
    (Verb::Write, [1, 12, 6, 5]),
    (Verb::Mmap, [2, 14, 14, 16]),
    (Verb::Munmap, [2, 4, 5, 3]),
    (Verb::Load, [1, 14, 5, 6]),
    (Verb::Store, [1, 14, 5, 10]),
    (Verb::Unlink, [1, 2, 0, 0]),
    (Verb::Rename, [1, 2, 0, 0]),
    (Verb::Link, [1, 2, 0, 0]),
    (Verb::Chmod, [1, 1, 0, 0]),
    (Verb::Utime, [1, 1, 0, 0]),
    (Verb::Stat, [1, 3, 1, 0]),
    (Verb::Fstat, [1, 3, 1, 1]),
    (Verb::Fsync, [1, 2, 2, 0]),
    (Verb::Msync, [1, 2, 0, 0]),
    (Verb::Vmsplice, [0, 0, 25, 0]),
    (Verb::Drain, [0, 0, 10, 0]),
    (Verb::MmapAnon, [0, 0, 0, 5]),
    (Verb::Memfd, [0, 0, 0, 4]),
    (Verb::Tmpfile, [0, 0, 0, 3]),
    (Verb::FixedBuffers, [0, 0, 0, 5]),
    (Verb::UmemRegister, [0, 0, 0, 5]),
    (Verb::RdmaOpen, [0, 0, 0, 6]),
    (Verb::RegMr, [0, 0, 0, 40]),
    (Verb::DeregMr, [0, 0, 0, 3]),
    (Verb::Connect, [0, 0, 0, 20]),
    (Verb::RdmaRead, [0, 0, 0, 25]),
    (Verb::RdmaWrite, [0, 0, 0, 25]),
    (Verb::FetchAdd, [0, 0, 0, 8]),
];

/// The percentage of steps in which a process without descriptors opens a file, one without a
/// mapping maps the file whose pages are to be held, and one with a mapping holds a page while no
/// process does.
const BEGINS_FIRST: u32 = 75;
/// The size of a file whose pages are to be held or registered.
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
        SequenceFlavour::HeldPages | SequenceFlavour::Registrations if view.maps_of(&process).next().is_none() => {
            Some(Verb::Mmap)
        }
        SequenceFlavour::HeldPages if !view.pages_are_held() => Some(Verb::Vmsplice),
        SequenceFlavour::Registrations if support.verbs && view.contexts_of(&process).count() < 2 => {
            Some(Verb::RdmaOpen)
        }
        _ => None,
    };
    if let Some(verb) = beginning
        && rng.random_range(0..100) < BEGINS_FIRST
    {
        let step = chosen(rng, view, (support, flavour), &process, verb)?;
        return Some(step).filter(|step| !support.excludes(view, step));
    }
    let weight = |(verb, weights): &(Verb, [u32; 4])| (*verb, weights[flavour as usize]);
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

/// What a choice of arguments depends on.
struct ArgumentChoice<'c> {
    view: &'c AgreedView,
    support: Support<'c>,
    flavour: SequenceFlavour,
    process: &'c str,
}

/// A step with this operation, if the process has what the operation needs.
fn chosen(
    rng: &mut Rng,
    view: &AgreedView,
    (support, flavour): (Support<'_>, SequenceFlavour),
    process: &str,
    verb: Verb,
) -> Option<AgreementStep> {
    let choice = ArgumentChoice { view, support, flavour, process };
    let drawn = choice.about_processes(rng, verb).or_else(|| choice.about_files(rng, verb));
    let drawn = drawn.or_else(|| choice.about_mappings(rng, verb));
    let args = drawn.or_else(|| registrations::arguments(rng, view, support, process, verb))?;
    let number = view.named + 1;
    let bind = verb.binds().map(|kind| match kind {
        BindingKind::Process => format!("P{number}"),
        BindingKind::Map => format!("m{number}"),
        BindingKind::Pipe => format!("p{number}"),
        BindingKind::Context => format!("c{number}"),
        BindingKind::Region => format!("r{number}"),
        BindingKind::Qp => format!("q{number}"),
        BindingKind::Umem => format!("u{number}"),
        BindingKind::Ring => format!("b{number}"),
        _ => format!("f{number}"),
    });
    Some(AgreementStep { process: process.to_owned(), op: Op::from_args(verb, &args).ok()?, bind })
}

/// The arguments of an operation of each kind; none if the process lacks what it needs.
impl ArgumentChoice<'_> {
    fn fd(&self, rng: &mut Rng) -> Option<Arg> {
        let fds: Vec<&str> = self.view.fds_of(self.process).collect();
        one(rng, &fds).copied().map(name)
    }

    fn map<'m>(&'m self, rng: &mut Rng) -> Option<&'m str> {
        let maps: Vec<&str> = self.view.maps_of(self.process).collect();
        one(rng, &maps).copied()
    }

    /// A page of a mapping.
    fn page(&self, rng: &mut Rng, map: &str) -> Option<Arg> {
        let page = rng.random_range(0..self.view.maps.get(map)?.0.div_ceil(BLOCK).max(1));
        Some(Arg::Range(ByteRange { offset: page * BLOCK, len: BLOCK }))
    }

    /// Whether sequences of this flavour are about one file.
    fn is_about_one_file(&self) -> bool {
        matches!(self.flavour, SequenceFlavour::HeldPages | SequenceFlavour::Registrations)
    }

    fn file(&self, rng: &mut Rng) -> &'static str {
        if self.is_about_one_file() { "data" } else { file(rng) }
    }

    fn about_processes(&self, rng: &mut Rng, verb: Verb) -> Option<Vec<Arg>> {
        let known = self.view.processes.iter().filter(|(_, known)| known.met && !known.dead);
        let living: Vec<&str> = known.map(|(name, _)| name.as_str()).collect();
        Some(match verb {
            Verb::Fork if self.view.processes.len() >= PROCESSES_MAX => return None,
            Verb::Fork | Verb::Exit => Vec::new(),
            Verb::Recv if self.view.processes.get(self.process)?.inbox == 0 && rng.random_range(0..8) > 0 => {
                return None;
            }
            Verb::Recv => Vec::new(),
            Verb::Send => vec![name(one(rng, &living)?), self.fd(rng)?],
            Verb::SetOwn => vec![self.fd(rng)?, name(one(rng, &living)?)],
            Verb::SetSig => vec![self.fd(rng)?, Arg::Word(one(rng, &["SIGUSR1", "SIGUSR1", "SIGIO", "SIGTERM"])?)],
            Verb::Kill => vec![name(one(rng, &living)?), Arg::Word(one(rng, &["SIGUSR1", "SIGUSR1", "SIGKILL"])?)],
            Verb::Signal => vec![Arg::Word("SIGIO"), Arg::Word(one(rng, &["handler", "ignore", "default"])?)],
            _ => return None,
        })
    }

    fn about_files(&self, rng: &mut Rng, verb: Verb) -> Option<Vec<Arg>> {
        Some(match verb {
            // A descriptor that waits for nothing, and one that truncates.
            Verb::Open if self.is_about_one_file() => {
                let trunc = if rng.random_range(0..8) == 0 { vec!["trunc"] } else { Vec::new() };
                vec![name("data"), Arg::Word("rw"), Arg::Words(trunc)]
            }
            Verb::Open => {
                let access = *one(rng, &["r", "r", "r", "rw", "rw", "w", "w", "path"])?;
                let file = self.file(rng);
                let create = if file == "data" { 5 } else { 60 };
                let flags = [("create", create), ("excl", 2), ("trunc", 8), ("nonblock", 30)];
                let flags = flags.iter().filter(|(_, percent)| rng.random_range(0..100) < *percent);
                vec![name(file), Arg::Word(access), Arg::Words(flags.map(|(flag, _)| *flag).collect())]
            }
            Verb::SetLease => {
                vec![self.fd(rng)?, Arg::Word(one(rng, &["read", "read", "write", "write", "unlock"])?)]
            }
            Verb::Close | Verb::Dup | Verb::GetLease | Verb::Fstat | Verb::Fsync => vec![self.fd(rng)?],
            Verb::Dup2 => vec![self.fd(rng)?, self.fd(rng)?],
            Verb::Truncate => vec![name(self.file(rng)), size(rng)],
            Verb::Ftruncate => vec![self.fd(rng)?, size(rng)],
            Verb::Zero | Verb::Collapse | Verb::Insert if !self.support.moves_ranges => return None,
            Verb::Punch | Verb::Collapse | Verb::Insert => vec![self.fd(rng)?, blocks(rng)],
            Verb::Fallocate | Verb::Zero => {
                let keep = if rng.random_range(0..2) == 0 { vec!["keep_size"] } else { Vec::new() };
                vec![self.fd(rng)?, blocks(rng), Arg::Words(keep)]
            }
            Verb::Read => vec![self.fd(rng)?, blocks(rng)],
            Verb::Write => vec![self.fd(rng)?, blocks(rng), Arg::Byte(*one(rng, b"xyz")?)],
            Verb::Unlink | Verb::Chmod | Verb::Utime | Verb::Stat => vec![name(self.file(rng))],
            Verb::Rename | Verb::Link => vec![name(self.file(rng)), name(self.file(rng))],
            _ => return None,
        })
    }

    fn about_mappings(&self, rng: &mut Rng, verb: Verb) -> Option<Vec<Arg>> {
        Some(match verb {
            Verb::Mmap => {
                let whole = Arg::Range(ByteRange { offset: 0, len: HELD_FILE });
                let (range, kinds): (Arg, &[&[&'static str]]) = match self.flavour {
                    SequenceFlavour::HeldPages => (whole, &[&[]]),
                    // A registration looks at the kind of a mapping.
                    SequenceFlavour::Registrations => (whole, &[&[], &[], &["private"], &["ro"]]),
                    _ => (blocks(rng), &[&["ro"], &[]]),
                };
                vec![self.fd(rng)?, range, Arg::Words(one(rng, kinds)?.to_vec())]
            }
            Verb::Munmap => vec![name(self.map(rng)?), Arg::Absent],
            // The access stays within one page: what an access has moved before a fault in its
            // middle is unspecified.
            Verb::Load | Verb::Msync | Verb::Vmsplice => {
                let map = self.map(rng)?;
                vec![name(map), self.page(rng, map)?]
            }
            Verb::Store => {
                let map = self.map(rng)?;
                vec![name(map), self.page(rng, map)?, Arg::Byte(*one(rng, b"stu")?)]
            }
            Verb::Drain => {
                let own = self.view.pipes.iter().filter(|(_, owner)| *owner == self.process);
                let own: Vec<&str> = own.map(|(pipe, _)| pipe.as_str()).collect();
                vec![name(one(rng, &own)?)]
            }
            _ => return None,
        })
    }
}

fn name(name: &str) -> Arg {
    Arg::Name(name.to_owned())
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
