//! The kinds of layout change: what each plans, and the map that it makes.
//!
//! It owns the implementations of [`super::plan::Change`]. Invariant: a change alters nothing
//! before it is applied. Kernel counterpart: fs/xfs/xfs_bmap_util.c, fs/xfs/xfs_reflink.c.

pub(crate) mod allocate;
pub(crate) mod moves;
pub(crate) mod provision;
pub(crate) mod remap;
pub(crate) mod resize;
pub(crate) mod write;
pub(crate) mod zero;
