//! Direct-I/O actors: they read and overwrite allocated blocks, and pin pages only for the moment
//! of the I/O.
//!
//! A read is submitted and then completed: in between it is I/O in flight, which layout changes
//! see. No design may refuse these short-term pins, and every layout change must wait for them.
//! They also serve the oracle while the race runs: each read checks that its bytes were written for
//! that file and offset.

use fs_sim::base::numbers::Fd;
use fs_sim::holders::in_flight_io::Transfer;
use fs_sim::syscalls::direct_io::TRANSFER_MAX;
use fs_sim::{BLOCK, BlockRange, Errno};

use super::changers::FileWorker;
use super::op_stream::DirectIoStep;
use super::oracle;
use super::stats::ActorStats;

impl FileWorker {
    pub(super) fn direct_io(&mut self, stats: &mut ActorStats, step: &DirectIoStep) -> Result<(), Errno> {
        self.with_file(stats, step.file, |me, stats, fd| {
            let (size, ino) = me.stat(stats, fd)?;
            let file = me.shared.payload_file(step.file, ino);
            let length = step.length.min(size / oracle::WORD * oracle::WORD);
            let offset = step.place.below((size - length) / oracle::WORD + 1) * oracle::WORD;
            if length == 0 {
                return Ok(());
            }
            if step.writes && me.is_allocated(stats, fd, BlockRange::of_bytes(offset, length))? {
                me.payload(file, offset, length);
                stats.call(me.task.write(fd, offset, &me.buffer))?;
                stats.counters.writes += 1;
                return Ok(());
            }
            let (from, to) = (offset / BLOCK * BLOCK, (offset + length).next_multiple_of(BLOCK));
            let length = (to - from).min(TRANSFER_MAX);
            me.buffer.resize(length as usize, 0);
            let io = stats.call(me.task.submit_direct_io(fd, from, length, Transfer::Read))?;
            let read = stats.call(io.complete(&me.task, &mut me.buffer))?;
            stats.counters.reads += 1;
            let words = read / oracle::WORD as usize * oracle::WORD as usize;
            stats.checked("a read", me.shared.payloads.check(&me.buffer[..words], file, from));
            Ok(())
        })
    }

    /// Whether `range` has no hole. A write there is no layout change unless the file is truncated
    /// meanwhile.
    fn is_allocated(&self, stats: &mut ActorStats, fd: Fd, range: BlockRange) -> Result<bool, Errno> {
        let extents = stats.call(self.task.fiemap(fd, range))?;
        let parts = extents.iter().map(|extent| BlockRange::of_bytes(extent.logical, extent.length));
        Ok(range.is_covered_by(parts))
    }
}
