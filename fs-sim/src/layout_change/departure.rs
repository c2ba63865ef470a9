//! Blocks on their way into a file, and out of one.
//!
//! It owns the last steps of every block that leaves: freed, orphaned, or one reference fewer. Invariants: a block goes to the
//! allocator only with a token that proves its pages frozen (the `proceed` choices forge one), and only when no file maps
//! it; eviction never fails nor waits. Kernel counterpart: `xfs_inactive`, `xfs_free_extent`.

use emulator::ledger::Ownership;
use emulator::pin::{Frozen, Orphaned, PageRange};
use emulator::sync::{Arc, thread};

use crate::base::errno::Errno;
use crate::design::ChangeRule;
use crate::extent_map::lookup::pages_of;
use crate::extent_map::{Extent, Layout};
use crate::holders::ghosts::remember_holders_of;
use crate::holders::stale_watch::{unwatch_given, watch_freed};
use crate::vfs::inode::Inode;
use crate::vfs::kernel::Kernel;
use crate::volume::GroupHint;

/// Pages that a change has shut, and what is to be done once its map is published.
pub(crate) enum DepartingPages<'t> {
    Freed(Frozen<'t>),
    Orphaned(PageRange, Orphaned<'t>),
    /// Some file's still: its door reopens.
    Stays(Frozen<'t>),
}

/// New blocks for a change; given back if it does not come to that.
pub(crate) struct FreshBlocks<'k> {
    kernel: &'k Kernel,
    inode: &'k Inode,
    pub(crate) pages: Vec<PageRange>,
}

impl Drop for FreshBlocks<'_> {
    fn drop(&mut self) {
        for pages in self.pages.drain(..) {
            free_or_orphan(self.kernel, self.inode, pages);
        }
    }
}

/// Stamps and lets go of pages that have left a file.
pub(crate) fn depart(kernel: &Kernel, inode: &Inode, departing: DepartingPages<'_>) {
    match departing {
        DepartingPages::Stays(frozen) => drop(frozen),
        DepartingPages::Freed(frozen) => free_pages(kernel, frozen),
        DepartingPages::Orphaned(pages, orphaned) => leave_behind(kernel, inode, pages, orphaned),
    }
}

/// Pages without a file that are pinned: listed once the door is open, so that no reaper meets it, and then looked at,
/// whatever the reopening says: those that nothing pins have nobody else to free them.
fn leave_behind(kernel: &Kernel, inode: &Inode, pages: PageRange, orphaned: Orphaned<'_>) {
    kernel.ledger.stamp(pages, Ownership::Orphaned);
    kernel.trace("orphaned", inode.ino().0, inode.ino().0, Some(pages));
    kernel.journal.left_behind(pages);
    let _last_left_meanwhile = orphaned.reopen();
    kernel.orphans.insert(pages);
    reap_orphans(kernel, pages);
}

/// Gives blocks to the allocator; invariant 1 is checked here.
pub(crate) fn free_pages(kernel: &Kernel, frozen: Frozen<'_>) {
    let pages = frozen.range();
    kernel.ledger.stamp(pages, Ownership::Changed);
    kernel.trace("freed", 0, 0, Some(pages));
    // Behind a door that is really shut a count can only be a refused pin on its way to undo itself.
    if !kernel.tolerates_pins() && frozen.is_forged() && !kernel.pins.census(pages).is_zero() {
        kernel.violated(format!(
            "invariant 1: device pages {}..{} went to the allocator while pinned",
            pages.start(),
            pages.end()
        ));
    }
    kernel.journal.freed(pages);
    watch_freed(kernel, pages);
    kernel.allocator.free(frozen);
}

/// New blocks for a change of `inode`, near its others.
pub(crate) fn fresh_blocks<'k>(kernel: &'k Kernel, inode: &'k Inode, blocks: u64) -> Result<FreshBlocks<'k>, Errno> {
    let pages = match blocks {
        0 => Vec::new(),
        // Refused before it takes what is left away from everybody for a moment.
        _ if blocks > kernel.allocator.free_blocks() => return Err(Errno::ENOSPC),
        _ => kernel.allocator.alloc(blocks, GroupHint(inode.ino().0)).map_err(|_| Errno::ENOSPC)?,
    };
    unwatch_given(kernel, &pages);
    Ok(FreshBlocks { kernel: kernel, inode, pages })
}

/// Frees what was orphaned in `pages` and is pinned no longer.
pub(crate) fn reap_orphans(kernel: &Kernel, pages: PageRange) {
    kernel.orphans.reap(pages, &kernel.pins, |frozen| free_pages(kernel, frozen));
}

/// Ends a reference of `inode` to shared blocks. Those that no file maps any more go: each was somebody's who left at the
/// same time as we did, so nobody shut it.
pub(crate) fn release_shared(kernel: &Kernel, inode: &Inode, pages: PageRange) {
    for pages in kernel.shares.release(pages) {
        match kernel.axes.stranger_change {
            ChangeRule::Proceed => free_pages(kernel, kernel.pins.forge(pages)),
            _ => free_or_orphan(kernel, inode, pages),
        }
    }
}

/// Evicts an inode without a name and without an open file. Never fails nor waits: what is pinned becomes orphaned
/// (unless the design lets strangers proceed).
pub(crate) fn evict(kernel: &Arc<Kernel>, inode: &Arc<Inode>) {
    let leaving: Vec<Extent> = inode.layout(|layout| layout.extents().collect());
    kernel.trace("evicted", inode.ino().0, inode.ino().0, leaving.first().map(pages_of));
    inode.turn.pages_closed();
    {
        let _publishing = inode.map_lock.lock();
        inode.publish(Layout::default());
    }
    kernel.journal.evicted(inode.ino());
    // Nobody has the file open: what still pins it is long-term, or about to find the map changed. One range at a time, so
    // that no number of extents is too many. What is not on the list of shared blocks is this file's alone.
    for extent in leaving {
        release_shared(kernel, inode, pages_of(&extent));
    }
    inode.turn.pages_reopened();
    remember_holders_of(kernel, inode);
    kernel.inodes.remove(inode.ino());
}

/// Frees pages that no file maps, or orphans them: somebody with a map of long ago may be about to undo a pin.
fn free_or_orphan(kernel: &Kernel, inode: &Inode, pages: PageRange) {
    loop {
        // Contended only by a reaper or by a change elsewhere under the same folio, which is about to finish.
        let Ok(closing) = kernel.pins.close(pages) else {
            thread::yield_now();
            continue;
        };
        return match closing.freeze() {
            Ok(frozen) => free_pages(kernel, frozen),
            Err(closing) => leave_behind(kernel, inode, pages, closing.orphan()),
        };
    }
}
