//! The ownership ledger: which page changed its owner, and when.
//!
//! It owns the stamps of one device ([`Ledger`]), and how a file's map is published against them
//! ([`Published`]). Invariant: stamps only grow, so a DMA that checks
//! after its copy sees every ownership change that came before the copy. Kernel counterpart: none;
//! a real machine has no witness of a stale DMA.

mod published;
mod stamps;

pub use published::{Published, ReadMoment};
pub use stamps::{Ledger, Ownership, OwnershipCheck, Stamp};
