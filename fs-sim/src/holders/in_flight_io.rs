//! Short-term pins that outlive a system call: direct I/O between submission and completion, and
//! pages that wait in a pipe.
//!
//! It owns the record of each and the answer to which process can end it. Invariants: a record's
//! pins are dropped exactly once, by completion or by its process's exit; a request is listed until
//! its pins are gone; pages in a pipe keep neither the mapping nor the open file through which they
//! were found. Kernel counterpart: `struct aio_kiocb` (fs/aio.c), `struct pipe_buffer`
//! (fs/splice.c).

use emulator::pin::PageRange;
use emulator::sync::{Arc, Mutex};

use crate::base::numbers::{Ino, Pid};
use crate::base::range::BlockRange;
use crate::deadlock::need::{Awaited, Need};
use crate::holders::holder::meets;
use crate::holders::list::pin_holders;
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

/// A request on the list of its process.
#[derive(Debug)]
struct Listed {
    id: u64,
    ino: Ino,
    /// The pages that it pins.
    pages: Vec<PageRange>,
    /// The file blocks that are transferred.
    range: BlockRange,
    fd_holders: Option<Arc<FdHolders>>,
    /// `None`: a task is completing it.
    request: Option<InFlightRequest>,
}

/// The direct I/O that a process has submitted and not completed, and its pages in pipes.
#[derive(Debug, Default)]
pub(crate) struct InFlightRequests(Mutex<Vec<Listed>>);

impl Attachment for InFlightRequests {
    const SLOT: Slot = Slot::InFlightIo;
}

impl InFlightRequests {
    pub(crate) fn len(&self) -> usize {
        self.0.lock().len()
    }

    /// Lists a request.
    pub(crate) fn add(&self, request: InFlightRequest) {
        let pinned = request.pins.iter().flat_map(|pins| &pins.pins);
        let listed = Listed {
            id: request.id,
            ino: request.inode.ino(),
            pages: pinned.map(|pin| pin.range()).collect(),
            range: BlockRange::of_bytes(request.offset, request.len),
            fd_holders: request.description.as_ref().map(|description| Arc::clone(description.fd_holders())),
            request: Some(request),
        };
        self.0.lock().push(listed);
    }

    /// Takes a request, to complete it: it stays listed until [`InFlightRequests::remove`]. `None`
    /// if another task has taken it.
    pub(crate) fn take(&self, id: u64) -> Option<InFlightRequest> {
        self.0.lock().iter_mut().find(|listed| listed.id == id)?.request.take()
    }

    /// Takes one that no task has taken, at the process's exit.
    pub(crate) fn take_any(&self) -> Option<InFlightRequest> {
        self.0.lock().iter_mut().find_map(|listed| listed.request.take())
    }

    /// Takes a request off the list: its pins are gone.
    pub(crate) fn remove(&self, id: u64) {
        self.0.lock().retain(|listed| listed.id != id);
    }
}

/// The inodes on which a change or an eviction waits with all pages open, one entry for each. What
/// it waits for may be I/O through another file that shares the block, or had it before.
#[derive(Debug, Default)]
struct OpenPageWaits(Mutex<Vec<Ino>>);

impl Attachment for OpenPageWaits {
    const SLOT: Slot = Slot::OpenPageWaits;
}

/// While it lives, the end of any I/O in flight wakes the tasks that wait for pins of the inode.
/// Make it before the first look at the I/O.
pub(crate) struct OpenPageWait<'k> {
    kernel: &'k Kernel,
    ino: Ino,
}

impl<'k> OpenPageWait<'k> {
    pub(crate) fn begin(kernel: &'k Kernel, inode: &Inode) -> OpenPageWait<'k> {
        kernel.attached::<OpenPageWaits>().0.lock().push(inode.ino());
        OpenPageWait { kernel, ino: inode.ino() }
    }
}

impl Drop for OpenPageWait<'_> {
    fn drop(&mut self) {
        let mut waits = self.kernel.attached::<OpenPageWaits>().0.lock();
        if let Some(at) = waits.iter().position(|ino| *ino == self.ino) {
            waits.swap_remove(at);
        }
    }
}

/// The pins of a request are gone and it is off its list: wakes those who may wait for that with
/// all pages open.
pub(crate) fn io_ended(kernel: &Kernel) {
    let waits = kernel.attached::<OpenPageWaits>().0.lock().clone();
    for inode in waits.into_iter().filter_map(|ino| kernel.inodes.get(ino)) {
        pin_holders(&inode).changed.wake_all();
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
    /// A task is completing it: it ends by itself.
    pub(crate) completes: bool,
}

impl SeenIo {
    /// Its completion, by its process. `None`: it ends by itself.
    pub(crate) fn awaited(&self) -> Option<Awaited> {
        (!self.completes).then(|| Need::any_of(vec![self.pid]).into())
    }

    /// Whether only `pid` could end it.
    pub(crate) fn is_up_to(&self, pid: Pid) -> bool {
        self.pid == pid && !self.completes
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
        let in_flight = process.attached::<InFlightRequests>().0.lock();
        let pinning = in_flight.iter().filter(|listed| listed.pages.iter().any(|range| meets(*range, pages)));
        found.extend(pinning.map(|listed| {
            let (ino, range, completes) = (listed.ino, listed.range, listed.request.is_none());
            SeenIo { pid, ino, range, fd_holders: listed.fd_holders.clone(), completes }
        }));
    }
    found
}
