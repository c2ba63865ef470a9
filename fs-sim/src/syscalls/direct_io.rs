//! Direct I/O in two calls: submission and completion.
//!
//! It owns the short-term pins of I/O between the two. Invariants: they are dropped exactly once,
//! by completion or by the process's exit; the open file stays until then; a write lands in the
//! blocks that were the file's when it was submitted, which can't leave meanwhile. Kernel
//! counterpart: `io_submit`, `io_getevents`, `exit_aio` (fs/aio.c), `iomap_dio_rw`.

use emulator::sync::Arc;
use emulator::wait::WaitFor;

use crate::base::errno::Errno;
use crate::base::numbers::Fd;
use crate::base::range::BlockRange;
use crate::base::units::{BLOCK, FILE_MAX};
use crate::deadlock::graph::WaitPoll;
use crate::design::WriteBreak;
use crate::extent_map::lookup::is_writable;
use crate::extent_map::{ExtentState, Layout};
use crate::holders::in_flight_io::{
    HeldFor, InFlightRequest, InFlightRequests, IoOutcome, Place, Run, Transfer, TransferEnd,
};
use crate::holders::short_pins::ShortPins;
use crate::layout_change::changes::allocate::{Allocate, clean_unwritten};
use crate::layout_change::driver::change_layout;
use crate::layout_change::plan::Patience;
use crate::pinning::direct_io::read_runs;
use crate::pinning::gup::{pin_short, unpin_short};
use crate::syscalls::held_memory::hold_mapped;
use crate::syscalls::ram_disk::RamDisk;
use crate::syscalls::read_write::write_inode;
use crate::vfs::inode::Inode;
use crate::vfs::kernel::Kernel;
use crate::vfs::open_file::{Deferred, downcast};
use crate::vfs::process::Process;
use crate::vfs::task::Task;

/// How much I/O a process may have in flight. Linux: the `nr_events` of `io_setup`.
pub const IN_FLIGHT_MAX: usize = 1024;

/// What the address of a mapped buffer is a multiple of. Linux: `bdev_dma_alignment` of a disk with
/// sectors of 512 bytes.
const SECTOR: u64 = 512;

/// The longest transfer, in bytes.
pub const TRANSFER_MAX: u64 = 16 << 20;

/// Submitted I/O of a process. Complete it, or leave it to the process's exit.
#[derive(Debug)]
#[must_use = "it holds pins until it is completed"]
pub struct InFlightIo {
    process: Arc<Process>,
    id: u64,
    /// Of I/O that ends by itself.
    outcome: Option<Arc<IoOutcome>>,
}

/// Which way direct I/O with a mapped buffer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoDirection {
    /// From the file or disk into the buffer.
    Read,
    /// From the buffer to the file or disk.
    Write,
}

impl Task {
    /// Submits a direct read or write of `len` bytes at `offset` of the file open as `fd`; its
    /// short-term pins stay until it is completed. A write allocates the holes it meets, as any
    /// write does. A write that extends the file, or counts as a layout change by the volume's
    /// `write_break`, is carried out before this returns, as ext4 does with an extending write.
    ///
    /// # Errors
    /// EBADF (access mode), EINVAL (`offset` or `len` not a multiple of 4 KiB, `len` above
    /// [`TRANSFER_MAX`] **\[chosen\]**, not a file), EFBIG, EAGAIN (more than [`IN_FLIGHT_MAX`] in
    /// flight), ENOMEM, EIO; for a write the errors of [`Task::write`].
    pub fn submit_direct_io(&self, fd: Fd, offset: u64, len: u64, transfer: Transfer) -> Result<InFlightIo, Errno> {
        self.with_file(fd, |description, inode, access| {
            let allowed = match transfer {
                Transfer::Read => access.read,
                Transfer::Write(_) => access.write,
            };
            self.check_direct_io(allowed, offset, len, FILE_MAX)?;
            // A change that holds the inode while it waits for pins keeps reads and writes waiting.
            inode.turn.wait_until_unheld(self);
            let (from, to, len) = match transfer {
                Transfer::Read => {
                    let run = run_for_read(self, inode, offset, len)?;
                    let len = run.len;
                    (TransferEnd::Runs(vec![run]), TransferEnd::Caller, len)
                }
                Transfer::Write(byte) => {
                    let data = || Ok(vec![byte; len as usize]);
                    let to = end_for_write(self, inode, offset, len, data)?;
                    (TransferEnd::Constant(byte), to, len)
                }
            };
            let (id, description) = (self.kernel().new_number(), Some(description.get()));
            Ok(in_flight(self, InFlightRequest { id, description, from, to, len, due: None }))
        })
    }

    /// Submits direct I/O of `len` bytes at `offset` of the file or [`RamDisk`] open as `fd`, whose
    /// buffer is the mapped memory at `va`. The pages of the buffer are held by address until the
    /// I/O ends, in every design: munmap and close do not end that. I/O of a disk with a delay ends
    /// by itself, also after its process; all other I/O ends by [`InFlightIo::complete`].
    ///
    /// # Errors
    /// As for [`Task::submit_direct_io`]; EINVAL too where `va` is no multiple of 512, EFAULT (the
    /// buffer is not mapped, read-only for a read, or beyond the end of its file), ENOSPC beyond
    /// the end of a disk.
    pub fn submit_mapped_io(
        &self,
        fd: Fd,
        (offset, len): (u64, u64),
        va: u64,
        direction: IoDirection,
    ) -> Result<InFlightIo, Errno> {
        if !va.is_multiple_of(SECTOR) || len == 0 {
            return Err(Errno::EINVAL);
        }
        if let Ok(object) = self.object(fd) {
            let disk: Arc<RamDisk> = downcast(object)?;
            return self.syscall(|| submit_to_disk(self, fd, &disk, (offset, len), va, direction));
        }
        self.with_file(fd, |description, inode, access| {
            let allowed = if direction == IoDirection::Read { access.read } else { access.write };
            self.check_direct_io(allowed, offset, len, FILE_MAX)?;
            inode.turn.wait_until_unheld(self);
            let request = match direction {
                IoDirection::Read => read_into_memory(self, inode, (offset, len), va)?,
                IoDirection::Write => write_from_memory(self, inode, (offset, len), va)?,
            };
            Ok(in_flight(self, InFlightRequest { description: Some(description.get()), ..request }))
        })
    }

    /// What refuses direct I/O before anything is written. Only threads of this process can exceed
    /// the bound of what is in flight, by their number.
    fn check_direct_io(&self, allowed: bool, offset: u64, len: u64, most: u64) -> Result<(), Errno> {
        if !allowed {
            return Err(Errno::EBADF);
        }
        if !offset.is_multiple_of(BLOCK) || !len.is_multiple_of(BLOCK) || len > TRANSFER_MAX {
            return Err(Errno::EINVAL);
        }
        if offset.checked_add(len).is_none_or(|end| end > most) {
            return Err(if most == FILE_MAX { Errno::EFBIG } else { Errno::ENOSPC });
        }
        if self.process().attached::<InFlightRequests>().len() >= IN_FLIGHT_MAX {
            return Err(Errno::EAGAIN);
        }
        Ok(())
    }
}

/// Records what `request` pins as in flight.
pub(super) fn in_flight(task: &Task, request: InFlightRequest) -> InFlightIo {
    let (id, delayed) = (request.id, request.due.is_some());
    let outcome = task.process().attached::<InFlightRequests>().add(task.pid(), request);
    wake_judges(task);
    InFlightIo { process: Arc::clone(task.process()), id, outcome: delayed.then_some(outcome) }
}

/// A change that has closed its pages, and met pins that are listed now, checks again and finds
/// whose they are.
pub(super) fn wake_judges(task: &Task) {
    task.kernel().pins.drained().wake_all();
}

fn submit_to_disk(
    task: &Task,
    fd: Fd,
    disk: &RamDisk,
    (offset, len): (u64, u64),
    va: u64,
    direction: IoDirection,
) -> Result<InFlightIo, Errno> {
    task.check_direct_io(true, offset, len, disk.memory.bytes())?;
    let buffer = TransferEnd::Runs(hold_mapped(task, va, len, direction == IoDirection::Read, HeldFor::Buffer)?);
    let run = Run { place: Place::Memory { memory: Arc::clone(&disk.memory), offset }, len };
    let on_disk = TransferEnd::Runs(vec![run]);
    let (from, to) = if direction == IoDirection::Read { (on_disk, buffer) } else { (buffer, on_disk) };
    let id = task.kernel().new_number();
    let due = disk.delay.map(|delay| task.kernel().world.now().after(delay));
    let description = task.process().fds.lock().get(fd).ok().map(|description| description.get());
    Ok(in_flight(task, InFlightRequest { id, description, from, to, len, due }))
}

/// A read from a file into mapped memory.
fn read_into_memory(
    task: &Task,
    inode: &Arc<Inode>,
    (offset, len): (u64, u64),
    va: u64,
) -> Result<InFlightRequest, Errno> {
    let run = run_for_read(task, inode, offset, len)?;
    let len = run.len;
    let buffer = if len == 0 { Ok(Vec::new()) } else { hold_mapped(task, va, len, true, HeldFor::Buffer) };
    match buffer {
        Ok(buffer) => {
            let (from, to) = (TransferEnd::Runs(vec![run]), TransferEnd::Runs(buffer));
            Ok(InFlightRequest { id: task.kernel().new_number(), description: None, from, to, len, due: None })
        }
        Err(errno) => {
            run.release(task.kernel());
            Err(errno)
        }
    }
}

/// A write from mapped memory to a file.
fn write_from_memory(
    task: &Task,
    inode: &Arc<Inode>,
    (offset, len): (u64, u64),
    va: u64,
) -> Result<InFlightRequest, Errno> {
    let kernel = task.kernel();
    let data = || {
        let buffer = hold_mapped(task, va, len, false, HeldFor::Buffer)?;
        let mut bytes = vec![0; len as usize];
        let read = read_runs(kernel, &buffer, &mut bytes);
        buffer.into_iter().for_each(|run| run.release(kernel));
        read.map(|()| bytes)
    };
    let to = end_for_write(task, inode, offset, len, data)?;
    let id = kernel.new_number();
    let from = match &to {
        TransferEnd::Runs(_) => hold_mapped(task, va, len, false, HeldFor::Buffer).map(TransferEnd::Runs),
        _ => Ok(TransferEnd::Done),
    };
    match from {
        Ok(from) => Ok(InFlightRequest { id, description: None, from, to, len, due: None }),
        Err(errno) => {
            if let TransferEnd::Runs(runs) = to {
                runs.into_iter().for_each(|run| run.release(kernel));
            }
            Err(errno)
        }
    }
}

/// Pins what a read transfers: less than was asked for at the end of the file.
fn run_for_read(task: &Task, inode: &Arc<Inode>, offset: u64, len: u64) -> Result<Run, Errno> {
    let inside = |size: u64| len.min(size.saturating_sub(offset));
    let len_now = inside(inode.layout(Layout::size));
    let pins = pin_short(task.kernel(), inode, BlockRange::of_bytes(offset, len_now), Some(task))?;
    let len = len_now.min(inside(pins.size));
    Ok(Run { place: own_pages(inode, pins, offset), len })
}

fn own_pages(inode: &Arc<Inode>, pins: ShortPins, offset: u64) -> Place {
    Place::File { inode: Arc::clone(inode), pins, offset, held_for: HeldFor::DirectIo }
}

/// Pins the blocks that a write goes to, all of them written; `Done` if the write was carried out,
/// with what `data` gives.
fn end_for_write(
    task: &Task,
    inode: &Arc<Inode>,
    offset: u64,
    len: u64,
    data: impl Fn() -> Result<Vec<u8>, Errno>,
) -> Result<TransferEnd, Errno> {
    let kernel = task.kernel();
    let range = BlockRange::of_bytes(offset, len);
    loop {
        let extends = offset + len > inode.layout(Layout::size);
        if len > 0 && (extends || kernel.options.write_break == WriteBreak::Conservative) {
            return write_inode(task, inode, offset, &data()?).map(|_| TransferEnd::Done);
        }
        let allocate = Allocate { range, size_min: 0, state: ExtentState::Written, unshare: true, by_fallocate: false };
        change_layout(task, inode, &allocate, Patience::Waits)?;
        clean_unwritten(kernel, inode, range);
        let pins = pin_short(kernel, inode, range, Some(task))?;
        // A truncate or a punch may have come in between.
        if pins.pieces.iter().all(is_writable) && offset + len <= pins.size.max(offset) {
            return Ok(TransferEnd::Runs(vec![Run { place: own_pages(inode, pins, offset), len }]));
        }
        unpin_short(kernel, pins);
    }
}

impl InFlightIo {
    /// Whether the task's process has submitted it: the only process that can complete it.
    pub fn is_of(&self, task: &Task) -> bool {
        Arc::ptr_eq(&self.process, task.process())
    }

    /// Completes the I/O: copies (a read into the front of `into`, which is as long as was asked
    /// for) and drops the pins. Returns the number of bytes transferred; a read is short at the
    /// end that the file had when it was submitted. `task` makes the call: if this drops the last
    /// reference to an unlinked file, it waits where the design says so (`evict_while_pinned`).
    ///
    /// # Errors
    /// EFAULT (`into` is too short; nothing is copied, the pins are gone), EIO; `Dead`: the
    /// process has exited, and its I/O with it. Of I/O that ends by itself, which this waits for:
    /// EINTR; then the I/O goes on.
    pub fn complete(self, task: &Task, into: &mut [u8]) -> Result<usize, Errno> {
        if let Some(outcome) = &self.outcome {
            return task.syscall(|| {
                let how = WaitFor::interruptible("I/O in flight");
                let ended = task.block_on(&outcome.known, how, || match outcome.get() {
                    Some(ended) => WaitPoll::Ready(ended),
                    None => WaitPoll::Blocked(Vec::new()),
                });
                ended.map_err(|_| Errno::EINTR)?
            });
        }
        let mut deferred = Deferred::default();
        let result = self.end(task.kernel(), into, &mut deferred);
        task.run_deferred(deferred);
        result
    }

    /// As [`InFlightIo::complete`]; a reference to the open file goes to `deferred`.
    pub(super) fn end(self, kernel: &Arc<Kernel>, into: &mut [u8], deferred: &mut Deferred) -> Result<usize, Errno> {
        let in_flight = self.process.attached::<InFlightRequests>();
        let request = in_flight.take(self.id).ok_or(Errno::Dead)?;
        request.finish(kernel, in_flight, Some(into), deferred)
    }
}
