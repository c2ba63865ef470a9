//! TODO

use emulator::pin::{Closing, PageRange};
use emulator::race_point;
use emulator::sync::thread;
use emulator::wait::{Sleep, WaitFor};

use crate::base::errno::Errno;
use crate::base::numbers::{HolderId, Pid};
use crate::base::page_sets::{common, merge, without};
use crate::deadlock::graph::{WaitFailure, WaitPoll};
use crate::deadlock::need::Need;
use crate::holders::holder::revoke_holder;
use crate::holders::in_flight_io::io_on;
use crate::holders::list::pin_holders;
use crate::layout_change::departure::DepartingPages;
use crate::layout_change::plan::{ChangeWork, PageFate, Patience, publish_waiting};
use crate::layout_change::verdict::PinVerdict;
use crate::vfs::inode::Inode;
use crate::vfs::kernel::Kernel;
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

/// Why a change waits with its doors shut.
const DRAINING: &str = "pins draining";

/// A part of the work behind a shut door.
struct ClosedPart<'t> {
    closing: Closing<'t>,
    fate: PageFate,
    /// Its long-term pins stay.
    orphan: bool,
}

/// Pages that are shut, and how they are to leave; the inode's pinners are told until it is gone.
struct ClosedPages<'t> {
    inode: &'t Inode,
    shut: Vec<ClosedPart<'t>>,
}

impl Drop for ClosedPages<'_> {
    fn drop(&mut self) {
        self.shut.clear();
        self.inode.turn.pages_reopened();
    }
}

/// Everything that leaves one file, ready to go.
pub(crate) struct ClearedPages<'t> {
    pub(crate) departing: Vec<DepartingPages<'t>>,
    /// Pages that would have turned unwritten, were they not pinned: overwritten with zeros instead.
    pub(crate) kept: Vec<PageRange>,
    /// Pages that stay behind for their holders.
    pub(crate) orphaned: Vec<PageRange>,
    _doors: Option<ClosedPages<'t>>,
}

/// Shuts all pages concerned and waits until those that must be are without pins. None: look again.
pub(crate) fn clear_pages<'t>(
    task: &'t Task,
    works: &[ChangeWork<'t>],
    verdicts: Vec<PinVerdict>,
    patience: Patience,
) -> Result<Option<Vec<ClearedPages<'t>>>, Errno> {
    let kernel = task.kernel();
    let mut doors: Vec<Option<ClosedPages<'t>>> = Vec::with_capacity(works.len());
    for (work, verdict) in works.iter().zip(&verdicts) {
        let Some(shut) = close_pages(kernel, work, verdict) else {
            if patience == Patience::Waits && task.waiter().interrupted(Sleep::Interruptible) {
                return Err(Errno::EINTR);
            }
            drop(doors);
            thread::yield_now();
            return Ok(None);
        };
        doors.push(shut);
    }
    let all_shut = || doors.iter().flatten().flat_map(|doors| &doors.shut);
    if all_shut().any(|shut| !shut.closing.census().is_zero()) {
        kernel.counters.closes_met_pin.add(1);
    }
    if verdicts.iter().any(|verdict| !verdict.revoke.is_empty()) {
        // Their accesses in flight take their time.
        publish_waiting(works, |n| verdicts[n].revoke.clone());
    }
    if all_shut().next().is_some() && !drain_pins(task, works, &verdicts, &doors, patience)? {
        return Ok(None);
    }
    let sides = works.iter().zip(verdicts).zip(doors);
    Ok(sides.map(|((work, verdict), doors)| freeze_pages(kernel, work, verdict, doors)).collect())
}

/// With the doors shut: revokes what is to be revoked, and waits until short-term pins (and those revoked) are gone.
/// False if a holder appeared or left meanwhile whom the verdict did not know: judge again.
fn drain_pins(
    task: &Task,
    works: &[ChangeWork<'_>],
    verdicts: &[PinVerdict],
    doors: &[Option<ClosedPages<'_>>],
    patience: Patience,
) -> Result<bool, Errno> {
    let kernel = task.kernel();
    for holder in verdicts.iter().flat_map(|verdict| &verdict.revoke) {
        revoke_holder(kernel, holder);
    }
    // Where somebody may go on over pins, those of nobody's judging are left alone: they can be of another file's holder.
    let shorts_only = kernel.tolerates_pins();
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
        for shut in doors.iter().flatten().flat_map(|doors| &doors.shut) {
            busy = busy || shut.closing.flag_waiter(shut.orphan || shorts_only);
        }
        if busy { blocked_behind_closed_pages(task, works, doors) } else { WaitPoll::Ready(Ok(true)) }
    });
    match outcome {
        Ok(drained) => drained,
        Err(WaitFailure::Interrupted | WaitFailure::TimedOut) => Err(Errno::EINTR),
        Err(WaitFailure::Deadlock) => Err(Errno::EDEADLK),
    }
}

/// Who could end the pins behind the doors: calls and DMA in progress end by themselves, direct I/O is its process's to
/// complete. Ready with EDEADLK if only this very task could, whatever its patience.
fn blocked_behind_closed_pages(
    task: &Task,
    works: &[ChangeWork<'_>],
    doors: &[Option<ClosedPages<'_>>],
) -> WaitPoll<Result<bool, Errno>> {
    for work in works {
        work.turn.set_draining(work.concerns_clients());
    }
    let mut pages: Vec<PageRange> =
        doors.iter().flatten().flat_map(|doors| &doors.shut).map(|shut| shut.closing.range()).collect();
    merge(&mut pages);
    let mut pids: Vec<Pid> = io_on(task.kernel(), &pages).iter().map(|io| io.pid).collect();
    pids.dedup();
    if pids.contains(&task.pid()) && task.process().waiters.lock().len() == 1 {
        task.note_self_deadlock(DRAINING);
        return WaitPoll::Ready(Err(Errno::EDEADLK));
    }
    WaitPoll::Blocked(pids.into_iter().map(|pid| Need::any_of(vec![pid])).collect())
}

/// Shuts all pages of one file that are to be frozen or orphaned. None if another closing is in the way for the moment;
/// no doors if there is nothing to shut.
fn close_pages<'t>(kernel: &'t Kernel, work: &ChangeWork<'t>, verdict: &PinVerdict) -> Option<Option<ClosedPages<'t>>> {
    if work.judged.is_empty() && work.losing_mark.is_empty() {
        return Some(None);
    }
    work.inode.turn.pages_closed();
    let mut doors = ClosedPages { inode: work.inode, shut: Vec::new() };
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
            doors.shut.push(ClosedPart { closing: kernel.pins.close(pages).ok()?, fate, orphan: false });
            race_point!("change: some pages shut");
        }
        for pages in common(pages, &verdict.orphaned) {
            doors.shut.push(ClosedPart { closing: kernel.pins.close(pages).ok()?, fate, orphan: true });
        }
    }
    Some(Some(doors))
}

/// Turns what is shut into what is ready to go. None if a pin that met the door is about to undo itself.
fn freeze_pages<'t>(
    kernel: &'t Kernel,
    work: &ChangeWork<'_>,
    verdict: PinVerdict,
    mut doors: Option<ClosedPages<'t>>,
) -> Option<ClearedPages<'t>> {
    let mut forged = verdict.forged;
    let (mut departing, mut held) = (Vec::new(), Vec::new());
    for shut in doors.iter_mut().flat_map(|doors| doors.shut.drain(..)) {
        let ClosedPart { closing, fate, orphan } = shut;
        match fate {
            PageFate::Leaves | PageFate::Moves if orphan => {
                departing.push(DepartingPages::Orphaned(closing.range(), closing.orphan()));
                continue;
            }
            // Zeroed behind the door instead, under its long-term pins.
            PageFate::TurnsUnwritten | PageFate::LosesMark if orphan => {
                held.push(ClosedPart { closing, fate, orphan });
                continue;
            }
            _ => {}
        }
        match closing.freeze() {
            Ok(frozen) if fate == PageFate::Leaves => departing.push(DepartingPages::Freed(frozen)),
            Ok(frozen) => departing.push(DepartingPages::Stays(frozen)),
            // Pinned for a file that the pages belonged to before: only where somebody may proceed.
            Err(closing) if kernel.tolerates_pins() => forged.push(closing.range()),
            Err(_) => return None,
        }
    }
    if let Some(doors) = &mut doors {
        doors.shut = held;
    }
    let freed = if kernel.sabotage.free_without_close { work.leaving.clone() } else { common(&work.leaving, &forged) };
    departing.extend(freed.iter().map(|pages| DepartingPages::Freed(kernel.pins.forge(*pages))));
    let mut kept = common(&work.turning, &verdict.orphaned);
    kept.extend(common(&work.turning, &forged));
    Some(ClearedPages { departing, kept, orphaned: verdict.orphaned, _doors: doors })
}
