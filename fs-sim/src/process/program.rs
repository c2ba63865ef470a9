//! Running programs: files that may not be opened for writing meanwhile.
//!
//! It owns the hold that a program has on its file. Invariants: a file is never both run and open for writing; the hold ends
//! exactly once, explicitly or with the process. The program runs beside the process that started it, as in a child made by
//! `vfork`: the process keeps its descriptors and memory, and its forks don't inherit the hold **\[chosen\]**. Kernel
//! counterpart: `do_open_execat`, `exe_file_deny_write_access` (fs/exec.c).

use emulator::sync::Arc;

use super::Process;
use super::description::Access;
use super::task::Task;
use crate::Kernel;
use crate::base_lease::Type;
use crate::errno::Errno;
use crate::inode::Inode;

/// How many programs a process may have running.
pub const PROGRAMS_MAX: usize = 64;

/// A program that runs. It goes on if this is dropped, until the process ends.
#[derive(Debug)]
pub struct Program {
    process: Arc<Process>,
    id: u64,
}

/// What the kernel keeps of it.
#[derive(Debug)]
pub(crate) struct Running {
    id: u64,
    inode: Arc<Inode>,
}

impl Task {
    /// Runs the file called `name`. The kernel opens it for reading, which breaks a write lease to read and waits for that;
    /// while it runs it counts as open, and opens for writing get ETXTBSY.
    ///
    /// # Errors
    /// ENOENT, EACCES (nobody may execute it, or not the caller), EINTR, ETXTBSY (somebody has it open for writing; only
    /// then, after the wait), EAGAIN (more than [`PROGRAMS_MAX`]).
    pub fn exec(&self, name: &str) -> Result<Program, Errno> {
        self.syscall(|| {
            let kernel = self.kernel();
            if self.process().programs.lock().len() >= PROGRAMS_MAX {
                return Err(Errno::EAGAIN);
            }
            let inode = kernel.lookup(name)?;
            if let Err(errno) = self.open_to_run(&inode) {
                kernel.drop_open(&inode);
                return Err(errno);
            }
            let id = kernel.new_number();
            self.process().programs.lock().push(Running { id, inode });
            Ok(Program { process: Arc::clone(self.process()), id })
        })
    }

    fn open_to_run(&self, inode: &Inode) -> Result<(), Errno> {
        if !inode.permits(self.process().credentials(), 1) {
            return Err(Errno::EACCES);
        }
        inode.base.lock().enter(Access::READ)?;
        let opened = self.break_base_leases(inode, Type::Read, false);
        let running = opened.and_then(|()| inode.base.lock().deny_writing());
        running.inspect_err(|_| inode.base.lock().leave(Access::READ))
    }
}

impl Program {
    /// The program ends. Nothing happens if its process already has.
    pub fn end(self, kernel: &Arc<Kernel>) {
        let running = {
            let mut programs = self.process.programs.lock();
            let at = programs.iter().position(|running| running.id == self.id);
            at.map(|at| programs.swap_remove(at))
        };
        if let Some(running) = running {
            running.end(kernel);
        }
    }
}

impl Running {
    pub(crate) fn end(self, kernel: &Arc<Kernel>) {
        {
            let mut books = self.inode.base.lock();
            books.allow_writing();
            books.leave(Access::READ);
        }
        kernel.drop_open(&self.inode);
    }
}
