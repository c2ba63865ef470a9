//! Pages of mapped memory in a pipe.
//!
//! It owns the pins of such pages until the pipe is read. They are short-term pins by address: they
//! keep neither the mapping nor the open file, so the file can lose its last name and its last
//! descriptor while they last. Invariant: they are dropped exactly once, when the pipe is read or
//! its process exits. Every call has a pipe of its own, which a forked child does not inherit
//! **\[chosen\]**. Kernel counterpart: `vmsplice_to_pipe`, `iter_to_pipe` (fs/splice.c).

use emulator::sync::Arc;

use crate::base::errno::Errno;
use crate::base::range::BlockRange;
use crate::base::units::BLOCK;
use crate::holders::in_flight_io::{InFlightRequest, InFlightRequests, Transfer};
use crate::pinning::gup::{pin_short, unpin_short};
use crate::syscalls::direct_io::{IN_FLIGHT_MAX, InFlightIo, in_flight};
use crate::vfs::address_space::Backing;
use crate::vfs::anon::AnonMemory;
use crate::vfs::inode::Inode;
use crate::vfs::kernel::Kernel;
use crate::vfs::open_file::Deferred;
use crate::vfs::private_pages::PrivatePages;
use crate::vfs::process::Process;
use crate::vfs::task::Task;

/// The most bytes that a pipe holds. Linux: `/proc/sys/fs/pipe-max-size`.
pub const PIPE_MAX: u64 = 1 << 20;

/// Pages in a pipe. Read them, or leave them to the process's exit.
#[derive(Debug)]
#[must_use = "it holds pins until it is read"]
pub struct PipePages {
    /// The process that has the pipe.
    process: Arc<Process>,
    /// Runs of pages, each with its length in bytes.
    runs: Vec<(HeldPages, u64)>,
}

#[derive(Debug)]
enum HeldPages {
    /// Pages of a file.
    File(InFlightIo),
    /// Memory that belongs to no file.
    Memory { memory: Arc<AnonMemory>, offset: u64 },
}

impl Task {
    /// Puts the pages that hold `va..va+len` into a new pipe, without a copy: `vmsplice`. The pages
    /// of a file are pinned short-term, in every design. Holes have no page to pin.
    ///
    /// # Errors
    /// EINVAL (length 0, or more than [`PIPE_MAX`] **\[chosen\]**), EFAULT (not mapped, or beyond
    /// the end of the file), EMFILE (more than [`IN_FLIGHT_MAX`] pipes and I/O in flight), ENOMEM
    /// (a pin count at its bound); EINTR and EDEADLK while a layout change has the pages closed.
    pub fn vmsplice(&self, va: u64, len: u64) -> Result<PipePages, Errno> {
        self.syscall(|| {
            if len == 0 || len > PIPE_MAX {
                return Err(Errno::EINVAL);
            }
            let target = self.process().target(va, len, false).map_err(|_| Errno::EFAULT)?;
            let runs = match &target {
                Backing::Anon { memory, offset } => {
                    Ok(vec![(HeldPages::Memory { memory: Arc::clone(memory), offset: *offset }, len)])
                }
                Backing::File { description, offset } => {
                    let spliced = description.file().ok_or(Errno::EFAULT);
                    let spliced = spliced.and_then(|(inode, _)| splice_file(self, inode, *offset, len));
                    spliced.map(|pages| vec![(HeldPages::File(pages), len)])
                }
                Backing::Private { description, pages, offset } => {
                    let inode = description.file().ok_or(Errno::EFAULT);
                    inode.and_then(|(inode, _)| splice_private(self, inode, pages, *offset, len))
                }
            };
            let mut deferred = Deferred::default();
            target.put(&mut deferred);
            self.run_deferred(deferred);
            Ok(PipePages { process: Arc::clone(self.process()), runs: runs? })
        })
    }
}

/// The pages of a private mapping, in runs: of copies, and of the file's pages where there is none.
fn splice_private(
    task: &Task,
    inode: &Arc<Inode>,
    pages: &PrivatePages,
    offset: u64,
    len: u64,
) -> Result<Vec<(HeldPages, u64)>, Errno> {
    let (mut runs, mut at, end) = (Vec::new(), offset, offset + len);
    let page_end = |at: u64| ((at / BLOCK + 1) * BLOCK).min(end);
    while at < end {
        let copied = pages.is_copied(at);
        let mut to = page_end(at);
        while to < end && pages.is_copied(to) == copied {
            to = page_end(to);
        }
        let here = to - at;
        let held = match copied {
            true => Ok(HeldPages::Memory { memory: Arc::clone(pages.memory()), offset: at }),
            false => splice_file(task, inode, pages.in_file(at), here).map(HeldPages::File),
        };
        match held {
            Ok(held) => runs.push((held, here)),
            Err(errno) => {
                // What is in the pipe by now is let go.
                let process = Arc::clone(task.process());
                let _let_go = PipePages { process, runs }.read(task.kernel());
                return Err(errno);
            }
        }
        at = to;
    }
    Ok(runs)
}

/// Pins the pages of `len` bytes at `offset` of a file, for as long as they are in a pipe.
fn splice_file(task: &Task, inode: &Arc<Inode>, offset: u64, len: u64) -> Result<InFlightIo, Errno> {
    let kernel = task.kernel();
    kernel.device_there().map_err(|_| Errno::EFAULT)?;
    if task.process().attached::<InFlightRequests>().lock().len() >= IN_FLIGHT_MAX {
        return Err(Errno::EMFILE);
    }
    let pins = pin_short(kernel, inode, BlockRange::of_bytes(offset, len), Some(task))?;
    // The page that holds the last byte of the file is there as a whole.
    if offset + len > pins.size.next_multiple_of(BLOCK) {
        unpin_short(kernel, pins);
        return Err(Errno::EFAULT);
    }
    let (id, inode, pins) = (kernel.new_number(), Arc::clone(inode), Some(pins));
    let transfer = Transfer::Read;
    Ok(in_flight(task, InFlightRequest { id, description: None, inode, pins, offset, len, transfer }))
}

impl PipePages {
    /// Whether the task's process has the pipe: the only process that can read it.
    pub fn is_of(&self, task: &Task) -> bool {
        Arc::ptr_eq(&self.process, task.process())
    }

    /// Reads the pipe empty, which drops the pins. Returns what the pages hold now.
    ///
    /// # Errors
    /// EIO; `Dead`: the process has exited, and its pipe with it. The pins are gone.
    pub fn read(self, kernel: &Arc<Kernel>) -> Result<Vec<u8>, Errno> {
        let mut bytes = Vec::new();
        let mut failed = Ok(());
        for (held, len) in self.runs {
            let mut run = vec![0; len as usize];
            let read = match held {
                HeldPages::File(pages) => pages.complete(kernel, &mut run).map(drop),
                HeldPages::Memory { memory, offset } => memory.read(offset, &mut run),
            };
            failed = failed.and(read);
            bytes.append(&mut run);
        }
        failed.map(|()| bytes)
    }
}
