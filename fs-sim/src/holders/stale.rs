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

use super::HolderId;
use crate::file_ops::without;
use crate::volume::PageList;
use crate::{BLOCK, Kernel};

/// What watched blocks are filled with.
pub const STALE_FILL: u8 = 0xd5;

/// Bytes in a line: what a processor writes back at once.
const LINE: usize = 64;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct StaleWatch {
    on: AtomicBool,
    state: Mutex<Watched>,
}

#[derive(Debug, Default)]
struct Watched {
    /// The pages that each export reaches.
    exports: BTreeMap<HolderId, Arc<[PageRange]>>,
    /// Filled, free, and reached by an export when they were freed.
    filled: PageList,
    /// Lines found changed in blocks that are no longer watched.
    settled: u64,
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

impl Kernel {
    /// Watches from now on what guests store into blocks that are freed beneath them; not to be undone. It costs a fill and a
    /// comparison of such blocks, and guests find their contents gone.
    pub fn watch_stale_guests(&self) {
        self.stale.on.store(true, Ordering::Relaxed);
    }

    /// How many 64-byte lines of freed blocks differ from what they were filled with when they were freed beneath a guest: at
    /// least so many were stored to by a guest (or another device that still has them) that no longer owned them. 0 if nobody
    /// watches.
    pub fn stale_guest_changed_lines(&self) -> u64 {
        let (settled, filled) = {
            let state = self.stale.state.lock();
            (state.settled, state.filled.pages())
        };
        settled + filled.iter().map(|pages| self.changed_lines(*pages)).sum::<u64>()
    }

    /// Blocks leave for the allocator: no file maps them, nobody can be given them yet.
    pub(crate) fn watch_freed(&self, pages: PageRange) {
        if !self.stale.is_on() {
            return;
        }
        let reached: Vec<PageRange> = {
            let state = self.stale.state.lock();
            state.exports.values().flat_map(|export| export.iter().filter_map(|held| held.intersect(pages))).collect()
        };
        // A fill would heal them.
        let poisoned: Vec<PageRange> =
            self.device.poison().pages().into_iter().map(|page| PageRange::new(page, 1)).collect();
        for run in without(&reached, &poisoned) {
            // If the device is gone, there is nothing to be watched either.
            if self.device.fill(run, STALE_FILL).is_ok() {
                self.stale.state.lock().filled.put(run);
            }
        }
    }

    /// Blocks were given to somebody who has not written to them yet.
    pub(crate) fn unwatch_given(&self, pages: &[PageRange]) {
        if !self.stale.is_on() {
            return;
        }
        for pages in pages {
            let given = self.stale.state.lock().filled.take(*pages);
            let changed: u64 = given.into_iter().map(|pages| self.changed_lines(pages)).sum();
            self.stale.state.lock().settled += changed;
        }
    }

    fn changed_lines(&self, pages: PageRange) -> u64 {
        let mut bytes = [0; BLOCK as usize];
        let changed = |page: u64| match self.device.read(page * BLOCK, &mut bytes) {
            Ok(()) => bytes.chunks(LINE).filter(|line| line.iter().any(|byte| *byte != STALE_FILL)).count() as u64,
            // Poisoned since, or gone: nothing can be said.
            Err(_) => 0,
        };
        pages.pages().map(changed).sum()
    }
}
