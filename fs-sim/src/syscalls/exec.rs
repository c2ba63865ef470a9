//! exec: running programs, whose files may not be opened for writing meanwhile.
//!
//! It owns the hold that a program has on its file. Invariants: a file is never both run and open
//! for writing; the hold ends exactly once, explicitly or with the process. The program runs
//! beside the process that started it, as in a child made by `vfork`: the process keeps its
//! descriptors and memory, and its forks do not inherit the hold **\[chosen\]**. Kernel
//! counterpart: `do_open_execat`, `exe_file_deny_write_access` (fs/exec.c).

use emulator::sync::{Arc, Mutex, MutexGuard};

use crate::base::errno::Errno;
use crate::leases::posix::breaking::break_posix_leases;
use crate::leases::posix::table::{LeaseBreaker, PosixLeases};
use crate::vfs::attachments::{Attachment, Slot};
use crate::vfs::inode::Inode;
use crate::vfs::kernel::Kernel;
use crate::vfs::lifecycle::LastReference;
use crate::vfs::names::{drop_open, lookup};
use crate::vfs::open_file::AccessMode;
use crate::vfs::process::Process;
use crate::vfs::task::Task;

/// How many programs a process may have running.
pub const PROGRAMS_MAX: usize = 64;

/// A running program. If this is dropped, the program runs on until the process ends.
#[derive(Debug)]
pub struct Program {
    process: Arc<Process>,
    id: u64,
}

impl Task {
    /// Runs the file called `name`. The kernel opens it for reading, which breaks a write lease to
    /// read and waits for that. While the program runs it counts as an open file, and opens for
    /// writing get ETXTBSY.
    ///
    /// # Errors
    /// ENOENT, EACCES (no execute permission for any user, or not for the caller), EINTR, ETXTBSY
    /// (the file is open for writing; checked after the wait), EAGAIN (more than
    /// [`PROGRAMS_MAX`]).
    pub fn exec(&self, name: &str) -> Result<Program, Errno> {
        self.syscall(|| {
            let kernel = self.kernel();
            if self.process().attached::<RunningPrograms>().lock().len() >= PROGRAMS_MAX {
                return Err(Errno::EAGAIN);
            }
            let inode = lookup(kernel, name, LastReference::Call(self))?;
            if let Err(errno) = open_to_run(self, &inode) {
                drop_open(kernel, &inode, LastReference::Call(self));
                return Err(errno);
            }
            let id = kernel.new_number();
            self.process().attached::<RunningPrograms>().lock().push(RunningProgram { id, inode });
            Ok(Program { process: Arc::clone(self.process()), id })
        })
    }
}

fn open_to_run(task: &Task, inode: &Inode) -> Result<(), Errno> {
    if !inode.permits(task.process().credentials(), 1) {
        return Err(Errno::EACCES);
    }
    PosixLeases::of(inode).lock().enter(AccessMode::READ)?;
    let opened = break_posix_leases(task, inode, LeaseBreaker::READER, false);
    let running = opened.and_then(|()| PosixLeases::of(inode).lock().deny_writing());
    running.inspect_err(|_| PosixLeases::of(inode).lock().leave(AccessMode::READ))
}

impl Program {
    /// Ends the program. Without effect if its process has ended.
    pub fn end(self, kernel: &Arc<Kernel>) {
        let running = {
            let mut programs = self.process.attached::<RunningPrograms>().lock();
            let at = programs.iter().position(|running| running.id == self.id);
            at.map(|at| programs.swap_remove(at))
        };
        if let Some(running) = running {
            running.end(kernel);
        }
    }
}

/// The kernel's record of a program.
#[derive(Debug)]
struct RunningProgram {
    id: u64,
    inode: Arc<Inode>,
}

impl RunningProgram {
    pub(crate) fn end(self, kernel: &Arc<Kernel>) {
        {
            let mut books = PosixLeases::of(&self.inode).lock();
            books.allow_writing();
            books.leave(AccessMode::READ);
        }
        drop_open(kernel, &self.inode, LastReference::Kernel);
    }
}

/// The programs that a process runs.
#[derive(Debug, Default)]
pub(crate) struct RunningPrograms(Mutex<Vec<RunningProgram>>);

impl Attachment for RunningPrograms {
    const SLOT: Slot = Slot::Programs;
}

impl RunningPrograms {
    fn lock(&self) -> MutexGuard<'_, Vec<RunningProgram>> {
        self.0.lock()
    }

    /// Ends all of them, at the process's exit.
    pub(crate) fn end_all(&self, kernel: &Arc<Kernel>) {
        let programs = std::mem::take(&mut *self.0.lock());
        for program in programs {
            program.end(kernel);
        }
    }
}
