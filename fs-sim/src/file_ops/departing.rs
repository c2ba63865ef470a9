//! Blocks on their way into a file, and out of one.
//!
//! It owns the last steps of every block that leaves: freed, orphaned, or one reference fewer. Invariants: a block goes to the
//! allocator only with a token that proves its pages frozen (the `proceed` choices forge one), and only when no file maps
//! it; eviction never fails nor waits. Kernel counterpart: `xfs_inactive`, `xfs_free_extent`.

use emulator::ledger::Ownership;
use emulator::pin::{Frozen, Orphaned, PageRange};
use emulator::sync::{Arc, thread};

use crate::Kernel;
use crate::design::ChangeRule;
use crate::errno::Errno;
use crate::extent_map::{Extent, Layout};
use crate::inode::Inode;

/// Pages that a change has shut, and what is to be done once its map is published.
pub(super) enum Departing<'t> {
    Freed(Frozen<'t>),
    Orphaned(PageRange, Orphaned<'t>),
    /// Some file's still: its door reopens.
    Stays(Frozen<'t>),
}

/// New blocks for a change; given back if it does not come to that.
pub(super) struct Fresh<'k> {
    kernel: &'k Kernel,
    inode: &'k Inode,
    pub(super) pages: Vec<PageRange>,
}

impl Drop for Fresh<'_> {
    fn drop(&mut self) {
        for pages in self.pages.drain(..) {
            self.kernel.let_go(self.inode, pages);
        }
    }
}

impl Kernel {
    /// Whether somebody may go on over pins: then pages can carry pins of files they no longer belong to.
    pub(super) fn tolerates_pins(&self) -> bool {
        self.axes.stranger_change == ChangeRule::Proceed || self.axes.holder_change == ChangeRule::Proceed
    }

    /// Stamps and lets go of pages that have left a file.
    pub(super) fn depart(&self, inode: &Inode, departing: Departing<'_>) {
        match departing {
            Departing::Stays(frozen) => drop(frozen),
            Departing::Freed(frozen) => self.free(frozen),
            Departing::Orphaned(pages, orphaned) => self.leave_behind(inode, pages, orphaned),
        }
    }

    /// Pages without a file that are pinned: listed once the door is open, so that no reaper meets it, and then looked at,
    /// whatever the reopening says: those that nothing pins have nobody else to free them.
    fn leave_behind(&self, inode: &Inode, pages: PageRange, orphaned: Orphaned<'_>) {
        self.ledger.stamp(pages, Ownership::Orphaned);
        self.trace("orphaned", inode.ino().0, inode.ino().0, Some(pages));
        self.journal.left_behind(pages);
        let _last_left_meanwhile = orphaned.reopen();
        self.orphans.insert(pages);
        self.reap_orphans(pages);
    }

    /// Gives blocks to the allocator; invariant 1 is checked here.
    pub(crate) fn free(&self, frozen: Frozen<'_>) {
        let pages = frozen.range();
        self.ledger.stamp(pages, Ownership::Changed);
        self.trace("freed", 0, 0, Some(pages));
        // Behind a door that is really shut a count can only be a refused pin on its way to undo itself.
        if !self.tolerates_pins() && frozen.is_forged() && !self.pins.census(pages).is_zero() {
            self.violated(format!(
                "invariant 1: device pages {}..{} went to the allocator while pinned",
                pages.start(),
                pages.end()
            ));
        }
        self.journal.freed(pages);
        self.watch_freed(pages);
        self.allocator.free(frozen);
    }

    /// New blocks for a change of `inode`, near its others.
    pub(super) fn fresh<'k>(&'k self, inode: &'k Inode, blocks: u64) -> Result<Fresh<'k>, Errno> {
        let pages = match blocks {
            0 => Vec::new(),
            // Refused before it takes what is left away from everybody for a moment.
            _ if blocks > self.allocator.free_blocks() => return Err(Errno::ENOSPC),
            _ => self.allocator.alloc(blocks, crate::volume::GroupHint(inode.ino().0)).map_err(|_| Errno::ENOSPC)?,
        };
        self.unwatch_given(&pages);
        Ok(Fresh { kernel: self, inode, pages })
    }

    /// Frees what was orphaned in `pages` and is pinned no longer.
    pub(crate) fn reap_orphans(&self, pages: PageRange) {
        self.orphans.reap(pages, &self.pins, |frozen| self.free(frozen));
    }

    /// Ends a reference of `inode` to shared blocks. Those that no file maps any more go: each was somebody's who left at the
    /// same time as we did, so nobody shut it.
    pub(super) fn release_shared(&self, inode: &Inode, pages: PageRange) {
        for pages in self.shares.release(pages) {
            match self.axes.stranger_change {
                ChangeRule::Proceed => self.free(self.pins.forge(pages)),
                _ => self.let_go(inode, pages),
            }
        }
    }

    /// Evicts an inode without a name and without an open file. Never fails nor waits: what is pinned becomes orphaned
    /// (unless the design lets strangers proceed).
    pub(crate) fn evict(self: &Arc<Self>, inode: &Arc<Inode>) {
        let leaving: Vec<Extent> = inode.layout(|layout| layout.extents().collect());
        self.trace("evicted", inode.ino().0, inode.ino().0, leaving.first().map(crate::gup::pages_of));
        inode.ticket.shut_door();
        {
            let _publishing = inode.map_lock.lock();
            inode.publish(Layout::default());
        }
        self.journal.evicted(inode.ino());
        // Nobody has the file open: what still pins it is long-term, or about to find the map changed. One range at a time, so
        // that no number of extents is too many. What is not on the list of shared blocks is this file's alone.
        for extent in leaving {
            self.release_shared(inode, crate::gup::pages_of(&extent));
        }
        inode.ticket.door_reopened();
        self.remember_holders_of(inode);
        self.inodes.remove(inode.ino());
    }

    /// Frees pages that no file maps, or orphans them: somebody with a map of long ago may be about to undo a pin.
    fn let_go(&self, inode: &Inode, pages: PageRange) {
        loop {
            // Contended only by a reaper or by a change elsewhere under the same folio, which is about to finish.
            let Ok(closing) = self.pins.close(pages) else {
                thread::yield_now();
                continue;
            };
            return match closing.freeze() {
                Ok(frozen) => self.free(frozen),
                Err(closing) => self.leave_behind(inode, pages, closing.orphan()),
            };
        }
    }
}
