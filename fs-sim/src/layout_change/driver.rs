//! The driver of layout changes: turn, leases, pins, close, publication, release of blocks.
//!
//! It owns the order of docs/semantics.md, section 4, for changes of one file and of two at once.
//! Invariants: a change that fails was never visible (invariant 8); no lock is held over a wait;
//! after every wait everything is judged again; two files are always taken in the order of their
//! inode numbers. Kernel counterpart: `xfs_break_layouts` and `dax_layout_busy_page` around
//! `xfs_setattr_size`, `xfs_file_fallocate`, `xfs_file_remap_range`.
//!
//! # Stamps
//! Pages that leave are stamped after the map is published and before the allocator has them.
//! Pages that *move* (to another offset or file, or that become shared, which gives them one more
//! owner **\[chosen\]**) stay closed until the new map is published, and are stamped before that.
//! A pinner that pins them by the new map draws its read point after the stamp, or finds the
//! generation changed.

use emulator::race_point;
use emulator::sync::Arc;

use crate::base::errno::Errno;
use crate::base::range::BlockRanges;
use crate::extent_map::Layout;
use crate::holders::list::pin_holders;
use crate::layout_change::closed_pages::clear_pages;
use crate::layout_change::departure::{depart, fresh_blocks, release_shared};
use crate::layout_change::plan::{
    CLOSINGS_MAX, Change, ChangeWork, JointChange, Patience, SingleChange, StillHolds, publish_waiting,
};
use crate::layout_change::publication::publish_change;
use crate::layout_change::recall_clients::{end_own_layouts, recall_layouts};
use crate::layout_change::unmap_guests::unmap_guests;
use crate::layout_change::verdict::judge_all_pins;
use crate::leases::layout::break_layouts::{
    BreakOutcome, break_layouts, check_layouts, judge_without_breaks, wait_for_leases,
};
use crate::leases::layout::table::LeaseTable;
use crate::leases::layout::waiting::publish_waiting_on;
use crate::vfs::inode::Inode;
use crate::vfs::layout_turn::TurnGuard;
use crate::vfs::task::Task;

/// Runs a layout change. True if it changed anything.
pub(crate) fn change_layout(
    task: &Task,
    inode: &Arc<Inode>,
    change: &dyn Change,
    patience: Patience,
) -> Result<bool, Errno> {
    if inode.layout(|layout| change.plan(layout))?.is_none() {
        return Ok(false);
    }
    change_layouts(task, &[inode], &SingleChange(change), patience)
}

/// Runs a layout change of one or two files, which are in the order of their numbers. True if it
/// changed anything.
pub(crate) fn change_layouts(
    task: &Task,
    inodes: &[&Arc<Inode>],
    change: &dyn JointChange,
    patience: Patience,
) -> Result<bool, Errno> {
    let kernel = task.kernel();
    let mut turns: Vec<TurnGuard<'_>> = Vec::with_capacity(inodes.len());
    for inode in inodes {
        let turn = match (patience, turns.is_empty()) {
            (Patience::Never, _) => inode.turn.take_unless_waiting(task)?,
            (Patience::Waits, true) => inode.turn.take(task)?,
            (Patience::Waits, false) => match inode.turn.try_take(task.waiter().id()) {
                Some(turn) => turn,
                None => {
                    // The task that has the turn may wait for long: faults must not wait behind
                    // this change in front of the first file meanwhile.
                    turns
                        .iter()
                        .zip(inodes)
                        .for_each(|(held, inode)| publish_waiting_on(inode, held, &BlockRanges::default(), &[]));
                    inode.turn.take(task)?
                }
            },
        };
        turns.push(turn);
    }
    let sides: Vec<(&Inode, &TurnGuard<'_>)> = inodes.iter().map(|inode| inode.as_ref()).zip(&turns).collect();
    let generations: Vec<u64> = inodes.iter().map(|inode| inode.generation()).collect();
    let outcome = change_under_turns(task, &sides, change, patience);
    for (inode, generation) in inodes.iter().zip(generations) {
        LeaseTable::of(inode).change_over();
        if outcome.is_err() && inode.generation() != generation {
            kernel.violated(format!("invariant 8: a failed change of inode {} was visible", inode.ino().0));
        }
    }
    outcome
}

fn change_under_turns(
    task: &Task,
    sides: &[(&Inode, &TurnGuard<'_>)],
    change: &dyn JointChange,
    patience: Patience,
) -> Result<bool, Errno> {
    let kernel = task.kernel();
    loop {
        // Each time: the device may have been removed while this change waited.
        kernel.device_stays()?;
        let layouts: Vec<Layout> = sides.iter().map(|(inode, _)| inode.layout(Layout::clone)).collect();
        let Some(plans) = change.plan(kernel, &layouts)? else {
            return Ok(false);
        };
        let planned = plans.into_iter().zip(&layouts).zip(sides);
        let works: Vec<ChangeWork<'_>> =
            planned.map(|((plan, layout), side)| ChangeWork::new(plan, layout, &kernel.shares, *side)).collect();
        if works.iter().map(ChangeWork::closings).sum::<usize>() > CLOSINGS_MAX {
            return Err(Errno::ENOMEM);
        }
        works.iter().try_for_each(|work| work.check_copies(kernel))?;
        // A hint, before any lease is broken; what is free when the blocks are allocated decides.
        if works.iter().map(|work| work.blocks).sum::<u64>() > kernel.allocator.free_blocks() {
            return Err(Errno::ENOSPC);
        }
        if !break_all_layouts(task, &works, patience)? {
            continue;
        }
        if !recall_layouts(task, &works, patience)? {
            continue;
        }
        race_point!("change: settled, not shut");
        let Some(verdicts) = judge_all_pins(task, &works)? else { continue };
        if !unmap_guests(task, &works, &verdicts, patience)? {
            continue;
        }
        let needed = works.iter().zip(&verdicts).map(|(work, verdict)| work.blocks_with(&verdict.orphaned)).sum();
        let mut fresh = fresh_blocks(kernel, sides[0].0, needed)?;
        if !end_own_layouts(task, &works)? {
            continue;
        }
        let Some(cleared) = clear_pages(task, &works, verdicts, patience)? else {
            continue;
        };
        kernel.device_stays()?;
        race_point!("change: shut, not published");
        match publish_change(kernel, change, &layouts, &works, &cleared, &fresh.pages)? {
            StillHolds::Yes => {}
            StillHolds::No => return Ok(false),
            StillHolds::Again => continue,
        }
        fresh.pages.clear();
        race_point!("change: published, not freed");
        for (work, cleared) in works.iter().zip(cleared) {
            for departing in cleared.departing {
                depart(kernel, work.inode, departing);
            }
            for pages in &work.released {
                release_shared(kernel, work.inode, *pages);
            }
            let first = work.judged.first().copied();
            kernel.trace("layout changed", task.pid().0.into(), work.inode.ino().0, first);
        }
        return Ok(true);
    }
}

/// Judges and breaks leases. False: something was waited for, and the change plans again.
fn break_all_layouts(task: &Task, works: &[ChangeWork<'_>], patience: Patience) -> Result<bool, Errno> {
    if patience == Patience::Never {
        // A layout of a block-layout client refuses it too, before an own lease is removed.
        recall_layouts(task, works, patience)?;
        works.iter().try_for_each(|work| judge_without_breaks(task, work.inode, &work.touches, work.for_own_pin))?;
        return Ok(true);
    }
    let holders = |work: &ChangeWork<'_>| pin_holders(work.inode).holding(work.range, &work.judged);
    if works.len() > 1 {
        // A refusal comes before any owner is signalled, whichever file refuses.
        for work in works {
            check_layouts(task, work.inode, &work.touches, &holders(work))?;
        }
    }
    let mut in_the_way = Vec::new();
    for work in works {
        match break_layouts(task, work.inode, work.turn, &work.touches, &holders(work))? {
            BreakOutcome::Clear => {}
            BreakOutcome::InTheWay(leases) => in_the_way.push((work.inode, leases)),
        }
    }
    if !in_the_way.is_empty() {
        publish_waiting(works, |n| holders(&works[n]));
    }
    for (inode, leases) in &in_the_way {
        wait_for_leases(task, inode, leases)?;
    }
    Ok(in_the_way.is_empty())
}
