//! The states of a layout lease.
//!
//! It owns the table of transitions and the one function that changes a lease's state
//! (`change_state`). Invariant: a lease that is [`LeaseState::Ended`] is in no inode's table any
//! more. docs/states/layout-lease.md draws the machine. Kernel counterpart: `fl_type` with
//! `FL_UNLOCK_PENDING` and `FL_DOWNGRADE_PENDING` of `struct file_lease` (fs/locks.c).

use emulator::state_table;

use super::table::LeaseEntry;
use crate::vfs::kernel::Kernel;

state_table! {
    /// Where a layout lease stands.
    pub enum LeaseState {
        /// In force.
        Held,
        /// Being broken to a read lease; the owner was signalled.
        BreakingToRead,
        /// Being broken to nothing; the owner was signalled.
        BreakingToNothing,
        /// The break to read timed out and the owner was sent SIGKILL; the next time-out takes it
        /// by force.
        KilledToRead,
        /// The break to nothing timed out and the owner was sent SIGKILL; the next time-out takes
        /// it by force.
        KilledToNothing,
        /// Its open file is gone; pins taken under it keep it.
        Zombie,
        /// It is given back, taken away or replaced, and leaves the table.
        Ended,
    }

    /// What happens to a layout lease.
    pub enum LeaseEvent {
        /// A request for a read lease breaks a write lease.
        BreakToRead,
        /// A request for a write lease, or a layout change, breaks it.
        BreakToNothing,
        /// The break time is over under `break_timeout = kill`, for the first time.
        Kill,
        /// The break time is over, and the kernel carries the break out.
        TimeOut,
        /// The holder sets its kind again (`F_SETLEASE`, or a downgrade): a new kind, or what a
        /// break leaves.
        Convert,
        /// The holder gives it back, or the part of it that a request replaces.
        Unlock,
        /// The last reference to its open file is gone, and no pin keeps it.
        Close,
        /// The last reference to its open file is gone, and pins keep it.
        CloseWhilePinned,
        /// The last pin taken under a zombie is gone.
        LastUnpin,
        /// A layout change takes it away and signals its owner.
        Remove,
    }

    start Held;
    Held | BreakingToRead | BreakingToNothing | KilledToRead | KilledToNothing + Unlock => Ended;
    Held | BreakingToRead | BreakingToNothing | KilledToRead | KilledToNothing + Close => Ended;
    Held | BreakingToRead | BreakingToNothing | KilledToRead | KilledToNothing + CloseWhilePinned => Zombie;
    Held | BreakingToRead | BreakingToNothing | KilledToRead | KilledToNothing | Zombie + Remove => Ended;
    Held + BreakToRead => BreakingToRead;
    Held | BreakingToRead | KilledToRead + BreakToNothing => BreakingToNothing;
    Held | BreakingToRead | KilledToRead + Convert => Held;
    BreakingToRead + Kill => KilledToRead;
    BreakingToNothing + Kill => KilledToNothing;
    BreakingToRead | KilledToRead + TimeOut => Held;
    BreakingToNothing | KilledToNothing + TimeOut => Ended;
    Zombie + LastUnpin => Ended;
}

impl LeaseState {
    /// Whether a break is pending.
    pub(crate) fn is_breaking(self) -> bool {
        use LeaseState::{BreakingToNothing, BreakingToRead, KilledToNothing, KilledToRead};
        matches!(self, BreakingToRead | BreakingToNothing | KilledToRead | KilledToNothing)
    }

    /// Whether a pending break leaves a read lease.
    pub(crate) fn leaves_read(self) -> bool {
        matches!(self, LeaseState::BreakingToRead | LeaseState::KilledToRead)
    }

    /// Whether the owner was sent SIGKILL because a break timed out.
    pub(crate) fn is_killed(self) -> bool {
        matches!(self, LeaseState::KilledToRead | LeaseState::KilledToNothing)
    }
}

/// Changes the state of a lease: the only place that does. True if the lease stays in the table. An
/// event that the table has no row for is recorded as a broken invariant, and changes nothing.
pub(crate) fn change_state(kernel: &Kernel, entry: &mut LeaseEntry, event: LeaseEvent) -> bool {
    match entry.state.next(event) {
        Ok(next) => entry.state = next,
        Err(invalid) => kernel.violated(format!("layout lease {}: {invalid}", entry.lease.id.0)),
    }
    entry.state != LeaseState::Ended
}

#[cfg(all(test, not(any(daxlab_loom, daxlab_shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn only_a_row_of_the_table_changes_a_state() {
        let mut rows = 0;
        for state in LeaseState::ALL {
            for event in LeaseState::EVENTS {
                match state.next(*event) {
                    Ok(_) => rows += 1,
                    Err(invalid) => {
                        assert_eq!(invalid.state, state.name());
                        assert!(invalid.to_string().contains(&format!("{event:?}")), "{invalid}");
                    }
                }
            }
        }
        assert_eq!(rows, 35, "rows of the table, each state of an alternative counted");
        assert!(LeaseState::EVENTS.iter().all(|event| LeaseState::Ended.next(*event).is_err()), "an end is final");
    }

    #[test]
    fn a_break_to_nothing_leaves_no_way_back() {
        let breaking = LeaseState::START.next(LeaseEvent::BreakToNothing).expect("a held lease can be broken");
        assert!(breaking.is_breaking() && !breaking.leaves_read());
        assert!(breaking.next(LeaseEvent::Convert).is_err(), "the holder can only unlock");
        assert_eq!(breaking.next(LeaseEvent::TimeOut), Ok(LeaseState::Ended));
    }
}
