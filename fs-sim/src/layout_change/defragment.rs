//! Defragmentation by the system: a file's blocks are copied into one run of the device.
//!
//! It owns a layout change that no process asked for. It is judged as a stranger's, signals no
//! owner and never waits. Invariants: what may not be moved at once stays where it is: pinned
//! blocks, shared blocks, blocks that a block-layout client knows or a guest has mapped, blocks
//! under *any* lease **\[chosen\]** (an exclusive lease forbids it, and background work is no
//! reason to break another or to recall a layout), and blocks with short-term pins. The move is
//! committed before any old block is free. Kernel counterpart: xfs_fsr(8), which skips a whole
//! file where this skips blocks.

use emulator::pin::{Frozen, PageRange};
use emulator::sync::Arc;
use emulator::wait::WaiterId;

use crate::base::errno::Errno;
use crate::base::page_sets::BlockSupply;
use crate::base::range::BlockRange;
use crate::extent_map::lookup::{mapped, pages_of, parts_beside};
use crate::extent_map::{Extent, Layout};
use crate::holders::block_layout::BlockLayouts;
use crate::holders::list::notify_only;
use crate::layout_change::copy::replaced_by_copy;
use crate::layout_change::departure::{free_pages, fresh_blocks};
use crate::layout_change::plan::CLOSINGS_MAX;
use crate::leases::layout::table::LeaseTable;
use crate::vfs::inode::Inode;
use crate::vfs::kernel::Kernel;
use crate::vfs::layout_turn::TurnGuard;

/// The result of a defragmentation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Defragmented {
    /// Blocks that lie in one run now and lay elsewhere before.
    pub moved: u64,
    /// Blocks that could not be moved.
    pub skipped: u64,
}

pub(crate) fn defragment_inode(kernel: &Arc<Kernel>, inode: &Inode) -> Result<Defragmented, Errno> {
    let total = inode.layout(Layout::mapped_blocks);
    if inode.layout(in_one_run) {
        return Ok(Defragmented::default());
    }
    let waiter = kernel.new_waiter();
    // A change is in progress: the file is left for another time.
    let Some(turn) = inode.turn.try_take(kernel, waiter.id(), BlockRange::ALL) else {
        return Ok(Defragmented { moved: 0, skipped: total });
    };
    let layout = inode.layout(Layout::clone);
    let movable = movable_extents(kernel, inode, &layout, waiter.id());
    let outcome = move_together(kernel, inode, &turn, &movable);
    LeaseTable::of(inode).change_over(waiter.id());
    let moved = outcome?;
    Ok(Defragmented { moved, skipped: layout.mapped_blocks() - moved })
}

/// The extents that can be read and that are not leased, pinned, shared or known by a block
/// layout. Lease requests on them wait until the change is over.
fn movable_extents(kernel: &Kernel, inode: &Inode, layout: &Layout, changer: WaiterId) -> Vec<Extent> {
    let mut free = vec![BlockRange::ALL];
    let mut forbid = |range: BlockRange| {
        free = free.iter().flat_map(|part| part.minus(range)).collect();
    };
    {
        let entries = LeaseTable::of(inode).lock();
        entries.iter().for_each(|entry| forbid(entry.range));
        LeaseTable::of(inode).settle_on(&entries, changer, &BlockRange::ALL.into());
    }
    inode.holders().iter().for_each(|holder| forbid(holder.range));
    // Moving pages that a guest has mapped would disconnect the guest for good.
    notify_only(inode).all().iter().for_each(|holder| forbid(holder.range));
    // No layout can be granted while the turn is held.
    BlockLayouts::of(inode).all().iter().for_each(|client| forbid(client.range()));
    let extents = free.iter().flat_map(|range| mapped(layout, *range)).filter(|extent| !extent.shared);
    let poisoned: Vec<PageRange> =
        kernel.device.poison().pages().into_iter().map(|page| PageRange::new(page, 1)).collect();
    extents.flat_map(|extent| parts_beside(extent, &poisoned)).collect()
}

/// Closes what can be closed at once, copies it into one run, publishes, frees. Returns the number
/// of blocks moved.
fn move_together(kernel: &Kernel, inode: &Inode, turn: &TurnGuard<'_>, movable: &[Extent]) -> Result<u64, Errno> {
    let wanted: u64 = movable.iter().map(|extent| u64::from(extent.len)).sum();
    if wanted == 0 {
        return Ok(0);
    }
    let mut fresh = fresh_blocks(kernel, inode, wanted)?;
    if fresh.pages.len() > 1 {
        return Err(Errno::ENOSPC);
    }
    turn.pages_closed();
    let mut departing: Vec<(Extent, Frozen<'_>)> = Vec::with_capacity(movable.len());
    for extent in movable.iter().take(CLOSINGS_MAX) {
        // Contended, or pinned by a holder that is not listed yet: skipped.
        let frozen = kernel.pins.close(pages_of(extent)).ok().and_then(|closing| closing.freeze().ok());
        departing.extend(frozen.map(|frozen| (*extent, frozen)));
    }
    let extents: Vec<Extent> = departing.iter().map(|(extent, _)| *extent).collect();
    let copied = publish_copies(kernel, inode, &extents, &fresh.pages);
    if let Ok(rest) = &copied {
        // New blocks that were not needed go back.
        fresh.pages.clone_from(rest);
        for (extent, frozen) in departing {
            kernel.trace("defragmented", 0, inode.ino().0, Some(pages_of(&extent)));
            free_pages(kernel, frozen);
        }
    }
    turn.pages_reopened();
    copied.map(|_| extents.iter().map(|extent| u64::from(extent.len)).sum())
}

/// Publishes copies of `extents`, whose pages are closed, in `fresh`, and commits. Returns what is
/// left of `fresh`.
fn publish_copies(
    kernel: &Kernel,
    inode: &Inode,
    extents: &[Extent],
    fresh: &[PageRange],
) -> Result<Vec<PageRange>, Errno> {
    let mut supply = BlockSupply::new(fresh);
    let _publishing = inode.map_lock.lock();
    let mut next = inode.layout(Layout::clone);
    for extent in extents {
        // Its state may have turned written since the layout was read.
        for extent in mapped(&next.clone(), extent.range()) {
            next = replaced_by_copy(kernel, &next, extent, &supply.take(extent.len.into()))?;
        }
    }
    if !extents.is_empty() {
        inode.publish(next);
        kernel.journal.commit([inode.to_commit()]);
    }
    Ok(supply.rest())
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
