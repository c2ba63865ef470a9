//! Atomic operations of a device on memory.
//!
//! It owns the list. Invariant: each acts on 8 aligned bytes. Kernel counterpart:
//! `IB_WR_ATOMIC_CMP_AND_SWP`, `IB_WR_ATOMIC_FETCH_AND_ADD`, `IB_WR_ATOMIC_WRITE`.

/// What a device does to 8 aligned bytes in one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtomicOp {
    /// Compare with the first, and if equal swap in the second.
    CompareSwap(u64, u64),
    /// Add.
    FetchAdd(u64),
    /// Store.
    Store(u64),
}
