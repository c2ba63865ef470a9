//! Direct I/O in flight: submitted by one call, completed by another.
//!
//! It owns the short-term pins of I/O between the two, and the answer to whose they are. Invariants: they are dropped exactly once, by completion or by the
//! process's death; the open file stays until then; a write lands in the blocks that were the file's when it was submitted,
//! which can't leave meanwhile. Kernel counterpart: `io_submit`, `io_getevents`, `exit_aio` (fs/aio.c), `iomap_dio_rw`.

use emulator::pin::PageRange;
use emulator::sync::Arc;

use super::change::Patience;
use super::fallocate::Allocate;
use super::rw::is_writable;
use crate::design::WriteBreak;
use crate::errno::Errno;
use crate::extent_map::{ExtentState, Layout};
use crate::gup::ShortPins;
use crate::holders::meets;
use crate::inode::{Ino, Inode};
use crate::process::custody::Custody;
use crate::process::description::{Deferred, Description};
use crate::process::fd_table::Fd;
use crate::process::task::Task;
use crate::process::{Pid, Process};
use crate::range::BlockRange;
use crate::{BLOCK, FILE_MAX, Kernel};

/// How much I/O a process may have in flight. Linux: the `nr_events` of `io_setup`.
pub const IN_FLIGHT_MAX: usize = 1024;

/// The longest transfer, in bytes.
pub const TRANSFER_MAX: u64 = 16 << 20;

/// What is transferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// From the file.
    Read,
    /// This byte, again and again, to the file.
    Write(u8),
}

/// I/O of a process that has been submitted. Complete it, or leave it to the process's end.
#[derive(Debug)]
#[must_use = "it holds pins until it is completed"]
pub struct InFlightIo {
    process: Arc<Process>,
    id: u64,
}

/// What the kernel keeps of it.
#[derive(Debug)]
pub(crate) struct Request {
    id: u64,
    description: Arc<Description>,
    /// None: a write that was done when it was submitted.
    pins: Option<ShortPins>,
    offset: u64,
    /// How many bytes are transferred.
    len: u64,
    transfer: Transfer,
}

impl Task {
    /// Submits a direct read or write of `len` bytes at `offset` of the file open as `fd`; its short-term pins stay until
    /// it is completed. A write allocates the holes it meets as any write does. One that extends the file, or counts as a layout
    /// change by the volume's `write_break`, is carried out before this returns, as ext4 does with the former.
    ///
    /// # Errors
    /// EBADF (access mode), EINVAL (`offset` or `len` not a multiple of 4 KiB, `len` above [`TRANSFER_MAX`] **\[chosen\]**, not a file), EFBIG, EAGAIN (more than
    /// [`IN_FLIGHT_MAX`] in flight), ENOMEM, EIO; for a write what [`Task::write`] says.
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
            // Judged before anything is written; only this process could overrun the bound, by its own threads.
            if self.process().in_flight.lock().len() >= IN_FLIGHT_MAX {
                return Err(Errno::EAGAIN);
            }
            let (pins, len) = match transfer {
                Transfer::Read => self.pin_for_read(inode, offset, len)?,
                Transfer::Write(byte) => (self.pin_for_write(inode, offset, len, byte)?, len),
            };
            let id = self.kernel().new_number();
            let request = Request { id, description: description.get(), pins, offset, len, transfer };
            let pinned = request.pins.is_some();
            self.process().in_flight.lock().push(request);
            if pinned {
                // A change that has shut its doors and met our pins looks again, and finds whose they are.
                self.kernel().pins.drained().wake_all();
            }
            Ok(InFlightIo { process: Arc::clone(self.process()), id })
        })
    }

    /// Pins what a read transfers, and says how many bytes that is.
    fn pin_for_read(&self, inode: &Inode, offset: u64, len: u64) -> Result<(Option<ShortPins>, u64), Errno> {
        let inside = |size: u64| len.min(size.saturating_sub(offset));
        let len_now = inside(inode.layout(Layout::size));
        let pins = self.kernel().pin_short(inode, BlockRange::of_bytes(offset, len_now), Some(self))?;
        let len = len_now.min(inside(pins.size));
        Ok((Some(pins), len))
    }

    /// Pins the blocks that a write goes to, all of them written; none if the write is done.
    fn pin_for_write(&self, inode: &Arc<Inode>, offset: u64, len: u64, byte: u8) -> Result<Option<ShortPins>, Errno> {
        let kernel = self.kernel();
        let range = BlockRange::of_bytes(offset, len);
        loop {
            let extends = offset + len > inode.layout(Layout::size);
            if len > 0 && (extends || kernel.options.write_break == WriteBreak::Conservative) {
                let data = vec![byte; len as usize];
                return self.write_inode(inode, offset, &data).map(|_| None);
            }
            let allocate = Allocate { range, size_min: 0, state: ExtentState::Written, unshare: true };
            self.change(inode, &allocate, Patience::Waits)?;
            kernel.clean_unwritten(inode, range);
            let pins = kernel.pin_short(inode, range, Some(self))?;
            // A truncate or a punch may have come in between.
            if pins.pieces.iter().all(is_writable) && offset + len <= pins.size.max(offset) {
                return Ok(Some(pins));
            }
            kernel.unpin_short(pins);
        }
    }
}

/// Direct I/O in flight as others see it.
pub(crate) struct Seen {
    /// Whose it is: only this process can complete it.
    pub(crate) pid: Pid,
    pub(crate) ino: Ino,
    /// The file blocks that are transferred.
    pub(crate) range: BlockRange,
    /// Of the open file.
    pub(crate) custody: Arc<Custody>,
}

impl Kernel {
    /// The I/O in flight that pins any of `pages`, which are sorted and disjoint; by process, each in no order.
    pub(crate) fn io_on(&self, pages: &[PageRange]) -> Vec<Seen> {
        let mut found = Vec::new();
        for (pid, process) in self.processes.snapshot() {
            let in_flight = process.in_flight.lock();
            let pinning = in_flight.iter().filter(|request| request.pins_any_of(pages));
            found.extend(pinning.filter_map(|request| {
                let (inode, _) = request.description.file()?;
                let range = BlockRange::of_bytes(request.offset, request.len);
                Some(Seen { pid, ino: inode.ino(), range, custody: Arc::clone(request.description.custody()) })
            }));
        }
        found
    }
}

impl InFlightIo {
    /// Completes the I/O: copies (a read into the front of `into`, which is as long as was asked for) and drops the pins. The
    /// number of bytes transferred; a read is short at the end that the file had when it was submitted.
    ///
    /// # Errors
    /// EFAULT (`into` is too short; nothing is copied, the pins are gone), EIO; `Dead`: the process has ended, and the I/O
    /// with it.
    pub fn complete(self, kernel: &Arc<Kernel>, into: &mut [u8]) -> Result<usize, Errno> {
        let request = {
            let mut in_flight = self.process.in_flight.lock();
            let at = in_flight.iter().position(|request| request.id == self.id).ok_or(Errno::Dead)?;
            in_flight.swap_remove(at)
        };
        let mut deferred = Deferred::default();
        let result = request.finish(kernel, Some(into), &mut deferred);
        kernel.run_deferred(deferred);
        result
    }
}

impl Request {
    fn pins_any_of(&self, pages: &[PageRange]) -> bool {
        self.pins.iter().flat_map(|pins| &pins.pins).any(|pin| meets(pin.range(), pages))
    }

    /// Transfers, unpins, lets go of the file. Without a buffer (its process is gone) a read transfers nothing.
    pub(crate) fn finish(
        self,
        kernel: &Arc<Kernel>,
        into: Option<&mut [u8]>,
        deferred: &mut Deferred,
    ) -> Result<usize, Errno> {
        let len = self.len as usize;
        let mut result = Ok(());
        if let (Some(pins), Some((inode, _))) = (self.pins, self.description.file()) {
            result = match (self.transfer, into) {
                (Transfer::Write(byte), _) => kernel.write_short(inode, &pins, self.offset, &vec![byte; len]),
                (Transfer::Read, Some(into)) if into.len() >= len => {
                    kernel.read_short(inode, &pins, self.offset, &mut into[..len])
                }
                (Transfer::Read, Some(_)) => Err(Errno::EFAULT),
                (Transfer::Read, None) => Ok(()),
            };
            kernel.unpin_short(pins);
        }
        self.description.put(deferred);
        result.map(|()| len)
    }
}
