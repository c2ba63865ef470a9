//! The driver of layout changes: turn, leases, pins, close, publication, release of blocks.
//!
//! It owns the order of docs/semantics.md, section 4, for changes of one file and of two at once.
//! Invariants: a change that fails was never visible (invariant 8); no lock is held over a wait,
//! and no turn over a wait for leases, pins, clients or guests; after every wait everything is
//! judged again; two files are always taken in the order of their inode numbers. Kernel
//! counterpart: `xfs_break_layouts` and `dax_layout_busy_page` around `xfs_setattr_size`,
//! `xfs_file_fallocate`, `xfs_file_remap_range`.
//!
//! # Stamps
//! Pages that leave are stamped after the map is published and before the allocator has them.
//! Pages that *move* (to another offset or file, or that become shared, which gives them one more
//! owner **\[chosen\]**) stay closed until the new map is published, and are stamped before that.
//! A pinner that pins them by the new map draws its read point after the stamp, or finds the
//! generation changed.

use emulator::race_point;
use emulator::sync::Arc;
use emulator::wait::WaitFor;

use crate::base::errno::Errno;
use crate::base::range::BlockRanges;
use crate::deadlock::graph::{WaitFailure, WaitPoll};
use crate::deadlock::need::Awaited;
use crate::design::BusyScope;
use crate::holders::list::pin_holders;
use crate::layout_change::busy::{PinsInTheWay, Site, check_beside, pins_beside, wait_for_pins};
use crate::layout_change::closed_pages::clear_pages;
use crate::layout_change::departure::{depart, fresh_blocks, release_shared};
use crate::layout_change::plan::{
    CLOSINGS_MAX, Change, ChangeWork, JointChange, Patience, PlannedOn, SingleChange, StillHolds, publish_waiting,
    works_of,
};
use crate::layout_change::publication::publish_change;
use crate::layout_change::recall_clients::{end_own_layouts, recall_layouts};
use crate::layout_change::turns::Turns;
use crate::layout_change::unmap_guests::unmap_guests;
use crate::layout_change::verdict::{judge_all_pins, sites_of};
use crate::leases::layout::break_layouts::{
    BreakOutcome, break_layouts, check_layouts, judge_without_breaks, wait_for_leases,
};
use crate::leases::layout::table::LeaseTable;
use crate::leases::layout::waiting::{stand_aside, stand_back};
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
    let planned = inode.layout(|layout| change.plan(layout)).map(|plan| plan.is_some());
    if planned != Ok(true) && !meets_pins_anyway(task, change.meets_file(), patience) {
        if patience == Patience::Waits {
            inode.turn.wait_until_unheld(task);
        }
        return planned;
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
    let turns = Turns::of(task, inodes);
    let outcome = change_under_turns(task, inodes, &turns, change, patience);
    for (inode, turn) in inodes.iter().zip(turns.guards()) {
        LeaseTable::of(inode).change_over(task.waiter().id());
        if outcome.is_err() && turn.is_published() {
            task.kernel().violated(format!("invariant 8: a failed change of inode {} was visible", inode.ino().0));
        }
    }
    outcome
}

fn change_under_turns(
    task: &Task,
    inodes: &[&Arc<Inode>],
    turns: &Turns<'_>,
    change: &dyn JointChange,
    patience: Patience,
) -> Result<bool, Errno> {
    let kernel = task.kernel();
    let sides: Vec<(&Inode, &TurnGuard<'_>)> = inodes.iter().map(|inode| inode.as_ref()).zip(turns.guards()).collect();
    // A plan without the turn only says which turn to take.
    let mut wanted: Option<Vec<BlockRanges>> = None;
    loop {
        if patience == Patience::Waits && wait_for_inodes(task, &sides) {
            continue;
        }
        if let Some(ranges) = &wanted {
            turns.take(task, ranges, patience == Patience::Waits)?;
        }
        // Each time: the device may have been removed while this change waited.
        kernel.device_stays()?;
        let planned = PlannedOn::now(inodes);
        let plans = match change.plan(kernel, &planned.layouts) {
            Ok(Some(plans)) => plans,
            nothing => {
                if meets_pins_anyway(task, change.meets_file(), patience) && wait_for_files(task, turns, &sides)? {
                    continue;
                }
                return nothing.map(|_| false);
            }
        };
        let ranges: Vec<BlockRanges> =
            plans.iter().zip(&planned.layouts).map(|(plan, layout)| plan.turn_ranges(layout)).collect();
        if !turns.cover(&ranges) {
            wanted = Some(ranges);
            continue;
        }
        let works = works_of(kernel, plans, &planned.layouts, &sides);
        if !stand_behind_requests(task, &works, patience)? {
            continue;
        }
        match change_once(task, change, &planned, &works, patience)? {
            StillHolds::Yes => return Ok(true),
            StillHolds::No => return Ok(false),
            StillHolds::Again => {}
        }
    }
}

/// Carries out a change that has its turns and is planned under them. `Again`: something was waited
/// for, or has changed, and it must be planned again.
fn change_once<'w>(
    task: &'w Task,
    change: &dyn JointChange,
    planned: &PlannedOn,
    works: &[ChangeWork<'w>],
    patience: Patience,
) -> Result<StillHolds, Errno> {
    let kernel = task.kernel();
    if works.iter().map(ChangeWork::closings).sum::<usize>() > CLOSINGS_MAX {
        return Err(Errno::ENOMEM);
    }
    works.iter().try_for_each(|work| work.check_sound_blocks(kernel))?;
    // A hint, before any lease is broken; what is free when the blocks are allocated decides.
    if works.iter().map(|work| work.blocks).sum::<u64>() > kernel.allocator.free_blocks() {
        return Err(Errno::ENOSPC);
    }
    let sites = sites_of(change, works, patience);
    // What refuses the change comes before any lease is broken.
    sites.iter().try_for_each(|site| check_beside(task, *site))?;
    if !break_all_layouts(task, works, patience)? || !recall_layouts(task, works, patience)? {
        return Ok(StillHolds::Again);
    }
    race_point!("change: settled, not shut");
    let Some(verdicts) = judge_all_pins(task, change, works, patience)? else { return Ok(StillHolds::Again) };
    if !unmap_guests(task, works, &verdicts, patience)? {
        return Ok(StillHolds::Again);
    }
    let needed = works.iter().zip(&verdicts).map(|(work, verdict)| work.blocks_with(&verdict.orphaned)).sum();
    let Some(first) = works.first() else { return Ok(StillHolds::No) };
    let mut fresh = fresh_blocks(kernel, first.inode, needed)?;
    if !end_own_layouts(task, works)? {
        return Ok(StillHolds::Again);
    }
    let Some(cleared) = clear_pages(task, works, verdicts, patience)? else {
        return Ok(StillHolds::Again);
    };
    kernel.device_stays()?;
    race_point!("change: shut, not published");
    let holds = publish_change(kernel, change, planned, works, &cleared, &fresh.pages)?;
    if holds != StillHolds::Yes {
        return Ok(holds);
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
    Ok(StillHolds::Yes)
}

/// Whether a change that has no effect, or is refused, waits for pins in the file all the same.
/// Kernel: a truncate or `fallocate` breaks layouts before it looks what there is to do.
pub(crate) fn meets_pins_anyway(task: &Task, meets_file: bool, patience: Patience) -> bool {
    meets_file && patience == Patience::Waits && task.kernel().axes.busy_scope == BusyScope::File
}

/// Waits, with no turn, until no change of another task holds one of the inodes. False: none did.
fn wait_for_inodes(task: &Task, sides: &[(&Inode, &TurnGuard<'_>)]) -> bool {
    let held = |side: &&(&Inode, &TurnGuard<'_>)| side.0.turn.held_by_other(task.waiter().id()).is_some();
    let Some((inode, _)) = sides.iter().find(held) else { return false };
    sides.iter().for_each(|(inode, turn)| stand_back(inode, turn));
    inode.turn.wait_until_unheld(task);
    true
}

/// For a change without an effect, or one that is refused: waits for pins anywhere in its files.
/// False: there was none.
fn wait_for_files(task: &Task, turns: &Turns<'_>, sides: &[(&Inode, &TurnGuard<'_>)]) -> Result<bool, Errno> {
    let site = |&(inode, turn)| Site { inode, turn, work: None, whole_file: true, patience: Patience::Waits };
    let sites: Vec<Site<'_>> = sides.iter().map(site).collect();
    let ways = sites.iter().map(|site| pins_beside(task, *site)).collect::<Result<Vec<PinsInTheWay>, Errno>>()?;
    if ways.iter().all(PinsInTheWay::is_empty) {
        return Ok(false);
    }
    // It changes nothing, so its turn is for no block.
    turns.take(task, &vec![BlockRanges::default(); sides.len()], true)?;
    wait_for_pins(task, &sites, &ways)?;
    Ok(true)
}

/// A change stands behind lease requests that wait where it judges leases, unless they wait for its
/// own process: it comes after the grant. False: it has waited, and plans again. Faults and pins
/// that must allocate never wait for leases.
fn stand_behind_requests(task: &Task, works: &[ChangeWork<'_>], patience: Patience) -> Result<bool, Errno> {
    if patience == Patience::Never {
        return Ok(true);
    }
    let asking = |work: &ChangeWork<'_>| {
        let mut tasks = LeaseTable::of(work.inode).asking_in(&work.touches);
        tasks.retain(|asker| *asker != task.waiter().id() && !task.kernel().waits_for(*asker, task.pid()));
        tasks
    };
    let Some(n) = works.iter().position(|work| !asking(work).is_empty()) else { return Ok(true) };
    for (other, work) in works.iter().enumerate() {
        if other == n { stand_back(work.inode, work.turn) } else { stand_aside(work.inode, work.turn) }
    }
    let how = WaitFor::interruptible("lease request ahead");
    let outcome = task.block_on(&LeaseTable::of(works[n].inode).changed, how, || match asking(&works[n]) {
        tasks if tasks.is_empty() => WaitPoll::Ready(()),
        tasks => WaitPoll::Blocked(tasks.into_iter().map(Awaited::behind).collect()),
    });
    match outcome {
        Ok(()) => Ok(false),
        Err(WaitFailure::Deadlock) => Err(Errno::EDEADLK),
        Err(WaitFailure::Interrupted | WaitFailure::TimedOut) => Err(Errno::EINTR),
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
        in_the_way.push(match break_layouts(task, work.inode, work.turn, &work.touches, &holders(work))? {
            BreakOutcome::Clear => Vec::new(),
            BreakOutcome::InTheWay(leases) => leases,
        });
    }
    if in_the_way.iter().all(Vec::is_empty) {
        return Ok(true);
    }
    publish_waiting(works, |n| (!in_the_way[n].is_empty()).then(|| holders(&works[n])));
    for (work, leases) in works.iter().zip(&in_the_way).filter(|(_, leases)| !leases.is_empty()) {
        wait_for_leases(task, work.inode, leases)?;
    }
    Ok(false)
}
