//! Jobs: what a race does, as a TOML file says it. The form is fio's idea of a job file: sections, values with units.
//!
//! It owns the reading and the checking of jobs. Invariant: a [`Job`] can be run: its files fit the device, its ranges run
//! forwards, its mixes have something in them, there is somebody to register and somebody to change layouts. What a file
//! leaves out is as in the built-in job (`jobs/default.toml`), which goes through the same reader.
//!
//! `docs/job-files.md` lists every key with its unit and default; a test holds the two together.

mod check;
mod distribution;
mod given;
#[cfg(test)]
mod tests;
mod text;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use crate::input::{InputError, Source};
use fs_sim::design::VolumeOptions;

pub(crate) use check::DMA_BYTES_MAX;
pub use distribution::Distribution;

/// The built-in job's text.
pub const BUILT_IN: &str = include_str!("../../../jobs/default.toml");

/// Most actors of one race: a writer's number is one byte of every payload word.
pub const ACTORS_MAX: u32 = 255;

/// What an actor does for a living.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Registers file ranges and lets the NIC work on them.
    Registrant,
    /// Truncates files, down and up.
    Truncater,
    /// Punches holes and zeroes ranges.
    Puncher,
    /// Reads and writes what is there: short-term pins.
    DirectIo,
    /// Makes files longer, removes and makes files: takes the blocks that others let go.
    Extender,
}

impl Role {
    /// All of them, in the order in which actors are numbered.
    pub const ALL: [Role; 5] = [Role::Registrant, Role::Truncater, Role::Puncher, Role::DirectIo, Role::Extender];

    /// Whether it is there to change layouts.
    pub fn changes_layouts(self) -> bool {
        matches!(self, Role::Truncater | Role::Puncher | Role::Extender)
    }

    /// The section of the job that speaks of it.
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
    /// All alike.
    Uniform,
    /// The first most, the n-th in proportion to n to the minus this.
    Zipf(f64),
}

/// The files that everybody works on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct JobFiles {
    /// How many.
    pub count: u64,
    /// The largest size of each in bytes, and the size at the start.
    pub size: u64,
    /// How often each is chosen.
    pub popularity: Popularity,
}

/// Weights of what a registrant does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegistrantMix {
    /// Leases, maps and registers a range.
    pub register: u32,
    /// A burst of work requests on a live region.
    pub dma: u32,
    /// Truncates or punches a file it has registered.
    pub change: u32,
    /// Gives a lease back while regions live under it.
    pub unlock: u32,
    /// Unmaps and closes a file while its regions live.
    pub close: u32,
    /// Passes its RDMA context to another registrant.
    pub pass: u32,
    /// Forks a child that closes or exits.
    pub fork: u32,
    /// Exits with everything open.
    pub exit: u32,
    /// Is killed with everything open.
    pub kill: u32,
}

/// Weights of what a work request is.
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

/// Those who register file ranges.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Registrants {
    /// Regions that one process holds at most.
    pub regions_max: u32,
    /// Length of a region in bytes.
    pub region_length: Distribution,
    /// Time from registration to deregistration in nanoseconds.
    pub region_lifetime: Distribution,
    /// Probability that a region is for remote reads only.
    pub read_only: f64,
    /// Probability that the lease covers the whole file and not just the mapped range.
    pub whole_file_lease: f64,
    /// Probability that a process ignores SIGIO for its whole life.
    pub skips_cleanup: f64,
    /// Work requests of one burst.
    pub dma_burst: Distribution,
    /// Length of one WRITE or READ in bytes, before it is cut to whole 8-byte words and to the region.
    pub dma_length: Distribution,
    /// Time between two steps in nanoseconds.
    pub pause: Distribution,
}

/// Those who truncate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Truncaters {
    /// The new size in bytes.
    pub size: Distribution,
    /// Probability of `truncate` by name rather than `ftruncate`.
    pub by_path: f64,
    /// Probability of a size that is not a multiple of 4 KiB (but of 8).
    pub unaligned: f64,
    /// Time between two steps in nanoseconds.
    pub pause: Distribution,
}

/// Those who punch holes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Punchers {
    /// Bytes of one punch.
    pub length: Distribution,
    /// Probability of zeroing the range instead.
    pub zero_range: f64,
    /// Time between two steps in nanoseconds.
    pub pause: Distribution,
}

/// Those who read and write what is allocated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DirectIo {
    /// Bytes of one read or write, before it is cut to whole 8-byte words.
    pub length: Distribution,
    /// Probability of a write.
    pub write: f64,
    /// Time between two steps in nanoseconds.
    pub pause: Distribution,
}

/// Those who make files longer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Extenders {
    /// Bytes by which a file grows.
    pub length: Distribution,
    /// Probability of `fallocate` rather than an extending write.
    pub fallocate: f64,
    /// Probability that the file is one that everybody works on, rather than the extender's own.
    pub shared: f64,
    /// Probability that the file is removed and made anew instead.
    pub recreate: f64,
    /// Time between two steps in nanoseconds.
    pub pause: Distribution,
}

/// A job that was read and checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// What results call it.
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
    /// The seed the file states, if it does.
    pub seed: Option<u64>,
    /// Probability that a thread gives its processor up at a race point.
    pub race_points: f64,
    /// What registrants are like.
    pub registrants: Registrants,
    /// What registrants do.
    pub mix: RegistrantMix,
    /// What their work requests are.
    pub dma_mix: DmaMix,
    /// What truncaters do.
    pub truncaters: Truncaters,
    /// What punchers do.
    pub punchers: Punchers,
    /// What direct-I/O actors do.
    pub direct_io: DirectIo,
    /// What extenders do.
    pub extenders: Extenders,
    /// How long a process may block in `close` before the administrator kills it.
    pub reaper_patience: Duration,
    /// Actors of each role, in the order of [`Role::ALL`].
    counts: [u32; 5],
    /// The values as the file and the built-in job spell them, by `section.key`.
    parameters: BTreeMap<String, String>,
}

impl Job {
    /// The built-in job.
    pub fn built_in() -> Job {
        Job::parse(&Source::new("jobs/default.toml", BUILT_IN)).expect("a test reads the built-in job")
    }

    /// Reads a job file.
    ///
    /// # Errors
    /// It can't be read, or is no job; see [`Job::parse`].
    pub fn read(path: &Path) -> Result<Job, InputError> {
        Job::parse(&Source::read(path)?)
    }

    /// Reads a job's text.
    ///
    /// # Errors
    /// It isn't TOML, has an unknown key or a value of the wrong kind, or can't be run. Points at the value.
    pub fn parse(source: &Source) -> Result<Job, InputError> {
        check::job(source)
    }

    /// The same job for `--quick`: shorter.
    #[must_use]
    pub fn quick(&self) -> Job {
        Job { duration: self.quick_duration, ..self.clone() }
    }

    /// How many actors have this role.
    pub fn count(&self, role: Role) -> u32 {
        self.counts[role as usize]
    }

    /// The role of every actor: their numbers count from 0 in this order.
    pub fn actors(&self) -> Vec<Role> {
        Role::ALL.into_iter().flat_map(|role| (0..self.count(role)).map(move |_| role)).collect()
    }

    /// The same job with `threads` actors, the roles in proportion; at least one registrant and one that changes layouts.
    ///
    /// # Errors
    /// Fewer than 2, or more than [`ACTORS_MAX`]: a sentence that says so.
    pub fn with_threads(&self, threads: u32) -> Result<Job, String> {
        if !(2..=ACTORS_MAX).contains(&threads) {
            return Err(format!(
                "a race needs from 2 threads (a registrant and one that changes layouts) to {ACTORS_MAX}, not {threads}"
            ));
        }
        Ok(Job { counts: scaled(self.counts, threads), ..self.clone() })
    }

    /// Every value as it was spelled, by `section.key`: what `result.json` keeps of the job.
    pub fn parameters(&self) -> &BTreeMap<String, String> {
        &self.parameters
    }
}

/// `total` shared out in proportion to `counts`: a registrant and one of the most numerous kind of changers first, then
/// each next one to the role that is furthest below its share.
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
