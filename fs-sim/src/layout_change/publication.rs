//! TODO

use emulator::ledger::Ownership;
use emulator::pin::PageRange;
use emulator::race_point;

use crate::base::errno::Errno;
use crate::base::page_sets::{BlockSupply, without};
use crate::extent_map::Layout;
use crate::layout_change::closed_pages::ClearedPages;
use crate::layout_change::plan::{ChangeWork, ClearedBlocks, JointChange, StillHolds};
use crate::vfs::kernel::Kernel;

/// Publishes and commits what a change makes of its files, if it still holds: everything is shut that has to be.
///
/// The locks of two maps are taken in the order of their files and held together, so that no state turns in the one while
/// the other is made from it, and nobody commits the one, by such a turn, without the other; nothing is waited for under
/// them.
///
/// # Errors
/// EIO: what has to be copied or compared is poisoned. Nothing is published then.
pub(crate) fn publish_change(
    kernel: &Kernel,
    change: &dyn JointChange,
    planned: &[Layout],
    works: &[ChangeWork<'_>],
    cleared: &[ClearedPages<'_>],
    fresh: &[PageRange],
) -> Result<StillHolds, Errno> {
    let _publishing: Vec<_> = works.iter().map(|work| work.inode.map_lock.lock()).collect();
    let layouts: Vec<Layout> = works.iter().map(|work| work.inode.layout(Layout::clone)).collect();
    let holds = change.holds(kernel, planned, &layouts)?;
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
            // The pages are the volume's own: the device has them.
            let _in_range = kernel.device.zero(*pages);
        }
        gone.extend(without(&work.turning, &cleared.kept));
    }
    let fresh = supply.rest();
    let next = change.apply(kernel, &prepared, &ClearedBlocks { fresh: &fresh, gone: &gone });
    for (work, cleared) in works.iter().zip(cleared) {
        for pages in without(&work.moving, &cleared.orphaned) {
            kernel.ledger.stamp(pages, Ownership::Changed);
            kernel.trace("moved", work.inode.ino().0, work.inode.ino().0, Some(pages));
        }
    }
    for (work, next) in works.iter().zip(next) {
        work.inode.publish(next);
    }
    race_point!("change: published, not committed");
    kernel.journal.commit(works.iter().map(|work| work.inode.to_commit()));
    Ok(StillHolds::Yes)
}
