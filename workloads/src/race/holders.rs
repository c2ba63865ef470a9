//! Holders of pages that are no RDMA program: AF_XDP umems, io_uring fixed buffers, guests; and
//! block-layout clients, which know a file's blocks.
//!
//! One step is one life of such a holder: it takes what the design's gate asks for, half of its
//! accesses come before it is held for a while and half of them afterwards, and it is given back,
//! or its process exits with it. A holder that is asked to give up gives up at its next access,
//! unless its process skips clean-up. Everything written is payload of the file and offset that the
//! holder was granted, and everything read is checked.

use fs_sim::holders::block_layout::IoMode;
use fs_sim::pinning::fixed_buffers::FixedBuffer;
use fs_sim::syscalls::open::OpenFlags;
use fs_sim::vfs::open_file::AccessMode;
use fs_sim::{BLOCK, BlockRange, Errno};

use super::changers::FileWorker;
use super::job::Role;
use super::mapped::{MappedPart, MappingRequest};
use super::op_stream::{HolderAccess, HolderAccesses, HolderStep, holders_of};
use super::oracle::{self, PayloadFile};
use super::shared::RaceShared;
use super::stats::{ActorStats, TimedCall};

/// The probability that a layout client asks for a layout that it may only read.
const READ_LAYOUT: f64 = 0.25;

/// What a holder has: so many bytes at an offset of a file.
#[derive(Clone, Copy, Debug)]
struct HeldPart {
    file: PayloadFile,
    offset: u64,
    length: u64,
}

impl From<&MappedPart> for HeldPart {
    fn from(part: &MappedPart) -> HeldPart {
        HeldPart { file: part.file, offset: part.offset, length: part.length }
    }
}

/// An access at its place: so many bytes from byte `at` of what is held.
#[derive(Clone, Copy, Debug)]
struct PlacedAccess {
    at: u64,
    bytes: u64,
    access: HolderAccess,
}

impl HolderStep {
    fn request(&self) -> MappingRequest {
        MappingRequest { index: self.file, place: self.place, length: self.length, lease: Some(self.lease) }
    }
}

impl FileWorker {
    /// Performs the accesses of a step until one fails, what is held is `asked` for, or the race
    /// stops. In the middle it is held without an access.
    fn accesses(
        &mut self,
        stats: &mut ActorStats,
        (role, step, part): (Role, &HolderStep, HeldPart),
        asked: &dyn Fn() -> bool,
        mut perform: impl FnMut(&mut Self, &mut ActorStats, PlacedAccess) -> Result<(), Errno>,
    ) {
        let Some(holders) = holders_of(&self.shared.job, role) else { return };
        let all = HolderAccesses::new(&self.shared.job, holders, step.access_seed);
        for (number, access) in (0..step.accesses).zip(all) {
            if number == step.accesses / 2 {
                self.shared.pause(&self.task, step.lifetime);
            }
            let gives_up = self.meets_break() || asked();
            if (gives_up && !step.skips_cleanup) || self.shared.is_stopping() {
                return;
            }
            let bytes = access.length.min(part.length / oracle::WORD * oracle::WORD);
            let at = access.place.below((part.length - bytes) / oracle::WORD + 1) * oracle::WORD;
            if bytes == 0 || perform(self, stats, PlacedAccess { at, bytes, access }).is_err() {
                return;
            }
        }
    }

    /// The payload of an access that writes.
    fn payload_of(&mut self, part: HeldPart, placed: PlacedAccess) {
        self.payload(part.file, part.offset + placed.at, placed.bytes);
    }

    /// Checks what an access has read.
    fn check_read(&self, stats: &mut ActorStats, by: &str, part: HeldPart, placed: PlacedAccess) {
        stats.checked(by, self.shared.payloads.check(&self.buffer, part.file, part.offset + placed.at));
    }

    /// Gives back what a step has mapped; or the process exits.
    fn release(&mut self, stats: &mut ActorStats, step: &HolderStep, part: &MappedPart) -> Result<(), Errno> {
        if step.exits {
            self.end_process();
            return Ok(());
        }
        self.unmap(stats, part)
    }

    pub(super) fn umem(&mut self, stats: &mut ActorStats, step: &HolderStep) -> Result<(), Errno> {
        self.answer_breaks(step.skips_cleanup);
        let part = self.map(stats, step.request())?;
        let held = self.umem_of(stats, step, &part);
        self.release(stats, step, &part)?;
        held
    }

    fn umem_of(&mut self, stats: &mut ActorStats, step: &HolderStep, part: &MappedPart) -> Result<(), Errno> {
        let (fd, socket) = stats.call(self.task.xdp_socket())?;
        let register = || self.task.register_umem(fd, part.va, part.length);
        let registered = stats.timed(TimedCall::RegisterUmem, &self.task, register);
        if registered.is_ok() {
            let held = HeldPart::from(part);
            self.accesses(stats, (Role::Umem, step, held), &|| false, |me, stats, placed| {
                let kernel = me.task.kernel().clone();
                if placed.access.writes {
                    me.payload_of(held, placed);
                    let receive = || socket.receive(&kernel, placed.at, &me.buffer);
                    return stats.timed(TimedCall::UmemReceive, &me.task, receive);
                }
                me.buffer.resize(placed.bytes as usize, 0);
                let transmit = || socket.transmit(&kernel, placed.at, &mut me.buffer);
                stats.timed(TimedCall::UmemTransmit, &me.task, transmit)?;
                me.check_read(stats, "a packet of a umem", held, placed);
                Ok(())
            });
        }
        if !step.exits {
            stats.call(self.task.close(fd))?;
        }
        registered
    }

    pub(super) fn ring(&mut self, stats: &mut ActorStats, step: &HolderStep) -> Result<(), Errno> {
        self.answer_breaks(step.skips_cleanup);
        self.own_memory(stats)?;
        let part = self.map(stats, step.request())?;
        let held = self.ring_of(stats, step, &part);
        self.release(stats, step, &part)?;
        held
    }

    fn ring_of(&mut self, stats: &mut ActorStats, step: &HolderStep, part: &MappedPart) -> Result<(), Errno> {
        let scratch = self.own_memory(stats)?.scratch;
        let (fd, _) = stats.call(self.task.io_uring())?;
        let register = || self.task.register_buffers(fd, &[(part.va, part.length)]);
        let registered = stats.timed(TimedCall::RegisterBuffers, &self.task, register);
        if registered.is_ok() {
            let held = HeldPart::from(part);
            self.accesses(stats, (Role::Ring, step, held), &|| false, |me, stats, placed| {
                let buffer = FixedBuffer { index: 0, offset: placed.at, len: placed.bytes };
                if placed.access.writes {
                    // The other file holds what belongs in the buffer.
                    me.payload_of(held, placed);
                    stats.call(me.task.write(scratch, 0, &me.buffer))?;
                    let read = || me.task.read_fixed(fd, buffer, scratch, 0);
                    return stats.timed(TimedCall::ReadFixed, &me.task, read).map(|_| ());
                }
                let write = || me.task.write_fixed(fd, buffer, scratch, 0);
                stats.timed(TimedCall::WriteFixed, &me.task, write)?;
                me.buffer.resize(placed.bytes as usize, 0);
                stats.call(me.task.read(scratch, 0, &mut me.buffer))?;
                me.check_read(stats, "a write from a fixed buffer", held, placed);
                Ok(())
            });
        }
        if !step.exits {
            stats.call(self.task.close(fd))?;
        }
        registered
    }

    pub(super) fn guest(&mut self, stats: &mut ActorStats, step: &HolderStep) -> Result<(), Errno> {
        self.answer_breaks(step.skips_cleanup);
        let name = RaceShared::file_name(step.file);
        let fd = stats.call(self.task.open(&name, OpenFlags::open(AccessMode::BOTH)))?;
        let exported = self.stat(stats, fd).and_then(|(size, ino)| {
            let export = stats.timed(TimedCall::GuestAttach, &self.task, || self.task.export_to_guest(fd))?;
            Ok((export, HeldPart { file: self.shared.payload_file(step.file, ino), offset: 0, length: size }))
        });
        // The export has the file open for itself.
        stats.call(self.task.close(fd))?;
        let ((guest, export), held) = exported?;
        self.accesses(stats, (Role::Guest, step, held), &|| export.is_revoked(), |me, stats, placed| {
            let kernel = me.task.kernel().clone();
            if placed.access.writes {
                me.payload_of(held, placed);
                let store = || export.write(&kernel, placed.at, &me.buffer);
                stats.timed(TimedCall::GuestStore, &me.task, store)?;
            } else {
                me.buffer.resize(placed.bytes as usize, 0);
                let load = || export.read(&kernel, placed.at, &mut me.buffer);
                stats.timed(TimedCall::GuestLoad, &me.task, load)?;
                me.check_read(stats, "a load of a guest", held, placed);
            }
            match placed.access.flushes {
                true => stats.timed(TimedCall::GuestFlush, &me.task, || export.flush(&kernel)),
                false => Ok(()),
            }
        });
        if step.exits {
            self.end_process();
            return Ok(());
        }
        stats.timed(TimedCall::GuestDetach, &self.task, || self.task.close(guest))
    }

    pub(super) fn layout_client(&mut self, stats: &mut ActorStats, step: &HolderStep) -> Result<(), Errno> {
        let name = RaceShared::file_name(step.file);
        let fd = stats.call(self.task.open(&name, OpenFlags::open(AccessMode::BOTH)))?;
        let mode = if step.lease.falls_below(READ_LAYOUT) { IoMode::Read } else { IoMode::ReadWrite };
        let granted = self.stat(stats, fd).and_then(|(size, ino)| {
            let length = step.length.min(size);
            let offset = step.place.below((size - length) / BLOCK + 1) * BLOCK;
            let range = BlockRange::of_bytes(offset, length);
            let get = || self.task.layoutget(fd, range, mode);
            let layout = stats.timed(TimedCall::LayoutGet, &self.task, get)?;
            Ok((layout, HeldPart { file: self.shared.payload_file(step.file, ino), offset, length }))
        });
        // The layout has the file open for itself.
        stats.call(self.task.close(fd))?;
        let ((layout_fd, layout), held) = granted?;
        let recalled = || layout.recall().is_some();
        self.accesses(stats, (Role::LayoutClient, step, held), &recalled, |me, stats, placed| {
            let kernel = me.task.kernel().clone();
            let offset = held.offset + placed.at;
            if placed.access.writes && mode == IoMode::ReadWrite {
                me.payload_of(held, placed);
                let write = || layout.write(&kernel, offset, &me.buffer);
                return stats.timed(TimedCall::LayoutWrite, &me.task, write);
            }
            me.buffer.resize(placed.bytes as usize, 0);
            let read = || layout.read(&kernel, offset, &mut me.buffer);
            stats.timed(TimedCall::LayoutRead, &me.task, read)?;
            me.check_read(stats, "a read of a layout client", held, placed);
            Ok(())
        });
        if step.exits {
            self.end_process();
            return Ok(());
        }
        stats.timed(TimedCall::LayoutReturn, &self.task, || self.task.layoutreturn(layout_fd))
    }
}
