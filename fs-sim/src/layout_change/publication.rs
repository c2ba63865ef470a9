//! Publication: the new maps become visible and are committed.
//!
//! It owns the one moment of a change at which anything becomes visible. Invariant: two files of
//! one change are published and committed under both map locks. Kernel counterpart: the
//! transaction of `xfs_reflink_remap_extent`.

use std::collections::BTreeSet;

use emulator::ledger::Ownership;
use emulator::pin::PageRange;
use emulator::race_point;
use emulator::sync::Arc;
use emulator::sync::atomic::Ordering;

use crate::base::errno::Errno;
use crate::base::numbers::Pid;
use crate::base::page_sets::{BlockSupply, without};
use crate::extent_map::Layout;
use crate::layout_change::closed_pages::ClearedPages;
use crate::layout_change::copy::zero_blocks;
use crate::layout_change::plan::{ChangeWork, ClearedBlocks, JointChange, PlannedOn, StillHolds, works_of};
use crate::vfs::kernel::Kernel;
use crate::vfs::open_file::Description;

/// Publishes and commits the new maps of a change, if it still applies. All pages that must be are
/// closed.
///
/// If a file has published another layout since the change was planned, the change is planned again
/// here: it goes on if it does the same to the same blocks.
///
/// The locks of two maps are taken in the order of their inode numbers and held together: no block
/// of one file turns written while the other file's map is made from it, and no other publication
/// commits one file without the other. Nothing is waited for under these locks.
///
/// # Errors
/// EIO: a block that must be copied or compared is poisoned. Nothing is published then.
pub(crate) fn publish_change(
    kernel: &Kernel,
    change: &dyn JointChange,
    planned: &PlannedOn,
    works: &[ChangeWork<'_>],
    cleared: &[ClearedPages<'_>],
    fresh: &[PageRange],
) -> Result<StillHolds, Errno> {
    let _publishing: Vec<_> = works.iter().map(|work| work.inode.map_lock.lock()).collect();
    let layouts: Vec<Layout> = works.iter().map(|work| work.inode.layout(Layout::clone)).collect();
    if !planned.is_current(works) {
        // A disjoint change was published meanwhile, or unwritten blocks turned written.
        let Some(plans) = change.plan(kernel, &layouts)? else { return Ok(StillHolds::No) };
        let sides: Vec<_> = works.iter().map(|work| (work.inode, work.turn)).collect();
        let anew = works_of(kernel, plans, &layouts, &sides);
        if !works.iter().zip(&anew).all(|(work, anew)| work.does_as(anew)) {
            return Ok(StillHolds::Again);
        }
    }
    let holds = change.holds(kernel, &planned.layouts, &layouts)?;
    if holds != StillHolds::Yes {
        return Ok(holds);
    }
    let mut supply = BlockSupply::new(fresh);
    let sides = works.iter().zip(cleared).zip(&layouts);
    let prepared = sides
        .map(|((work, cleared), layout)| work.prepare(kernel, layout, &cleared.orphaned, &mut supply))
        .collect::<Result<Vec<Layout>, Errno>>()?;
    let mut gone = Vec::new();
    for (work, cleared) in works.iter().zip(cleared) {
        for pages in &cleared.kept {
            zero_blocks(kernel, *pages);
        }
        gone.extend(without(&work.turning, &cleared.kept));
    }
    let fresh = supply.rest();
    let next = change.apply(kernel, &prepared, &ClearedBlocks { fresh: &fresh, gone: &gone });
    for (work, cleared) in works.iter().zip(cleared) {
        for pages in without(&work.moving, &cleared.orphaned) {
            kernel.ledger.stamp(pages, Ownership::Changed);
            // As `xfs_flush_unmap_range` and `generic_remap_file_range_prep`, before a change that
            // moves or shares blocks.
            kernel.caches.clean(&kernel.device, pages);
            kernel.trace("moved", work.inode.ino().0, work.inode.ino().0, Some(pages));
        }
    }
    for ((work, next), before) in works.iter().zip(next).zip(&layouts) {
        let shrinks = next.size() < before.size();
        work.turn.published();
        work.inode.publish(next);
        // ORDERING: SeqCst, after the map: a page of a mapping that is made later is copied only
        // after a look at the new size.
        if shrinks && work.inode.mapped_private.load(Ordering::SeqCst) {
            let is_open = |description: &Description| {
                description.file().is_some_and(|(of, _)| std::ptr::eq(Arc::as_ptr(of), work.inode))
            };
            take_private_copies(kernel, &is_open, work.inode.layout(Layout::size));
        }
    }
    race_point!("change: published, not committed");
    kernel.journal.commit(works.iter().map(|work| work.inode.to_commit()));
    Ok(StillHolds::Yes)
}

/// The file that `is_open` finds open ends at `size` now: private mappings lose the copies of the
/// pages that it has lost.
///
/// A process that is forked meanwhile may copy its parent's pages before the parent is visited. It
/// is listed before that, with a higher number than its parent's, and keeps its own lock until it
/// has the pages: where it is missing in one list of processes, the next list has it. So the visits
/// start again, parents first, until a list has no process that is new.
pub(crate) fn take_private_copies(kernel: &Kernel, is_open: &dyn Fn(&Description) -> bool, size: u64) {
    let mut visited: BTreeSet<Pid> = BTreeSet::new();
    loop {
        let processes = kernel.processes.snapshot();
        if processes.iter().all(|(pid, _)| visited.contains(pid)) {
            return;
        }
        for (pid, process) in processes {
            process.mm.lock().truncated(is_open, size);
            visited.insert(pid);
        }
    }
}
