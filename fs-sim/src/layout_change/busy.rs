//! Pins that stand in the way of a change besides those on its own blocks, and the wait with all
//! pages open.
//!
//! It owns the axes `busy_scope` (pins anywhere in the file), `busy_unit` (pins in the same 2 MiB
//! entry) and `pin_wait_holds` (what waits meanwhile). Invariants: outside of the blocks that
//! change only the rules `fail` and `wait` act; where a change holds the inode while it waits for
//! pins, it never waits for them with pages closed, so that page faults proceed. Kernel
//! counterpart: `dax_layout_busy_page` over the whole mapping and `xfs_wait_dax_page`, which drops
//! the mapping's lock and keeps the inode's.

use emulator::pin::PageRange;
use emulator::sync::Arc;
use emulator::wait::WaitFor;

use crate::base::errno::Errno;
use crate::base::numbers::HolderId;
use crate::base::page_sets::{merge, without};
use crate::base::range::{BlockRange, BlockRanges};
use crate::deadlock::graph::{WaitFailure, WaitPoll};
use crate::deadlock::need::{Awaited, Need};
use crate::design::{Axes, BusyScope, BusyUnit, ChangeRule, PinWaitHolds};
use crate::extent_map::Layout;
use crate::extent_map::Piece;
use crate::extent_map::lookup::{pages_of, pieces_in};
use crate::holders::holder::Holder;
use crate::holders::in_flight_io::{OpenPageWait, SeenIo, io_on};
use crate::holders::list::pin_holders;
use crate::layout_change::plan::{ChangeWork, Patience};
use crate::leases::layout::break_layouts::covered_by_breakable;
use crate::leases::layout::waiting::{publish_holding, publish_waiting, stand_aside, stand_back};
use crate::vfs::inode::Inode;
use crate::vfs::layout_turn::{MetPins, TurnGuard};
use crate::vfs::task::Task;

/// How many blocks one DAX entry maps at most: 2 MiB (`PMD_SIZE`).
const ENTRY_BLOCKS: u64 = 512;

/// The reason of a change that waits for short-term pins.
pub(crate) const DRAINING: &str = "pins draining";

/// A change of one file, as far as pins are concerned.
#[derive(Clone, Copy)]
pub(crate) struct Site<'a> {
    pub(crate) inode: &'a Inode,
    pub(crate) turn: &'a TurnGuard<'a>,
    /// What it does there; none if it has no effect, but would wait for pins all the same.
    pub(crate) work: Option<&'a ChangeWork<'a>>,
    /// Whether pins anywhere in the file stand in the way of the call, if the design says so.
    pub(crate) whole_file: bool,
    pub(crate) patience: Patience,
}

/// What stands in the way of a change in one file, and is waited for with all pages open.
#[derive(Default)]
pub(crate) struct PinsInTheWay {
    /// Long-term pins.
    pub(crate) holders: Vec<Arc<Holder>>,
    /// The pages whose I/O in flight is waited for, sorted. Empty: there is none.
    io_pages: Vec<PageRange>,
}

impl PinsInTheWay {
    pub(crate) fn is_empty(&self) -> bool {
        self.holders.is_empty() && self.io_pages.is_empty()
    }

    /// As the change shows it to others while it waits.
    fn met(&self) -> MetPins {
        MetPins { holders: self.holders.iter().map(|holder| holder.id).collect(), io_pages: self.io_pages.clone() }
    }

    /// Adds I/O in flight on pages that the change proceeds over although they are pinned
    /// long-term: they are not closed, so nothing else waits for it.
    ///
    /// # Errors
    /// EDEADLK: only the change's own task could complete it.
    pub(crate) fn add_io_on_proceeded(&mut self, task: &Task, proceeded: &[PageRange]) -> Result<(), Errno> {
        if task.kernel().ignores_pins() {
            return Ok(());
        }
        let mut pages = proceeded.to_vec();
        merge(&mut pages);
        let io = io_on(task.kernel(), &pages);
        refuse_own_io(task, &io)?;
        if !io.is_empty() {
            self.io_pages.extend(pages);
            merge(&mut self.io_pages);
        }
        Ok(())
    }
}

/// Whether a change waits for I/O in flight with its pages open, and holds the inode meanwhile. A
/// fault does not: it holds no inode, and waits with its own pages closed.
pub(crate) fn waits_with_open_pages(task: &Task, patience: Patience) -> bool {
    let holds = task.kernel().axes.pin_wait_holds == PinWaitHolds::Inode;
    holds && patience == Patience::Waits && !task.kernel().ignores_pins()
}

/// What refuses a change because of long-term pins beside its own blocks, before any lease is
/// broken. Pins of other processes that a breakable lease in its way covers are judged after the
/// break, and so is I/O that only the change's own task could complete.
///
/// # Errors
/// ETXTBSY: the rule is `fail`.
pub(crate) fn check_beside(task: &Task, site: Site<'_>) -> Result<(), Errno> {
    find_beside(task, site, true).map(|_| ())
}

/// The pins besides those that the verdict on the change's own blocks covers.
///
/// # Errors
/// ETXTBSY: the rule is `fail`. EDEADLK: the change waits for I/O that only its own task could
/// complete.
pub(crate) fn pins_beside(task: &Task, site: Site<'_>) -> Result<PinsInTheWay, Errno> {
    find_beside(task, site, false)
}

fn find_beside(task: &Task, site: Site<'_>, before_breaks: bool) -> Result<PinsInTheWay, Errno> {
    let kernel = task.kernel();
    let (judged, drained) = match site.work {
        Some(work) => (work.judged.clone(), [&work.judged[..], &work.losing_mark].concat()),
        None => (Vec::new(), Vec::new()),
    };
    let beside = without(&busy_pages(task, site), &judged);
    let mut way = PinsInTheWay::default();
    let rule = |own: bool| if own { kernel.axes.holder_change } else { kernel.axes.stranger_change };
    if !beside.is_empty() {
        for holder in pin_holders(site.inode).holding(BlockRange::ALL, &beside) {
            let own = holder.pid == task.pid();
            let covered =
                |work: &ChangeWork<'_>| covered_by_breakable(&kernel.axes, site.inode, &holder, &work.touches);
            match rule(own) {
                ChangeRule::Fail if before_breaks && !own && site.work.is_some_and(covered) => {}
                ChangeRule::Fail => return Err(Errno::ETXTBSY),
                ChangeRule::Wait => way.holders.push(holder),
                ChangeRule::Proceed | ChangeRule::Orphan | ChangeRule::Revoke => {}
            }
        }
    }
    if before_breaks {
        return Ok(way);
    }
    // As on the change's own blocks, short-term pins are ignored only where no pin is heeded.
    let mut io = if kernel.ignores_pins() { Vec::new() } else { io_on(kernel, &beside) };
    let mut io_pages = if io.is_empty() { Vec::new() } else { beside };
    if waits_with_open_pages(task, site.patience) {
        let mut pages = drained;
        merge(&mut pages);
        let own_blocks = io_on(kernel, &pages);
        io_pages.extend(pages.into_iter().filter(|_| !own_blocks.is_empty()));
        io.extend(own_blocks);
        merge(&mut io_pages);
    }
    refuse_own_io(task, &io)?;
    way.io_pages = io_pages;
    Ok(way)
}

/// Refuses to wait for I/O that only this task could complete.
fn refuse_own_io(task: &Task, io: &[SeenIo]) -> Result<(), Errno> {
    if task.is_alone() && io.iter().any(|io| io.is_up_to(task.pid())) {
        task.note_self_deadlock(DRAINING);
        return Err(Errno::EDEADLK);
    }
    Ok(())
}

/// The pages on which the design looks for pins besides the change's own blocks, sorted.
fn busy_pages(task: &Task, site: Site<'_>) -> Vec<PageRange> {
    let none = BlockRanges::default();
    let changing = site.work.map_or(&none, |work| work.changing());
    busy_pages_of(&task.kernel().axes, site.inode, changing, site.whole_file)
}

/// The pages on which the design looks for pins besides the blocks of a change of `changing`,
/// sorted; `whole_file` as in [`Site`].
pub(crate) fn busy_pages_of(axes: &Axes, inode: &Inode, changing: &BlockRanges, whole_file: bool) -> Vec<PageRange> {
    let mut pages: Vec<PageRange> = inode.layout(|layout| match (axes.busy_scope, axes.busy_unit) {
        (BusyScope::File, _) if whole_file => layout.extents().map(|extent| pages_of(&extent)).collect(),
        (_, BusyUnit::Entry) => entries_of(layout, changing),
        (_, BusyUnit::Page) => Vec::new(),
    });
    merge(&mut pages);
    pages
}

/// The pages of the 2 MiB entries that `ranges` touch: aligned in the file and on the device, and
/// in one run. Kernel: `dax_iomap_pmd_fault`.
fn entries_of(layout: &Layout, ranges: &BlockRanges) -> Vec<PageRange> {
    let end = layout.size().div_ceil(crate::base::units::BLOCK);
    let mut entries = Vec::new();
    let mut next = 0;
    for range in ranges.iter() {
        for entry in (range.start / ENTRY_BLOCKS).max(next)..range.end.min(end).div_ceil(ENTRY_BLOCKS) {
            let whole = BlockRange::new(entry * ENTRY_BLOCKS, (entry + 1) * ENTRY_BLOCKS);
            if let [Piece::Mapped(extent)] = pieces_in(layout, whole)[..]
                && extent.block.is_multiple_of(ENTRY_BLOCKS)
            {
                entries.push(pages_of(&extent));
            }
            next = entry + 1;
        }
    }
    entries
}

/// Waits, with all pages open, until what is in the way in the first such file is gone. The change
/// judges again then. A change of two files that holds both inodes waits for pins of the second one
/// uninterruptibly: Linux, which has locked both files' mappings by then, tries again without a
/// sleep (`xfs_reflink_remap_prep`).
///
/// # Errors
/// EINTR, EDEADLK.
pub(crate) fn wait_for_pins(task: &Task, sites: &[Site<'_>], ways: &[PinsInTheWay]) -> Result<(), Errno> {
    let Some(n) = ways.iter().position(|way| !way.is_empty()) else { return Ok(()) };
    let none = BlockRanges::default();
    let touches = |site: &Site<'_>| site.work.map_or_else(|| none.clone(), |work| work.touches.clone());
    let patience = sites[n].patience;
    let holds_inode = task.kernel().axes.pin_wait_holds == PinWaitHolds::Inode && patience == Patience::Waits;
    for (other, (site, way)) in sites.iter().zip(ways).enumerate() {
        match (holds_inode, other == n) {
            (true, _) if publish_holding(site.inode, site.turn, &touches(site), way.met()) => {}
            (true, _) => {
                // The change of another task holds this inode.
                sites.iter().for_each(|site| stand_back(site.inode, site.turn));
                site.inode.turn.wait_until_unheld(task);
                return Ok(());
            }
            (false, true) => publish_waiting(site.inode, site.turn, &touches(site), way.met()),
            (false, false) => stand_aside(site.inode, site.turn),
        }
    }
    let how = match patience {
        // A fault has no way to report an interruption.
        Patience::Never => WaitFor::killable,
        Patience::Waits if n > 0 && holds_inode => WaitFor::uninterruptible,
        Patience::Waits => WaitFor::interruptible,
    };
    wait_until_gone(task, sites[n].inode, &ways[n], how)
}

fn wait_until_gone(
    task: &Task,
    inode: &Inode,
    way: &PinsInTheWay,
    how: impl Fn(&'static str) -> WaitFor,
) -> Result<(), Errno> {
    let kernel = task.kernel();
    let long_term = !way.holders.is_empty();
    if long_term {
        kernel.counters.waits_for_long_term_pin.add(1);
    }
    let awaited: Vec<HolderId> = way.holders.iter().map(|holder| holder.id).collect();
    let reason = if long_term { "long-term pins" } else { DRAINING };
    let _any_io = OpenPageWait::begin(kernel, inode);
    let outcome = task.block_on(&pin_holders(inode).changed, how(reason), || {
        let mut left = pin_holders(inode).all();
        left.retain(|holder| awaited.contains(&holder.id));
        let io = io_on(kernel, &way.io_pages);
        if left.is_empty() && io.is_empty() {
            return WaitPoll::Ready(());
        }
        let holders = left.into_iter().map(|holder| Awaited::of_holder(kernel, holder));
        WaitPoll::Blocked(holders.chain(io.iter().filter_map(SeenIo::awaited)).collect())
    });
    match outcome {
        Ok(()) => Ok(()),
        Err(WaitFailure::Interrupted | WaitFailure::TimedOut) => Err(Errno::EINTR),
        Err(WaitFailure::Deadlock) => Err(Errno::EDEADLK),
    }
}

/// Whether this task's process would wait for its own pin, which no other task could release.
pub(crate) fn waits_for_itself(task: &Task, holder: &Arc<Holder>) -> bool {
    let own = holder.pid == task.pid() && task.is_alone();
    own && Need::of_holder(task.kernel(), holder).any_of == [task.pid()]
}
