//! Pages of mapped memory in a pipe.
//!
//! It owns the call that puts them there. They are short-term pins by address: they keep neither
//! the mapping nor the open file, so the file can lose its last name and its last descriptor while
//! they last. Invariant: they are dropped exactly once, when the pipe is read or its process exits.
//! Every call has a pipe of its own, which a forked child does not inherit **\[chosen\]**. Kernel
//! counterpart: `vmsplice_to_pipe`, `iter_to_pipe` (fs/splice.c).

use emulator::sync::Arc;

use crate::base::errno::Errno;
use crate::holders::in_flight_io::{HeldFor, InFlightRequests, TransferEnd, TransferSide};
use crate::pinning::direct_io::RequestDraft;
use crate::syscalls::direct_io::{IN_FLIGHT_MAX, InFlightIo};
use crate::syscalls::held_memory::hold_mapped;
use crate::vfs::kernel::Kernel;
use crate::vfs::open_file::Deferred;
use crate::vfs::task::Task;

/// The most bytes that a pipe holds. Linux: `/proc/sys/fs/pipe-max-size`.
pub const PIPE_MAX: u64 = 1 << 20;

/// Pages in a pipe. Read them, or leave them to the process's exit.
#[derive(Debug)]
#[must_use = "it holds pins until it is read"]
pub struct PipePages {
    pages: InFlightIo,
    len: u64,
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
            if self.process().attached::<InFlightRequests>().len() >= IN_FLIGHT_MAX {
                return Err(Errno::EMFILE);
            }
            let draft = RequestDraft::begin(self, self.process().attached());
            let mut keep = |run| draft.hold(TransferSide::From, run);
            hold_mapped(self, (va, len), false, HeldFor::Pipe, &mut keep)?;
            let made = draft.make(|pages| (pages.to, pages.len) = (TransferEnd::Caller, len))?;
            Ok(PipePages { pages: InFlightIo::of(self, made), len })
        })
    }
}

impl PipePages {
    /// Whether the task's process has the pipe: the only process that can read it.
    pub fn is_of(&self, task: &Task) -> bool {
        self.pages.is_of(task)
    }

    /// Reads the pipe empty, which drops the pins. Returns what the pages hold now.
    ///
    /// # Errors
    /// EIO; `Dead`: the process has exited, and its pipe with it. The pins are gone.
    pub fn read(self, kernel: &Arc<Kernel>) -> Result<Vec<u8>, Errno> {
        let mut bytes = vec![0; self.len as usize];
        // Pages in a pipe refer to no open file.
        self.pages.end(kernel, &mut bytes, &mut Deferred::default()).map(|_| bytes)
    }
}
