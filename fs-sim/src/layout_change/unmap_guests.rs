//! Guests are unmapped before a change takes blocks from them.
//!
//! It owns the step of a layout change that comes before any door is shut. Whoever is listed in [`Inode::mapped`], without pins,
//! on pages that are about to leave, move, become shared or turn unwritten has everything demanded back, and so has a pinned
//! guest that the verdict revokes; the change waits for both with all doors open, since a frontend that does not answer must
//! stop nobody else. Invariant: from this step until the change is over nobody maps pages of the file without pins, for that
//! takes the turn, which the change has; so what is freed is mapped by nobody. Eviction meets no mapping: an export keeps its
//! file open until it is unmapped. Defragmentation goes round what is mapped ([`super::defragment`]): it waits for nobody.
//! Kernel counterpart: `unmap_mapping_range` with `mmu_notifier_invalidate_range_start`, which a truncate calls before it frees.
//!
//! [`Inode::mapped`]: crate::inode::Inode

use emulator::sync::Arc;
use emulator::wait::WaitFor;

use crate::base::errno::Errno;
use crate::base::numbers::HolderId;
use crate::deadlock::graph::{WaitFailure, WaitPoll};
use crate::deadlock::need::Need;
use crate::holders::holder::{Holder, revoke_holder};
use crate::holders::list::{Holders, notify_only, pin_holders};
use crate::layout_change::plan::{ChangeWork, Patience, publish_waiting};
use crate::layout_change::verdict::PinVerdict;
use crate::vfs::task::Task;

/// Why a change waits for a guest.
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

/// Has the guests in the way of a change unmapped. False if there were any: they were waited for, plan again. What is
/// demanded stays demanded, also if this is interrupted.
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
    publish_waiting(works, |n| guests[n].clone());
    for holder in guests.iter().flatten() {
        revoke_holder(task.kernel(), holder);
    }
    for (work, guests) in works.iter().zip(&guests) {
        let awaited: Vec<HolderId> = guests.iter().map(|guest| guest.id).collect();
        wait_for_guests(task, work, notify_only(work.inode), &awaited, patience)?;
        wait_for_guests(task, work, pin_holders(work.inode), &awaited, patience)?;
    }
    Ok(false)
}

/// Those that pin nothing and are told, and of those revoked the ones that a virtual machine has mapped.
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
            false => WaitPoll::Blocked(left.iter().filter_map(|holder| Need::of_guest(holder)).collect()),
        }
    });
    match outcome {
        Ok(()) => Ok(()),
        Err(WaitFailure::Interrupted | WaitFailure::TimedOut) => Err(Errno::EINTR),
        Err(WaitFailure::Deadlock) => Err(Errno::EDEADLK),
    }
}
