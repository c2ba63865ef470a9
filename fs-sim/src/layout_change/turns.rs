//! The turns of one layout change: of one file, or of two at once.
//!
//! It owns the order in which a change of two files takes its turns. Invariants: while a change
//! waits in one file it holds nothing of the other; changes that keep a place in two queues stand
//! in the same order in both, so no cycle of places can arise. Kernel counterpart:
//! `xfs_ilock2_io_mmap`, which takes two files in the order of their numbers and backs off.

use emulator::sync::Arc;

use crate::base::errno::Errno;
use crate::base::range::BlockRanges;
use crate::leases::layout::waiting::stand_aside;
use crate::vfs::inode::Inode;
use crate::vfs::layout_turn::{TurnGuard, queue_for_both};
use crate::vfs::task::Task;

/// After so many rounds in which a change gave up its place in one file because it waited in the
/// other, it keeps both places.
const ROUNDS_MAX: u32 = 2;

/// The turns of a change, in the order of the files' numbers.
pub(crate) struct Turns<'t> {
    inodes: Vec<&'t Inode>,
    guards: Vec<TurnGuard<'t>>,
}

impl<'t> Turns<'t> {
    /// For a change of `inodes` that has no place yet.
    pub(crate) fn of(task: &'t Task, inodes: &[&'t Arc<Inode>]) -> Turns<'t> {
        let guards = inodes.iter().map(|inode| inode.turn.change(task.kernel(), task.waiter().id()));
        Turns { inodes: inodes.iter().copied().map(Arc::as_ref).collect(), guards: guards.collect() }
    }

    pub(crate) fn guards(&self) -> &[TurnGuard<'t>] {
        &self.guards
    }

    /// Whether it has the turn for all of `ranges`, one for each file.
    pub(crate) fn cover(&self, ranges: &[BlockRanges]) -> bool {
        self.guards.iter().zip(ranges).all(|(guard, ranges)| guard.has_turn_for(ranges))
    }

    /// Takes the turns for `ranges`, one for each file. A change that finds another one before it
    /// in one file waits there, and has no place in the other file meanwhile.
    ///
    /// # Errors
    /// As for [`TurnGuard::wait_until_first`].
    pub(crate) fn take(&self, task: &Task, ranges: &[BlockRanges], may_wait: bool) -> Result<(), Errno> {
        let [first, second] = &self.guards[..] else {
            return self.guards.iter().zip(ranges).try_for_each(|(guard, ranges)| guard.take(task, ranges, may_wait));
        };
        while !self.guards.iter().zip(ranges).all(|(guard, ranges)| guard.has_turn_for(ranges)) {
            let kept = self.guards.iter().any(TurnGuard::keeps_place);
            if !kept && self.guards.iter().any(|guard| guard.rounds_aside() >= ROUNDS_MAX) {
                queue_for_both((first, &ranges[0]), (second, &ranges[1]));
            } else {
                self.guards.iter().zip(ranges).for_each(|(guard, ranges)| guard.queue_for(ranges));
            }
            let Some(blocked) = self.guards.iter().position(|guard| !guard.try_turn(task, may_wait)) else { continue };
            let other = 1 - blocked;
            stand_aside(self.inodes[other], &self.guards[other]);
            self.guards[blocked].wait_until_first(task, may_wait)?;
        }
        Ok(())
    }
}
