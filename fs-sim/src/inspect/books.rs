//! Questions about leases, holders, blocks and processes.
//!
//! It owns no state. Invariant: nothing here changes anything, and every answer names objects by
//! number. Kernel counterpart: /proc/locks, /proc/PID/fdinfo, debugfs.

use std::collections::BTreeMap;

use emulator::sync::Arc;

use crate::base::numbers::{Ino, LeaseId, Pid};
use crate::base::range::BlockRange;
use crate::deadlock::need::Participant;
use crate::holders::holder::Holder;
use crate::holders::list::pin_holders;
use crate::leases::layout::kind::LeaseKind;
use crate::leases::layout::state::LeaseState;
use crate::leases::layout::table::LeaseTable;
use crate::leases::posix::breaking::posix_lease_releasers;
use crate::leases::posix::request::PosixLeaseInfo;
use crate::leases::posix::table::PosixLeases;
use crate::pinning::dma::{StaleFinding, StaleFindings};
use crate::vfs::inode::Inode;
use crate::vfs::kernel::Kernel;
use crate::vfs::process::Process;

impl Kernel {
    /// The ordinary leases and delegations of a file, in the order they were set. Unlike
    /// `F_GETLEASE`, this question times no break out.
    pub fn base_leases(&self, inode: &Inode) -> Vec<PosixLeaseInfo> {
        let found = PosixLeases::of(inode).lock().leases().to_vec();
        found
            .into_iter()
            .map(|entry| PosixLeaseInfo {
                description: entry.file,
                setter: entry.setter,
                owner: entry.signal_owner.posix_owner(),
                flavor: entry.flavor,
                held: entry.held,
                breaking: entry.is_breaking(),
                left: entry.left(),
                deadline: entry.deadline(),
                releasers: posix_lease_releasers(self, &entry),
            })
            .collect()
    }

    /// All inodes that still exist, by number.
    pub fn inodes(&self) -> Vec<(Ino, Arc<Inode>)> {
        self.inodes.snapshot()
    }

    /// Every name, in order.
    pub fn file_names(&self) -> Vec<String> {
        self.names.lock().keys().cloned().collect()
    }

    /// The inode of that name.
    pub fn named(&self, name: &str) -> Option<Arc<Inode>> {
        self.names.lock().get(name).cloned()
    }

    /// How many blocks are allocated, orphaned and free.
    pub fn usage(&self) -> Usage {
        Usage {
            allocated: self.allocator.allocated_blocks(),
            orphaned: self.orphans.count(),
            orphaned_peak: self.orphans.peak(),
            free: self.allocator.free_blocks(),
        }
    }

    /// A process by number, while it lives.
    pub fn process(&self, pid: Pid) -> Option<Arc<Process>> {
        self.processes.get(pid)
    }

    /// Every task that is blocked in a system call, in words: task, process, and what it needs.
    pub fn blocked(&self) -> Vec<String> {
        let sleepers: BTreeMap<_, _> =
            self.world.sleepers().into_iter().map(|sleeper| (sleeper.waiter, sleeper.reason)).collect();
        self.waits
            .blocked()
            .into_iter()
            .map(|blocked| {
                let reason = sleepers.get(&blocked.task).copied().unwrap_or("waking up");
                Participant { reason, ..blocked }.to_string()
            })
            .collect()
    }

    /// The stale accesses found, the first [`FINDINGS_MAX`](crate::pinning::dma::FINDINGS_MAX) of
    /// them.
    pub fn findings(&self) -> Vec<StaleFinding> {
        self.attached::<StaleFindings>().all()
    }
}

/// The state of a layout lease, as reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseStatus {
    /// In force.
    Held,
    /// Being broken.
    Breaking,
    /// Without an open file, kept by pins.
    Zombie,
}

/// A layout lease, as reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseInfo {
    /// Its number.
    pub id: LeaseId,
    /// The process that took it.
    pub pid: Pid,
    /// Its kind.
    pub kind: LeaseKind,
    /// The file blocks it is about.
    pub range: BlockRange,
    /// Its state.
    pub state: LeaseStatus,
    /// How many pins taken under it live.
    pub pins: u64,
}

/// How many blocks are allocated, orphaned and free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Allocated to files or orphaned.
    pub allocated: u64,
    /// Of these, orphaned now.
    pub orphaned: u64,
    /// Orphaned at most so far.
    pub orphaned_peak: u64,
    /// Free.
    pub free: u64,
}

impl Inode {
    /// Its leases, in the order they were taken.
    pub fn leases(&self) -> Vec<LeaseInfo> {
        LeaseTable::of(self)
            .lock()
            .iter()
            .map(|entry| LeaseInfo {
                id: entry.lease.id,
                pid: entry.pid,
                kind: entry.kind,
                range: entry.range,
                state: match entry.state() {
                    state if state.is_breaking() => LeaseStatus::Breaking,
                    LeaseState::Zombie => LeaseStatus::Zombie,
                    _ => LeaseStatus::Held,
                },
                pins: entry.lease.gate.inside(),
            })
            .collect()
    }

    /// The committed holders of its pages.
    pub fn holders(&self) -> Vec<Arc<Holder>> {
        pin_holders(self).all()
    }
}
