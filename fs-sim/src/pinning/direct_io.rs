//! The end of a request in flight: the transfer, and the drop of the pins.
//!
//! It owns that step, for completion, for I/O whose time has come, and for a process's exit.
//! Invariants: the pins are dropped exactly once; the request is on its list until they are gone.
//! Kernel counterpart: `aio_complete` (fs/aio.c), `pipe_buf_release`
//! (include/linux/pipe_fs_i.h), `msg_zerocopy_complete` (net/core/skbuff.c).

use emulator::runtime::clock::Nanos;
use emulator::sync::Arc;

use crate::base::errno::Errno;
use crate::holders::in_flight_io::{
    HeldFor, HeldPlace, HeldRun, InFlightRequest, InFlightRequests, IoOutcome, TransferEnd, TransferSide, io_ended,
    ownerless,
};
use crate::pinning::dma::{read_short, write_short, write_short_through};
use crate::pinning::gup::unpin_short;
use crate::vfs::kernel::Kernel;
use crate::vfs::open_file::Deferred;
use crate::vfs::process::Process;
use crate::vfs::task::Task;

impl HeldRun {
    fn read(&self, kernel: &Kernel, into: &mut [u8]) -> Result<(), Errno> {
        match &self.place {
            HeldPlace::File { inode, pins, offset, .. } => read_short(kernel, inode, pins, *offset, into),
            HeldPlace::Memory { memory, offset } => memory.read(*offset, into),
            HeldPlace::Pages(pages) => pages.read(0, into),
        }
    }

    fn write(&self, kernel: &Kernel, from: &[u8]) -> Result<(), Errno> {
        match &self.place {
            HeldPlace::File { inode, pins, offset, held_for: HeldFor::DirectIo } => {
                write_short_through(kernel, inode, pins, *offset, from)
            }
            HeldPlace::File { inode, pins, offset, .. } => write_short(kernel, inode, pins, *offset, from),
            HeldPlace::Memory { memory, offset } => memory.write(*offset, from),
            HeldPlace::Pages(pages) => pages.write(0, from),
        }
    }

    /// Drops its pins.
    pub(crate) fn release(self, kernel: &Arc<Kernel>) {
        if let HeldPlace::File { pins, .. } = self.place {
            unpin_short(kernel, pins);
        }
    }
}

/// Copies `runs` out, one after the other.
fn read_runs(kernel: &Kernel, runs: &[HeldRun], bytes: &mut [u8]) -> Result<(), Errno> {
    let mut at = 0;
    runs.iter().try_for_each(|run| {
        let here = at..(at + run.len as usize).min(bytes.len());
        at = here.end;
        run.read(kernel, &mut bytes[here])
    })
}

/// Copies `bytes` into `runs`, one after the other.
fn write_runs(kernel: &Kernel, runs: &[HeldRun], bytes: &[u8]) -> Result<(), Errno> {
    let mut at = 0;
    runs.iter().try_for_each(|run| {
        let here = at..(at + run.len as usize).min(bytes.len());
        at = here.end;
        run.write(kernel, &bytes[here])
    })
}

impl InFlightRequest {
    /// Transfers, unpins, takes it off `list`, drops the reference on the open file if there is
    /// one. Without a buffer (its process has exited) what would go there is lost.
    pub(crate) fn finish(
        self,
        kernel: &Arc<Kernel>,
        list: &InFlightRequests,
        into: Option<&mut [u8]>,
        deferred: &mut Deferred,
    ) -> Result<usize, Errno> {
        let (result, len) = (self.transfer(kernel, into), self.len as usize);
        self.abandon(kernel, list, deferred);
        result.map(|()| len)
    }

    /// As [`InFlightRequest::finish`], without a transfer.
    fn abandon(self, kernel: &Arc<Kernel>, list: &InFlightRequests, deferred: &mut Deferred) {
        let mut pinned = false;
        for end in [self.from, self.to] {
            let TransferEnd::Runs(runs) = end else { continue };
            pinned = pinned || !runs.is_empty();
            runs.into_iter().for_each(|run| run.release(kernel));
        }
        let submitter = list.remove(self.id);
        if pinned {
            io_ended(kernel);
        }
        let Some(description) = self.description else { return };
        let kept_by_io = description.fd_holders().processes().is_empty();
        description.put(deferred);
        if let Some(pid) = submitter.filter(|_| kept_by_io) {
            // It can end the leases of the open file no more: others that have I/O there may.
            kernel.helper_gone(pid);
        }
    }

    fn transfer(&self, kernel: &Kernel, into: Option<&mut [u8]>) -> Result<(), Errno> {
        let len = self.len as usize;
        match (&self.from, &self.to, into) {
            (TransferEnd::Runs(from), TransferEnd::Caller, Some(into)) if into.len() >= len => {
                read_runs(kernel, from, &mut into[..len])
            }
            (_, TransferEnd::Caller, Some(_)) => Err(Errno::EFAULT),
            (TransferEnd::Runs(from), TransferEnd::Runs(to), _) => {
                let mut bytes = vec![0; len];
                read_runs(kernel, from, &mut bytes).and_then(|()| write_runs(kernel, to, &bytes))
            }
            (TransferEnd::Constant(byte), TransferEnd::Runs(to), _) => write_runs(kernel, to, &vec![*byte; len]),
            _ => Ok(()),
        }
    }
}

/// A request that a call is making. What it pins is listed at once: a change that meets the pins
/// finds whose they are, also while the call waits for the next page. Dropped, it leaves nothing
/// pinned.
pub(crate) struct RequestDraft<'t> {
    task: &'t Task,
    list: &'t InFlightRequests,
    id: u64,
    outcome: Arc<IoOutcome>,
    made: bool,
}

impl<'t> RequestDraft<'t> {
    pub(crate) fn begin(task: &'t Task, list: &'t InFlightRequests) -> RequestDraft<'t> {
        let id = task.kernel().new_number();
        RequestDraft { task, list, id, outcome: list.begin(task.pid(), id), made: false }
    }

    /// Lists pinned pages.
    ///
    /// # Errors
    /// `Dead`: the machine is being switched off. The pins are gone.
    pub(crate) fn hold(&self, side: TransferSide, run: HeldRun) -> Result<(), Errno> {
        match self.list.hold(self.id, side, run) {
            Ok(()) => {
                // A change that has closed its pages, and met these pins, judges again.
                self.task.kernel().pins.drained().wake_all();
                Ok(())
            }
            Err(run) => {
                run.release(self.task.kernel());
                Err(Errno::Dead)
            }
        }
    }

    /// The request is in flight from now on. Returns its number and where its outcome goes.
    ///
    /// # Errors
    /// `Dead`, as for [`RequestDraft::hold`].
    pub(crate) fn make(mut self, complete: impl FnOnce(&mut InFlightRequest)) -> Result<(u64, Arc<IoOutcome>), Errno> {
        self.made = self.list.made(self.id, complete);
        if self.made { Ok((self.id, Arc::clone(&self.outcome))) } else { Err(Errno::Dead) }
    }

    /// What the pages that it has listed to read from hold now, `len` bytes. The request is not
    /// made.
    pub(crate) fn read_out(self, len: u64) -> Result<Vec<u8>, Errno> {
        let mut bytes = vec![0; len as usize];
        let mut request = self.list.take(self.id).ok_or(Errno::Dead)?;
        (request.to, request.len) = (TransferEnd::Caller, len);
        let deferred = &mut Deferred::default();
        request.finish(self.task.kernel(), self.list, Some(&mut bytes), deferred).map(|_| bytes)
    }
}

impl Drop for RequestDraft<'_> {
    fn drop(&mut self) {
        if !self.made
            && let Some(request) = self.list.take(self.id)
        {
            // A request in the making refers to no open file.
            request.abandon(self.task.kernel(), self.list, &mut Deferred::default());
        }
    }
}

/// Ends the I/O in flight and the pages in pipes of a process that exits, or whose machine is being
/// switched off: no buffer is left to copy a read into, and no caller to report an error to. I/O
/// that ends by itself goes on.
pub(crate) fn end_io_in_flight(kernel: &Arc<Kernel>, process: &Process, deferred: &mut Deferred) {
    let in_flight = process.attached::<InFlightRequests>();
    in_flight.hand_over_delayed(ownerless(kernel));
    while let Some(request) = in_flight.take_any() {
        let _unreported = request.finish(kernel, in_flight, None, deferred);
    }
}

impl Kernel {
    /// When the next I/O of a disk with a delay ends.
    pub fn next_io_due(&self) -> Option<Nanos> {
        let of_processes = self.processes.snapshot();
        let lists = of_processes.iter().map(|(_, process)| process.attached::<InFlightRequests>());
        lists.chain([ownerless(self)]).filter_map(InFlightRequests::next_due).min()
    }

    /// Ends the I/O of disks with a delay whose time has come, in the order of their times. The
    /// owner of the clock calls it, at each of the times that [`Kernel::next_io_due`] names.
    pub fn complete_due_io(self: &Arc<Self>) {
        let now = self.world.now();
        let of_processes = self.processes.snapshot();
        let mut deferred = Deferred::default();
        for list in of_processes.iter().map(|(_, process)| process.attached()).chain([ownerless(self)]) {
            while let Some((request, outcome)) = list.take_due(now) {
                outcome.set(request.finish(self, list, None, &mut deferred));
            }
        }
        self.run_deferred(deferred);
    }

    /// Ends what no process ends: sends that no peer has acknowledged, I/O that outlives its
    /// process. For the end of a run, after the exit of all processes: it stands for switching the
    /// machine off.
    pub fn end_ownerless_io(self: &Arc<Self>) {
        let mut deferred = Deferred::default();
        let list = ownerless(self);
        while let Some((request, _)) = list.take_due(Nanos(u64::MAX)) {
            let _unreported = request.finish(self, list, None, &mut deferred);
        }
        while let Some(request) = list.take_any() {
            let _unreported = request.finish(self, list, None, &mut deferred);
        }
        self.run_deferred(deferred);
    }
}
