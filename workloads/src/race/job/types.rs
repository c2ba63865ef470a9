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
}

impl Role {
    /// All roles, in the order in which actors are numbered.
    pub const ALL: [Role; 5] = [Role::Registrant, Role::Truncater, Role::Puncher, Role::DirectIo, Role::Extender];

    /// Whether the role's actors are strangers that change layouts.
    pub fn changes_layouts(self) -> bool {
        matches!(self, Role::Truncater | Role::Puncher | Role::Extender)
    }

    /// The section of the job that describes the role.
    pub fn section(self) -> &'static str {
        match self {
            Role::Registrant => "registrants",
            Role::Truncater => "truncaters",
            Role::Puncher => "punchers",
            Role::DirectIo => "direct_io",
            Role::Extender => "extenders",
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
    /// How long a process may block in `close` before the administrator kills it.
    pub reaper_patience: Duration,
    /// Actors of each role, in the order of [`Role::ALL`].
    pub(super) counts: [u32; 5],
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
fn scaled(counts: [u32; 5], total: u32) -> [u32; 5] {
    let sum: i64 = counts.iter().map(|count| i64::from(*count)).sum();
    let changers = (0..counts.len()).filter(|role| Role::ALL[*role].changes_layouts());
    let changer = changers.max_by_key(|role| (counts[*role], std::cmp::Reverse(*role)));
    let mut shares = [0; 5];
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
