//! Short-term pins that outlive a system call: direct I/O between submission and completion, its
//! buffers, pages that wait in a pipe, and pages of a zero-copy send.
//!
//! It owns the record of each and the answer to which process can end it. Invariants: a record's
//! pins are dropped exactly once, by completion or by its process's exit; pages are listed as soon
//! as they are pinned, before the call that makes the request waits again, and until their pins
//! are gone; pages held by address (buffers, pipes, sends) keep neither the mapping nor
//! the open file through which they were found. Kernel counterpart: `struct aio_kiocb` (fs/aio.c),
//! `struct pipe_buffer` (fs/splice.c), `struct ubuf_info` (include/linux/skbuff.h).

use emulator::pin::PageRange;
use emulator::runtime::clock::Nanos;
use emulator::sync::{Arc, Mutex};
use emulator::wait::WaitQueue;

use crate::base::errno::Errno;
use crate::base::numbers::{DescriptionId, Ino, Pid};
use crate::base::range::BlockRange;
use crate::deadlock::need::{Awaited, Need};
use crate::holders::holder::meets;
use crate::holders::list::pin_holders;
use crate::holders::short_pins::ShortPins;
use crate::vfs::anon::AnonMemory;
use crate::vfs::attachments::{Attachment, Slot};
use crate::vfs::fd_holders::FdHolders;
use crate::vfs::inode::Inode;
use crate::vfs::kernel::Kernel;
use crate::vfs::open_file::Description;
use crate::vfs::page_run::PageRun;
use crate::vfs::process::Process;

/// What a request transfers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// From the file.
    Read,
    /// This byte, repeated, to the file.
    Write(u8),
}

/// What pages are held for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeldFor {
    /// Direct I/O of the file itself.
    DirectIo,
    /// They are the buffer of direct I/O of another file or of a disk.
    Buffer,
    /// They are in a pipe.
    Pipe,
    /// They are being sent without a copy.
    Send,
}

/// A run of bytes that a request holds.
#[derive(Debug)]
pub(crate) struct HeldRun {
    pub(crate) place: HeldPlace,
    /// How many bytes.
    pub(crate) len: u64,
}

/// Where the bytes of a run are.
#[derive(Debug)]
pub(crate) enum HeldPlace {
    /// In pinned pages of a file, which can be evicted meanwhile; `offset` counts in the file.
    File { inode: Arc<Inode>, pins: ShortPins, offset: u64, held_for: HeldFor },
    /// In memory that belongs to no file.
    Memory { memory: Arc<AnonMemory>, offset: u64 },
    /// In pages of a file that is not DAX.
    Pages(PageRun),
}

/// One end of a transfer.
#[derive(Debug)]
pub(crate) enum TransferEnd {
    /// The buffer that completion is given.
    Caller,
    /// This byte, repeated.
    Constant(u8),
    /// These bytes.
    Runs(Vec<HeldRun>),
    /// It was carried out when the request was submitted.
    Done,
}

/// One submitted request, the pages in a pipe, or those of a send.
#[derive(Debug)]
pub(crate) struct InFlightRequest {
    pub(crate) id: u64,
    /// The open file of direct I/O, which keeps it open. `None`: pages in a pipe or of a send.
    pub(crate) description: Option<Arc<Description>>,
    pub(crate) from: TransferEnd,
    pub(crate) to: TransferEnd,
    /// How many bytes are transferred.
    pub(crate) len: u64,
    /// When it ends by itself. `None`: a task ends it.
    pub(crate) due: Option<Nanos>,
}

/// Which end of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TransferSide {
    From,
    To,
}

/// Pages of one file that a listed request holds.
#[derive(Debug)]
struct HeldPages {
    ino: Ino,
    pages: Vec<PageRange>,
    /// The file blocks.
    range: BlockRange,
    held_for: HeldFor,
}

/// A request on a list.
#[derive(Debug)]
struct Listed {
    id: u64,
    /// The process that submitted it. It may be gone.
    pid: Pid,
    held: Vec<HeldPages>,
    fd_holders: Option<Arc<FdHolders>>,
    due: Option<Nanos>,
    outcome: Arc<IoOutcome>,
    /// The call that makes it has not returned.
    in_the_making: bool,
    /// `None`: a task is completing it.
    request: Option<InFlightRequest>,
}

/// The outcome of a request that ends by itself, for the task that asks for it.
#[derive(Debug, Default)]
pub(crate) struct IoOutcome {
    bytes: Mutex<Option<Result<usize, Errno>>>,
    pub(crate) known: WaitQueue,
}

impl IoOutcome {
    pub(crate) fn get(&self) -> Option<Result<usize, Errno>> {
        *self.bytes.lock()
    }

    pub(crate) fn set(&self, outcome: Result<usize, Errno>) {
        *self.bytes.lock() = Some(outcome);
        self.known.wake_all();
    }
}

/// Requests in flight: those of a process, or those that no process ends.
#[derive(Debug, Default)]
pub(crate) struct InFlightRequests(Mutex<Vec<Listed>>);

impl Attachment for InFlightRequests {
    const SLOT: Slot = Slot::InFlightIo;
}

/// Of the kernel: requests that no process ends. Sends end when the peer acknowledges them; I/O of
/// a disk with a delay that outlives its process ends when its time comes.
#[derive(Debug, Default)]
struct OwnerlessRequests(InFlightRequests);

impl Attachment for OwnerlessRequests {
    const SLOT: Slot = Slot::OwnerlessIo;
}

/// The requests that no process ends.
pub(crate) fn ownerless(kernel: &Kernel) -> &InFlightRequests {
    &kernel.attached::<OwnerlessRequests>().0
}

impl InFlightRequests {
    pub(crate) fn len(&self) -> usize {
        self.0.lock().len()
    }

    /// How many of them are sends.
    pub(crate) fn sends(&self) -> usize {
        let is_send = |listed: &&Listed| listed.due.is_none();
        self.0.lock().iter().filter(is_send).count()
    }

    /// Lists a request that process `pid` is about to make, without pages.
    pub(crate) fn begin(&self, pid: Pid, id: u64) -> Arc<IoOutcome> {
        let (from, to) = (TransferEnd::Done, TransferEnd::Done);
        let request = Some(InFlightRequest { id, description: None, from, to, len: 0, due: None });
        let (held, fd_holders, due, outcome) = (Vec::new(), None, None, Arc::default());
        let known = Arc::clone(&outcome);
        self.0.lock().push(Listed { id, pid, held, fd_holders, due, outcome, in_the_making: true, request });
        known
    }

    /// Adds a run to a request in the making. The run is given back if the request was ended.
    pub(crate) fn hold(&self, id: u64, side: TransferSide, run: HeldRun) -> Result<(), HeldRun> {
        let mut all = self.0.lock();
        let Some(listed) = all.iter_mut().find(|listed| listed.id == id) else { return Err(run) };
        let Some(request) = &mut listed.request else { return Err(run) };
        if let HeldPlace::File { inode, pins, offset, held_for } = &run.place {
            let pages = pins.pins.iter().map(|pin| pin.range()).collect();
            let range = BlockRange::of_bytes(*offset, run.len);
            listed.held.push(HeldPages { ino: inode.ino(), pages, range, held_for: *held_for });
        }
        let end = if side == TransferSide::From { &mut request.from } else { &mut request.to };
        match end {
            TransferEnd::Runs(runs) => runs.push(run),
            _ => *end = TransferEnd::Runs(vec![run]),
        }
        Ok(())
    }

    /// The request is made; `complete` gives it what is not known before. False if it was ended.
    pub(crate) fn made(&self, id: u64, complete: impl FnOnce(&mut InFlightRequest)) -> bool {
        let mut all = self.0.lock();
        let Some(listed) = all.iter_mut().find(|listed| listed.id == id) else { return false };
        let Some(request) = &mut listed.request else { return false };
        complete(request);
        listed.fd_holders = request.description.as_ref().map(|description| Arc::clone(description.fd_holders()));
        listed.due = request.due;
        listed.in_the_making = false;
        true
    }

    /// Takes a request, to complete it: it stays listed until [`InFlightRequests::remove`]. `None`
    /// if another task has taken it.
    pub(crate) fn take(&self, id: u64) -> Option<InFlightRequest> {
        self.0.lock().iter_mut().find(|listed| listed.id == id)?.request.take()
    }

    /// Takes one that no task has taken, and that does not end by itself.
    pub(crate) fn take_any(&self) -> Option<InFlightRequest> {
        self.0.lock().iter_mut().filter(|listed| listed.due.is_none()).find_map(|listed| listed.request.take())
    }

    /// Takes the one that was due first, `now` at the latest, and says where its outcome goes.
    pub(crate) fn take_due(&self, now: Nanos) -> Option<(InFlightRequest, Arc<IoOutcome>)> {
        let mut all = self.0.lock();
        let due = all.iter_mut().filter(|listed| listed.due.is_some_and(|due| due <= now) && listed.request.is_some());
        let first = due.min_by_key(|listed| (listed.due, listed.id))?;
        Some((first.request.take()?, Arc::clone(&first.outcome)))
    }

    /// When the next one ends by itself.
    pub(crate) fn next_due(&self) -> Option<Nanos> {
        self.0.lock().iter().filter(|listed| listed.request.is_some()).filter_map(|listed| listed.due).min()
    }

    /// Hands those that end by themselves to `heir`; one that a task is completing stays, and is
    /// taken off this list by that task.
    pub(crate) fn hand_over_delayed(&self, heir: &InFlightRequests) {
        let mut all = self.0.lock();
        let goes = |listed: &mut Listed| listed.due.is_some() && listed.request.is_some();
        // ORDERING: with both locks held: a look at the lists, this one first, misses none.
        heir.0.lock().extend(all.extract_if(.., goes));
    }

    /// Takes a request off the list: its pins are gone. Returns the process that submitted it.
    pub(crate) fn remove(&self, id: u64) -> Option<Pid> {
        let mut all = self.0.lock();
        let at = all.iter().position(|listed| listed.id == id)?;
        Some(all.swap_remove(at).pid)
    }

    /// Whether a request that a task must end refers to this open file.
    fn keeps(&self, fd_holders: &Arc<FdHolders>) -> bool {
        let refers = |listed: &Listed| listed.fd_holders.as_ref().is_some_and(|held| Arc::ptr_eq(held, fd_holders));
        self.0.lock().iter().any(|listed| listed.due.is_none() && refers(listed))
    }

    fn pinning(&self, pages: &[PageRange], found: &mut Vec<SeenIo>) {
        let in_flight = self.0.lock();
        for listed in &*in_flight {
            let pinning = listed.held.iter().filter(|held| held.pages.iter().any(|range| meets(*range, pages)));
            found.extend(pinning.map(|held| SeenIo {
                pid: listed.pid,
                ino: held.ino,
                range: held.range,
                held_for: held.held_for,
                fd_holders: listed.fd_holders.clone(),
                ends_by_itself: !listed.in_the_making
                    && (listed.request.is_none() || listed.due.is_some() || held.held_for == HeldFor::Send),
            }));
        }
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

/// A request in flight, as other tasks see it.
pub(crate) struct SeenIo {
    /// The process that submitted it: only this process can end it, unless it ends by itself.
    pub(crate) pid: Pid,
    pub(crate) ino: Ino,
    /// The file blocks that are held.
    pub(crate) range: BlockRange,
    pub(crate) held_for: HeldFor,
    /// The holders of the open file of direct I/O.
    pub(crate) fd_holders: Option<Arc<FdHolders>>,
    /// A task is completing it, its time comes, or its peer acknowledges it.
    pub(crate) ends_by_itself: bool,
}

impl SeenIo {
    /// Its completion, by its process. `None`: it ends by itself.
    pub(crate) fn awaited(&self) -> Option<Awaited> {
        (!self.ends_by_itself).then(|| Need::any_of(vec![self.pid]).into())
    }

    /// Whether only `pid` could end it.
    pub(crate) fn is_up_to(&self, pid: Pid) -> bool {
        self.pid == pid && !self.ends_by_itself
    }
}

/// The processes that could end the leases of an open file: those that [`Kernel::able_to_end`]
/// names, and if there is none, those whose direct I/O in flight alone keeps it open.
pub(crate) fn able_to_end(kernel: &Kernel, fd_holders: &Arc<FdHolders>, file: DescriptionId) -> Vec<Pid> {
    let mut able = kernel.able_to_end(fd_holders, file);
    if able.is_empty() {
        let keeps = |process: &Process| process.attached::<InFlightRequests>().keeps(fd_holders);
        let keepers = kernel.processes.snapshot().into_iter().filter(|(_, process)| keeps(process));
        able.extend(keepers.map(|(pid, _)| pid));
    }
    able
}

/// The requests in flight that pin any of `pages` (sorted and disjoint), ordered by process; those
/// that no process ends come last.
pub(crate) fn io_on(kernel: &Kernel, pages: &[PageRange]) -> Vec<SeenIo> {
    let mut found = Vec::new();
    if pages.is_empty() {
        return found;
    }
    for (_, process) in kernel.processes.snapshot() {
        process.attached::<InFlightRequests>().pinning(pages, &mut found);
    }
    ownerless(kernel).pinning(pages, &mut found);
    found
}
