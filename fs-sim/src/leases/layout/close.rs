//! The last close of an open file: what becomes of its leases, and of pins taken under them.
//!
//! It owns the axis `last_close_while_pinned`. Invariants: after the release the table holds no
//! lease of the open file but zombies; only `close` and `dup2` wait; a zombie is exclusive, covers
//! the whole file unless a rule `revoke` has cut it, admits no pin, and ends with the last pin
//! taken under it. Kernel counterpart: `locks_remove_lease`, called from `__fput`.

use emulator::sync::Arc;
use emulator::wait::WaitFor;

use crate::base::numbers::DescriptionId;
use crate::base::range::BlockRange;
use crate::design::LastCloseRule;
use crate::holders::holder::RevokeReason;
use crate::holders::lease_gate::Lease;
use crate::holders::lease_gate::LeaseRevocation;
use crate::leases::layout::breaking::{leases_lost, revoke_under};
use crate::leases::layout::state::{LeaseEvent, LeaseState, change_state};
use crate::leases::layout::table::{LeaseEntry, LeaseTable};
use crate::leases::layout::unlock::wait_for_gate;
use crate::vfs::inode::Inode;
use crate::vfs::kernel::Kernel;
use crate::vfs::lifecycle::LastReference;
use crate::vfs::names::drop_open;

/// What is left to do after the table is unlocked.
#[derive(Default)]
struct CloseAftermath {
    /// Leases that went although pins taken under them live.
    lost: Vec<Arc<Lease>>,
    /// Leases to wait for.
    awaited: Vec<Arc<Lease>>,
    /// Leases whose pins are to be revoked.
    revoked: Vec<Arc<Lease>>,
}

/// Releases an open file.
pub(crate) fn release_leases(kernel: &Arc<Kernel>, inode: &Arc<Inode>, file: DescriptionId, last: LastReference<'_>) {
    let mut closer = last.closer();
    let mut has_waited = false;
    loop {
        let aftermath = drop_leases(kernel, inode, file, closer.is_some());
        LeaseTable::of(inode).changed.wake_all();
        leases_lost(kernel, inode, &aftermath.lost);
        revoke_under(kernel, inode, &aftermath.revoked, RevokeReason::Rule);
        let Some(task) = closer.filter(|_| !aftermath.awaited.is_empty()) else { break };
        if !has_waited {
            kernel.counters.waits_for_long_term_pin.add(1);
            has_waited = true;
        }
        // Meanwhile a layout change can cut a lease in parts, so the table is looked at again.
        let how = || WaitFor::killable("close while pinned");
        if aftermath.awaited.iter().any(|lease| wait_for_gate(task, inode, lease, how()).is_err()) {
            closer = None;
        }
    }
    kernel.trace("file released", file.0, inode.ino().0, None);
    drop_open(kernel, inode, last);
}

/// Ends the leases of the open file. A lease that pins keep becomes a zombie, or is one to wait for
/// if the caller `may_wait`.
fn drop_leases(kernel: &Kernel, inode: &Inode, file: DescriptionId, may_wait: bool) -> CloseAftermath {
    let mut aftermath = CloseAftermath::default();
    let mut entries = LeaseTable::of(inode).lock();
    entries.retain_mut(|entry| {
        if entry.file != file || entry.state() == LeaseState::Zombie {
            return true;
        }
        let (pins, _) = entry.lease.gate.close();
        if pins == 0 {
            return change_state(kernel, entry, LeaseEvent::Close);
        }
        let lease = Arc::clone(&entry.lease);
        match kernel.axes.last_close_while_pinned {
            None | Some(LastCloseRule::Release) => aftermath.lost.push(lease),
            Some(LastCloseRule::Revoke) => {
                lease.revoked.get_or_init(|| LeaseRevocation::LastClose);
                aftermath.revoked.push(lease);
            }
            Some(LastCloseRule::WaitKillable) if may_wait => {
                aftermath.awaited.push(lease);
                return true;
            }
            Some(LastCloseRule::Zombie | LastCloseRule::WaitKillable) => {
                if entry.kind.is_exclusive(kernel.axes.lease_rules) {
                    return become_zombie(kernel, entry);
                }
                aftermath.lost.push(lease);
            }
        }
        change_state(kernel, entry, LeaseEvent::Close)
    });
    aftermath
}

/// Pins keep an exclusive lease whose open file is gone: it covers the whole file from now on. A
/// part of a lease that a rule `revoke` has cut stays as it is. True: it stays in the table.
fn become_zombie(kernel: &Kernel, entry: &mut LeaseEntry) -> bool {
    kernel.counters.zombie_leases.rise();
    if !entry.is_part {
        entry.range = BlockRange::ALL;
    }
    change_state(kernel, entry, LeaseEvent::CloseWhilePinned)
}
