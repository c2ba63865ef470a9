//! The protocol's weak spots, each breakable on purpose: what the loom models must be able to
//! notice.
//!
//! It owns the list of mutations that live in this module's code (an eighth, the missing recheck,
//! is one of the pinner's and lives in the models). Invariant: outside loom a table can't be
//! broken: the question whether it is answers itself at compile time. See `docs/pin-engine.md` for
//! which model catches which.

/// One line of the protocol left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(daxlab_loom), expect(unreachable_pub, reason = "only models can ask for one"))]
pub enum Mutation {
    /// An unpin is a relaxed subtraction.
    RelaxedUnpin,
    /// A closer's scan is made of relaxed loads.
    RelaxedScan,
    /// A pin doesn't look at its parents.
    NoLookAtParent,
    /// A pin that sets `BELOW` ignores what else the parent's word said at that moment.
    NoSecondLook,
    /// A reopening clears `BELOW` although no scan found everything zero.
    BelowClearedOnAbort,
    /// A close doesn't mark the parents of what it closes.
    NoUpwardMark,
    /// The undo of a refused pin wakes no closer.
    UndoWithoutWake,
}
