//! Ordinary fcntl leases, and delegations.
//!
//! It owns the base mechanism of docs/semantics.md, section 2, which must equal Linux's.
//! Invariant: a break is signalled once to each owner, and the breaker sleeps with no lock held.
//! Kernel counterpart: `F_SETLEASE`, `F_GETLEASE`, `F_SETDELEG`, `F_GETDELEG`,
//! `break_lease`, `break_deleg` (fs/locks.c, fs/fcntl.c).

pub(crate) mod breaking;
pub(crate) mod close;
pub mod request;
pub(crate) mod table;
