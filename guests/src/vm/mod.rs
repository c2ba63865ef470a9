//! Virtual machines: what they are made of, how they boot, and the guests that run.
//!
//! It owns QEMU's process and its command line. Invariant: a wait for a guest ends when its process
//! does.

mod boot;
mod guest;
mod machine;
mod serial;

pub use boot::{BOOT_LIMIT, Boot};
pub use guest::{GuestError, LinuxGuest, Output, Started};
pub use machine::{Accel, GuestMachine, MachineError};
