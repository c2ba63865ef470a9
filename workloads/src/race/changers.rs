//! Truncaters, punchers and extenders: strangers who change layouts.
//!
//! They own nothing between two steps: each opens what it changes and closes it again. Together they keep blocks moving, so
//! that a block which a wrong design frees too early soon belongs to another file.

use emulator::sync::Arc;
use fs_sim::Errno;
use fs_sim::base::numbers::Fd;
use fs_sim::syscalls::fallocate::FallocateMode;
use fs_sim::syscalls::open::OpenFlags;
use fs_sim::vfs::open_file::AccessMode;

use super::arena::{Arena, Proc};
use super::tally::{Tally, Timed};
use crate::choices::{ExtenderStep, PuncherStep, TruncaterStep};
use crate::oracle;

/// An actor that works on one file at a time, as one long-lived process.
pub(super) struct Worker {
    pub(super) arena: Arc<Arena>,
    pub(super) actor: usize,
    pub(super) task: Proc,
    pub(super) buffer: Vec<u8>,
    sequence: u64,
}

impl Worker {
    pub(super) fn new(arena: &Arc<Arena>, actor: usize) -> Worker {
        Worker { arena: Arc::clone(arena), actor, task: arena.spawn(), buffer: Vec::new(), sequence: 0 }
    }

    /// Comes back as a new process if somebody killed the old one.
    pub(super) fn revive(&mut self) {
        if self.task.process().is_dying() {
            self.task = self.arena.spawn();
        }
    }

    /// `length` bytes that this actor may write at `offset` of `ino`.
    pub(super) fn payload(&mut self, ino: u64, offset: u64, length: u64) -> &[u8] {
        self.sequence += 1;
        self.buffer.resize(length as usize, 0);
        oracle::fill(&mut self.buffer, ino, offset, self.actor as u8, self.sequence);
        &self.buffer
    }

    /// Opens file number `file`, works on it, closes it.
    pub(super) fn with_file(
        &mut self,
        tally: &mut Tally,
        file: u64,
        work: impl FnOnce(&mut Self, &mut Tally, Fd) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let flags = OpenFlags::open(AccessMode::BOTH);
        let fd = tally.call(self.task.open(&Arena::file_name(file), flags))?;
        let worked = work(self, tally, fd);
        tally.call(self.task.close(fd))?;
        worked
    }

    /// Its size and inode number.
    pub(super) fn stat(&self, tally: &mut Tally, fd: Fd) -> Result<(u64, u64), Errno> {
        let stat = tally.call(self.task.stat(fd))?;
        Ok((stat.size, stat.ino.0))
    }

    pub(super) fn truncater(&mut self, tally: &mut Tally, step: &TruncaterStep) -> Result<(), Errno> {
        if step.by_path {
            let name = Arena::file_name(step.file);
            return tally.timed(Timed::Truncate, &self.task, || self.task.truncate(&name, step.size));
        }
        self.with_file(tally, step.file, |me, tally, fd| {
            tally.timed(Timed::Truncate, &me.task, || me.task.ftruncate(fd, step.size))
        })
    }

    pub(super) fn puncher(&mut self, tally: &mut Tally, step: &PuncherStep) -> Result<(), Errno> {
        self.with_file(tally, step.file, |me, tally, fd| {
            let (size, _) = me.stat(tally, fd)?;
            let offset = step.place.below(size.saturating_sub(step.length) / oracle::WORD + 1) * oracle::WORD;
            if step.zeroes {
                let mode = FallocateMode::ZeroRange { keep_size: true };
                return tally.call(me.task.fallocate(fd, mode, offset, step.length));
            }
            tally.timed(Timed::Punch, &me.task, || me.task.fallocate(fd, FallocateMode::PunchHole, offset, step.length))
        })
    }

    pub(super) fn extender(&mut self, tally: &mut Tally, step: &ExtenderStep) -> Result<(), Errno> {
        let name = match step.shared {
            true => Arena::file_name(step.file),
            false => Arena::own_file_name(self.actor),
        };
        if step.recreates {
            // Somebody else may have removed it, or made it anew, a moment ago.
            let _removed = tally.call(self.task.unlink(&name));
        }
        let fd = tally.call(self.task.open(&name, OpenFlags::create()))?;
        let extended = self.extend(tally, step, fd);
        tally.call(self.task.close(fd))?;
        extended
    }

    fn extend(&mut self, tally: &mut Tally, step: &ExtenderStep, fd: Fd) -> Result<(), Errno> {
        let (size, ino) = self.stat(tally, fd)?;
        if size + step.length > self.arena.job.files.size {
            // As large as files get: half of it goes back to the allocator first.
            let half = size / 2 / oracle::WORD * oracle::WORD;
            return tally.timed(Timed::Truncate, &self.task, || self.task.ftruncate(fd, half));
        }
        if step.allocates {
            let mode = FallocateMode::Allocate { keep_size: false };
            tally.call(self.task.fallocate(fd, mode, size, step.length))?;
        } else {
            self.payload(ino, size, step.length);
            tally.call(self.task.write(fd, size, &self.buffer))?;
            tally.counters.writes += 1;
        }
        tally.counters.extends += 1;
        Ok(())
    }
}
