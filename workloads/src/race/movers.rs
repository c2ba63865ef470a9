//! Collapsers, reflinkers and defragmenters: strangers that move blocks, or share them between
//! files.
//!
//! They hold nothing between two steps. Collapsers and reflinkers work on the moved files of the
//! job alone, and put every move on the record that explains the payload of these files.
//! Defragmenters move blocks on the device only: a block keeps its file and offset, so they work on
//! every file.

use fs_sim::base::numbers::Fd;
use fs_sim::syscalls::fallocate::FallocateMode;
use fs_sim::syscalls::open::OpenFlags;
use fs_sim::vfs::open_file::AccessMode;
use fs_sim::{BLOCK, Errno};

use super::changers::FileWorker;
use super::op_stream::{CollapserStep, DefragmenterStep, ReflinkAct, ReflinkerStep, Share};
use super::oracle::BlockMove;
use super::shared::RaceShared;
use super::stats::{ActorStats, TimedCall};

/// An offset of a whole block, at which `length` bytes fit into `size`. None if they don't fit.
fn block_in(place: Share, size: u64, length: u64) -> Option<u64> {
    let room = (size / BLOCK).checked_sub(length / BLOCK)?;
    Some(place.below(room + 1) * BLOCK)
}

impl FileWorker {
    pub(super) fn collapser(&mut self, stats: &mut ActorStats, step: &CollapserStep) -> Result<(), Errno> {
        self.with_file(stats, step.file, |me, stats, fd| {
            let (size, _) = me.stat(stats, fd)?;
            if step.inserts && size > BLOCK && size + step.length <= me.shared.job.files.size {
                // The offset lies before the end of the file.
                let offset = step.place.below((size - 1) / BLOCK) * BLOCK;
                let insert = || me.task.fallocate(fd, FallocateMode::InsertRange, offset, step.length);
                let moved = BlockMove::Insert { at: (step.file, offset / BLOCK), blocks: step.length / BLOCK };
                return me.moving(moved, || stats.timed(TimedCall::Insert, &me.task, insert));
            }
            // At least one byte stays behind the range.
            let Some(offset) = block_in(step.place, size.saturating_sub(1), step.length) else { return Ok(()) };
            let collapse = || me.task.fallocate(fd, FallocateMode::CollapseRange, offset, step.length);
            let moved = BlockMove::Collapse { at: (step.file, offset / BLOCK), blocks: step.length / BLOCK };
            me.moving(moved, || stats.timed(TimedCall::Collapse, &me.task, collapse))
        })
    }

    pub(super) fn reflinker(&mut self, stats: &mut ActorStats, step: &ReflinkerStep) -> Result<(), Errno> {
        self.with_file(stats, step.files.0, |me, stats, first| {
            if step.act == ReflinkAct::Unshare {
                return me.unshare(stats, step, first);
            }
            let name = RaceShared::file_name(step.files.1);
            let second = stats.call(me.task.open(&name, OpenFlags::open(AccessMode::BOTH)))?;
            let remapped = me.remap(stats, step, first, second);
            stats.call(me.task.close(second))?;
            remapped
        })
    }

    fn unshare(&self, stats: &mut ActorStats, step: &ReflinkerStep, fd: Fd) -> Result<(), Errno> {
        let (size, _) = self.stat(stats, fd)?;
        let Some(offset) = block_in(step.places.0, size, step.length) else { return Ok(()) };
        let mode = FallocateMode::UnshareRange { keep_size: true };
        stats.timed(TimedCall::Unshare, &self.task, || self.task.fallocate(fd, mode, offset, step.length))
    }

    /// Makes a call that moves blocks, and records what it moves.
    fn moving(&self, moved: BlockMove, call: impl FnOnce() -> Result<(), Errno>) -> Result<(), Errno> {
        let moves = &self.shared.payloads.moves;
        let in_flight = moves.begin(moved);
        let done = call();
        moves.end(in_flight, done.is_ok());
        done
    }

    /// Clones, deduplicates or exchanges a range of two files.
    fn remap(&self, stats: &mut ActorStats, step: &ReflinkerStep, first: Fd, second: Fd) -> Result<(), Errno> {
        let ((size, _), (other, _)) = (self.stat(stats, first)?, self.stat(stats, second)?);
        let length = step.length;
        let places = (block_in(step.places.0, size, length), block_in(step.places.1, other, length));
        let (Some(from), Some(to)) = places else { return Ok(()) };
        let (task, blocks) = (&self.task, length / BLOCK);
        let (a, b) = ((step.files.0, from / BLOCK), (step.files.1, to / BLOCK));
        let clone = |stats: &mut ActorStats| {
            let reflink = || task.reflink(first, from, second, to, length);
            self.moving(BlockMove::Clone { from: a, to: b, blocks }, || stats.timed(TimedCall::Reflink, task, reflink))
        };
        match step.act {
            ReflinkAct::Clone => clone(stats),
            ReflinkAct::Exchange => {
                let exchange = || task.exchange_range(first, from, second, to, length);
                self.moving(BlockMove::Exchange { a, b, blocks }, || stats.timed(TimedCall::Exchange, task, exchange))
            }
            ReflinkAct::Dedupe => {
                // Words of two places are never the same. So the second file gets a copy first.
                clone(stats)?;
                let copy = FallocateMode::UnshareRange { keep_size: true };
                stats.call(task.fallocate(second, copy, to, length))?;
                let same = || task.dedupe(first, from, second, to, length);
                stats.timed_if(TimedCall::Dedupe, task, same, Option::is_some).map(|_| ())
            }
            ReflinkAct::Unshare => Ok(()),
        }
    }

    pub(super) fn defragmenter(&mut self, stats: &mut ActorStats, step: &DefragmenterStep) -> Result<(), Errno> {
        let name = RaceShared::file_name(step.file);
        let defragment = || match step.polite {
            true => self.task.kernel().defragment_politely(&name),
            false => self.task.defragment(&name),
        };
        stats.timed_if(TimedCall::Defragment, &self.task, defragment, |done| done.moved > 0).map(|_| ())
    }
}
