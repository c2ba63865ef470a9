//! The DAX device: shared memory, the image file behind it, and what can go wrong with them.
//!
//! It owns the bytes of simulated files ([`Device`]), its poisoned pages ([`poison`]), the durable
//! image that survives a power cut ([`persistence`]), the fsdax info block of an image ([`fsdax`])
//! and the memory of simulated processes ([`memory`]). Invariant: every copy of these bytes goes
//! through the word-wise copies of `copy`, so a race of the emulated machine is never a data race
//! of the emulator. Kernel counterpart: drivers/dax/super.c over drivers/nvdimm/pmem.c.

mod copy;
mod dax;
pub mod fsdax;
pub mod memory;
mod open;
pub mod persistence;
pub mod poison;

pub use dax::{AccessError, Device, DevicePool, PAGE};
pub use open::{FOLIO, ImageRoom, ImageSpace, MAX_BYTES, OpenError};
