//! A gate counts the users of one object and can be closed against new ones.
//!
//! It owns one 64-bit word. To enter is one atomic add; its old value says whether the gate was
//! open. A refused entry undoes itself with a full [`Gate::leave`]. Invariants: after
//! [`Gate::close`] each new entry is refused, so the count only falls. When a closed gate becomes
//! empty, the last leaver is told, and no earlier one. A later refused entry can be told again, so
//! the last leaver's work must be safe to repeat. A lease (pins taken under it), a memory region
//! (accesses in flight) and a process (system calls in progress) use it. Kernel counterpart:
//! `percpu_ref_kill` and `percpu_ref_tryget_live`, without the per-cpu part.

use crate::runtime::sync::atomic::{AtomicU64, Ordering};

const CLOSED: u64 = 1 << 63;
const COUNT: u64 = CLOSED - 1;

/// A count of users, and the flag that refuses new ones.
#[derive(Debug, Default)]
pub struct Gate(AtomicU64);

/// The gate is closed, so the entry was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GateClosed {
    /// The refused entry's undo found itself to be the last one out; see [`Gate::leave`].
    pub last: bool,
}

impl Gate {
    /// An open gate with no user.
    pub fn new() -> Gate {
        Gate(AtomicU64::new(0))
    }

    /// Enters.
    ///
    /// # Errors
    /// [`GateClosed`] if the gate is closed. The attempt was counted for a moment: if `last` is
    /// set, the caller has to do what the last leaver of a closed gate does.
    pub fn enter(&self) -> Result<(), GateClosed> {
        // ORDERING: SeqCst, in one total order with `close`: either this entry sees the gate
        // closed, or the closer's returned count has it.
        let old = self.0.fetch_add(1, Ordering::SeqCst);
        if old & CLOSED != 0 { Err(GateClosed { last: self.leave() }) } else { Ok(()) }
    }

    /// Leaves. True if the gate is closed and this was the last one inside.
    #[must_use = "the last one out of a closed gate has work to do"]
    pub fn leave(&self) -> bool {
        // ORDERING: Release hands over what was done inside; Acquire lets the last one see what all
        // others did.
        let old = self.0.fetch_sub(1, Ordering::AcqRel);
        debug_assert!(old & COUNT != 0, "left a gate more often than entered");
        old == CLOSED | 1
    }

    /// Closes the gate and returns how many users are inside. The second value is true if this call
    /// closed it.
    pub fn close(&self) -> (u64, bool) {
        let old = self.0.fetch_or(CLOSED, Ordering::SeqCst);
        (old & COUNT, old & CLOSED == 0)
    }

    /// Reopens the gate.
    pub fn reopen(&self) {
        self.0.fetch_and(COUNT, Ordering::SeqCst);
    }

    /// How many are inside: exact once closed and zero, a hint otherwise.
    pub fn inside(&self) -> u64 {
        self.0.load(Ordering::SeqCst) & COUNT
    }

    /// Whether the gate is closed.
    pub fn is_closed(&self) -> bool {
        self.0.load(Ordering::SeqCst) & CLOSED != 0
    }
}

#[cfg(all(test, not(any(daxlab_loom, daxlab_shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn the_last_leaver_of_a_closed_gate_is_told() {
        let gate = Gate::new();
        gate.enter().unwrap();
        gate.enter().unwrap();
        assert!(!gate.leave(), "an open gate tells no leaver");
        assert_eq!(gate.close(), (1, true));
        assert_eq!(gate.close(), (1, false), "only the first call closes it");
        assert_eq!(gate.enter(), Err(GateClosed { last: false }), "one is still inside");
        assert!(gate.leave());
        assert_eq!(gate.enter(), Err(GateClosed { last: true }), "an undo can be the last one out");
        gate.reopen();
        gate.enter().unwrap();
        assert_eq!(gate.inside(), 1);
    }
}
