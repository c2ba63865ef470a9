//! Eviction: the end of a file without a name and without an open file.
//!
//! It owns the release of all its blocks. Invariants: eviction never fails; it waits only in the
//! call of a task, where the design says so (`evict_while_pinned = wait`), and such a wait ends by
//! nothing but the last unpin: of a task that waits for itself the wait graph says that it is
//! stuck. Kernel counterpart: `evict_inode` of `struct super_operations`, `xfs_inactive`;
//! `dax_break_layout_final` (fs/dax.c).

use emulator::pin::PageRange;
use emulator::sync::Arc;
use emulator::wait::WaitFor;

use crate::base::page_sets::merge;
use crate::deadlock::graph::WaitPoll;
use crate::deadlock::need::Awaited;
use crate::design::EvictRule;
use crate::extent_map::lookup::pages_of;
use crate::extent_map::{Extent, Layout};
use crate::holders::ghosts::remember_holders_of;
use crate::holders::in_flight_io::{OpenPageWait, SeenIo, io_on};
use crate::holders::list::pin_holders;
use crate::layout_change::departure::free_unmapped;
use crate::vfs::inode::Inode;
use crate::vfs::kernel::Kernel;
use crate::vfs::lifecycle::LastReference;
use crate::vfs::task::Task;

/// Evicts an inode. What is still pinned becomes orphaned, or is freed (`proceed`).
pub(crate) fn evict(kernel: &Arc<Kernel>, inode: &Arc<Inode>, last: LastReference<'_>) {
    if kernel.axes.evict_while_pinned == EvictRule::Wait
        && let Some(task) = last.task()
    {
        wait_for_pins_to_go(task, inode);
    }
    let leaving: Vec<Extent> = inode.layout(|layout| layout.extents().collect());
    kernel.trace("evicted", inode.ino().0, inode.ino().0, leaving.first().map(pages_of));
    inode.turn.pages_closed();
    {
        let _publishing = inode.map_lock.lock();
        inode.publish(Layout::default());
    }
    kernel.journal.evicted(inode.ino());
    // Before another file can have the blocks: its changes ask whose pins are on them.
    remember_holders_of(kernel, inode);
    // No process has the file open: what still pins it is long-term, holds pages by address, or is
    // about to find the map changed. The ranges are taken one by one, so the number of extents has
    // no limit. Blocks that are not counted as shared belong to this file alone.
    let ignores_pins = kernel.axes.evict_while_pinned == EvictRule::Proceed;
    for extent in leaving {
        for pages in kernel.shares.release(pages_of(&extent)) {
            free_unmapped(kernel, inode, pages, ignores_pins);
        }
    }
    inode.turn.pages_reopened();
    kernel.inodes.remove(inode.ino());
}

/// Waits, uninterruptibly, until no holder and no I/O in flight pins a page of the file. No new pin
/// can come: no process has the file open or mapped.
fn wait_for_pins_to_go(task: &Task, inode: &Inode) {
    let kernel = task.kernel();
    let mut pages: Vec<PageRange> = inode.layout(|layout| layout.extents().map(|extent| pages_of(&extent)).collect());
    merge(&mut pages);
    let holders = pin_holders(inode);
    let _any_io = OpenPageWait::begin(kernel, inode);
    if holders.is_empty() && io_on(kernel, &pages).is_empty() {
        return;
    }
    if !holders.is_empty() {
        kernel.counters.waits_for_long_term_pin.add(1);
    }
    let how = WaitFor::uninterruptible("pins of an evicted file");
    let _ended = task.block_on(&holders.changed, how, || {
        let (holders, io) = (holders.all(), io_on(kernel, &pages));
        if holders.is_empty() && io.is_empty() {
            return WaitPoll::Ready(());
        }
        let awaited = holders.into_iter().map(|holder| Awaited::of_holder(kernel, holder));
        WaitPoll::Blocked(awaited.chain(io.iter().filter_map(SeenIo::awaited)).collect())
    });
}
