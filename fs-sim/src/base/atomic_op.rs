//! TODO

/// What the responder does at an address, eight bytes at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtomicOp {
    /// Compare with the first, and if equal swap in the second.
    CompareSwap(u64, u64),
    /// Add.
    FetchAdd(u64),
    /// Store, whatever is there.
    Store(u64),
}
