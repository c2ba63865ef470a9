//! Closing the pages that a change takes, and draining their pins.
//!
//! It owns the pages of a change between close and freeze: closed pages refuse new pins; the
//! change waits until short-term pins and revoked ones are gone. Invariant: pages that a change
//! gives up are reopened when [`ClosedPages`] is dropped. Kernel counterpart:
//! `xfs_break_dax_layouts`, `dax_layout_busy_page`.

use emulator::pin::{Closing, PageRange};
use emulator::race_point;
use emulator::sync::thread;
use emulator::wait::{SleepKind, WaitFor};

use crate::base::errno::Errno;
use crate::base::numbers::{HolderId, Pid};
use crate::base::page_sets::{common, merge, without};
use crate::deadlock::graph::{WaitFailure, WaitPoll};
use crate::deadlock::need::Need;
use crate::holders::ghosts::pinned_by_evicted;
use crate::holders::holder::{RevokeReason, revoke_holder};
use crate::holders::in_flight_io::io_on;
use crate::holders::list::pin_holders;
use crate::layout_change::busy::{DRAINING, waits_with_open_pages};
use crate::layout_change::departure::DepartingPages;
use crate::layout_change::plan::{ChangeWork, PageFate, Patience};
use crate::layout_change::verdict::PinVerdict;
use crate::leases::layout::waiting::publish_waiting_on;
use crate::vfs::kernel::Kernel;
use crate::vfs::layout_turn::TurnGuard;
use crate::vfs::task::Task;

impl Patience {
    fn drains(self) -> WaitFor {
        match self {
            Patience::Waits => WaitFor::interruptible(DRAINING),
            // A fault has no way to report an interruption.
            Patience::Never => WaitFor::killable(DRAINING),
        }
    }
}

/// One run of closed pages.
struct ClosedPart<'t> {
    closing: Closing<'t>,
    fate: PageFate,
    /// Its long-term pins stay.
    orphan: bool,
}

/// The closed pages of one file, and what becomes of them. Dropping it reopens them and wakes
/// pinners that wait for that.
struct ClosedPages<'t> {
    turn: &'t TurnGuard<'t>,
    parts: Vec<ClosedPart<'t>>,
}

impl Drop for ClosedPages<'_> {
    fn drop(&mut self) {
        self.parts.clear();
        self.turn.pages_reopened();
    }
}

/// Everything that leaves one file, ready to be published.
pub(crate) struct ClearedPages<'t> {
    pub(crate) departing: Vec<DepartingPages<'t>>,
    /// Pages that would have turned unwritten, were they not pinned: overwritten with zeros
    /// instead.
    pub(crate) kept: Vec<PageRange>,
    /// Pages that stay behind for their holders.
    pub(crate) orphaned: Vec<PageRange>,
    _closed: Option<ClosedPages<'t>>,
}

/// Closes all pages concerned and waits until those that must be are without pins. `None`: the
/// caller plans again.
pub(crate) fn clear_pages<'t>(
    task: &'t Task,
    works: &[ChangeWork<'t>],
    verdicts: Vec<PinVerdict>,
    patience: Patience,
) -> Result<Option<Vec<ClearedPages<'t>>>, Errno> {
    let kernel = task.kernel();
    let mut closed: Vec<Option<ClosedPages<'t>>> = Vec::with_capacity(works.len());
    for (work, verdict) in works.iter().zip(&verdicts) {
        let Some(part) = close_pages(kernel, work, verdict) else {
            if patience == Patience::Waits && task.waiter().interrupted(SleepKind::Interruptible) {
                return Err(Errno::EINTR);
            }
            drop(closed);
            thread::yield_now();
            return Ok(None);
        };
        closed.push(part);
    }
    let all_parts = || closed.iter().flatten().flat_map(|closed| &closed.parts);
    if all_parts().any(|part| !part.closing.census().is_zero()) {
        kernel.counters.closes_met_pin.add(1);
    }
    for (work, verdict) in works.iter().zip(&verdicts).filter(|(_, verdict)| !verdict.revoke.is_empty()) {
        // The holders' accesses in flight take time to drain.
        publish_waiting_on(work.inode, work.turn, &work.touches, &verdict.revoke);
    }
    if all_parts().next().is_some() && !drain_pins(task, works, &verdicts, &closed, patience)? {
        return Ok(None);
    }
    let sides = works.iter().zip(verdicts).zip(closed);
    Ok(sides.map(|((work, verdict), closed)| freeze_pages(kernel, work, verdict, closed)).collect())
}

/// With the pages closed: revokes the holders that the verdict revokes, and waits until short-term
/// pins and revoked ones are gone. False if a holder appeared or left that the verdict did not
/// know: the caller judges again.
fn drain_pins(
    task: &Task,
    works: &[ChangeWork<'_>],
    verdicts: &[PinVerdict],
    closed: &[Option<ClosedPages<'_>>],
    patience: Patience,
) -> Result<bool, Errno> {
    let kernel = task.kernel();
    for holder in verdicts.iter().flat_map(|verdict| &verdict.revoke) {
        revoke_holder(kernel, holder, RevokeReason::Rule);
    }
    // Where the design lets a change proceed over pins, long-term pins that were not judged are
    // ignored: they can belong to another file's holder.
    let shorts_only = kernel.tolerates_pins();
    let opens_for_io = waits_with_open_pages(task, patience);
    let outcome = task.block_on(kernel.pins.drained(), patience.drains(), || {
        let mut busy = false;
        for (work, verdict) in works.iter().zip(verdicts) {
            let judged = if kernel.ignores_pins() { &work.turning } else { &work.judged };
            let holders = pin_holders(work.inode).holding(work.range, judged);
            if holders.iter().any(|holder| !verdict.judged.contains(&holder.id)) {
                return WaitPoll::Ready(Ok(false));
            }
            let revoked = |id: HolderId| verdict.revoke.iter().any(|revoked| revoked.id == id);
            busy |= shorts_only && holders.iter().any(|holder| revoked(holder.id));
        }
        if opens_for_io && !io_on(kernel, &pages_closed_by(closed)).is_empty() {
            return WaitPoll::Ready(Ok(false));
        }
        for part in closed.iter().flatten().flat_map(|closed| &closed.parts) {
            let ignored = part.orphan || shorts_only || pinned_by_evicted(kernel, part.closing.range());
            busy = busy || part.closing.flag_waiter(ignored);
        }
        if busy { blocked_behind_closed_pages(task, works, closed) } else { WaitPoll::Ready(Ok(true)) }
    });
    match outcome {
        Ok(drained) => drained,
        Err(WaitFailure::Interrupted | WaitFailure::TimedOut) => Err(Errno::EINTR),
        Err(WaitFailure::Deadlock) => Err(Errno::EDEADLK),
    }
}

/// Which tasks could end the pins on the closed pages: calls and DMA in progress end by
/// themselves; its process must complete direct I/O or empty a pipe. Ready with EDEADLK if only
/// this task could, whatever its patience.
fn blocked_behind_closed_pages(
    task: &Task,
    works: &[ChangeWork<'_>],
    closed: &[Option<ClosedPages<'_>>],
) -> WaitPoll<Result<bool, Errno>> {
    for work in works {
        work.turn.set_draining(work.concerns_clients());
    }
    let mut io = io_on(task.kernel(), &pages_closed_by(closed));
    io.retain(|io| !io.ends_by_itself);
    let mut pids: Vec<Pid> = io.iter().map(|io| io.pid).collect();
    pids.dedup();
    if pids.contains(&task.pid()) && task.is_alone() {
        task.note_self_deadlock(DRAINING);
        return WaitPoll::Ready(Err(Errno::EDEADLK));
    }
    WaitPoll::Blocked(pids.into_iter().map(|pid| Need::any_of(vec![pid]).into()).collect())
}

/// All pages that a change has closed, sorted.
fn pages_closed_by(closed: &[Option<ClosedPages<'_>>]) -> Vec<PageRange> {
    let parts = closed.iter().flatten().flat_map(|closed| &closed.parts);
    let mut pages: Vec<PageRange> = parts.map(|part| part.closing.range()).collect();
    merge(&mut pages);
    pages
}

/// Closes all pages of one file that are to be frozen or orphaned. `None` if another close is in
/// the way for the moment; no closed pages if there is nothing to close.
fn close_pages<'t>(kernel: &'t Kernel, work: &ChangeWork<'t>, verdict: &PinVerdict) -> Option<Option<ClosedPages<'t>>> {
    if work.judged.is_empty() && work.losing_mark.is_empty() {
        return Some(None);
    }
    work.turn.pages_closed();
    let mut closed = ClosedPages { turn: work.turn, parts: Vec::new() };
    let apart = [&verdict.orphaned[..], &verdict.forged].concat();
    let fates = [
        (PageFate::Leaves, &work.leaving),
        (PageFate::Moves, &work.moving),
        (PageFate::TurnsUnwritten, &work.turning),
        (PageFate::LosesMark, &work.losing_mark),
    ];
    for (fate, pages) in fates {
        if kernel.sabotage.free_without_close && matches!(fate, PageFate::Leaves | PageFate::Moves) {
            continue;
        }
        for pages in without(pages, &apart) {
            closed.parts.push(ClosedPart { closing: kernel.pins.close(pages).ok()?, fate, orphan: false });
            race_point!("change: some pages part");
        }
        for pages in common(pages, &verdict.orphaned) {
            closed.parts.push(ClosedPart { closing: kernel.pins.close(pages).ok()?, fate, orphan: true });
        }
    }
    Some(Some(closed))
}

/// Turns closed pages into pages that are ready to leave. `None` if a pin that met the close is
/// about to undo itself.
fn freeze_pages<'t>(
    kernel: &'t Kernel,
    work: &ChangeWork<'_>,
    verdict: PinVerdict,
    mut closed: Option<ClosedPages<'t>>,
) -> Option<ClearedPages<'t>> {
    let mut forged = verdict.forged;
    let (mut departing, mut held) = (Vec::new(), Vec::new());
    for part in closed.iter_mut().flat_map(|closed| closed.parts.drain(..)) {
        let ClosedPart { closing, fate, orphan } = part;
        match fate {
            PageFate::Leaves | PageFate::Moves if orphan => {
                departing.push(DepartingPages::Orphaned(closing.range(), closing.orphan()));
                continue;
            }
            // Zeroed while closed instead, under its long-term pins.
            PageFate::TurnsUnwritten | PageFate::LosesMark if orphan => {
                held.push(ClosedPart { closing, fate, orphan });
                continue;
            }
            _ => {}
        }
        match closing.freeze() {
            Ok(frozen) if fate == PageFate::Leaves => departing.push(DepartingPages::Freed(frozen)),
            Ok(frozen) => departing.push(DepartingPages::Stays(frozen)),
            // Pinned for a file that the pages belonged to before: possible only where the design
            // frees pages that are pinned.
            Err(closing) if kernel.tolerates_pins() || pinned_by_evicted(kernel, closing.range()) => {
                forged.push(closing.range())
            }
            Err(_) => return None,
        }
    }
    if let Some(closed) = &mut closed {
        closed.parts = held;
    }
    let freed = if kernel.sabotage.free_without_close { work.leaving.clone() } else { common(&work.leaving, &forged) };
    departing.extend(freed.iter().map(|pages| DepartingPages::Freed(kernel.pins.forge(*pages))));
    let mut kept = common(&work.turning, &verdict.orphaned);
    kept.extend(common(&work.turning, &forged));
    Some(ClearedPages { departing, kept, orphaned: verdict.orphaned, _closed: closed })
}
