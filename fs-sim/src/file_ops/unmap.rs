//! Guests that pin nothing are unmapped before a change takes blocks from them.
//!
//! It owns the step of a layout change that comes before any door is shut: whoever is listed in [`Inode::mapped`] on pages that
//! are about to leave, move, become shared or turn unwritten has everything demanded back, and the change waits, with all doors
//! open. Invariant: from this step until the change is over nobody maps pages of the file, for that takes the ticket, which the
//! change has; so what is freed is mapped by nobody. Eviction meets no mapping: an export keeps its file open until it is
//! unmapped. Defragmentation goes round what is mapped ([`super::defragment`]): it waits for nobody. Kernel counterpart:
//! `unmap_mapping_range` with `mmu_notifier_invalidate_range_start`, which a truncate calls before `dax_break_layout`.
//!
//! [`Inode::mapped`]: crate::inode::Inode

use emulator::sync::Arc;
use emulator::wait::WaitFor;

use super::change::{Patience, say_waiting};
use super::plan::Work;
use crate::errno::Errno;
use crate::holders::Holder;
use crate::process::task::Task;
use crate::waits::{Ended, Look, Need};

/// Why a change waits for a guest.
const UNMAPPING: &str = "guest to be unmapped";

impl Task {
    /// Has the guests in the way of a change unmapped. False if there were any: they were waited for, plan again. What is
    /// demanded stays demanded, also if this is interrupted.
    pub(super) fn unmap_guests(&self, works: &[Work<'_>], patience: Patience) -> Result<bool, Errno> {
        let mapped: Vec<Vec<Arc<Holder>>> = works.iter().map(|work| self.mapped_in_the_way(work)).collect();
        if mapped.iter().all(Vec::is_empty) {
            return Ok(true);
        }
        say_waiting(works, |n| mapped[n].clone());
        for holder in mapped.iter().flatten() {
            self.kernel().revoke(holder);
        }
        for work in works {
            let how = match patience {
                Patience::Waits => WaitFor::interruptible(UNMAPPING),
                // A fault has no way to report an interruption.
                Patience::Never => WaitFor::killable(UNMAPPING),
            };
            let outcome = self.block_on(&work.inode.mapped.changed, how, || {
                let left = self.mapped_in_the_way(work);
                match left.is_empty() {
                    true => Look::Ready(()),
                    false => Look::Blocked(left.iter().filter_map(|holder| Need::of_guest(holder)).collect()),
                }
            });
            match outcome {
                Ok(()) => {}
                Err(Ended::Interrupted | Ended::TimedOut) => return Err(Errno::EINTR),
                Err(Ended::Deadlock) => return Err(Errno::EDEADLK),
            }
        }
        Ok(false)
    }

    fn mapped_in_the_way(&self, work: &Work<'_>) -> Vec<Arc<Holder>> {
        if self.kernel().sabotage.no_unmap {
            return Vec::new();
        }
        work.inode.mapped.holding(work.range, &work.judged)
    }
}
