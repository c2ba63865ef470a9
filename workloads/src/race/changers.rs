//! Truncaters, punchers and extenders: strangers that change layouts.
//!
//! They hold nothing between two steps: each step opens the file, changes it and closes it.
//! Together they keep blocks moving between files, so that a block which a design frees too early
//! soon belongs to another file.

use emulator::sync::Arc;
use fs_sim::Errno;
use fs_sim::base::numbers::Fd;
use fs_sim::syscalls::fallocate::FallocateMode;
use fs_sim::syscalls::open::OpenFlags;
use fs_sim::vfs::open_file::AccessMode;

use super::op_stream::{ExtenderStep, PuncherStep, TruncaterStep};
use super::oracle::{self, PayloadFile};
use super::own_memory::OwnMemory;
use super::shared::{RaceProcess, RaceShared};
use super::stats::{ActorStats, TimedCall};

/// An actor that works on one file at a time, as one long-lived process.
pub(super) struct FileWorker {
    pub(super) shared: Arc<RaceShared>,
    pub(super) actor: usize,
    pub(super) task: RaceProcess,
    pub(super) buffer: Vec<u8>,
    /// What the process has beside the shared files, once a step needed it.
    pub(super) own: Option<OwnMemory>,
    sequence: u64,
}

impl FileWorker {
    pub(super) fn new(shared: &Arc<RaceShared>, actor: usize) -> FileWorker {
        let (shared, task) = (Arc::clone(shared), shared.spawn());
        FileWorker { shared, actor, task, buffer: Vec::new(), own: None, sequence: 0 }
    }

    /// Starts a new process if the old one was killed.
    pub(super) fn respawn_if_killed(&mut self) {
        if self.task.process().is_dying() {
            self.end_process();
        }
    }

    /// Puts `length` bytes of payload that this actor may write at `offset` of `file` into the
    /// buffer.
    pub(super) fn payload(&mut self, file: PayloadFile, offset: u64, length: u64) {
        self.sequence += 1;
        self.buffer.resize(length as usize, 0);
        self.shared.payloads.fill(&mut self.buffer, file, offset, self.actor as u8, self.sequence);
    }

    /// Opens file number `file`, does `work` on it, closes it.
    pub(super) fn with_file(
        &mut self,
        stats: &mut ActorStats,
        file: u64,
        work: impl FnOnce(&mut Self, &mut ActorStats, Fd) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let flags = OpenFlags::open(AccessMode::BOTH);
        let fd = stats.call(self.task.open(&RaceShared::file_name(file), flags))?;
        let worked = work(self, stats, fd);
        stats.call(self.task.close(fd))?;
        worked
    }

    /// The file's size in bytes, and its inode number.
    pub(super) fn stat(&self, stats: &mut ActorStats, fd: Fd) -> Result<(u64, u64), Errno> {
        let stat = stats.call(self.task.stat(fd))?;
        Ok((stat.size, stat.ino.0))
    }

    pub(super) fn truncater(&mut self, stats: &mut ActorStats, step: &TruncaterStep) -> Result<(), Errno> {
        if step.by_path {
            let name = RaceShared::file_name(step.file);
            return stats.timed(TimedCall::Truncate, &self.task, || self.task.truncate(&name, step.size));
        }
        self.with_file(stats, step.file, |me, stats, fd| {
            stats.timed(TimedCall::Truncate, &me.task, || me.task.ftruncate(fd, step.size))
        })
    }

    pub(super) fn puncher(&mut self, stats: &mut ActorStats, step: &PuncherStep) -> Result<(), Errno> {
        self.with_file(stats, step.file, |me, stats, fd| {
            let (size, _) = me.stat(stats, fd)?;
            let offset = step.place.below(size.saturating_sub(step.length) / oracle::WORD + 1) * oracle::WORD;
            if step.zeroes {
                let mode = FallocateMode::ZeroRange { keep_size: true };
                return stats.call(me.task.fallocate(fd, mode, offset, step.length));
            }
            stats.timed(TimedCall::Punch, &me.task, || {
                me.task.fallocate(fd, FallocateMode::PunchHole, offset, step.length)
            })
        })
    }

    pub(super) fn extender(&mut self, stats: &mut ActorStats, step: &ExtenderStep) -> Result<(), Errno> {
        let name = match step.shared {
            true => RaceShared::file_name(step.file),
            false => RaceShared::own_file_name(self.actor),
        };
        if step.recreates {
            // It fails if another extender removed the file a moment ago.
            let _removed = stats.call(self.task.unlink(&name));
        }
        let fd = stats.call(self.task.open(&name, OpenFlags::create()))?;
        let extended = self.extend(stats, step, fd);
        stats.call(self.task.close(fd))?;
        extended
    }

    fn extend(&mut self, stats: &mut ActorStats, step: &ExtenderStep, fd: Fd) -> Result<(), Errno> {
        let (size, ino) = self.stat(stats, fd)?;
        if size + step.length > self.shared.job.files.size {
            // The file has its largest size: first half of it goes back to the allocator.
            let half = size / 2 / oracle::WORD * oracle::WORD;
            return stats.timed(TimedCall::Truncate, &self.task, || self.task.ftruncate(fd, half));
        }
        if step.allocates {
            let mode = FallocateMode::Allocate { keep_size: false };
            stats.call(self.task.fallocate(fd, mode, size, step.length))?;
        } else {
            let file = match step.shared {
                true => self.shared.payload_file(step.file, ino),
                false => PayloadFile::Inode(ino),
            };
            self.payload(file, size, step.length);
            stats.call(self.task.write(fd, size, &self.buffer))?;
            stats.counters.writes += 1;
        }
        stats.counters.extends += 1;
        Ok(())
    }
}
