//! Direct I/O in flight: who has short-term pins between submission and completion.
//!
//! It owns the record of each request and the answer to which process can complete it. Invariant:
//! a request's pins are dropped exactly once, by completion or by its process's exit. Kernel
//! counterpart: `struct aio_kiocb` (fs/aio.c).

use emulator::pin::PageRange;
use emulator::sync::{Arc, Mutex, MutexGuard};

use crate::base::numbers::{Ino, Pid};
use crate::base::range::BlockRange;
use crate::deadlock::need::{Awaited, Need};
use crate::holders::holder::meets;
use crate::holders::short_pins::ShortPins;
use crate::vfs::attachments::{Attachment, Slot};
use crate::vfs::fd_holders::FdHolders;
use crate::vfs::kernel::Kernel;
use crate::vfs::open_file::Description;

/// What a request transfers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// From the file.
    Read,
    /// This byte, repeated, to the file.
    Write(u8),
}

/// One submitted request.
#[derive(Debug)]
pub(crate) struct DirectIoRequest {
    pub(crate) id: u64,
    pub(crate) description: Arc<Description>,
    /// `None`: a write that was carried out when it was submitted.
    pub(crate) pins: Option<ShortPins>,
    pub(crate) offset: u64,
    /// How many bytes are transferred.
    pub(crate) len: u64,
    pub(crate) transfer: Transfer,
}

/// The direct I/O that a process has submitted and not completed.
#[derive(Debug, Default)]
pub(crate) struct InFlightRequests(Mutex<Vec<DirectIoRequest>>);

impl Attachment for InFlightRequests {
    const SLOT: Slot = Slot::InFlightIo;
}

impl InFlightRequests {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Vec<DirectIoRequest>> {
        self.0.lock()
    }

    /// Takes all of them, at the process's exit.
    pub(crate) fn take_all(&self) -> Vec<DirectIoRequest> {
        std::mem::take(&mut *self.0.lock())
    }
}

/// Direct I/O in flight, as other tasks see it.
pub(crate) struct SeenIo {
    /// The process that submitted it: only this process can complete it.
    pub(crate) pid: Pid,
    pub(crate) ino: Ino,
    /// The file blocks that are transferred.
    pub(crate) range: BlockRange,
    /// The holders of the open file.
    pub(crate) fd_holders: Arc<FdHolders>,
}

impl SeenIo {
    /// Its completion, by its process.
    pub(crate) fn awaited(&self) -> Awaited {
        Need::any_of(vec![self.pid]).into()
    }
}

/// The I/O in flight that pins any of `pages` (sorted and disjoint), ordered by process.
pub(crate) fn io_on(kernel: &Kernel, pages: &[PageRange]) -> Vec<SeenIo> {
    let mut found = Vec::new();
    if pages.is_empty() {
        return found;
    }
    for (pid, process) in kernel.processes.snapshot() {
        let in_flight = process.attached::<InFlightRequests>().lock();
        let pinning = in_flight.iter().filter(|request| request.pins_any_of(pages));
        found.extend(pinning.filter_map(|request| {
            let (inode, _) = request.description.file()?;
            let range = BlockRange::of_bytes(request.offset, request.len);
            Some(SeenIo { pid, ino: inode.ino(), range, fd_holders: Arc::clone(request.description.fd_holders()) })
        }));
    }
    found
}

impl DirectIoRequest {
    fn pins_any_of(&self, pages: &[PageRange]) -> bool {
        self.pins.iter().flat_map(|pins| &pins.pins).any(|pin| meets(pin.range(), pages))
    }
}
