//! The hardware that daxlab emulates: a DAX device over shared memory, the words that pin its pages,
//! the ledger of page owners, and a guest's device over vhost-user.
//!
//! This crate knows no files. A pin holder, a waiter and an owner are opaque numbers here; the crates
//! above decide what they mean.
//!
//! # Layers, bottom first
//! 1. [`runtime`]: threads, atomics, waiting, the clock, the generator, traces, state tables.
//! 2. [`device`]: the bytes of a DAX device; images, poison, power cuts, the fsdax info block.
//! 3. [`pin`]: pins of pages, and closes that freeze them.
//! 4. [`ledger`]: the newest change of owner of each page; finds stale accesses.
//! 5. [`vhost_user`]: a device that a QEMU guest has as its persistent memory.

pub mod device;
pub mod ledger;
pub mod pin;
pub mod runtime;
#[cfg(not(any(daxlab_loom, daxlab_shuttle)))]
pub mod vhost_user;

pub use runtime::world::World;
pub use runtime::{clock, registry, rng, state_table, sync, trace, wait, world};
