//! Questions about the kernel's state: who leases, who pins, who blocks; and the check of everything at the end of a run.
//!
//! It owns no state. Invariant: nothing here changes anything, and every answer names who it speaks of. Kernel counterpart:
//! /proc/locks, /proc/PID/fdinfo, debugfs.

pub mod blockers;

use std::collections::BTreeMap;

use emulator::pin::PageRange;
use emulator::sync::Arc;

use crate::Kernel;
use crate::errno::Errno;
use crate::extent_map::{ExtentState, Layout};
use crate::holders::Holder;
use crate::inode::{Ino, Inode};
use crate::lease::table::State;
use crate::lease::{Kind, LeaseId};
use crate::process::Pid;
use crate::process::fd_table::Fd;
use crate::process::task::Task;
use crate::range::BlockRange;

/// Where a lease stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseState {
    /// In force.
    Held,
    /// Being broken.
    Breaking,
    /// Without an open file, kept by pins.
    Zombie,
}

/// A lease, as seen from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseInfo {
    /// Its number.
    pub id: LeaseId,
    /// Who took it.
    pub pid: Pid,
    /// Its kind.
    pub kind: Kind,
    /// The file blocks it is about.
    pub range: BlockRange,
    /// Where it stands.
    pub state: LeaseState,
    /// Pins taken under it that still live.
    pub pins: u64,
}

/// How many blocks are where.
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

impl Task {
    /// The inode of the file open as `fd`, for questions.
    ///
    /// # Errors
    /// EBADF, EINVAL (not a file).
    pub fn inode(&self, fd: Fd) -> Result<Arc<Inode>, Errno> {
        let description = self.description(fd)?;
        description.file().map(|(inode, _)| Arc::clone(inode)).ok_or(Errno::EINVAL)
    }
}

impl Inode {
    /// Its leases, in the order they were taken.
    pub fn leases(&self) -> Vec<LeaseInfo> {
        self.leases
            .lock()
            .iter()
            .map(|entry| LeaseInfo {
                id: entry.lease.id,
                pid: entry.pid,
                kind: entry.kind,
                range: entry.range,
                state: match entry.state {
                    State::Held => LeaseState::Held,
                    State::Breaking { .. } => LeaseState::Breaking,
                    State::Zombie => LeaseState::Zombie,
                },
                pins: entry.lease.gate.inside(),
            })
            .collect()
    }

    /// The committed holders of its pages.
    pub fn holders(&self) -> Vec<Arc<Holder>> {
        self.holders.all()
    }
}

impl Kernel {
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

    /// How many blocks are where.
    pub fn usage(&self) -> Usage {
        Usage {
            allocated: self.allocator.allocated_blocks(),
            orphaned: self.orphans.count(),
            orphaned_peak: self.orphans.peak(),
            free: self.allocator.free_blocks(),
        }
    }

    /// A process by number, while it lives.
    pub fn process(&self, pid: Pid) -> Option<Arc<crate::process::Process>> {
        self.processes.get(pid)
    }

    /// Who is blocked in a system call, as words: task, process, and the processes it needs.
    pub fn blocked(&self) -> Vec<String> {
        let sleepers: BTreeMap<_, _> =
            self.world.sleepers().into_iter().map(|sleeper| (sleeper.waiter, sleeper.reason)).collect();
        self.waits
            .blocked()
            .into_iter()
            .map(|blocked| {
                let reason = sleepers.get(&blocked.task).copied().unwrap_or("waking up");
                crate::waits::Participant { reason, ..blocked }.to_string()
            })
            .collect()
    }

    /// Checks, with every process gone, the invariants that concern the end of a run (SEMANTICS section 8); what is broken,
    /// in words. Invariants 1, 2 and 8 are recorded while running; 7 is the oracle's, which knows who wrote what.
    pub fn check_at_rest(&self) -> Vec<String> {
        let mut broken = self.violations();
        for (pid, _) in self.processes.snapshot() {
            broken.push(format!("process {pid} is still there at the end"));
        }
        for (unit, word) in self.pins.busy_words(16) {
            broken.push(format!("invariant 3: a pin word is not zero at the end: {unit:?} {word:?}"));
        }
        for (ino, inode) in self.inodes.snapshot() {
            for holder in inode.holders.all().into_iter().chain(inode.mapped.all()) {
                broken.push(format!("invariant 3: inode {} still lists holder {} at the end", ino.0, holder.id.0));
            }
            for lease in inode.leases() {
                broken
                    .push(format!("invariant 3: inode {} still has lease {} at the end: {lease:?}", ino.0, lease.id.0));
            }
        }
        for (ino, inode) in self.inodes.snapshot() {
            if !inode.base.lock().is_empty() {
                broken.push(format!(
                    "base leases: inode {} still counts opens, or has {:?}",
                    ino.0,
                    self.base_leases(&inode)
                ));
            }
        }
        broken.extend(self.check_owners());
        let counters = &self.counters;
        let (owed, told) = (counters.notices_owed.get(), counters.sigio_sent.get() + counters.sigio_unsent.get());
        if owed != told {
            broken.push(format!("invariant 5: {owed} lease owners had to be told, {told} were"));
        }
        for waiter in self.blocked() {
            broken.push(format!("invariant 6: still blocked at the end: {waiter}"));
        }
        broken
    }

    /// Invariant 4: every block has one owner, or is recorded as shared with the right count and marked in every map; and the
    /// allocator's books agree with the files'.
    fn check_owners(&self) -> Vec<String> {
        let mut broken = Vec::new();
        // Where the number of mappings rises and falls, along the device.
        let mut edges: BTreeMap<u64, (i64, Vec<Ino>)> = BTreeMap::new();
        for (ino, inode) in self.inodes.snapshot() {
            let extents: Vec<_> = inode.layout(|layout: &Layout| layout.extents().collect());
            for extent in extents {
                let pages = crate::gup::pages_of(&extent);
                let start = edges.entry(pages.start()).or_default();
                start.0 += 1;
                start.1.push(ino);
                edges.entry(pages.end()).or_default().0 -= 1;
                let shared = self.shares.counts(pages).iter().any(|(_, count)| *count > 1);
                if shared && !(extent.shared && extent.state == ExtentState::Written) {
                    broken.push(format!("invariant 4: {extent:?} of inode {} is shared, and not marked so", ino.0));
                }
            }
        }
        let (mut mapped, mut times, mut from) = (Vec::new(), 0, 0);
        for (at, (change, owners)) in &edges {
            let pages = PageRange::new(from, at - from);
            if times > 0 {
                mapped.push(pages);
            }
            for (run, count) in self.shares.counts(pages).into_iter().filter(|_| times > 0) {
                if i64::try_from(count) != Ok(times) {
                    let what = format!("device {run} is mapped {times} times, and recorded as {count}");
                    broken.push(format!("invariant 4: {what}; next along the device: {owners:?}"));
                }
            }
            (times, from) = (times + change, *at);
        }
        // What is recorded as shared must be mapped at all.
        let recorded: Vec<PageRange> = self.shares.runs().into_iter().map(|(run, _)| run).collect();
        for pages in crate::file_ops::without(&recorded, &mapped) {
            broken.push(format!("invariant 4: device {pages} is recorded as shared, and no file's"));
        }
        broken.extend(self.allocator.check_owned(mapped.into_iter().chain(self.orphans.pages())));
        broken.extend(self.allocator.check());
        broken
    }
}
