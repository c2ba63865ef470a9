//! Designs: what the simulated kernel does where leases, long-term pins and layout changes meet.
//!
//! A [`Design`] is a name and one choice per axis ([`Axes`]). **The kernel is handed `Axes`, so
//! that no code can read a design's name**: a copy of a preset under another name behaves the same,
//! and a preset with one axis changed behaves by that axis. The presets ([`presets`]) are the
//! positions taken in the discussions of 2019 and later. Users add their own in TOML files, which
//! the crate `workloads` reads (`workloads::input::designs`).
//!
//! Invariant: `Axes` that leave this module through a preset or a file passed [`Axes::check`]:
//! `n/a` stands only with gate `refuse`, and no choice demands a lease that no process could hold.
//!
//! Kernel counterpart: mainline has one design, spread over `fs/locks.c`, `fs/dax.c`
//! (`dax_layout_busy_page`) and `mm/gup.c` (`FOLL_LONGTERM`).

mod axes;
mod presets;
#[cfg(test)]
mod tests;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use axes::{
    Axes, Axis, BreakTimeout, BusyScope, BusyUnit, ChangeRule, Conflict, EvictRule, GateScope, LastCloseRule,
    LeaseLost, LeaseRules, NOT_APPLICABLE, PassRule, PinGate, PinWaitHolds, RevokeScope, UnlockRule,
};
pub use presets::{Preset, further_presets, preset, presets};

/// Longest name of a design, in bytes: names head the columns of tables and become names of files.
pub const NAME_BYTES_MAX: usize = 40;

/// One design: a name for people, axes for the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Design {
    /// What tables, results and `--design` call it.
    pub name: String,
    /// What it does.
    pub axes: Axes,
}

impl fmt::Display for Design {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// Which writes count as a layout change (docs/semantics.md, section 4, the filesystem option
/// `write_break`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WriteBreak {
    /// Those that allocate, extend or unshare.
    #[default]
    Precise,
    /// Every write, as XFS does: overwrites under an exclusive lease are ETXTBSY.
    Conservative,
}

/// Options of a volume, the same under every design.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeOptions {
    /// Which writes count as a layout change.
    pub write_break: WriteBreak,
    /// How long a broken lease's owner has before `break_timeout` applies; sampled when a break
    /// starts. Zero = no limit. Default 45 s, the kernel's `/proc/sys/fs/lease-break-time`.
    pub lease_break_time: std::time::Duration,
    /// What the machine saves when its power fails.
    pub platform: Platform,
}

/// The power-fail protected domain of the machine: what reaches the persistent memory when the
/// power fails. The SNIA NVM programming model calls it the persistence domain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Platform {
    /// The CPU caches are saved (Intel's eADR): a store is durable at once.
    #[default]
    Eadr,
    /// Only what has reached the memory controller is saved (ADR): a store is lost unless its
    /// cache line was written back.
    Adr,
}

impl Default for VolumeOptions {
    fn default() -> Self {
        VolumeOptions {
            write_break: WriteBreak::default(),
            lease_break_time: std::time::Duration::from_secs(45),
            platform: Platform::default(),
        }
    }
}
