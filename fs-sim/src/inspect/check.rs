//! The check of the invariants at the end of a run.
//!
//! It owns the comparison of pin words, holders, leases, blocks and notices with what they must be
//! when every process has exited. Invariant: it changes nothing. Kernel counterpart: xfs_scrub(8),
//! `kmemleak`.

use std::collections::BTreeMap;

use emulator::pin::PageRange;
use emulator::sync::Arc;

use crate::base::numbers::Ino;
use crate::base::page_sets::without;
use crate::extent_map::lookup::pages_of;
use crate::extent_map::{ExtentState, Layout};
use crate::holders::list::{notify_only, pin_holders};
use crate::leases::posix::table::PosixLeases;
use crate::vfs::kernel::Kernel;

impl Kernel {
    /// Checks, with every process gone, the invariants about the end of a run (docs/semantics.md,
    /// section 8), and returns what is broken, in words. Invariants 1, 2 and 8 are recorded while
    /// the run goes on; invariant 7 is checked by the oracle, which knows what was written.
    pub fn check_at_rest(&self) -> Vec<String> {
        let mut broken = self.violations();
        for (pid, _) in self.processes.snapshot() {
            broken.push(format!("process {pid} is still there at the end"));
        }
        for (unit, word) in self.pins.busy_words(16) {
            broken.push(format!("invariant 3: a pin word is not zero at the end: {unit:?} {word:?}"));
        }
        for (ino, inode) in self.inodes.snapshot() {
            for holder in pin_holders(&inode).all().into_iter().chain(notify_only(&inode).all()) {
                broken.push(format!("invariant 3: inode {} still lists holder {} at the end", ino.0, holder.id.0));
            }
            for lease in inode.leases() {
                broken
                    .push(format!("invariant 3: inode {} still has lease {} at the end: {lease:?}", ino.0, lease.id.0));
            }
        }
        let directory = (Ino::DIRECTORY, Arc::clone(&self.directory));
        for (ino, inode) in self.inodes.snapshot().into_iter().chain([directory]) {
            if !PosixLeases::of(&inode).lock().is_empty() {
                broken.push(format!(
                    "base leases: inode {} still counts opens, or has {:?}",
                    ino.0,
                    self.base_leases(&inode)
                ));
            }
        }
        broken.extend(check_owners(self));
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
}

/// Invariant 4: every block has one owner, or is recorded as shared with the right count and
/// marked in every map; and the allocator's books agree with the files' maps.
fn check_owners(kernel: &Kernel) -> Vec<String> {
    let mut broken = Vec::new();
    // Where the number of mappings changes, along the device.
    let mut edges: BTreeMap<u64, (i64, Vec<Ino>)> = BTreeMap::new();
    for (ino, inode) in kernel.inodes.snapshot() {
        let extents: Vec<_> = inode.layout(|layout: &Layout| layout.extents().collect());
        for extent in extents {
            let pages = pages_of(&extent);
            let start = edges.entry(pages.start()).or_default();
            start.0 += 1;
            start.1.push(ino);
            edges.entry(pages.end()).or_default().0 -= 1;
            let shared = kernel.shares.counts(pages).iter().any(|(_, count)| *count > 1);
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
        for (run, count) in kernel.shares.counts(pages).into_iter().filter(|_| times > 0) {
            if i64::try_from(count) != Ok(times) {
                let what = format!("device {run} is mapped {times} times, and recorded as {count}");
                broken.push(format!("invariant 4: {what}; next along the device: {owners:?}"));
            }
        }
        (times, from) = (times + change, *at);
    }
    // What is recorded as shared must be mapped at all.
    let recorded: Vec<PageRange> = kernel.shares.runs().into_iter().map(|(run, _)| run).collect();
    for pages in without(&recorded, &mapped) {
        broken.push(format!("invariant 4: device {pages} is recorded as shared, and no file's"));
    }
    broken.extend(kernel.allocator.check_owned(mapped.into_iter().chain(kernel.orphans.pages())));
    broken.extend(kernel.allocator.check());
    broken
}
