//! The steps of the roles that the built-in job does not have, and what decides the kind of a
//! region.
//!
//! It owns their values and how they are drawn. Invariant: as for every step, see
//! [`super::OpStream`].

use emulator::runtime::rng::Rng;
use fs_sim::BLOCK;
use rand::{RngExt, SeedableRng};

use super::{OpStream, Share, WeightedChoice};
use crate::race::job::{Distribution, HolderParameters, Job, Role};

/// Which kind of region a registration makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionKind {
    /// An on-demand region: its pages are faulted in at each access.
    pub on_demand: bool,
    /// The memory window through which it is reached, if it is to have one.
    pub window: Option<WindowKind>,
}

/// A memory window over a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowKind {
    /// A window of type 2; otherwise of type 1.
    pub type2: bool,
    /// The block of the region at which it begins.
    pub place: Share,
    /// Its region is deregistered while it is bound, which is refused.
    pub meets_busy: bool,
    /// It is deallocated; otherwise it is unbound or invalidated by a work request first.
    pub deallocated: bool,
}

/// How an actor holds mapped memory by address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressIoAct {
    /// Direct I/O of a disk with a delay.
    Disk,
    /// Direct I/O of another file.
    File,
    /// Pages in a pipe.
    Pipe,
    /// A zero-copy send.
    Send,
}

/// A step of an actor that holds mapped memory by address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressIoStep {
    /// What it does.
    pub act: AddressIoAct,
    /// The file whose mapping is the buffer.
    pub file: u64,
    /// The buffer's place in the file.
    pub place: Share,
    /// Length of the buffer in bytes, a multiple of 4 KiB.
    pub length: u64,
    /// Nanoseconds that the pages are held.
    pub hold: u64,
    /// Direct I/O writes from the buffer; otherwise it reads into it.
    pub writes: bool,
    /// The buffer is unmapped while its pages are held.
    pub unmaps: bool,
    /// Nanoseconds until the next step.
    pub pause: u64,
}

/// A step of a role that holds pages, or knows blocks, for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HolderStep {
    /// The file.
    pub file: u64,
    /// The range's place in the file.
    pub place: Share,
    /// Length of the range in bytes.
    pub length: u64,
    /// Selects among the leases that the design's gate accepts.
    pub lease: Share,
    /// Nanoseconds that it is held.
    pub lifetime: u64,
    /// The number of accesses.
    pub accesses: u64,
    /// The seed of the accesses; see [`HolderAccesses`].
    pub access_seed: u64,
    /// Whether the process does nothing when what it holds is asked for.
    pub skips_cleanup: bool,
    /// Whether the process exits with everything open.
    pub exits: bool,
    /// Nanoseconds until the next step.
    pub pause: u64,
}

/// A collapser's step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CollapserStep {
    /// The file.
    pub file: u64,
    /// The range's place in the file.
    pub place: Share,
    /// Length of the range in bytes, a multiple of 4 KiB.
    pub length: u64,
    /// Inserts a range; otherwise it removes one.
    pub inserts: bool,
    /// Nanoseconds until the next step.
    pub pause: u64,
}

/// What a reflinker does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReflinkAct {
    /// Shares a range of the first file with the second.
    Clone,
    /// Shares ranges that hold the same bytes.
    Dedupe,
    /// Swaps ranges of the two files.
    Exchange,
    /// Copies what is shared in a range of the first file.
    Unshare,
}

/// A reflinker's step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReflinkerStep {
    /// What it does.
    pub act: ReflinkAct,
    /// The first file, and the second, which is another one.
    pub files: (u64, u64),
    /// The range's place in each.
    pub places: (Share, Share),
    /// Length of the range in bytes, a multiple of 4 KiB.
    pub length: u64,
    /// Nanoseconds until the next step.
    pub pause: u64,
}

/// A defragmenter's step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DefragmenterStep {
    /// The file.
    pub file: u64,
    /// Breaks no lease.
    pub polite: bool,
    /// Nanoseconds until the next step.
    pub pause: u64,
}

/// What a job says about a role that holds pages for a while; `None` for the other roles.
pub fn holders_of(job: &Job, role: Role) -> Option<&HolderParameters> {
    match role {
        Role::Umem => Some(&job.umems),
        Role::Ring => Some(&job.rings),
        Role::Guest => Some(&job.guests),
        Role::LayoutClient => Some(&job.layout_clients),
        _ => None,
    }
}

impl OpStream {
    /// The kind of the next region. It is drawn from a stream of its own, so that a job without
    /// such regions takes the steps that it took before there were any.
    pub(super) fn region_kind(&mut self) -> RegionKind {
        let (on_demand, windows) = (self.job.registrants.on_demand, self.job.registrants.windows);
        let rng = &mut self.region_kinds;
        let mut share = || Share(rng.random());
        let on_demand = share().falls_below(on_demand);
        let has_window = share().falls_below(windows);
        let window = WindowKind {
            type2: share().falls_below(0.5),
            place: share(),
            meets_busy: share().falls_below(0.5),
            deallocated: share().falls_below(0.3),
        };
        RegionKind { on_demand, window: has_window.then_some(window) }
    }

    pub(super) fn address_io(&mut self) -> AddressIoStep {
        let mix = self.job.address_io_mix;
        let acts = WeightedChoice::new([
            (AddressIoAct::Disk, mix.disk),
            (AddressIoAct::File, mix.file),
            (AddressIoAct::Pipe, mix.pipe),
            (AddressIoAct::Send, mix.send),
        ]);
        let write = self.job.address_io.write;
        AddressIoStep {
            act: acts.draw(&mut self.rng),
            file: self.file(),
            place: self.share(),
            length: self.draw(|job| job.address_io.length).next_multiple_of(BLOCK),
            hold: self.draw(|job| job.address_io.hold),
            writes: self.chance(write),
            unmaps: self.chance(0.5),
            pause: self.draw(|job| job.address_io.pause),
        }
    }

    pub(super) fn holder(&mut self, of: impl Fn(&Job) -> &HolderParameters) -> HolderStep {
        let (skips_cleanup, exit) = (of(&self.job).skips_cleanup, of(&self.job).exit);
        HolderStep {
            file: self.file(),
            place: self.share(),
            length: self.draw(|job| of(job).length) / 8 * 8,
            lease: self.share(),
            lifetime: self.draw(|job| of(job).lifetime),
            accesses: self.draw(|job| of(job).accesses),
            access_seed: self.rng.random(),
            skips_cleanup: self.chance(skips_cleanup),
            exits: self.chance(exit),
            pause: self.draw(|job| of(job).pause),
        }
    }

    /// One of the files that are moved, each with the same probability.
    fn moved_file(&mut self) -> u64 {
        let moved = self.job.files.moved;
        self.share().below(moved)
    }

    pub(super) fn collapser(&mut self) -> CollapserStep {
        let insert = self.job.collapsers.insert;
        CollapserStep {
            file: self.moved_file(),
            place: self.share(),
            length: self.draw(|job| job.collapsers.length).next_multiple_of(BLOCK),
            inserts: self.chance(insert),
            pause: self.draw(|job| job.collapsers.pause),
        }
    }

    pub(super) fn reflinker(&mut self) -> ReflinkerStep {
        let mix = self.job.reflink_mix;
        let acts = WeightedChoice::new([
            (ReflinkAct::Clone, mix.clone),
            (ReflinkAct::Dedupe, mix.dedupe),
            (ReflinkAct::Exchange, mix.exchange),
            (ReflinkAct::Unshare, mix.unshare),
        ]);
        let moved = self.job.files.moved;
        let first = self.moved_file();
        let second = (first + 1 + self.share().below(moved.saturating_sub(1))) % moved.max(1);
        ReflinkerStep {
            act: acts.draw(&mut self.rng),
            files: (first, second),
            places: (self.share(), self.share()),
            length: self.draw(|job| job.reflinkers.length).next_multiple_of(BLOCK),
            pause: self.draw(|job| job.reflinkers.pause),
        }
    }

    pub(super) fn defragmenter(&mut self) -> DefragmenterStep {
        let polite = self.job.defragmenters.polite;
        DefragmenterStep {
            file: self.file(),
            polite: self.chance(polite),
            pause: self.draw(|job| job.defragmenters.pause),
        }
    }
}

/// One access of a holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HolderAccess {
    /// Its place in what is held.
    pub place: Share,
    /// Length in bytes, a multiple of 8.
    pub length: u64,
    /// Writes to what is held; otherwise it reads.
    pub writes: bool,
    /// A guest flushes afterwards.
    pub flushes: bool,
}

/// The endless accesses of one step, drawn from its seed.
#[derive(Clone, Debug)]
pub struct HolderAccesses {
    rng: Rng,
    length: Distribution,
    write: f64,
    flush: f64,
}

impl HolderAccesses {
    /// The accesses of a step of `holders`.
    pub fn new(job: &Job, holders: &HolderParameters, access_seed: u64) -> HolderAccesses {
        let (write, flush) = (holders.write, holders.flush);
        HolderAccesses { rng: Rng::seed_from_u64(access_seed), length: job.registrants.dma_length, write, flush }
    }
}

impl Iterator for HolderAccesses {
    type Item = HolderAccess;

    fn next(&mut self) -> Option<HolderAccess> {
        Some(HolderAccess {
            place: Share(self.rng.random()),
            length: self.length.draw(&mut self.rng) / 8 * 8,
            writes: Share(self.rng.random()).falls_below(self.write),
            flushes: Share(self.rng.random()).falls_below(self.flush),
        })
    }
}
