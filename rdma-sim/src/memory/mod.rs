//! Memory: regions, windows, their keys, and the check that every access passes.
//!
//! It owns every registered region's backing memory between its registration and its release, and
//! the only way from a key to a byte (`protection`). Invariant: an access reaches a region only
//! through the region's gate, so a region is released after the last access has left it. Kernel
//! counterpart: `struct ib_mr`, `struct ib_mw`, and `rxe_mr.c`, `rxe_mw.c`, `rxe_pool.c` in
//! drivers/infiniband/sw/rxe.

pub mod access;
pub mod fault;
pub(crate) mod key;
pub mod mr;
pub mod mw;
pub mod nic;
pub(crate) mod owner;
pub(crate) mod protection;
pub mod region_state;
pub(crate) mod region_table;
pub(crate) mod window_table;
