//! Layout changes: from a plan to a published layout and freed blocks.
//!
//! It owns the order of docs/semantics.md, section 4: turn, leases, pins, freeze, publish, free.
//! `driver` runs the steps; each step has a file of its own; `changes` says what each kind of
//! change does to a map. A page is freed in `departure`. Invariants: whatever alters a file's map
//! or size goes through `driver`; a block goes to the allocator only with a token that proves its
//! pages frozen. Kernel counterpart: `xfs_break_layouts`, `dax_layout_busy_page`,
//! `xfs_setattr_size`, `xfs_file_fallocate`.
//!
//! `plan` and `copy` import each other: a plan lists its copies, and refuses one whose source pages
//! are poisoned by the same check that `copy` makes before it reads them.

pub(crate) mod busy;
pub(crate) mod changes;
pub(crate) mod closed_pages;
pub(crate) mod copy;
pub mod defragment;
pub(crate) mod departure;
pub(crate) mod driver;
pub(crate) mod eviction;
pub(crate) mod plan;
pub(crate) mod publication;
pub(crate) mod recall_clients;
pub(crate) mod turns;
pub(crate) mod unmap_guests;
pub(crate) mod verdict;
