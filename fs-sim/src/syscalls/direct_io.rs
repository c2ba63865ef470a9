//! Direct I/O in two calls: submission and completion.
//!
//! It owns the short-term pins of I/O between the two. Invariants: they are dropped exactly once,
//! by completion or by the process's exit; the open file stays until then; a write lands in the
//! blocks that were the file's when it was submitted, which can't leave meanwhile. Kernel
//! counterpart: `io_submit`, `io_getevents`, `exit_aio` (fs/aio.c), `iomap_dio_rw`.

use emulator::sync::Arc;

use crate::base::errno::Errno;
use crate::base::numbers::Fd;
use crate::base::range::BlockRange;
use crate::base::units::{BLOCK, FILE_MAX};
use crate::design::WriteBreak;
use crate::extent_map::lookup::is_writable;
use crate::extent_map::{ExtentState, Layout};
use crate::holders::in_flight_io::{InFlightRequest, InFlightRequests, Transfer};
use crate::holders::short_pins::ShortPins;
use crate::layout_change::changes::allocate::{Allocate, clean_unwritten};
use crate::layout_change::driver::change_layout;
use crate::layout_change::plan::Patience;
use crate::pinning::gup::{pin_short, unpin_short};
use crate::syscalls::read_write::write_inode;
use crate::vfs::inode::Inode;
use crate::vfs::kernel::Kernel;
use crate::vfs::open_file::Deferred;
use crate::vfs::process::Process;
use crate::vfs::task::Task;

/// How much I/O a process may have in flight. Linux: the `nr_events` of `io_setup`.
pub const IN_FLIGHT_MAX: usize = 1024;

/// The longest transfer, in bytes.
pub const TRANSFER_MAX: u64 = 16 << 20;

/// Submitted I/O of a process. Complete it, or leave it to the process's exit.
#[derive(Debug)]
#[must_use = "it holds pins until it is completed"]
pub struct InFlightIo {
    process: Arc<Process>,
    id: u64,
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
            if !allowed {
                return Err(Errno::EBADF);
            }
            if !offset.is_multiple_of(BLOCK) || !len.is_multiple_of(BLOCK) || len > TRANSFER_MAX {
                return Err(Errno::EINVAL);
            }
            if offset.checked_add(len).is_none_or(|end| end > FILE_MAX) {
                return Err(Errno::EFBIG);
            }
            // A change that holds the inode while it waits for pins keeps reads and writes waiting.
            inode.turn.wait_until_unheld(self);
            // Judged before anything is written. Only threads of this process can exceed the
            // bound, by their number.
            if self.process().attached::<InFlightRequests>().len() >= IN_FLIGHT_MAX {
                return Err(Errno::EAGAIN);
            }
            let (pins, len) = match transfer {
                Transfer::Read => pin_for_read(self, inode, offset, len)?,
                Transfer::Write(byte) => (pin_for_write(self, inode, offset, len, byte)?, len),
            };
            let id = self.kernel().new_number();
            let (inode, description) = (Arc::clone(inode), Some(description.get()));
            Ok(in_flight(self, InFlightRequest { id, description, inode, pins, offset, len, transfer }))
        })
    }
}

/// Records what `request` pins as in flight.
pub(super) fn in_flight(task: &Task, request: InFlightRequest) -> InFlightIo {
    let (id, pinned) = (request.id, request.pins.is_some());
    task.process().attached::<InFlightRequests>().add(request);
    if pinned {
        // A change that has closed its pages and met these pins checks again, and finds whose they
        // are.
        task.kernel().pins.drained().wake_all();
    }
    InFlightIo { process: Arc::clone(task.process()), id }
}

/// Pins what a read transfers. Returns the number of bytes too.
fn pin_for_read(task: &Task, inode: &Inode, offset: u64, len: u64) -> Result<(Option<ShortPins>, u64), Errno> {
    let inside = |size: u64| len.min(size.saturating_sub(offset));
    let len_now = inside(inode.layout(Layout::size));
    let pins = pin_short(task.kernel(), inode, BlockRange::of_bytes(offset, len_now), Some(task))?;
    let len = len_now.min(inside(pins.size));
    Ok((Some(pins), len))
}

/// Pins the blocks that a write goes to, all of them written; `None` if the write was carried out.
fn pin_for_write(task: &Task, inode: &Arc<Inode>, offset: u64, len: u64, byte: u8) -> Result<Option<ShortPins>, Errno> {
    let kernel = task.kernel();
    let range = BlockRange::of_bytes(offset, len);
    loop {
        let extends = offset + len > inode.layout(Layout::size);
        if len > 0 && (extends || kernel.options.write_break == WriteBreak::Conservative) {
            let data = vec![byte; len as usize];
            return write_inode(task, inode, offset, &data).map(|_| None);
        }
        let allocate = Allocate { range, size_min: 0, state: ExtentState::Written, unshare: true, by_fallocate: false };
        change_layout(task, inode, &allocate, Patience::Waits)?;
        clean_unwritten(kernel, inode, range);
        let pins = pin_short(kernel, inode, range, Some(task))?;
        // A truncate or a punch may have come in between.
        if pins.pieces.iter().all(is_writable) && offset + len <= pins.size.max(offset) {
            return Ok(Some(pins));
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
    /// process has exited, and its I/O with it.
    pub fn complete(self, task: &Task, into: &mut [u8]) -> Result<usize, Errno> {
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
