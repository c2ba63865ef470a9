//! What the design says of pins in the way of a change.
//!
//! It owns the axes `stranger_change` and `holder_change` for pins. Invariant: only committed
//! holders are judged, so a refusal can always name a holder. Kernel counterpart: none; the 2019
//! discussion is about these answers.

use emulator::pin::PageRange;
use emulator::sync::Arc;
use emulator::wait::WaitFor;

use crate::base::errno::Errno;
use crate::base::numbers::HolderId;
use crate::base::page_sets::{common, merge, without};
use crate::deadlock::graph::{WaitFailure, WaitPoll};
use crate::deadlock::need::{Awaited, Need};
use crate::design::ChangeRule;
use crate::holders::holder::Holder;
use crate::holders::list::pin_holders;
use crate::layout_change::plan::{ChangeWork, publish_waiting};
use crate::vfs::task::Task;

/// What the design says of the committed holders of the pages concerned.
#[derive(Debug, Default)]
pub(crate) struct PinVerdict {
    /// All holders that were judged: a holder that appears later makes the verdict void.
    pub(crate) judged: Vec<HolderId>,
    wait_for: Vec<Arc<Holder>>,
    pub(crate) revoke: Vec<Arc<Holder>>,
    /// Pages that are freed or moved although pinned.
    pub(crate) forged: Vec<PageRange>,
    /// Pages that are kept for their holders.
    pub(crate) orphaned: Vec<PageRange>,
}

/// Judges the pins on all pages concerned. `None`: some were waited for, and the change plans
/// again.
pub(crate) fn judge_all_pins(task: &Task, works: &[ChangeWork<'_>]) -> Result<Option<Vec<PinVerdict>>, Errno> {
    let verdicts = works.iter().map(|work| judge_pins(task, work)).collect::<Result<Vec<PinVerdict>, Errno>>()?;
    for (work, verdict) in works.iter().zip(&verdicts) {
        if !verdict.wait_for.is_empty() {
            let waits = |n: usize| (works[n].inode.ino() == work.inode.ino()).then(|| verdicts[n].wait_for.clone());
            publish_waiting(works, waits);
            wait_for_holders(task, work, &verdict.wait_for)?;
            return Ok(None);
        }
        if work.touches.is_empty() && !verdict.judged.is_empty() {
            // Pins came since the plan was made: now it is a layout change, and leases must be
            // judged.
            return Ok(None);
        }
    }
    Ok(Some(verdicts))
}

/// Judges the committed holders of one file's pages.
fn judge_pins(task: &Task, work: &ChangeWork<'_>) -> Result<PinVerdict, Errno> {
    let kernel = task.kernel();
    let mut verdict = PinVerdict::default();
    let blind = kernel.ignores_pins();
    let judged = if blind { &work.turning } else { &work.judged };
    if blind {
        verdict.forged = [&work.leaving[..], &work.moving].concat();
    }
    let mut waits_for_itself = false;
    for holder in pin_holders(work.inode).holding(work.range, judged) {
        verdict.judged.push(holder.id);
        let own = holder.pid == task.pid();
        let rule = if own { kernel.axes.holder_change } else { kernel.axes.stranger_change };
        match rule {
            ChangeRule::Fail => return Err(Errno::ETXTBSY),
            ChangeRule::Wait => {
                waits_for_itself |= own && task.is_alone() && Need::of_holder(kernel, &holder).any_of == [task.pid()];
                verdict.wait_for.push(holder);
            }
            ChangeRule::Revoke => verdict.revoke.push(holder),
            ChangeRule::Orphan => verdict.orphaned.extend(common(&holder.pages, judged)),
            ChangeRule::Proceed => verdict.forged.extend(common(&holder.pages, judged)),
        }
    }
    if waits_for_itself {
        task.note_self_deadlock("long-term pins");
        return Err(Errno::EDEADLK);
    }
    merge(&mut verdict.orphaned);
    // A page that one holder keeps stays behind, whatever the other holders' rule is.
    verdict.forged = without(&verdict.forged, &verdict.orphaned);
    Ok(verdict)
}

/// With the pages open: waits until none of `holders` is left.
fn wait_for_holders(task: &Task, work: &ChangeWork<'_>, holders: &[Arc<Holder>]) -> Result<(), Errno> {
    task.kernel().counters.waits_for_long_term_pin.add(1);
    let awaited: Vec<HolderId> = holders.iter().map(|holder| holder.id).collect();
    let how = WaitFor::interruptible("long-term pins");
    let outcome = task.block_on(&pin_holders(work.inode).changed, how, || {
        let mut left = pin_holders(work.inode).holding(work.range, &work.judged);
        left.retain(|holder| awaited.contains(&holder.id));
        if left.is_empty() {
            return WaitPoll::Ready(());
        }
        WaitPoll::Blocked(left.into_iter().map(|holder| Awaited::of_holder(task.kernel(), holder)).collect())
    });
    match outcome {
        Ok(()) => Ok(()),
        Err(WaitFailure::Interrupted | WaitFailure::TimedOut) => Err(Errno::EINTR),
        Err(WaitFailure::Deadlock) => Err(Errno::EDEADLK),
    }
}
