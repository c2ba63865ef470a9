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
use crate::vfs::layout_turn::TurnGuard;

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
    turn.set_waiting(ranges.clone(), pins.iter().map(|holder| holder.id).collect());
    if turn.has_closed_pages() {
        LeaseTable::of(inode).changed.wake_all();
    } else {
        // With its pages open it judges leases again after the wait.
        LeaseTable::of(inode).change_over(turn.task());
    }
}
