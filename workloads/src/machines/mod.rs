//! The machines on which a scenario runs.
//!
//! It owns the trait [`machine::Machine`] and its two implementations: [`simulated`] (the simulated
//! kernel, with a thread for each scripted thread) and [`linux`] (the real kernel, with a process
//! for each scripted process). Invariant: a machine reports only what it knows: a call that neither
//! ends nor blocks for certain is inconclusive. Kernel counterpart: none.

pub mod linux;
pub mod machine;
pub mod simulated;
