//! The states of a memory region's place in the table, as one table.
//!
//! It owns the transition table; `region_table` applies it under the place's mutex.
//! Invariant: the backing memory leaves the place exactly once, on [`RegionEvent::Drain`]. The page
//! docs/states/memory-region.md is generated from this table. Kernel counterpart: `percpu_ref`
//! (live, dying, dead) around a `struct rxe_mr`.

emulator::state_table! {
    /// Where a region's place in the table stands.
    pub enum RegionState {
        /// No region is here, or a registration has reserved the place. The gate is closed.
        Free,
        /// A region is registered. The gate is open.
        Live,
        /// The registration is being replaced: the gate is closed and will open again. Accesses
        /// that entered earlier may still be inside.
        Changing,
        /// The region has ended: the gate is closed for good. Accesses that entered earlier may
        /// still be inside. The owner still holds the key.
        Draining,
        /// As `Draining`, and the owner no longer holds the key.
        DrainingUnowned,
        /// The backing memory was taken out. The owner still holds the key.
        Drained,
    }
    /// What happens to it.
    pub enum RegionEvent {
        /// `reg_mr` stores the region and opens the gate.
        Install,
        /// `rereg_mr` closes the gate.
        BeginChange,
        /// `rereg_mr` stores the new registration and opens the gate.
        Exchange,
        /// A deregistration, an abort or a close of the context closes the gate for good.
        Close,
        /// The gate is closed and no access is inside: the backing memory is taken out.
        Drain,
        /// The owner gives up the key.
        Forget,
    }
    start Free;
    Free + Install => Live;
    Live + BeginChange => Changing;
    Changing + Exchange => Live;
    Live | Changing + Close => Draining;
    Draining + Forget => DrainingUnowned;
    Draining + Drain => Drained;
    DrainingUnowned + Drain => Free;
    Drained + Forget => Free;
}

#[cfg(all(test, not(any(daxlab_loom, daxlab_shuttle))))]
mod tests {
    use super::{RegionEvent, RegionState};

    #[test]
    fn a_region_ends_once_and_its_place_is_free_after_drain_and_forget_in_either_order() {
        use RegionEvent::{Close, Drain, Forget, Install};
        for order in [[Drain, Forget], [Forget, Drain]] {
            let events = [Install, Close].into_iter().chain(order);
            let end = events.fold(RegionState::START, |state, event| state.next(event).unwrap());
            assert_eq!(end, RegionState::Free);
        }
        let error = RegionState::Drained.next(Close).unwrap_err();
        assert_eq!(error.to_string(), "RegionState: no transition from Drained on Close");
    }
}
