//! Actors that hold mapped memory by address: the buffer of direct I/O of another file or of a
//! disk, pages in a pipe, pages of a zero-copy send.
//!
//! These are short-term pins that outlast the call that takes them, the mapping and, for a send,
//! the open file and the process. No design may refuse them, and every layout change waits for
//! them. What comes out at the other end (the disk, the other file, the pipe, the network) must be
//! the file's own bytes, which the oracle checks.

use std::time::Duration;

use emulator::runtime::clock::Nanos;
use fs_sim::Errno;
use fs_sim::base::numbers::Fd;
use fs_sim::syscalls::direct_io::IoDirection;

use super::changers::FileWorker;
use super::mapped::{MappedPart, MappingRequest};
use super::network::UnacknowledgedSend;
use super::op_stream::{AddressIoAct, AddressIoStep};
use super::stats::{ActorStats, TimedCall};

impl FileWorker {
    pub(super) fn address_io(&mut self, stats: &mut ActorStats, step: &AddressIoStep) -> Result<(), Errno> {
        let AddressIoStep { file, place, length, .. } = *step;
        let request = MappingRequest { index: file, place, length, lease: None };
        let part = self.map(stats, request)?;
        let done = match step.act {
            AddressIoAct::Disk => self.disk_io(stats, step, &part),
            AddressIoAct::File => self.own_memory(stats).map(|own| own.scratch).and_then(|scratch| {
                let done = self.mapped_io(stats, step, &part, scratch);
                self.check_scratch(stats, step, &part, scratch, done)
            }),
            AddressIoAct::Pipe => self.pipe(stats, step, &part),
            AddressIoAct::Send => self.send(stats, step, &part),
        };
        // It may be unmapped already.
        let _unmapped = self.task.munmap(part.va, part.length);
        stats.call(self.task.close(part.fd))?;
        done
    }

    /// I/O of a disk whose delay is the time that the pages are held. Without a delay the process
    /// itself completes it.
    fn disk_io(&mut self, stats: &mut ActorStats, step: &AddressIoStep, part: &MappedPart) -> Result<(), Errno> {
        let delay = Some(Duration::from_nanos(step.hold)).filter(|delay| !delay.is_zero());
        let (disk, _) = stats.call(self.task.ram_disk(part.length, delay))?;
        let done = self.io_of_disk(stats, step, part, disk);
        stats.call(self.task.close(disk))?;
        done
    }

    fn io_of_disk(
        &mut self,
        stats: &mut ActorStats,
        step: &AddressIoStep,
        part: &MappedPart,
        disk: Fd,
    ) -> Result<(), Errno> {
        if !step.writes {
            // The disk holds what belongs in the buffer.
            self.payload(part.file, part.offset, part.length);
            let buffer = self.own_memory(stats)?.buffer.clone();
            buffer.memory().write(0, &self.buffer)?;
            let written = self.task.submit_mapped_io(disk, (0, part.length), buffer.va(), IoDirection::Write);
            let io = stats.call(written)?;
            stats.call(io.complete(&self.task, &mut []))?;
        }
        self.mapped_io(stats, step, part, disk)?;
        if step.writes {
            let buffer = self.own_memory(stats)?.buffer.clone();
            let read = self.task.submit_mapped_io(disk, (0, part.length), buffer.va(), IoDirection::Read);
            let io = stats.call(read)?;
            stats.call(io.complete(&self.task, &mut []))?;
            self.buffer.resize(part.length as usize, 0);
            buffer.memory().read(0, &mut self.buffer)?;
            stats.checked("direct I/O to a disk", self.shared.payloads.check(&self.buffer, part.file, part.offset));
        }
        Ok(())
    }

    /// Direct I/O of the disk or file `other`, whose buffer is the mapped part.
    fn mapped_io(
        &mut self,
        stats: &mut ActorStats,
        step: &AddressIoStep,
        part: &MappedPart,
        other: Fd,
    ) -> Result<(), Errno> {
        let (what, direction) = match step.writes {
            true => (TimedCall::MappedWrite, IoDirection::Write),
            false => (TimedCall::MappedRead, IoDirection::Read),
        };
        if !step.writes && step.act == AddressIoAct::File {
            self.payload(part.file, part.offset, part.length);
            stats.call(self.task.write(other, 0, &self.buffer))?;
        }
        let io = stats
            .timed(what, &self.task, || self.task.submit_mapped_io(other, (0, part.length), part.va, direction))?;
        if step.unmaps {
            stats.call(self.task.munmap(part.va, part.length))?;
        }
        if step.act == AddressIoAct::File {
            self.shared.pause(&self.task, step.hold);
        }
        stats.call(io.complete(&self.task, &mut []))?;
        Ok(())
    }

    /// After a write from the mapped part to the process's own file: checks what arrived there.
    fn check_scratch(
        &mut self,
        stats: &mut ActorStats,
        step: &AddressIoStep,
        part: &MappedPart,
        scratch: Fd,
        done: Result<(), Errno>,
    ) -> Result<(), Errno> {
        done?;
        if step.writes {
            self.buffer.resize(part.length as usize, 0);
            stats.call(self.task.read(scratch, 0, &mut self.buffer))?;
            stats.checked(
                "direct I/O to another file",
                self.shared.payloads.check(&self.buffer, part.file, part.offset),
            );
        }
        Ok(())
    }

    fn pipe(&mut self, stats: &mut ActorStats, step: &AddressIoStep, part: &MappedPart) -> Result<(), Errno> {
        let pipe = stats.timed(TimedCall::Vmsplice, &self.task, || self.task.vmsplice(part.va, part.length))?;
        if step.unmaps {
            stats.call(self.task.munmap(part.va, part.length))?;
        }
        self.shared.pause(&self.task, step.hold);
        let bytes = stats.call(pipe.read(self.task.kernel()))?;
        stats.checked("a pipe", self.shared.payloads.check(&bytes, part.file, part.offset));
        Ok(())
    }

    /// The peer acknowledges the send after `hold`. The process goes on at once: it unmaps and
    /// closes while the pages are held.
    fn send(&mut self, stats: &mut ActorStats, step: &AddressIoStep, part: &MappedPart) -> Result<(), Errno> {
        let send = || self.task.send_zero_copy(part.va, part.length);
        let sent = stats.timed(TimedCall::SendZeroCopy, &self.task, send)?;
        let due = Nanos(self.shared.kernel.world().now().0.saturating_add(step.hold));
        let MappedPart { file, offset, .. } = *part;
        self.shared.network.send(UnacknowledgedSend { sent, due, file, offset });
        Ok(())
    }
}
