//! The hardware that daxlab emulates: a DAX device over shared memory, the words that pin its pages, the ledger of who
//! owns which page since when, and the few runtime pieces (clock, generator, wait queue) that everything above shares.
//!
//! This crate knows no files. A pin holder, a waiter and an owner are opaque numbers here; what they mean is decided
//! by the crates above. Imports run down only: `workloads -> rdma-sim -> fs-sim -> emulator`.

mod copy;
pub mod device;
pub mod fsdax;
pub mod gate;
pub mod ledger;
pub mod memory;
pub mod persistence;
pub mod pin;
pub mod poison;
pub mod registry;
pub mod rng;
pub mod socket;
pub mod state_table;
pub mod sync;
pub mod time;
pub mod trace;
#[cfg(not(any(daxlab_loom, daxlab_shuttle)))]
pub mod vhost_user;
pub mod wait;
pub mod words;
pub mod world;

pub use world::World;
