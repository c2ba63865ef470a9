//! Recalling the layouts of block-layout clients before a change.
//!
//! It owns the wait for clients: recall, two lease periods, fence. Invariant: a change continues
//! only when no layout of another client is left in its range. Kernel counterpart:
//! `nfsd4_layout_lm_break`, `nfsd4_cb_layout_done` (fs/nfsd/nfs4layouts.c).

use emulator::sync::Arc;
use emulator::wait::WaitFor;

use crate::base::errno::Errno;
use crate::deadlock::graph::{WaitFailure, WaitPoll};
use crate::deadlock::need::Need;
use crate::holders::block_layout::{BlockLayout, BlockLayouts, fence, recall_layout};
use crate::layout_change::plan::{ChangeWork, Patience};
use crate::leases::layout::waiting::{publish_waiting_on, stand_aside};
use crate::vfs::inode::Inode;
use crate::vfs::open_file::Deferred;
use crate::vfs::task::Task;

/// One file of a change, and the layouts that stand against it.
type LayoutsInWay<'w> = (&'w ChangeWork<'w>, Vec<Arc<BlockLayout>>);

/// Recalls the layouts that other clients hold where a change has an effect, waits until they are
/// returned, and fences those whose time is over. False if any was in the way: the change plans
/// again.
///
/// # Errors
/// ETXTBSY for a change that never waits, also where it would meet its own process's layout;
/// EINTR; EDEADLK.
pub(crate) fn recall_layouts(task: &Task, works: &[ChangeWork<'_>], patience: Patience) -> Result<bool, Errno> {
    let in_way = layouts_in_way(task, works, false);
    if patience == Patience::Never && !(in_way.is_empty() && layouts_in_way(task, works, true).is_empty()) {
        return Err(Errno::ETXTBSY);
    }
    until_gone(task, works, &in_way, |layout| {
        let _told = recall_layout(task.kernel(), layout);
    })
}

/// A client that changes the layout itself knows of it: its own layouts there end **\[chosen\]**,
/// once nothing refuses the change any more; where the change only adds blocks they stay. False if
/// I/O in flight was, or could have been, waited for: the change plans again.
///
/// # Errors
/// EINTR.
pub(crate) fn end_own_layouts(task: &Task, works: &[ChangeWork<'_>]) -> Result<bool, Errno> {
    until_gone(task, works, &layouts_in_way(task, works, true), |layout| {
        let mut deferred = Deferred::default();
        layout.close(&mut deferred);
        task.run_deferred(deferred);
    })
}

/// The layouts that stand against a change: those of other clients, or its own.
fn layouts_in_way<'w>(task: &Task, works: &'w [ChangeWork<'w>], own: bool) -> Vec<LayoutsInWay<'w>> {
    let concerned = works.iter().filter(|work| !(own && work.only_adds()));
    let in_way = concerned.map(|work| {
        let mut layouts = BlockLayouts::of(work.inode).overlapping(&work.concerns_clients());
        layouts.retain(|layout| (layout.pid == task.pid()) == own);
        (work, layouts)
    });
    in_way.filter(|(_, layouts)| !layouts.is_empty()).collect()
}

/// Calls `demand` for each of these layouts and waits until they are gone. True if there was none.
fn until_gone(
    task: &Task,
    works: &[ChangeWork<'_>],
    in_way: &[LayoutsInWay<'_>],
    demand: impl Fn(&BlockLayout),
) -> Result<bool, Errno> {
    if in_way.is_empty() {
        return Ok(true);
    }
    let waits = |work: &&ChangeWork<'_>| in_way.iter().any(|(other, _)| std::ptr::eq(*other, *work));
    works.iter().filter(|work| !waits(work)).for_each(|work| stand_aside(work.inode, work.turn));
    for (work, layouts) in in_way {
        publish_waiting_on(work.inode, work.turn, &work.concerns_clients(), &[]);
        layouts.iter().for_each(|layout| demand(layout));
    }
    for (work, layouts) in in_way {
        wait_for_layouts(task, work.inode, layouts)?;
    }
    Ok(false)
}

/// Waits until none of `layouts` is left, and fences those of other clients whose time is over.
fn wait_for_layouts(task: &Task, inode: &Inode, layouts: &[Arc<BlockLayout>]) -> Result<(), Errno> {
    let kernel = task.kernel();
    loop {
        let now = kernel.world.now();
        let mut next = None;
        for layout in layouts.iter().filter(|layout| layout.pid != task.pid()) {
            match recall_layout(kernel, layout).deadline {
                Some(deadline) if deadline <= now => fence(kernel, layout),
                deadline => next = deadline.into_iter().chain(next).min(),
            }
        }
        let how = WaitFor::interruptible("block layout recall").until(next);
        let outcome = task.block_on(&BlockLayouts::of(inode).changed, how, || {
            let held = BlockLayouts::of(inode).held.lock();
            let left = || layouts.iter().filter(|layout| held.iter().any(|other| Arc::ptr_eq(other, layout)));
            if left().next().is_none() {
                return WaitPoll::Ready(());
            }
            // Of a closed layout only I/O in flight is left, which ends by itself: the wait needs
            // no process for it.
            let open = left().filter(|layout| !layout.gate.is_closed());
            WaitPoll::Blocked(open.map(|layout| Need::any_of(vec![layout.pid]).into()).collect())
        });
        match outcome {
            Ok(()) => return Ok(()),
            Err(WaitFailure::TimedOut) => {}
            Err(WaitFailure::Interrupted) => return Err(Errno::EINTR),
            Err(WaitFailure::Deadlock) => return Err(Errno::EDEADLK),
        }
    }
}
