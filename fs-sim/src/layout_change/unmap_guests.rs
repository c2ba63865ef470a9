//! Unmapping guests before a change takes blocks from them.
//!
//! It owns the step of a layout change that comes before any page is closed. A guest that is
//! listed without pins ([`notify_only`]) on pages that are about to leave, move, become shared or
//! turn unwritten is asked to unmap all of its export, and so is a pinned guest that the verdict
//! revokes. The change waits for both with all pages open, so that a frontend that does not answer
//! stops no other task. Invariants: from this step until the change is over no guest maps pages of
//! the file without pins, because that needs the turn, which the change has; so no freed page is
//! mapped. Eviction meets no mapping: an export keeps its file open until it is unmapped.
//! Defragmentation skips what a guest has mapped ([`super::defragment`]). Kernel counterpart:
//! `unmap_mapping_range` with `mmu_notifier_invalidate_range_start`, which a truncate calls before
//! it frees.

use emulator::sync::Arc;
use emulator::wait::WaitFor;

use crate::base::errno::Errno;
use crate::base::numbers::HolderId;
use crate::deadlock::graph::{WaitFailure, WaitPoll};
use crate::deadlock::need::{Awaited, Need};
use crate::holders::holder::{Holder, RevokeReason, revoke_holder};
use crate::holders::list::{Holders, notify_only, pin_holders};
use crate::layout_change::plan::{ChangeWork, Patience, publish_waiting};
use crate::layout_change::verdict::PinVerdict;
use crate::vfs::task::Task;

/// The reason of a change that waits for a guest.
const UNMAPPING: &str = "guest to be unmapped";

impl Patience {
    fn unmaps(self) -> WaitFor {
        match self {
            Patience::Waits => WaitFor::interruptible(UNMAPPING),
            // A fault has no way to report an interruption.
            Patience::Never => WaitFor::killable(UNMAPPING),
        }
    }
}

/// Asks the guests in the way of a change to unmap, and waits. False if there were any: the change
/// plans again. What was asked for stays so, also if this wait is interrupted.
pub(crate) fn unmap_guests(
    task: &Task,
    works: &[ChangeWork<'_>],
    verdicts: &[PinVerdict],
    patience: Patience,
) -> Result<bool, Errno> {
    let in_the_way = |(work, verdict)| guests_in_the_way(task, work, verdict);
    let guests: Vec<Vec<Arc<Holder>>> = works.iter().zip(verdicts).map(in_the_way).collect();
    if guests.iter().all(Vec::is_empty) {
        return Ok(true);
    }
    publish_waiting(works, |n| (!guests[n].is_empty()).then(|| guests[n].clone()));
    for holder in guests.iter().flatten() {
        revoke_holder(task.kernel(), holder, RevokeReason::Rule);
    }
    for (work, guests) in works.iter().zip(&guests) {
        let awaited: Vec<HolderId> = guests.iter().map(|guest| guest.id).collect();
        wait_for_guests(task, work, notify_only(work.inode), &awaited, patience)?;
        wait_for_guests(task, work, pin_holders(work.inode), &awaited, patience)?;
    }
    Ok(false)
}

/// Holders that pin nothing and must be told, and revoked holders that a virtual machine has
/// mapped.
fn guests_in_the_way(task: &Task, work: &ChangeWork<'_>, verdict: &PinVerdict) -> Vec<Arc<Holder>> {
    if task.kernel().sabotage.no_unmap {
        return Vec::new();
    }
    let mut guests = notify_only(work.inode).holding(work.range, &work.judged);
    guests.extend(verdict.revoke.iter().filter(|holder| holder.object.describe().guest.is_some()).cloned());
    guests
}

/// Waits until none of `awaited` is listed.
fn wait_for_guests(
    task: &Task,
    work: &ChangeWork<'_>,
    list: &Holders,
    awaited: &[HolderId],
    patience: Patience,
) -> Result<(), Errno> {
    let outcome = task.block_on(&list.changed, patience.unmaps(), || {
        let mut left = list.holding(work.range, &work.judged);
        left.retain(|holder| awaited.contains(&holder.id));
        match left.is_empty() {
            true => WaitPoll::Ready(()),
            false => {
                WaitPoll::Blocked(left.iter().filter_map(|holder| Need::of_guest(holder)).map(Awaited::from).collect())
            }
        }
    });
    match outcome {
        Ok(()) => Ok(()),
        Err(WaitFailure::Interrupted | WaitFailure::TimedOut) => Err(Errno::EINTR),
        Err(WaitFailure::Deadlock) => Err(Errno::EDEADLK),
    }
}
