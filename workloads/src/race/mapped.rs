//! A mapped part of a shared file, and the memory and the file of its own that an actor works with
//! beside it.
//!
//! It owns the way from a step to a mapping, and back. Invariant: what a step maps and opens it
//! unmaps and closes, unless its process ends.

use fs_sim::base::numbers::Fd;
use fs_sim::syscalls::fallocate::FallocateMode;
use fs_sim::syscalls::open::OpenFlags;
use fs_sim::vfs::open_file::AccessMode;
use fs_sim::vfs::signals::{Disposition, Signal};
use fs_sim::{BLOCK, BlockRange, Errno};

use super::changers::FileWorker;
use super::op_stream::Share;
use super::oracle::PayloadFile;
use super::own_memory::OwnMemory;
use super::registrant::lease_for;
use super::shared::RaceShared;
use super::stats::ActorStats;

/// What to map.
#[derive(Clone, Copy, Debug)]
pub(super) struct MappingRequest {
    pub(super) index: u64,
    pub(super) place: Share,
    pub(super) length: u64,
    /// Takes the lease that the design's gate asks for, selected by this draw.
    pub(super) lease: Option<Share>,
}

/// A mapped part of a file.
#[derive(Clone, Copy, Debug)]
pub(super) struct MappedPart {
    pub(super) fd: Fd,
    /// The file, as its payload names it, and where the part begins in it.
    pub(super) file: PayloadFile,
    pub(super) offset: u64,
    pub(super) va: u64,
    pub(super) length: u64,
}

impl FileWorker {
    /// How the process answers when a lease of it is broken. A signal about a lease of an earlier
    /// step is dropped: it would interrupt the waits of this one.
    pub(super) fn answer_breaks(&self, skips_cleanup: bool) {
        self.meets_break();
        let answer = if skips_cleanup { Disposition::Ignore } else { Disposition::Handler };
        self.task.process().set_disposition(Signal::Sigio, answer);
    }

    /// Whether a lease of the process is being broken. Signals are taken.
    pub(super) fn meets_break(&self) -> bool {
        self.task.take_signals().iter().any(|signal| signal.signal == Signal::Sigio)
    }

    /// Opens, leases and maps a part of a file. A file that is too short grows first.
    pub(super) fn map(&mut self, stats: &mut ActorStats, request: MappingRequest) -> Result<MappedPart, Errno> {
        let name = RaceShared::file_name(request.index);
        let fd = stats.call(self.task.open(&name, OpenFlags::open(AccessMode::BOTH)))?;
        let mapped = self.map_open(stats, fd, request);
        if mapped.is_err() {
            stats.call(self.task.close(fd))?;
        }
        mapped
    }

    fn map_open(&mut self, stats: &mut ActorStats, fd: Fd, request: MappingRequest) -> Result<MappedPart, Errno> {
        let (mut size, ino) = self.stat(stats, fd)?;
        let length = request.length;
        if size < length {
            size = self.shared.job.files.size;
            stats.call(self.task.fallocate(fd, FallocateMode::Allocate { keep_size: false }, 0, size))?;
            stats.counters.extends += 1;
        }
        let offset = request.place.below((size - length) / BLOCK + 1) * BLOCK;
        let kind = request.lease.and_then(|draw| lease_for(self.shared.kernel.axes(), draw));
        if let Some(kind) = kind {
            stats.call(self.task.lease(fd, kind, BlockRange::of_bytes(offset, length)))?;
        }
        let va = stats.call(self.task.mmap(fd, offset, length, true))?;
        Ok(MappedPart { fd, file: self.shared.payload_file(request.index, ino), offset, va, length })
    }

    /// Unmaps and closes.
    pub(super) fn unmap(&self, stats: &mut ActorStats, part: &MappedPart) -> Result<(), Errno> {
        stats.call(self.task.munmap(part.va, part.length))?;
        stats.call(self.task.close(part.fd))
    }

    /// The process exits with everything open; the next step begins with another.
    pub(super) fn end_process(&mut self) {
        self.task = self.shared.spawn();
        self.own = None;
    }

    /// The process's own file and buffer, made at its first use.
    pub(super) fn own_memory(&mut self, stats: &mut ActorStats) -> Result<&OwnMemory, Errno> {
        if self.own.is_none() {
            self.own = Some(OwnMemory::make(&self.task, stats, self.actor)?);
        }
        // It was made just now, if it was missing.
        self.own.as_ref().ok_or(Errno::ENOMEM)
    }
}
