//! The real kernel as a machine for scenarios.
//!
//! It owns real processes on real files. Reading order: `child::wire` (the messages between driver
//! and processes), [`child`] (the process's side), `host` (makes processes), `watch` (where a
//! process sleeps), `machine` ([`LinuxMachine`], the driver's side), `request` (operations as
//! system calls), `verbs` (those of RDMA), [`soft_roce`]
//! (RDMA on the process's side), `break_time` (the one host-wide
//! setting). Invariants: every result is the kernel's own. No result depends on a sleep. Everything
//! that was made is gone when the [`Host`] is dropped. Kernel counterpart: the kernel itself.
//!
//! "Blocked" means: over several looks the process sleeps, interruptibly, in the very system call
//! that it was asked to make, while no other process runs that could wake it. If the driver can
//! decide neither "blocked" nor "finished", the result is [`Trouble::Inconclusive`].
//!
//! [`Trouble::Inconclusive`]: crate::machines::machine::Trouble::Inconclusive

mod break_time;
pub mod child;
mod clock;
mod host;
mod machine;
mod names;
mod program;
mod request;
mod setup;
pub mod soft_roce;
mod spawn;
mod verbs;
mod watch;

pub use break_time::{BreakTime, LongBreakTime, guard};
pub use host::{FileSystem, Host, LinuxConfig};
pub use machine::LinuxMachine;
