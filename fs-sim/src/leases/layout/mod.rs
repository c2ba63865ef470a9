//! Layout leases: kinds, the table of each inode, requests, breaks, unlock and last close.
//!
//! It owns who may rely on a file's layout, and which owner is signalled before the layout changes.
//! A lease changes its state in one function, `state::change_state`. Invariants: leases live
//! and die with their open file; a lease's gate counts the pins taken under it, so no pin slips in
//! during an unlock, a zombie or a break; no task sleeps with a table's lock held. Kernel
//! counterpart: the `F_LAYOUT` leases of RFC v2 (2019-08-09) and of the man-page proposal
//! (2019-09-23), built on fs/locks.c.
//!
//! `state` and `table` import each other: an entry of the table has a state, which only
//! `state::change_state` sets.

pub(crate) mod acquire;
pub(crate) mod break_layouts;
pub(crate) mod breaking;
pub(crate) mod close;
pub mod kind;
pub mod state;
pub(crate) mod table;
pub(crate) mod unlock;
pub(crate) mod waiting;
