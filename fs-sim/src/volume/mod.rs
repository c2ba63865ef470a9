//! The volume: which device blocks are free, and which belong to nobody while a pin keeps them.
//!
//! It owns the free space of the device ([`Allocator`]), the registry of orphaned blocks ([`Orphans`]), the counts of blocks
//! that are mapped more than once ([`Shares`]), and what of all this a power cut leaves (the journal). Invariants: every
//! block is in exactly one of three states, free, allocated to files, or orphaned (which the allocator's books count as
//! allocated); a block becomes free only by a [`emulator::pin::Frozen`] token handed over by value, so never while pinned
//! (SEMANTICS section 8, invariant 1); nothing here waits. Kernel counterpart: the allocation groups of XFS
//! (fs/xfs/libxfs/xfs_alloc.c), and for orphans its unlinked inodes, which also live on for their last user.

mod allocator;
mod group;
pub(crate) mod journal;
pub(crate) mod mount;
mod orphans;
mod shares;
#[cfg(all(test, not(any(daxlab_loom, daxlab_shuttle))))]
mod tests;

pub use allocator::{Allocator, Corruption, GroupHint, NoSpace};
pub use orphans::Orphans;
pub(crate) use orphans::PageList;
pub use shares::Shares;
