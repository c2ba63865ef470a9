//! What the design says of pins in the way of a change.
//!
//! It owns the axes `stranger_change` and `holder_change` for pins. Invariant: only committed
//! holders are judged, so a refusal can always name a holder. Kernel counterpart: none; the 2019
//! discussion is about these answers.

use emulator::pin::PageRange;
use emulator::sync::Arc;

use crate::base::errno::Errno;
use crate::base::numbers::HolderId;
use crate::base::page_sets::{common, merge, without};
use crate::design::ChangeRule;
use crate::holders::holder::Holder;
use crate::holders::list::pin_holders;
use crate::layout_change::busy::{Site, pins_beside, wait_for_pins, waits_for_itself};
use crate::layout_change::plan::{ChangeWork, JointChange, Patience};
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
pub(crate) fn judge_all_pins(
    task: &Task,
    change: &dyn JointChange,
    works: &[ChangeWork<'_>],
    patience: Patience,
) -> Result<Option<Vec<PinVerdict>>, Errno> {
    let verdicts = works.iter().map(|work| judge_pins(task, work)).collect::<Result<Vec<PinVerdict>, Errno>>()?;
    let sites = sites_of(change, works, patience);
    let mut ways = sites.iter().map(|site| pins_beside(task, *site)).collect::<Result<Vec<_>, Errno>>()?;
    for (way, verdict) in ways.iter_mut().zip(&verdicts) {
        way.holders.extend(verdict.wait_for.iter().cloned());
        way.add_io_on_proceeded(task, &verdict.forged)?;
    }
    if ways.iter().any(|way| !way.is_empty()) {
        wait_for_pins(task, &sites, &ways)?;
        return Ok(None);
    }
    if works.iter().zip(&verdicts).any(|(work, verdict)| work.touches.is_empty() && !verdict.judged.is_empty()) {
        // Pins came since the plan was made: now it is a layout change, and leases must be judged.
        return Ok(None);
    }
    Ok(Some(verdicts))
}

/// Where a change looks for pins besides those on its own blocks.
pub(crate) fn sites_of<'w>(change: &dyn JointChange, works: &'w [ChangeWork<'w>], patience: Patience) -> Vec<Site<'w>> {
    let whole_file = change.meets_file() && patience == Patience::Waits;
    works
        .iter()
        .map(|work| Site { inode: work.inode, turn: work.turn, work: Some(work), whole_file, patience })
        .collect()
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
    let mut waits = false;
    for holder in pin_holders(work.inode).holding(work.range, judged) {
        verdict.judged.push(holder.id);
        let own = holder.pid == task.pid();
        let rule = if own { kernel.axes.holder_change } else { kernel.axes.stranger_change };
        match rule {
            ChangeRule::Fail => return Err(Errno::ETXTBSY),
            ChangeRule::Wait => {
                waits |= waits_for_itself(task, &holder);
                verdict.wait_for.push(holder);
            }
            ChangeRule::Revoke => verdict.revoke.push(holder),
            ChangeRule::Orphan => verdict.orphaned.extend(common(&holder.pages, judged)),
            ChangeRule::Proceed => verdict.forged.extend(common(&holder.pages, judged)),
        }
    }
    if waits {
        task.note_self_deadlock("long-term pins");
        return Err(Errno::EDEADLK);
    }
    merge(&mut verdict.orphaned);
    // A page that one holder keeps stays behind, whatever the other holders' rule is.
    verdict.forged = without(&verdict.forged, &verdict.orphaned);
    Ok(verdict)
}
