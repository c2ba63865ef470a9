//! Announcing that a layout change waits.
//!
//! It owns the announcement to lease requests. Invariant: a lease request that waits for a change
//! checks again whenever the change begins to wait. Kernel counterpart: none; a task that waits in
//! `break_layout` holds no lock, but is not visible either.

use emulator::sync::Arc;

use crate::base::range::BlockRanges;
use crate::holders::holder::Holder;
use crate::leases::layout::table::LeaseTable;
use crate::vfs::inode::Inode;
use crate::vfs::layout_turn::{MetPins, TurnGuard};

/// The change gives up its turn in a file in which it does not wait. Lease requests there
/// go on.
pub(crate) fn stand_aside(inode: &Inode, turn: &TurnGuard<'_>) {
    turn.stand_aside();
    LeaseTable::of(inode).change_over(turn.task());
}

/// The change gives up its turn and keeps its place. Lease requests go on.
pub(crate) fn stand_back(inode: &Inode, turn: &TurnGuard<'_>) {
    turn.stand_back();
    LeaseTable::of(inode).change_over(turn.task());
}

/// Marks the change that has `turn`, and that has met `pins`, as waiting on `ranges`. Lease
/// requests that wait for the change check again.
pub(crate) fn publish_waiting_on(inode: &Inode, turn: &TurnGuard<'_>, ranges: &BlockRanges, pins: &[Arc<Holder>]) {
    let holders = pins.iter().map(|holder| holder.id).collect();
    publish_waiting(inode, turn, ranges, MetPins { holders, io_pages: Vec::new() });
}

/// As [`publish_waiting_on`]; the pins may be I/O in flight.
pub(crate) fn publish_waiting(inode: &Inode, turn: &TurnGuard<'_>, ranges: &BlockRanges, pins: MetPins) {
    turn.set_waiting(ranges.clone(), pins);
    requests_go_on(inode, turn);
}

/// As [`publish_waiting`], for a change that waits for pins and takes the inode at the same
/// moment. False: the change of another task holds the inode.
pub(crate) fn publish_holding(inode: &Inode, turn: &TurnGuard<'_>, ranges: &BlockRanges, pins: MetPins) -> bool {
    let held = turn.hold_and_wait(ranges.clone(), pins);
    requests_go_on(inode, turn);
    held
}

fn requests_go_on(inode: &Inode, turn: &TurnGuard<'_>) {
    if turn.has_closed_pages() {
        LeaseTable::of(inode).changed.wake_all();
    } else {
        // With its pages open it judges leases again after the wait.
        LeaseTable::of(inode).change_over(turn.task());
    }
}
