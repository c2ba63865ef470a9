//! What every layer of the simulated kernel uses: error numbers, object numbers, ranges, units,
//! counters.
//!
//! It owns plain values. Invariant: nothing here waits, and nothing here knows a file or a process
//! by more than its number. Kernel counterpart: include/uapi/asm-generic/errno.h, vmstat events.

pub mod atomic_op;
pub mod counters;
pub mod errno;
pub mod numbers;
pub(crate) mod page_sets;
pub mod range;
pub mod units;
