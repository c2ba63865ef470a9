//! The values of a checked job.

use std::collections::BTreeMap;
use std::time::Duration;

use fs_sim::design::VolumeOptions;

use super::distribution::Distribution;

/// The most actors of one race: a writer's number is one byte of every payload word.
pub const ACTORS_MAX: u32 = 255;

/// What an actor does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Registers file ranges and lets the NIC work on them.
    Registrant,
    /// Truncates files, down and up.
    Truncater,
    /// Punches holes and zeroes ranges.
    Puncher,
    /// Reads and overwrites allocated blocks, which takes short-term pins.
    DirectIo,
    /// Extends files, removes and creates files. It takes the blocks that the other roles free.
    Extender,
    /// Holds mapped memory by address: direct I/O of another file or of a disk, pages in a pipe,
    /// zero-copy sends.
    AddressIo,
    /// Has an AF_XDP socket whose packet memory is a mapped file.
    Umem,
    /// Has a ring whose fixed buffer is a mapped file.
    Ring,
    /// Exports a file to a guest, which stores to it.
    Guest,
    /// Takes block layouts and accesses the device directly.
    LayoutClient,
    /// Collapses and inserts ranges.
    Collapser,
    /// Clones, deduplicates, exchanges and unshares ranges of files.
    Reflinker,
    /// Defragments files.
    Defragmenter,
}

/// How many roles there are.
pub(super) const ROLES: usize = Role::ALL.len();

impl Role {
    /// All roles, in the order in which actors are numbered.
    pub const ALL: [Role; 13] = [
        Role::Registrant,
        Role::Truncater,
        Role::Puncher,
        Role::DirectIo,
        Role::Extender,
        Role::AddressIo,
        Role::Umem,
        Role::Ring,
        Role::Guest,
        Role::LayoutClient,
        Role::Collapser,
        Role::Reflinker,
        Role::Defragmenter,
    ];

    /// Whether the role's actors are strangers that change layouts whatever is pinned where the
    /// design lets them. (A defragmentation skips what is pinned.)
    pub fn changes_layouts(self) -> bool {
        matches!(self, Role::Truncater | Role::Puncher | Role::Extender) || self.moves_blocks()
    }

    /// Whether the role's actors move blocks to other offsets or files, with their contents.
    pub fn moves_blocks(self) -> bool {
        matches!(self, Role::Collapser | Role::Reflinker)
    }

    /// The section of the job that describes the role.
    pub fn section(self) -> &'static str {
        match self {
            Role::Registrant => "registrants",
            Role::Truncater => "truncaters",
            Role::Puncher => "punchers",
            Role::DirectIo => "direct_io",
            Role::Extender => "extenders",
            Role::AddressIo => "address_io",
            Role::Umem => "umems",
            Role::Ring => "rings",
            Role::Guest => "guests",
            Role::LayoutClient => "layout_clients",
            Role::Collapser => "collapsers",
            Role::Reflinker => "reflinkers",
            Role::Defragmenter => "defragmenters",
        }
    }
}

/// How often each file is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Popularity {
    /// All files are equally likely.
    Uniform,
    /// File number n (from 1) has a probability in proportion to n to the power of minus this
    /// exponent.
    Zipf(f64),
}

/// The shared files of the race.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct JobFiles {
    /// The number of files.
    pub count: u64,
    /// The largest size of each file in bytes; also its size at the start.
    pub size: u64,
    /// How often each file is chosen.
    pub popularity: Popularity,
    /// How many of the files, the first ones, the block movers work on.
    pub moved: u64,
}

/// The weights of a registrant's steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegistrantMix {
    /// Leases, maps and registers a range.
    pub register: u32,
    /// A burst of work requests on a live region.
    pub dma: u32,
    /// Truncates or punches a file that it has registered.
    pub change: u32,
    /// Unlocks a lease while regions are registered under it.
    pub unlock: u32,
    /// Unmaps and closes a file while regions of it are registered.
    pub close: u32,
    /// Passes its RDMA context to another registrant.
    pub pass: u32,
    /// Forks a child that closes or exits.
    pub fork: u32,
    /// Exits with everything open.
    pub exit: u32,
    /// Kills itself with everything open.
    pub kill: u32,
}

/// The weights of the kinds of work requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaMix {
    /// RDMA WRITE.
    pub write: u32,
    /// RDMA READ.
    pub read: u32,
    /// Compare and swap.
    pub compare_swap: u32,
    /// Fetch and add.
    pub fetch_add: u32,
}

/// The parameters of registrants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Registrants {
    /// The most regions of one process.
    pub regions_max: u32,
    /// Length of a region in bytes.
    pub region_length: Distribution,
    /// Time from registration to deregistration in nanoseconds.
    pub region_lifetime: Distribution,
    /// Probability that a region is for remote reads only.
    pub read_only: f64,
    /// Probability that the lease covers the whole file and not just the mapped range.
    pub whole_file_lease: f64,
    /// Probability that a process ignores SIGIO for its whole life, so that it never cleans up for
    /// a lease break. The key in job files is `rude`.
    pub skips_cleanup: f64,
    /// Probability that a region is an on-demand one.
    pub on_demand: f64,
    /// Probability that a region is reached through a memory window.
    pub windows: f64,
    /// Work requests of one burst.
    pub dma_burst: Distribution,
    /// Length of one WRITE or READ in bytes. It is then rounded down to whole 8-byte words and to
    /// the region's length.
    pub dma_length: Distribution,
    /// Time between two steps in nanoseconds.
    pub pause: Distribution,
}

/// The parameters of truncaters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Truncaters {
    /// The new size in bytes.
    pub size: Distribution,
    /// Probability of `truncate` by name rather than `ftruncate`.
    pub by_path: f64,
    /// Probability of a size that is a multiple of 8 but not of 4 KiB.
    pub unaligned: f64,
    /// Time between two steps in nanoseconds.
    pub pause: Distribution,
}

/// The parameters of punchers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Punchers {
    /// Bytes of one punch.
    pub length: Distribution,
    /// Probability of zeroing the range instead of punching it.
    pub zero_range: f64,
    /// Time between two steps in nanoseconds.
    pub pause: Distribution,
}

/// The parameters of direct-I/O actors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DirectIo {
    /// Bytes of one read or write. It is then rounded down to whole 8-byte words.
    pub length: Distribution,
    /// Probability of a write.
    pub write: f64,
    /// Time between two steps in nanoseconds.
    pub pause: Distribution,
}

/// The parameters of extenders.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Extenders {
    /// Bytes by which a file grows.
    pub length: Distribution,
    /// Probability of `fallocate` rather than an extending write.
    pub fallocate: f64,
    /// Probability that the file is a shared one, not the extender's own.
    pub shared: f64,
    /// Probability that the extender removes the file and creates it again instead.
    pub recreate: f64,
    /// Time between two steps in nanoseconds.
    pub pause: Distribution,
}

/// The parameters of actors that hold mapped memory by address.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AddressIo {
    /// Bytes of the buffer. It is then rounded up to whole pages.
    pub length: Distribution,
    /// How long the pages are held, in nanoseconds.
    pub hold: Distribution,
    /// Probability that direct I/O writes from the buffer; otherwise it reads into it.
    pub write: f64,
    /// Time between two steps in nanoseconds.
    pub pause: Distribution,
}

/// The weights of the ways to hold mapped memory by address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressIoMix {
    /// Direct I/O of a disk with a delay.
    pub disk: u32,
    /// Direct I/O of another file.
    pub file: u32,
    /// Pages in a pipe.
    pub pipe: u32,
    /// A zero-copy send.
    pub send: u32,
}

/// The parameters of a role that holds pages, or knows blocks, for a while: umems, rings, guests,
/// layout clients.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HolderParameters {
    /// Bytes that it holds. Guests do not use it: they have the whole file.
    pub length: Distribution,
    /// How long it holds them, in nanoseconds.
    pub lifetime: Distribution,
    /// Accesses to them.
    pub accesses: Distribution,
    /// Probability that an access writes.
    pub write: f64,
    /// Probability that a guest flushes after a store.
    pub flush: f64,
    /// Probability that a process skips clean-up when what it holds is asked for. The key in job
    /// files is `rude`.
    pub skips_cleanup: f64,
    /// Probability that the process exits with everything open.
    pub exit: f64,
    /// Time between two steps in nanoseconds.
    pub pause: Distribution,
}

/// The parameters of collapsers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Collapsers {
    /// Bytes of one range. It is then rounded up to whole blocks.
    pub length: Distribution,
    /// Probability of inserting a range instead of removing it.
    pub insert: f64,
    /// Time between two steps in nanoseconds.
    pub pause: Distribution,
}

/// The parameters of reflinkers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reflinkers {
    /// Bytes of one range. It is then rounded up to whole blocks.
    pub length: Distribution,
    /// Time between two steps in nanoseconds.
    pub pause: Distribution,
}

/// The weights of a reflinker's steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReflinkMix {
    /// Shares a range of one file with another.
    pub clone: u32,
    /// Shares ranges that hold the same bytes.
    pub dedupe: u32,
    /// Swaps ranges of two files.
    pub exchange: u32,
    /// Copies what is shared in a range.
    pub unshare: u32,
}

/// The parameters of defragmenters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Defragmenters {
    /// Probability of a defragmentation that breaks no lease.
    pub polite: f64,
    /// Time between two steps in nanoseconds.
    pub pause: Distribution,
}

/// How many bytes one actor of each role can keep from being freed, or has beside the files.
pub(super) struct HeldBlocks {
    pub(super) umem: u64,
    pub(super) ring: u64,
    pub(super) guest: u64,
    pub(super) address_io: u64,
}

impl HeldBlocks {
    /// The bytes that all of them can keep.
    pub(super) fn bytes(&self, counts: &[u32; ROLES]) -> u64 {
        let count = |role: Role| u64::from(counts[role as usize]);
        count(Role::Umem) * self.umem
            + count(Role::Ring) * self.ring
            + count(Role::Guest) * self.guest
            + count(Role::AddressIo) * self.address_io
    }
}

/// A job that was read and checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// The name in results.
    pub name: String,
    /// Size of the device in bytes.
    pub device_bytes: u64,
    /// Options of the volume.
    pub volume: VolumeOptions,
    /// The files.
    pub files: JobFiles,
    /// How long each design runs.
    pub duration: Duration,
    /// How long each design runs with `--quick`.
    pub quick_duration: Duration,
    /// The seed, if the file states one.
    pub seed: Option<u64>,
    /// Probability that a thread yields its processor at a race point.
    pub race_points: f64,
    /// The parameters of registrants.
    pub registrants: Registrants,
    /// The weights of registrants' steps.
    pub mix: RegistrantMix,
    /// The weights of their work requests.
    pub dma_mix: DmaMix,
    /// The parameters of truncaters.
    pub truncaters: Truncaters,
    /// The parameters of punchers.
    pub punchers: Punchers,
    /// The parameters of direct-I/O actors.
    pub direct_io: DirectIo,
    /// The parameters of extenders.
    pub extenders: Extenders,
    /// The parameters of actors that hold mapped memory by address.
    pub address_io: AddressIo,
    /// The weights of their steps.
    pub address_io_mix: AddressIoMix,
    /// The parameters of AF_XDP umems.
    pub umems: HolderParameters,
    /// The parameters of rings with fixed buffers.
    pub rings: HolderParameters,
    /// The parameters of guests.
    pub guests: HolderParameters,
    /// The parameters of block-layout clients.
    pub layout_clients: HolderParameters,
    /// The parameters of collapsers.
    pub collapsers: Collapsers,
    /// The parameters of reflinkers.
    pub reflinkers: Reflinkers,
    /// The weights of their steps.
    pub reflink_mix: ReflinkMix,
    /// The parameters of defragmenters.
    pub defragmenters: Defragmenters,
    /// How long a process may block in `close` before the administrator kills it.
    pub reaper_patience: Duration,
    /// Actors of each role, in the order of [`Role::ALL`].
    pub(super) counts: [u32; ROLES],
    /// The values as the file and the built-in job spell them, by `section.key`.
    pub(super) parameters: BTreeMap<String, String>,
}

impl Job {
    /// The same job with the shorter duration of `--quick`.
    #[must_use]
    pub fn quick(&self) -> Job {
        Job { duration: self.quick_duration, ..self.clone() }
    }

    /// The number of actors with this role.
    pub fn count(&self, role: Role) -> u32 {
        self.counts[role as usize]
    }

    /// The role of every actor, in the order of their numbers from 0.
    pub fn actors(&self) -> Vec<Role> {
        Role::ALL.into_iter().flat_map(|role| (0..self.count(role)).map(move |_| role)).collect()
    }

    /// The same job with `threads` actors, the roles in proportion. At least one actor registers
    /// and at least one changes layouts.
    ///
    /// # Errors
    /// `threads` is less than 2 or more than [`ACTORS_MAX`]. The error is a sentence for the user.
    pub fn with_threads(&self, threads: u32) -> Result<Job, String> {
        if !(2..=ACTORS_MAX).contains(&threads) {
            return Err(format!(
                "a race needs from 2 threads (a registrant and one that changes layouts) to {ACTORS_MAX}, not {threads}"
            ));
        }
        Ok(Job { counts: scaled(self.counts, threads), ..self.clone() })
    }

    /// Every value as it was spelled, by `section.key`: the job's part of `result.json`.
    pub fn parameters(&self) -> &BTreeMap<String, String> {
        &self.parameters
    }
}

/// `total` actors shared out in proportion to `counts`. One registrant and one changer of the most
/// numerous role come first; each further actor goes to the role that is furthest below its share.
fn scaled(counts: [u32; ROLES], total: u32) -> [u32; ROLES] {
    let sum: i64 = counts.iter().map(|count| i64::from(*count)).sum();
    let changers = (0..counts.len()).filter(|role| Role::ALL[*role].changes_layouts());
    let changer = changers.max_by_key(|role| (counts[*role], std::cmp::Reverse(*role)));
    let mut shares = [0; ROLES];
    for role in [Some(Role::Registrant as usize), changer].into_iter().flatten() {
        shares[role] += 1;
    }
    for _ in 2..total {
        let below = |role: &usize| i64::from(counts[*role]) * i64::from(total) - i64::from(shares[*role]) * sum;
        let next = (0..counts.len()).max_by_key(|role| (below(role), std::cmp::Reverse(*role)));
        shares[next.unwrap_or(0)] += 1;
    }
    shares
}
