//! TODO

use emulator::sync::Arc;

use crate::base::range::BlockRanges;
use crate::holders::holder::Holder;
use crate::leases::layout::table::LeaseTable;
use crate::vfs::inode::Inode;
use crate::vfs::layout_turn::TurnGuard;

/// Marks the change that holds `turn`, and that has met `pins`, as waiting on `ranges`; lease requests that wait for it look
/// again.
pub(crate) fn publish_waiting_on(inode: &Inode, turn: &TurnGuard<'_>, ranges: &BlockRanges, pins: &[Arc<Holder>]) {
    turn.set_waiting(ranges.clone(), pins.iter().map(|holder| holder.id).collect());
    LeaseTable::of(inode).changed.wake_all();
}
