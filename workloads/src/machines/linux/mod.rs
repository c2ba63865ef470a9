//! The real kernel as a machine for scenarios.
//!
//! It owns real processes on real files. Reading order: `child::wire` (the messages between driver
//! and processes), [`child`] (the process's side), `host` (makes processes), `watch` (where a
//! process sleeps) and `spin` (or spins), `machine` ([`LinuxMachine`], the driver's side),
//! `request` (operations as system calls), `verbs` (those of RDMA), [`soft_roce`] (RDMA on the
//! process's side), `disks` and `device_mapper` (I/O that is held back),
//! `break_time` (the one host-wide setting). Invariants: every result is the kernel's own. No
//! result depends on a sleep. Everything that was made is gone when the [`Host`] is dropped, but
//! for processes that nothing can end, on a Linux that is thrown away. Kernel counterpart: the
//! kernel itself.
//!
//! "Blocked" means: over several looks the process sleeps in the very system call that it was asked
//! to make, or spins in it, while no other process runs that could wake it. If the driver can
//! decide neither "blocked" nor "finished", the result is [`Trouble::Inconclusive`].
//!
//! [`Trouble::Inconclusive`]: crate::machines::machine::Trouble::Inconclusive

mod break_time;
pub mod child;
mod clock;
mod device_dax;
mod device_mapper;
mod disks;
mod host;
mod machine;
mod names;
mod process;
mod program;
mod registrants;
mod request;
mod setup;
pub mod soft_roce;
mod spawn;
mod spin;
mod verbs;
mod watch;

pub use break_time::{BreakTime, LongBreakTime, guard};
pub use device_dax::DeviceDax;
pub use host::{FileSystem, Host, LinuxConfig};
pub use machine::LinuxMachine;
