//! The race: registrations and DMA against layout changes, on real threads, under one design after
//! the other.
//!
//! Reading order: [`job`] (what a race does), [`op_stream`] (what each actor does next), [`oracle`]
//! (payloads that prove where they belong), `registrant`, `changers`, `direct_io`, `address_io`,
//! `holders` and `movers` (the actors), `supervisor` (starts and ends them), `outcome` (the
//! judgement), [`run`].
//!
//! Invariants: every design meets the same steps, drawn from one seed ([`op_stream`]). Every design
//! has a simulated machine of its own. A run ends within a bound after its clock or the stop flag
//! says so, whatever its actors are blocked on. Every broken invariant (`docs/semantics.md`,
//! section 8) is in the result and makes the run fail. There is no kernel counterpart; fio and
//! stress-ng are the nearest relatives.
//!
//! `docs/race.md` describes the roles, what is counted, and how the verdict is reached.

mod address_io;
mod changers;
mod config;
mod direct_io;
mod endpoint;
mod holders;
mod inbox;
pub mod job;
mod mapped;
mod movers;
mod network;
pub mod op_stream;
pub mod oracle;
mod outcome;
mod own_memory;
mod region;
mod registrant;
#[cfg(all(test, not(any(daxlab_loom, daxlab_shuttle))))]
mod role_tests;
mod run;
mod shared;
mod stats;
mod supervisor;
#[cfg(all(test, not(any(daxlab_loom, daxlab_shuttle))))]
mod tests;
mod window;

pub use config::{DesignRun, Quiet, RaceConfig, RaceError, RaceProgress, RaceReport, Snapshot, StopFlag};
pub use run::run;
