//! Defragmentation by the system: a file's blocks are copied into one run of the device.
//!
//! It owns a layout change that no process asked for: it judges as a stranger, signals nobody and waits for nobody. Invariant:
//! what it may not move at once stays where it is: pinned blocks, shared ones, those that a block-layout client knows or a guest has mapped, those
//! under *any* lease **\[chosen\]** (an exclusive one forbids it, and background work is no reason to break another or to
//! recall a layout), and those that somebody is just using. What it did is durable before any block it left is free. Kernel
//! counterpart: xfs_fsr(8), which gives a whole file up where this skips blocks.

use emulator::pin::{Frozen, PageRange};
use emulator::sync::Arc;

use super::plan::{mapped, parts_beside};
use crate::Kernel;
use crate::errno::Errno;
use crate::extent_map::{Extent, Layout};
use crate::gup::pages_of;
use crate::inode::Inode;
use crate::range::BlockRange;

/// What a defragmentation did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Defragmented {
    /// Blocks that lie in one run now, and lay elsewhere before.
    pub moved: u64,
    /// Blocks that may not be moved now.
    pub skipped: u64,
}

impl Kernel {
    /// Copies the blocks of the file called `name` into one run of the device, but for those that may not be moved. A file
    /// that lies in one run already is left alone.
    ///
    /// # Errors
    /// ENOENT; ENOSPC if no run of free blocks is long enough, EIO if a block turned unreadable meanwhile or the device is
    /// gone: nothing changed.
    pub fn defragment(self: &Arc<Self>, name: &str) -> Result<Defragmented, Errno> {
        let inode = self.lookup(name)?;
        let done = self.defragment_inode(&inode);
        self.drop_open(&inode);
        done
    }

    fn defragment_inode(self: &Arc<Self>, inode: &Inode) -> Result<Defragmented, Errno> {
        let total = inode.layout(Layout::mapped_blocks);
        if inode.layout(in_one_run) {
            return Ok(Defragmented::default());
        }
        let waiter = self.new_waiter();
        // A change under way has the file: another time.
        let Some(_ticket) = inode.ticket.try_take(waiter.id()) else {
            return Ok(Defragmented { moved: 0, skipped: total });
        };
        let layout = inode.layout(Layout::clone);
        let movable = self.movable(inode, &layout);
        let outcome = self.move_together(inode, &movable);
        inode.leases.change_over();
        let moved = outcome?;
        Ok(Defragmented { moved, skipped: layout.mapped_blocks() - moved })
    }

    /// The extents that can be read, and that nobody leases, pins, shares or knows by a block layout. Leases on them are refused until the change is over.
    fn movable(&self, inode: &Inode, layout: &Layout) -> Vec<Extent> {
        let mut free = vec![BlockRange::ALL];
        let mut forbid = |range: BlockRange| {
            free = free.iter().flat_map(|part| part.minus(range)).collect();
        };
        {
            let entries = inode.leases.lock();
            entries.iter().for_each(|entry| forbid(entry.range));
            inode.leases.settle_on(&entries, BlockRange::ALL);
        }
        inode.holders().iter().for_each(|holder| forbid(holder.range));
        // A guest would be unmapped for good.
        inode.mapped.all().iter().for_each(|holder| forbid(holder.range));
        // None can be granted while the ticket is held.
        inode.block_layouts.all().iter().for_each(|client| forbid(client.range()));
        let extents = free.iter().flat_map(|range| mapped(layout, *range)).filter(|extent| !extent.shared);
        let poisoned: Vec<PageRange> =
            self.device.poison().pages().into_iter().map(|page| PageRange::new(page, 1)).collect();
        extents.flat_map(|extent| parts_beside(extent, &poisoned)).collect()
    }

    /// Shuts what can be shut at once, copies it into one run, publishes, frees. The number of blocks moved.
    fn move_together(&self, inode: &Inode, movable: &[Extent]) -> Result<u64, Errno> {
        let wanted: u64 = movable.iter().map(|extent| u64::from(extent.len)).sum();
        if wanted == 0 {
            return Ok(0);
        }
        let mut fresh = self.fresh(inode, wanted)?;
        if fresh.pages.len() > 1 {
            return Err(Errno::ENOSPC);
        }
        inode.ticket.shut_door();
        let mut departing: Vec<(Extent, Frozen<'_>)> = Vec::with_capacity(movable.len());
        for extent in movable.iter().take(super::change::CLOSINGS_MAX) {
            // Contended, or pinned by somebody who has no name yet: his, for now.
            let frozen = self.pins.close(pages_of(extent)).ok().and_then(|closing| closing.freeze().ok());
            departing.extend(frozen.map(|frozen| (*extent, frozen)));
        }
        let extents: Vec<Extent> = departing.iter().map(|(extent, _)| *extent).collect();
        let copied = self.publish_copies(inode, &extents, &fresh.pages);
        if let Ok(rest) = &copied {
            // What it didn't come to goes back.
            fresh.pages.clone_from(rest);
            for (extent, frozen) in departing {
                self.trace("defragmented", 0, inode.ino().0, Some(pages_of(&extent)));
                self.free(frozen);
            }
        }
        inode.ticket.door_reopened();
        copied.map(|_| extents.iter().map(|extent| u64::from(extent.len)).sum())
    }

    /// Publishes copies of `extents`, which are shut, in `fresh`, and commits. What is left of `fresh`.
    fn publish_copies(&self, inode: &Inode, extents: &[Extent], fresh: &[PageRange]) -> Result<Vec<PageRange>, Errno> {
        let mut supply = super::pages::Supply::new(fresh);
        let _publishing = inode.map_lock.lock();
        let mut next = inode.layout(Layout::clone);
        for extent in extents {
            // Its state may have turned written since it was looked at.
            for extent in mapped(&next.clone(), extent.range()) {
                next = self.replaced_by_copy(&next, extent, &supply.take(extent.len.into()))?;
            }
        }
        if !extents.is_empty() {
            inode.publish(next);
            self.journal.commit(&[inode]);
        }
        Ok(supply.rest())
    }
}

/// Whether all blocks of a file lie one behind the other on the device.
fn in_one_run(layout: &Layout) -> bool {
    let mut end = None;
    layout.extents().all(|extent| {
        let goes_on = end.is_none_or(|end| end == extent.block);
        end = Some(extent.block + u64::from(extent.len));
        goes_on
    })
}
