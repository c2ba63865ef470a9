//! The states of a layout change of one file.
//!
//! It owns the table of transitions; `layout_turn` keeps the state of each change and asks
//! the table. Invariant: changes in a state that `has_turn` never overlap in one file.
//! docs/states/layout-change.md draws the machine. Kernel counterpart: the steps of
//! `xfs_setattr_size` around `xfs_break_layouts`.

use emulator::state_table;

state_table! {
    /// Where a layout change stands in one file.
    pub enum ChangeState {
        /// It waits for its turn, or for lease requests that came before it. It holds nothing.
        Queued,
        /// It has the turn for its range, and judges leases and pins.
        Judging,
        /// It waits for leases, pins, clients or guests, with all pages open. It keeps its place.
        Waiting,
        /// The pages that it takes are closed, and their short-term pins drain.
        Closed,
        /// Its map is published.
        Published,
        /// It is over.
        Over,
    }

    /// What happens to a layout change.
    pub enum ChangeEvent {
        /// No change that overlaps it comes before it.
        TakeTurn,
        /// It must plan again, behind the changes that come before it.
        StandBack,
        /// It meets a lease, a pin, a client or a guest that it waits for.
        Wait,
        /// It closes the pages that it takes.
        Close,
        /// It reopens them, to judge again.
        Reopen,
        /// Its map becomes visible.
        Publish,
        /// The call returns; before the map is visible, with an error or without an effect.
        Finish,
    }

    start Queued;
    Queued + TakeTurn => Judging;
    Judging | Waiting + StandBack => Queued;
    Judging | Waiting + Wait => Waiting;
    Judging + Close => Closed;
    Closed + Reopen => Judging;
    Judging | Closed + Publish => Published;
    Queued | Judging | Waiting | Closed | Published + Finish => Over;
}

impl ChangeState {
    /// Whether it excludes other changes of its range.
    pub(crate) fn has_turn(self) -> bool {
        matches!(self, ChangeState::Judging | ChangeState::Closed | ChangeState::Published)
    }
}
