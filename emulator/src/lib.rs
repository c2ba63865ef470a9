//! The hardware that daxlab emulates: a DAX device over shared memory, the page pins, the ledger of
//! ownership changes, the vhost-user device that a guest maps, and the runtime that all of them
//! share.
//!
//! This crate knows no files. A pin holder, a waiter and an owner are opaque numbers here; the
//! crates above decide what they mean. Imports run down only: `workloads -> rdma-sim -> fs-sim ->
//! emulator`.
//!
//! # Layers, bottom first
//! 1. [`runtime`]: locks and atomics that loom and shuttle can explore, wait queues, clock, random
//!    streams, traces
//! 2. [`device`]: the device's bytes, its image file, poison, power cuts, process memory
//! 3. [`pin`]: pin pages and close them against pins; the gate that counts users of one object
//! 4. [`ledger`]: find out whether a DMA touched pages that have a new owner
//! 5. [`vhost_user`]: offer a device to a QEMU guest as virtio-pmem

pub mod device;
pub mod ledger;
pub mod pin;
pub mod runtime;
#[cfg(not(any(daxlab_loom, daxlab_shuttle)))]
pub mod vhost_user;

pub use runtime::world::World;
pub use runtime::{sync, wait};
