//! The watch over freed blocks that guests may still reach.
//!
//! It owns this watch, on a machine for which it was switched on ([`Kernel::watch_stale_guests`]);
//! on any other nothing is filled or compared. The kernel cannot see a guest's stores, only their
//! result: a block that goes to the allocator while an export still reaches it is filled with
//! [`STALE_FILL`] first, and every 64-byte line of it that differs later was stored to by a guest
//! that no longer owned it. Invariants: a block is filled after no file maps it and before the
//! allocator can give it away, so the fill destroys nothing; it is compared for the last time
//! after it was given away and before its new owner writes, so no owner's store is counted. The
//! count is therefore a lower bound: it misses stores after the block has a new owner, stores of
//! the fill byte, and stores into blocks that moved to another file without being free in between.
//! Kernel counterpart: slab poisoning (mm/slub.c, `POISON_FREE`), `page_poison=1`.

use std::collections::BTreeMap;

use emulator::pin::PageRange;
use emulator::sync::atomic::{AtomicBool, Ordering};
use emulator::sync::{Arc, Mutex};

use crate::base::numbers::HolderId;
use crate::base::page_sets::without;
use crate::base::units::BLOCK;
use crate::vfs::attachments::{Attachment, Slot};
use crate::vfs::kernel::Kernel;
use crate::volume::PageList;

/// What watched blocks are filled with.
pub const STALE_FILL: u8 = 0xd5;

/// Bytes in a cache line, the unit of a comparison.
const LINE: usize = 64;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct StaleWatch {
    pub(crate) on: AtomicBool,
    pub(crate) state: Mutex<StaleWatchState>,
}

#[derive(Debug, Default)]
pub(crate) struct StaleWatchState {
    /// The pages that each export reaches.
    exports: BTreeMap<HolderId, Arc<[PageRange]>>,
    /// Filled, free, and reached by an export when they were freed.
    pub(crate) filled: PageList,
    /// Changed lines found in blocks that are no longer watched.
    pub(crate) settled: u64,
}

impl Attachment for StaleWatch {
    const SLOT: Slot = Slot::StaleWatch;
}

impl StaleWatch {
    /// An export reaches `pages` from now on.
    pub(crate) fn begin(&self, export: HolderId, pages: &Arc<[PageRange]>) {
        self.state.lock().exports.insert(export, Arc::clone(pages));
    }

    /// The export no longer reaches its pages. Its freed blocks stay watched until they are given
    /// away: no other task stores there either.
    pub(crate) fn end(&self, export: HolderId) {
        self.state.lock().exports.remove(&export);
    }

    fn is_on(&self) -> bool {
        // ORDERING: Relaxed: the thread that switches it on then changes a layout itself, or hands
        // over by a lock.
        self.on.load(Ordering::Relaxed)
    }
}

/// Blocks are about to go to the allocator: no file maps them, and it cannot give them away yet.
pub(crate) fn watch_freed(kernel: &Kernel, pages: PageRange) {
    if !kernel.attached::<StaleWatch>().is_on() {
        return;
    }
    let reached: Vec<PageRange> = {
        let state = kernel.attached::<StaleWatch>().state.lock();
        state.exports.values().flat_map(|export| export.iter().filter_map(|held| held.intersect(pages))).collect()
    };
    // A fill would heal poisoned pages.
    let poisoned: Vec<PageRange> =
        kernel.device.poison().pages().into_iter().map(|page| PageRange::new(page, 1)).collect();
    for run in without(&reached, &poisoned) {
        // If the device is gone, there is nothing to watch.
        if kernel.device.fill(run, STALE_FILL).is_ok() {
            kernel.attached::<StaleWatch>().state.lock().filled.put(run);
        }
    }
}

/// Blocks were given to a change that has not written to them yet.
pub(crate) fn unwatch_given(kernel: &Kernel, pages: &[PageRange]) {
    if !kernel.attached::<StaleWatch>().is_on() {
        return;
    }
    for pages in pages {
        let given = kernel.attached::<StaleWatch>().state.lock().filled.take(*pages);
        let changed: u64 = given.into_iter().map(|pages| changed_lines(kernel, pages)).sum();
        kernel.attached::<StaleWatch>().state.lock().settled += changed;
    }
}

pub(crate) fn changed_lines(kernel: &Kernel, pages: PageRange) -> u64 {
    let mut bytes = [0; BLOCK as usize];
    let changed = |page: u64| match kernel.device.read(page * BLOCK, &mut bytes) {
        Ok(()) => bytes.chunks(LINE).filter(|line| line.iter().any(|byte| *byte != STALE_FILL)).count() as u64,
        // Poisoned since, or the device is gone: nothing can be said.
        Err(_) => 0,
    };
    pages.pages().map(changed).sum()
}
