//! What guests store into blocks that were freed beneath them.
//!
//! It owns the watch over such blocks, for a machine on which somebody asked for it ([`Kernel::watch_stale_guests`]): nothing is
//! looked at, filled or compared on any other. A guest's stores can't be seen, only what they leave: a block that goes to the
//! allocator while an export still reaches it is filled with [`STALE_FILL`] first, and every 64-byte line of it that differs
//! later was stored to by somebody to whom it no longer belongs. Invariants: a block is filled after no file maps it and before
//! anybody can be given it, so the fill destroys nothing; it is compared for the last time after it was given away and before its
//! new owner writes, so no owner's store is taken for a stale one. What is counted is therefore a lower bound: stores after the
//! block has a new owner, stores of what stood there anyway, and stores into blocks that moved to another file without being
//! free in between are missed. Kernel counterpart: slab poisoning (mm/slub.c, `POISON_FREE`), `page_poison=1`.

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

/// Bytes in a line: what a processor writes back at once.
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
    /// Lines found changed in blocks that are no longer watched.
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

    /// It no longer does. Its blocks stay watched until they are given away: nobody else stores there either.
    pub(crate) fn end(&self, export: HolderId) {
        self.state.lock().exports.remove(&export);
    }

    fn is_on(&self) -> bool {
        // ORDERING: Relaxed: whoever turned it on and then changes a layout does both on one thread, or hands over by a lock.
        self.on.load(Ordering::Relaxed)
    }
}

/// Blocks leave for the allocator: no file maps them, nobody can be given them yet.
pub(crate) fn watch_freed(kernel: &Kernel, pages: PageRange) {
    if !kernel.attached::<StaleWatch>().is_on() {
        return;
    }
    let reached: Vec<PageRange> = {
        let state = kernel.attached::<StaleWatch>().state.lock();
        state.exports.values().flat_map(|export| export.iter().filter_map(|held| held.intersect(pages))).collect()
    };
    // A fill would heal them.
    let poisoned: Vec<PageRange> =
        kernel.device.poison().pages().into_iter().map(|page| PageRange::new(page, 1)).collect();
    for run in without(&reached, &poisoned) {
        // If the device is gone, there is nothing to be watched either.
        if kernel.device.fill(run, STALE_FILL).is_ok() {
            kernel.attached::<StaleWatch>().state.lock().filled.put(run);
        }
    }
}

/// Blocks were given to somebody who has not written to them yet.
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
        // Poisoned since, or gone: nothing can be said.
        Err(_) => 0,
    };
    pages.pages().map(changed).sum()
}
