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
    HeldFor, HeldPlace, HeldRun, InFlightRequests, IoOutcome, Transfer, TransferEnd, TransferSide,
};
use crate::holders::short_pins::ShortPins;
use crate::layout_change::changes::allocate::{Allocate, clean_unwritten};
use crate::layout_change::driver::change_layout;
use crate::layout_change::plan::Patience;
use crate::pinning::direct_io::RequestDraft;
use crate::pinning::gup::{pin_short, unpin_short};
use crate::syscalls::held_memory::hold_mapped;
use crate::syscalls::ram_disk::RamDisk;
use crate::syscalls::read_write::write_inode;
use crate::vfs::inode::Inode;
use crate::vfs::kernel::Kernel;
use crate::vfs::memory_file::MemoryFile;
use crate::vfs::open_file::{Deferred, Description, OpenTarget, downcast};
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
            self.check_direct_io(allowed, offset, len)?;
            // A change that holds the inode while it waits for pins keeps reads and writes waiting.
            inode.turn.wait_until_unheld(self);
            let draft = RequestDraft::begin(self, self.process().attached());
            let len = match transfer {
                Transfer::Read => hold_for_read(&draft, self, inode, offset, len)?,
                Transfer::Write(byte) => {
                    hold_for_write(&draft, self, inode, (offset, len), || Ok(vec![byte; len as usize]))?;
                    len
                }
            };
            let made = draft.make(|request| {
                request.description = Some(description.get());
                request.len = len;
                match transfer {
                    Transfer::Read => request.to = TransferEnd::Caller,
                    Transfer::Write(byte) => request.from = TransferEnd::Constant(byte),
                }
            })?;
            Ok(InFlightIo::of(self, made))
        })
    }

    /// Submits direct I/O of `len` bytes at `offset` of the file, [`MemoryFile`] or [`RamDisk`]
    /// open as `fd`, whose buffer is the mapped memory at `va`. The pages of the buffer are held by
    /// address until the I/O ends, in every design: munmap and close do not end that. I/O of a disk
    /// with a delay ends by itself, also after its process; all other I/O ends by
    /// [`InFlightIo::complete`].
    ///
    /// # Errors
    /// As for [`Task::submit_direct_io`]; EINVAL too where `va` is no multiple of 512 or `len` is 0
    /// **\[chosen\]**, EFAULT (the buffer is not mapped, read-only for a read, or beyond the end of
    /// its file), ENOSPC for a write beyond the end of a disk (a read is short there).
    pub fn submit_mapped_io(
        &self,
        fd: Fd,
        (offset, len): (u64, u64),
        va: u64,
        direction: IoDirection,
    ) -> Result<InFlightIo, Errno> {
        self.syscall(|| {
            let description = self.process().fds.lock().get(fd)?.get();
            let submitted = submit_mapped(self, &description, (offset, len), va, direction);
            let mut deferred = Deferred::default();
            description.put(&mut deferred);
            self.run_deferred(deferred);
            submitted
        })
    }

    /// What refuses direct I/O before anything is written. Only threads of this process can exceed
    /// the bound of what is in flight, by their number.
    pub(super) fn check_direct_io(&self, allowed: bool, offset: u64, len: u64) -> Result<(), Errno> {
        if !allowed {
            return Err(Errno::EBADF);
        }
        if !offset.is_multiple_of(BLOCK) || !len.is_multiple_of(BLOCK) || len > TRANSFER_MAX {
            return Err(Errno::EINVAL);
        }
        if offset.checked_add(len).is_none_or(|end| end > FILE_MAX) {
            return Err(Errno::EFBIG);
        }
        if self.process().attached::<InFlightRequests>().len() >= IN_FLIGHT_MAX {
            return Err(Errno::EAGAIN);
        }
        Ok(())
    }
}

fn submit_mapped(
    task: &Task,
    description: &Arc<Description>,
    (offset, len): (u64, u64),
    va: u64,
    direction: IoDirection,
) -> Result<InFlightIo, Errno> {
    let draft = RequestDraft::begin(task, task.process().attached());
    let reads = direction == IoDirection::Read;
    let buffer_side = if reads { TransferSide::To } else { TransferSide::From };
    let check_buffer = || if va.is_multiple_of(SECTOR) && len > 0 { Ok(()) } else { Err(Errno::EINVAL) };
    let hold_buffer = |len| {
        let mut keep = |run| draft.hold(buffer_side, run);
        if len > 0 { hold_mapped(task, (va, len), reads, HeldFor::Buffer, &mut keep) } else { Ok(()) }
    };
    let (len, due) = match description.open() {
        OpenTarget::Object(_) if let Some(file) = MemoryFile::of(description) => {
            task.check_direct_io(true, offset, len)?;
            check_buffer()?;
            let len = if reads { file.readable(offset, len) } else { len };
            hold_buffer(len)?;
            let pages = match reads {
                true => file.pages_to_read(offset, len),
                false => file.pages_to_write(offset, len)?,
            };
            let file_side = if reads { TransferSide::From } else { TransferSide::To };
            draft.hold(file_side, HeldRun { place: HeldPlace::Pages(pages), len })?;
            (len, None)
        }
        OpenTarget::Object(object) => {
            let disk: Arc<RamDisk> = downcast(Arc::clone(object))?;
            check_buffer()?;
            let len = disk.check(task, (offset, len), reads)?;
            hold_buffer(len)?;
            let place = HeldPlace::Memory { memory: Arc::clone(&disk.memory), offset };
            let disk_side = if reads { TransferSide::From } else { TransferSide::To };
            draft.hold(disk_side, HeldRun { place, len })?;
            (len, disk.delay.map(|delay| task.kernel().world.now().after(delay)))
        }
        OpenTarget::File { inode, access } => {
            let allowed = if reads { access.read } else { access.write };
            task.check_direct_io(allowed, offset, len)?;
            check_buffer()?;
            inode.turn.wait_until_unheld(task);
            // What may change the file's layout comes before anything that such a change would wait
            // for: the faults of the buffer, or the blocks that are written.
            let len = if reads {
                hold_buffer(len)?;
                hold_for_read(&draft, task, inode, offset, len)?
            } else {
                let data = || {
                    let buffer = RequestDraft::begin(task, task.process().attached());
                    let mut keep = |run| buffer.hold(TransferSide::From, run);
                    hold_mapped(task, (va, len), false, HeldFor::Buffer, &mut keep)?;
                    buffer.read_out(len)
                };
                if hold_for_write(&draft, task, inode, (offset, len), data)? {
                    hold_buffer(len)?;
                }
                len
            };
            (len, None)
        }
    };
    let made = draft.make(|request| {
        request.description = Some(description.get());
        (request.len, request.due) = (len, due);
    })?;
    Ok(InFlightIo { outcome: due.map(|_| made.1), ..InFlightIo::of(task, (made.0, Arc::default())) })
}

/// Pins what a read transfers, and returns how much that is: less than was asked for at the end of
/// the file.
fn hold_for_read(
    draft: &RequestDraft<'_>,
    task: &Task,
    inode: &Arc<Inode>,
    offset: u64,
    len: u64,
) -> Result<u64, Errno> {
    let inside = |size: u64| len.min(size.saturating_sub(offset));
    let len_now = inside(inode.layout(Layout::size));
    let pins = pin_short(task.kernel(), inode, BlockRange::of_bytes(offset, len_now), Some(task))?;
    let len = len_now.min(inside(pins.size));
    draft.hold(TransferSide::From, HeldRun { place: own_pages(inode, pins, offset), len })?;
    Ok(len)
}

fn own_pages(inode: &Arc<Inode>, pins: ShortPins, offset: u64) -> HeldPlace {
    HeldPlace::File { inode: Arc::clone(inode), pins, offset, held_for: HeldFor::DirectIo }
}

/// Pins the blocks that a write goes to, all of them written. False: the write was carried out,
/// with what `data` gives.
fn hold_for_write(
    draft: &RequestDraft<'_>,
    task: &Task,
    inode: &Arc<Inode>,
    (offset, len): (u64, u64),
    data: impl Fn() -> Result<Vec<u8>, Errno>,
) -> Result<bool, Errno> {
    let kernel = task.kernel();
    let range = BlockRange::of_bytes(offset, len);
    loop {
        let extends = offset + len > inode.layout(Layout::size);
        if len > 0 && (extends || kernel.options.write_break == WriteBreak::Conservative) {
            return write_inode(task, inode, offset, &data()?).map(|_| false);
        }
        let allocate = Allocate { range, size_min: 0, state: ExtentState::Written, unshare: true, by_fallocate: false };
        change_layout(task, inode, &allocate, Patience::Waits)?;
        clean_unwritten(kernel, inode, range);
        let pins = pin_short(kernel, inode, range, Some(task))?;
        // A truncate or a punch may have come in between.
        if pins.pieces.iter().all(is_writable) && offset + len <= pins.size.max(offset) {
            draft.hold(TransferSide::To, HeldRun { place: own_pages(inode, pins, offset), len })?;
            return Ok(true);
        }
        unpin_short(kernel, pins);
    }
}

impl InFlightIo {
    /// A request that a task of this process ends.
    pub(super) fn of(task: &Task, (id, _): (u64, Arc<IoOutcome>)) -> InFlightIo {
        InFlightIo { process: Arc::clone(task.process()), id, outcome: None }
    }

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
