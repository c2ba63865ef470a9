//! The volume: which device blocks are free, which are allocated, and which a pin alone keeps.
//!
//! It owns the free space of the device ([`Allocator`]), the orphaned blocks ([`Orphans`]), the
//! counts of blocks that are mapped more than once ([`Shares`]), and what of all this, and of the
//! bytes, a power cut leaves (the journal, the CPU caches). Invariants: every block is free,
//! allocated to files, or orphaned (and then counted as allocated); a block becomes free only by a
//! [`emulator::pin::Frozen`] token handed over by value, so never while pinned (invariant 1);
//! nothing here waits. Kernel counterpart: the allocation groups of XFS
//! (fs/xfs/libxfs/xfs_alloc.c), and for orphans its unlinked inodes, which also live on for their
//! last user.

mod allocator;
pub(crate) mod caches;
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
