//! Random sequences of operations on the real kernel and on the simulated machine, compared.
//!
//! It owns the claim that the simulation's ordinary leases and files behave like Linux's. Reading
//! order: `config`, `view`, `makers`, `generate` (chooses the steps), `exceptions` (those left out), `pair` (compares two machines),
//! `shrink` (shortens a sequence that shows a difference), `text` (writes it as a scenario).
//! Invariants: a sequence depends on the seed, its index, and what both machines agreed on.
//! Sequences contain no break timeouts. A sequence that could not be run never counts as agreement.
//! Kernel counterpart: the kernel itself.

mod compare;
mod config;
mod exceptions;
mod generate;
mod makers;
mod pair;
mod shrink;
#[cfg(test)]
mod tests;
mod text;
mod view;

pub use compare::{run, run_against_itself};
pub use config::{AgreementConfig, AgreementReport, AgreementReports, Difference, KernelAgreement, MetException};
