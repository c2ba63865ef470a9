//! Departure: blocks that leave a file are freed or orphaned, and new ones are allocated for a
//! change.
//!
//! It owns the last steps of every block that leaves. A page is freed in [`free_pages`], and
//! nowhere else. Invariants: a block goes to the allocator only with a token that proves its pages
//! frozen (the `proceed` choices forge one), and only when no file maps it. Kernel counterpart:
//! `xfs_free_extent`.

use emulator::ledger::Ownership;
use emulator::pin::{Frozen, Orphaned, PageRange};
use emulator::sync::thread;

use crate::base::errno::Errno;
use crate::design::ChangeRule;
use crate::holders::stale_watch::{unwatch_given, watch_freed};
use crate::vfs::inode::Inode;
use crate::vfs::kernel::Kernel;
use crate::volume::GroupHint;

/// Pages that a change has closed, and what becomes of them once its map is published.
pub(crate) enum DepartingPages<'t> {
    Freed(Frozen<'t>),
    Orphaned(PageRange, Orphaned<'t>),
    /// A file still has them: they are reopened.
    Stays(Frozen<'t>),
}

/// New blocks for a change; given back if the change does not use them.
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

/// Stamps and releases pages that have left a file.
pub(crate) fn depart(kernel: &Kernel, inode: &Inode, departing: DepartingPages<'_>) {
    match departing {
        DepartingPages::Stays(frozen) => drop(frozen),
        DepartingPages::Freed(frozen) => free_pages(kernel, frozen),
        DepartingPages::Orphaned(pages, orphaned) => leave_behind(kernel, inode, pages, orphaned),
    }
}

/// Orphans pages that no file maps and that are pinned. They are listed after they are reopened,
/// so that no reaper meets them closed, and then checked in any case: pages whose last pin went in
/// between would never be freed otherwise.
fn leave_behind(kernel: &Kernel, inode: &Inode, pages: PageRange, orphaned: Orphaned<'_>) {
    kernel.ledger.stamp(pages, Ownership::Orphaned);
    kernel.trace("orphaned", inode.ino().0, inode.ino().0, Some(pages));
    kernel.journal.left_behind(pages);
    let _last_left_meanwhile = orphaned.reopen();
    kernel.orphans.insert(pages);
    reap_orphans(kernel, pages);
}

/// Gives blocks to the allocator. Invariant 1 is checked here.
pub(crate) fn free_pages(kernel: &Kernel, frozen: Frozen<'_>) {
    let pages = frozen.range();
    kernel.ledger.stamp(pages, Ownership::Changed);
    kernel.trace("freed", 0, 0, Some(pages));
    // While pages are really closed, a count can only be a refused pin that is about to undo
    // itself.
    if !kernel.frees_pinned() && frozen.is_forged() && !kernel.pins.census(pages).is_zero() {
        kernel.violated(format!(
            "invariant 1: device pages {}..{} went to the allocator while pinned",
            pages.start(),
            pages.end()
        ));
    }
    kernel.journal.freed(pages);
    watch_freed(kernel, pages);
    kernel.caches.forget(pages);
    kernel.allocator.free(frozen);
}

/// New blocks for a change of `inode`, near its other blocks.
pub(crate) fn fresh_blocks<'k>(kernel: &'k Kernel, inode: &'k Inode, blocks: u64) -> Result<FreshBlocks<'k>, Errno> {
    let pages = match blocks {
        0 => Vec::new(),
        // Refused before it takes the remaining blocks away from other tasks for a moment.
        _ if blocks > kernel.allocator.free_blocks() => return Err(Errno::ENOSPC),
        _ => kernel.allocator.alloc(blocks, GroupHint(inode.ino().0)).map_err(|_| Errno::ENOSPC)?,
    };
    unwatch_given(kernel, &pages);
    Ok(FreshBlocks { kernel, inode, pages })
}

/// Frees the orphaned blocks in `pages` that are no longer pinned.
pub(crate) fn reap_orphans(kernel: &Kernel, pages: PageRange) {
    kernel.orphans.reap(pages, &kernel.pins, |frozen| free_pages(kernel, frozen));
}

/// Ends a reference of `inode` to shared blocks. Blocks that no file maps any more are freed:
/// their last two users left at the same time, so neither closed them.
pub(crate) fn release_shared(kernel: &Kernel, inode: &Inode, pages: PageRange) {
    let ignores_pins = kernel.axes.stranger_change == ChangeRule::Proceed;
    for pages in kernel.shares.release(pages) {
        free_unmapped(kernel, inode, pages, ignores_pins);
    }
}

/// Frees pages that no file maps; those with pins are orphaned, unless pins are ignored.
pub(crate) fn free_unmapped(kernel: &Kernel, inode: &Inode, pages: PageRange, ignores_pins: bool) {
    match ignores_pins {
        true => free_pages(kernel, kernel.pins.forge(pages)),
        false => free_or_orphan(kernel, inode, pages),
    }
}

/// Frees pages that no file maps, or orphans them: a pinner with an old map may be about to undo a
/// pin.
fn free_or_orphan(kernel: &Kernel, inode: &Inode, pages: PageRange) {
    loop {
        // Contended only by a reaper, or by a change elsewhere under the same folio, which is
        // about to finish.
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
