//! The DAX device: memory, the file behind it, poison, and what a power cut leaves.
//!
//! It owns the bytes. Invariants: an access lies wholly inside the device or touches nothing; a page
//! that is poisoned is neither read nor partly written. Kernel counterpart: drivers/dax,
//! drivers/nvdimm/pmem.c.

mod dax_device;
pub mod fsdax;
pub mod memory;
pub mod persistence;
pub mod poison;
mod word_copy;

pub use dax_device::{AccessError, Device, FOLIO, MAX_BYTES, OpenError, PAGE};
