//! A gate: a count of those inside, and a door that can be shut.
//!
//! It owns one 64-bit word. Passing in is one atomic add whose old value says whether the door was open; a refused entry
//! undoes itself with a full [`Gate::leave`]. Invariants: after [`Gate::close`] nobody who enters stays inside, so the count
//! only falls; somebody is told once a closed gate is empty, and nobody before (a refused entry that comes later is told
//! again: what the last one out does must bear repeating). The same few lines serve as a lease's gate
//! word (pins taken under it), a memory region's in-flight count, and a process's count of system calls in progress. Kernel
//! counterpart: `percpu_ref_kill` and `percpu_ref_tryget_live`, without the per-cpu part.

use crate::runtime::sync::atomic::{AtomicU64, Ordering};

const CLOSED: u64 = 1 << 63;
const COUNT: u64 = CLOSED - 1;

/// See the module.
#[derive(Debug, Default)]
pub struct Gate(AtomicU64);

/// The door was shut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GateClosed {
    /// The refused entry's undo found itself to be the last one out; see [`Gate::leave`].
    pub last: bool,
}

impl Gate {
    /// An open gate with nobody inside.
    pub fn new() -> Gate {
        Gate(AtomicU64::new(0))
    }

    /// Enters.
    ///
    /// # Errors
    /// [`GateClosed`] if the door is shut. The attempt was counted for a moment: if `last` is set, the caller has to do what the
    /// last leaver of a closed gate does.
    pub fn enter(&self) -> Result<(), GateClosed> {
        // ORDERING: SeqCst, in one total order with `close`: either this entry sees the door shut, or the closer's
        // returned count has it.
        let old = self.0.fetch_add(1, Ordering::SeqCst);
        if old & CLOSED != 0 { Err(GateClosed { last: self.leave() }) } else { Ok(()) }
    }

    /// Leaves. True if the gate is closed and this was the last one inside.
    #[must_use = "the last one out of a closed gate has work to do"]
    pub fn leave(&self) -> bool {
        // ORDERING: Release hands over what was done inside; Acquire lets the last one see what everybody did.
        let old = self.0.fetch_sub(1, Ordering::AcqRel);
        debug_assert!(old & COUNT != 0, "left a gate more often than entered");
        old == CLOSED | 1
    }

    /// Shuts the door and returns how many are inside; the caller was the one to shut it if the second value is true.
    pub fn close(&self) -> (u64, bool) {
        let old = self.0.fetch_or(CLOSED, Ordering::SeqCst);
        (old & COUNT, old & CLOSED == 0)
    }

    /// Opens the door again.
    pub fn reopen(&self) {
        self.0.fetch_and(COUNT, Ordering::SeqCst);
    }

    /// How many are inside: exact once closed and zero, a hint otherwise.
    pub fn inside(&self) -> u64 {
        self.0.load(Ordering::SeqCst) & COUNT
    }

    /// Whether the door is shut.
    pub fn is_closed(&self) -> bool {
        self.0.load(Ordering::SeqCst) & CLOSED != 0
    }
}

#[cfg(all(test, not(any(daxlab_loom, daxlab_shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn whoever_leaves_a_closed_gate_empty_is_told() {
        let gate = Gate::new();
        gate.enter().unwrap();
        gate.enter().unwrap();
        assert!(!gate.leave(), "open: nobody is told");
        assert_eq!(gate.close(), (1, true));
        assert_eq!(gate.close(), (1, false), "the second closer did not shut it");
        assert_eq!(gate.enter(), Err(GateClosed { last: false }), "one is still inside");
        assert!(gate.leave());
        assert_eq!(gate.enter(), Err(GateClosed { last: true }), "an undo can be the last one out");
        gate.reopen();
        gate.enter().unwrap();
        assert_eq!(gate.inside(), 1);
    }
}
