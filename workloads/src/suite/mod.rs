//! Suites: whole sets of scenarios and sequences, run and compared.
//!
//! It owns the run of one scenario ([`run`]), the built-in list and its distribution over threads
//! ([`scenarios`]), runs on the real kernel ([`linux`]) and on guests' kernels ([`guest_kernels`]),
//! random sequences on both machines ([`agreement`]), and the reference page of the language with
//! its examples ([`mod@reference`]). Invariant: the order of a report is that of what was asked
//! for, whichever thread ran it. Kernel counterpart: xfstests' `check`.

pub mod agreement;
pub mod guest_kernels;
pub mod linux;
pub mod reference;
pub mod run;
pub mod scenarios;
#[cfg(all(test, not(any(daxlab_loom, daxlab_shuttle))))]
mod tests;
