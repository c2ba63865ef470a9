//! The race: registrations and DMA against layout changes, on real threads, under one design after the other.
//!
//! It owns a run from its configuration to its result. Invariants: every design meets the same choices, drawn from one seed
//! ([`super::op_stream`]); every design has a machine of its own; a run ends by its clock or the stop flag within a bound,
//! whatever its actors are blocked on; what is broken (SEMANTICS section 8) is in the result and makes the run fail. There
//! is no kernel counterpart; fio and stress-ng are the relatives.
//!
//! `docs/race.md` describes the roles, what is counted, and how the verdict comes about.

mod changers;
mod config;
mod direct_io;
mod endpoint;
mod inbox;
pub mod job;
pub mod op_stream;
pub mod oracle;
mod outcome;
mod registrant;
mod run;
mod shared;
mod stats;
mod supervisor;
#[cfg(all(test, not(any(daxlab_loom, daxlab_shuttle))))]
mod tests;

pub use config::{DesignRun, Quiet, RaceConfig, RaceError, RaceProgress, RaceReport, Snapshot, StopFlag};
pub use run::run;
