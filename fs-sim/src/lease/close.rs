//! The last reference to an open file is gone: what becomes of its leases, and of pins taken under them.
//!
//! It owns the axis `last_close_while_pinned`. Invariants: after the release no entry of the description is left but
//! zombies; only `close` and `dup2` ever wait; a zombie is exclusive, covers the whole file, lets nobody through, and ends
//! with the last pin taken under it. Kernel counterpart: `locks_remove_lease` called from `__fput`.

use emulator::sync::Arc;
use emulator::wait::WaitFor;

use super::Lease;
use super::table::State;
use crate::Kernel;
use crate::design::LastCloseRule;
use crate::inode::Inode;
use crate::process::description::{Deferred, DescriptionId};
use crate::process::task::Task;
use crate::range::BlockRange;

/// What the first pass over a closed description's leases leaves to do once the table is unlocked.
#[derive(Default)]
struct Aftermath {
    /// Gone although pins live under them.
    lost: Vec<Arc<Lease>>,
    /// To be waited for.
    awaited: Vec<Arc<Lease>>,
    /// Their pins are to be revoked.
    revoked: Vec<Arc<Lease>>,
}

impl Kernel {
    /// Releases an open file. `closer` is the task whose `close` or `dup2` this is, the only kind that may wait.
    pub(crate) fn release_file(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        file: DescriptionId,
        closer: Option<&Task>,
        _deferred: &mut Deferred,
    ) {
        let aftermath = self.drop_leases(inode, file, closer.is_some());
        inode.leases.changed.wake_all();
        for lease in &aftermath.lost {
            self.lease_lost(inode, lease);
        }
        for lease in &aftermath.revoked {
            for holder in inode.holders.under_lease(lease) {
                self.revoke(&holder);
            }
        }
        if let Some(task) = closer
            && !aftermath.awaited.is_empty()
        {
            self.counters.waits_for_long_term_pin.add(1);
            for lease in &aftermath.awaited {
                let killed = task.wait_for_gate(inode, lease, WaitFor::killable("close while pinned")).is_err();
                self.end_of_awaited(inode, lease, killed);
            }
        }
        self.trace("file released", file.0, inode.ino().0, None);
        self.drop_open(inode);
    }

    fn drop_leases(&self, inode: &Inode, file: DescriptionId, may_wait: bool) -> Aftermath {
        let mut aftermath = Aftermath::default();
        let mut entries = inode.leases.lock();
        entries.retain_mut(|entry| {
            if entry.file != file || entry.state == State::Zombie {
                return true;
            }
            let (pins, _) = entry.lease.gate.close();
            if pins == 0 {
                return false;
            }
            let lease = Arc::clone(&entry.lease);
            match self.axes.last_close_while_pinned {
                None | Some(LastCloseRule::Release) => aftermath.lost.push(lease),
                Some(LastCloseRule::Revoke) => aftermath.revoked.push(lease),
                Some(LastCloseRule::WaitKillable) if may_wait => {
                    aftermath.awaited.push(lease);
                    return true;
                }
                Some(LastCloseRule::Zombie | LastCloseRule::WaitKillable) => {
                    if entry.kind.is_exclusive(self.axes.lease_rules) {
                        self.counters.zombie_leases.rise();
                        entry.state = State::Zombie;
                        entry.range = BlockRange::ALL;
                        return true;
                    }
                    aftermath.lost.push(lease);
                }
            }
            false
        });
        aftermath
    }

    /// A `wait-killable` close has seen the last pin go, or was killed: then the lease goes on as a zombie, if exclusive.
    fn end_of_awaited(self: &Arc<Self>, inode: &Inode, lease: &Arc<Lease>, killed: bool) {
        let mut lost = false;
        {
            let mut entries = inode.leases.lock();
            entries.retain_mut(|entry| {
                if !Arc::ptr_eq(&entry.lease, lease) {
                    return true;
                }
                if !killed || lease.gate.inside() == 0 {
                    return false;
                }
                if entry.kind.is_exclusive(self.axes.lease_rules) {
                    self.counters.zombie_leases.rise();
                    entry.state = State::Zombie;
                    entry.range = BlockRange::ALL;
                    return true;
                }
                lost = true;
                false
            });
        }
        inode.leases.changed.wake_all();
        if lost {
            self.lease_lost(inode, lease);
        }
    }
}
