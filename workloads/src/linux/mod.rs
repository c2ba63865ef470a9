//! The real kernel as a machine for scenarios.
//!
//! It owns real processes on real files. Reading order: `wire` (what driver and processes say to each other), [`child`] (the
//! process's side), `host` (what makes processes), `watch` (where a process sleeps), `machine` ([`LinuxMachine`], the driver's side),
//! `request` (operations as system calls), `break_time` (the one host-wide setting). Invariants: a result is the kernel's own;
//! nothing is decided by a pause; everything that was made is gone when the [`Host`] is. Kernel counterpart: the kernel.
//!
//! "Blocked" means: over several looks the process sleeps, interruptibly, in the very system call it was asked to make, while nothing else is
//! running that could wake it. What can be told neither as blocked nor as over is [`Trouble::Inconclusive`].
//!
//! [`Trouble::Inconclusive`]: crate::scenario::machine::Trouble::Inconclusive

mod break_time;
pub mod child;
mod clock;
mod host;
mod machine;
mod program;
mod request;
mod setup;
pub mod suite;
mod watch;
mod wire;

pub use break_time::{BreakTime, LongBreakTime, guard};
pub use host::{FileSystem, Host, LinuxConfig};
pub use machine::LinuxMachine;
