//! Random sequences of operations on the real kernel and on the simulated machine, compared.
//!
//! It owns the claim that the simulation's ordinary leases, files, held pages and registrations
//! behave like Linux's. Reading order: `config`, `view` (what both agree on), `makers`,
//! `exceptions` (known differences), `support`, `generate` with `registrations` (choose the steps),
//! `pair` (compares two machines), `shrink` (shortens a sequence that shows a difference), `text`
//! (writes it as a scenario). Invariants: a sequence depends on the seed, its index, what
//! both machines agreed on, and the known differences that the kernel has. Sequences contain no
//! break timeouts. A sequence that could not be run never counts as agreement. Kernel counterpart:
//! the kernel itself.

mod compare;
mod config;
mod exceptions;
mod generate;
mod makers;
mod pair;
mod registrations;
mod shrink;
mod support;
#[cfg(test)]
mod tests;
mod text;
mod view;

pub use compare::{run, run_against_itself};
pub use config::{AgreementConfig, AgreementReport, AgreementReports, Difference, KernelAgreement, MetException};
