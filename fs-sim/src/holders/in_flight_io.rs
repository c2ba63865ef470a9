//! Short-term pins that outlive a system call: direct I/O between submission and completion, and
//! pages that wait in a pipe.
//!
//! It owns the record of each and the answer to which process can end it. Invariants: a record's
//! pins are dropped exactly once, by completion or by its process's exit; pages in a pipe keep
//! neither the mapping nor the open file through which they were found. Kernel counterpart: `struct
//! aio_kiocb` (fs/aio.c), `struct pipe_buffer` (fs/splice.c).

use emulator::pin::PageRange;
use emulator::sync::{Arc, Mutex, MutexGuard};

use crate::base::numbers::{Ino, Pid};
use crate::base::range::BlockRange;
use crate::deadlock::need::{Awaited, Need};
use crate::holders::holder::meets;
use crate::holders::short_pins::ShortPins;
use crate::vfs::attachments::{Attachment, Slot};
use crate::vfs::fd_holders::FdHolders;
use crate::vfs::inode::Inode;
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

/// One submitted request, or a run of pages in a pipe.
#[derive(Debug)]
pub(crate) struct InFlightRequest {
    pub(crate) id: u64,
    /// The open file, which direct I/O keeps open. `None`: pages in a pipe, which keep no file
    /// open.
    pub(crate) description: Option<Arc<Description>>,
    /// The file whose pages these were when they were pinned. It may be evicted meanwhile.
    pub(crate) inode: Arc<Inode>,
    /// `None`: a write that was carried out when it was submitted.
    pub(crate) pins: Option<ShortPins>,
    pub(crate) offset: u64,
    /// How many bytes are transferred.
    pub(crate) len: u64,
    pub(crate) transfer: Transfer,
}

/// The direct I/O that a process has submitted and not completed, and its pages in pipes.
#[derive(Debug, Default)]
pub(crate) struct InFlightRequests(Mutex<Vec<InFlightRequest>>);

impl Attachment for InFlightRequests {
    const SLOT: Slot = Slot::InFlightIo;
}

impl InFlightRequests {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Vec<InFlightRequest>> {
        self.0.lock()
    }

    /// Takes all of them, at the process's exit.
    pub(crate) fn take_all(&self) -> Vec<InFlightRequest> {
        std::mem::take(&mut *self.0.lock())
    }
}

/// Direct I/O in flight, or pages in a pipe, as other tasks see them.
pub(crate) struct SeenIo {
    /// The process that submitted the I/O or has the pipe: only this process can end it.
    pub(crate) pid: Pid,
    pub(crate) ino: Ino,
    /// The file blocks that are transferred.
    pub(crate) range: BlockRange,
    /// The holders of the open file. `None`: pages in a pipe, which refer to no open file.
    pub(crate) fd_holders: Option<Arc<FdHolders>>,
}

impl SeenIo {
    /// Its completion, by its process.
    pub(crate) fn awaited(&self) -> Awaited {
        Need::any_of(vec![self.pid]).into()
    }
}

/// The I/O in flight and the pages in pipes that pin any of `pages` (sorted and disjoint), ordered
/// by process.
pub(crate) fn io_on(kernel: &Kernel, pages: &[PageRange]) -> Vec<SeenIo> {
    let mut found = Vec::new();
    if pages.is_empty() {
        return found;
    }
    for (pid, process) in kernel.processes.snapshot() {
        let in_flight = process.attached::<InFlightRequests>().lock();
        let pinning = in_flight.iter().filter(|request| request.pins_any_of(pages));
        found.extend(pinning.map(|request| {
            let range = BlockRange::of_bytes(request.offset, request.len);
            let fd_holders = request.description.as_ref().map(|description| Arc::clone(description.fd_holders()));
            SeenIo { pid, ino: request.inode.ino(), range, fd_holders }
        }));
    }
    found
}

impl InFlightRequest {
    fn pins_any_of(&self, pages: &[PageRange]) -> bool {
        self.pins.iter().flat_map(|pins| &pins.pins).any(|pin| meets(pin.range(), pages))
    }
}
