//! Direct-I/O actors: reads and overwrites of what is allocated, which pin pages for the moment.
//!
//! They are whom every design must wait for and nobody may refuse; and they are the oracle's eyes while the race runs: what
//! they read must have been written for that file and offset.

use fs_sim::base::numbers::Fd;
use fs_sim::{BlockRange, Errno};

use super::changers::Worker;
use super::tally::Tally;
use crate::choices::DirectIoStep;
use crate::oracle;

impl Worker {
    pub(super) fn direct_io(&mut self, tally: &mut Tally, step: &DirectIoStep) -> Result<(), Errno> {
        self.with_file(tally, step.file, |me, tally, fd| {
            let (size, ino) = me.stat(tally, fd)?;
            let length = step.length.min(size / oracle::WORD * oracle::WORD);
            let offset = step.place.below((size - length) / oracle::WORD + 1) * oracle::WORD;
            if length == 0 {
                return Ok(());
            }
            if step.writes && me.is_allocated(tally, fd, BlockRange::of_bytes(offset, length))? {
                me.payload(ino, offset, length);
                tally.call(me.task.write(fd, offset, &me.buffer))?;
                tally.counters.writes += 1;
                return Ok(());
            }
            me.buffer.resize(length as usize, 0);
            let read = tally.call(me.task.read(fd, offset, &mut me.buffer))?;
            tally.counters.reads += 1;
            tally.checked("a read", oracle::check(&me.buffer[..read], ino, offset));
            Ok(())
        })
    }

    /// Whether no block of `range` is a hole: a write there is no layout change, if nobody truncates meanwhile.
    fn is_allocated(&self, tally: &mut Tally, fd: Fd, range: BlockRange) -> Result<bool, Errno> {
        let extents = tally.call(self.task.fiemap(fd, range))?;
        let parts = extents.iter().map(|extent| BlockRange::of_bytes(extent.logical, extent.length));
        Ok(range.is_covered_by(parts))
    }
}
