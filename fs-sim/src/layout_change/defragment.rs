//! Defragmentation by the system: a file's blocks are copied into one run of the device.
//!
//! It owns a layout change that no process asked for: a stranger to every holder, also when a
//! holder starts it. It breaks the breakable leases on blocks that it could move, and waits for
//! them up to the break time; a polite one signals no owner and never waits. Invariants: what may
//! not be moved then stays where it is: pinned blocks, shared blocks, blocks that a block-layout
//! client knows or a guest has mapped **\[chosen\]**, blocks under a lease that is still there
//! (an exclusive one is never broken), and blocks with short-term pins. The move is committed
//! before any old block is free. Kernel counterpart: xfs_fsr(8), which skips a whole file where
//! this skips blocks.

use emulator::pin::{Frozen, PageRange};
use emulator::sync::Arc;

use crate::base::errno::Errno;
use crate::base::page_sets::BlockSupply;
use crate::base::range::{BlockRange, BlockRanges};
use crate::extent_map::lookup::{mapped, pages_of, parts_beside};
use crate::extent_map::{Extent, Layout};
use crate::holders::block_layout::BlockLayouts;
use crate::holders::list::notify_only;
use crate::layout_change::copy::replaced_by_copy;
use crate::layout_change::departure::{FreshBlocks, free_pages, fresh_blocks};
use crate::layout_change::plan::CLOSINGS_MAX;
use crate::leases::layout::breaking::{begin_break, end_of_patience, wait_for_break_until};
use crate::leases::layout::table::{BreakTo, LeaseEntry, LeaseTable};
use crate::leases::layout::waiting::publish_waiting_on;
use crate::vfs::inode::Inode;
use crate::vfs::kernel::Kernel;
use crate::vfs::layout_turn::TurnGuard;
use crate::vfs::task::Task;

/// The result of a defragmentation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Defragmented {
    /// Blocks that lie in one run now and lay elsewhere before.
    pub moved: u64,
    /// Blocks that could not be moved.
    pub skipped: u64,
}

/// Moves the blocks of `inode` together. `breaker` is the task that waits for broken leases; a
/// polite defragmentation has none.
pub(crate) fn defragment_inode(
    kernel: &Arc<Kernel>,
    inode: &Inode,
    breaker: Option<&Task>,
) -> Result<Defragmented, Errno> {
    let total = inode.layout(Layout::mapped_blocks);
    if inode.layout(in_one_run) {
        return Ok(Defragmented::default());
    }
    let waiter = breaker.map_or_else(|| kernel.new_waiter(), |task| Arc::clone(task.waiter()));
    // A change is in progress, or a lease request waits: the file is left for another time.
    if !LeaseTable::of(inode).asking_in(&BlockRange::ALL.into()).is_empty() {
        return Ok(Defragmented { moved: 0, skipped: total });
    }
    let Some(turn) = inode.turn.try_take(kernel, waiter.id(), BlockRange::ALL) else {
        return Ok(Defragmented { moved: 0, skipped: total });
    };
    let outcome = breaker.map_or(Ok(()), |task| break_leases(task, inode, &turn)).and_then(|()| {
        let layout = inode.layout(Layout::clone);
        let leased = {
            let entries = LeaseTable::of(inode).lock();
            // Lease requests wait from now on until the change is over.
            LeaseTable::of(inode).settle_on(&entries, waiter.id(), &BlockRange::ALL.into());
            entries.iter().map(|entry| entry.range).collect()
        };
        let moved = move_together(kernel, inode, &turn, &movable_extents(kernel, inode, &layout, leased))?;
        Ok(Defragmented { moved, skipped: layout.mapped_blocks() - moved })
    });
    LeaseTable::of(inode).change_over(waiter.id());
    outcome
}

/// Breaks the breakable leases on extents that could be moved but for them, and waits until they
/// are gone: as long as a layout change does where breaks time out, else for one break time.
fn break_leases(task: &Task, inode: &Inode, turn: &TurnGuard<'_>) -> Result<(), Errno> {
    let kernel = task.kernel();
    let exclusive = |entry: &LeaseEntry| entry.kind.is_exclusive(kernel.axes.lease_rules);
    let forbidden = {
        let entries = LeaseTable::of(inode).lock();
        entries.iter().filter(|entry| exclusive(entry)).map(|entry| entry.range).collect()
    };
    let wanted = movable_extents(kernel, inode, &inode.layout(Layout::clone), forbidden);
    let mut ranges = BlockRanges::default();
    ranges.extend(wanted.iter().map(Extent::range));
    let in_way = |entry: &LeaseEntry| !exclusive(entry) && ranges.overlaps(entry.range);
    if !LeaseTable::of(inode).lock().iter().any(in_way) {
        return Ok(());
    }
    // Before any owner is signalled; what is free when the blocks are copied decides.
    one_run(kernel, inode, &wanted)?;
    let (mut targets, mut notices) = (Vec::new(), Vec::new());
    {
        let mut entries = LeaseTable::of(inode).lock();
        for entry in entries.iter_mut().filter(|entry| in_way(entry)) {
            notices.extend(begin_break(kernel, entry, BreakTo::Nothing));
            targets.push(entry.lease.id);
        }
    }
    publish_waiting_on(inode, turn, &ranges, &[]);
    let give_up_at = end_of_patience(kernel);
    kernel.send_notices(inode.ino(), &notices);
    wait_for_break_until(task, inode, &targets, |_| true, give_up_at)?;
    turn.take(task, &BlockRange::ALL.into(), true)
}

/// The extents that can be read and that are not in a `leased` range, pinned, shared or known by a
/// block layout.
fn movable_extents(kernel: &Kernel, inode: &Inode, layout: &Layout, leased: Vec<BlockRange>) -> Vec<Extent> {
    let mut free = vec![BlockRange::ALL];
    let mut forbid = |range: BlockRange| {
        free = free.iter().flat_map(|part| part.minus(range)).collect();
    };
    leased.into_iter().for_each(&mut forbid);
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

/// One run of new blocks for `extents`.
fn one_run<'k>(kernel: &'k Kernel, inode: &'k Inode, extents: &[Extent]) -> Result<FreshBlocks<'k>, Errno> {
    let fresh = fresh_blocks(kernel, inode, extents.iter().map(|extent| u64::from(extent.len)).sum())?;
    if fresh.pages.len() > 1 { Err(Errno::ENOSPC) } else { Ok(fresh) }
}

/// Closes what can be closed at once, copies it into one run, publishes, frees. Returns the number
/// of blocks moved.
fn move_together(kernel: &Kernel, inode: &Inode, turn: &TurnGuard<'_>, movable: &[Extent]) -> Result<u64, Errno> {
    if movable.is_empty() {
        return Ok(0);
    }
    let mut fresh = one_run(kernel, inode, movable)?;
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
