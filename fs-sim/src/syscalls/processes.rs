//! Calls on processes: fork, credentials, signals, exit.
//!
//! It owns what a child inherits. Kernel counterpart: kernel/fork.c, kernel/signal.c,
//! kernel/exit.c.

use emulator::sync::Arc;
use emulator::sync::atomic::Ordering;

use crate::base::errno::Errno;
use crate::base::numbers::{Fd, Pid};
use crate::vfs::credentials::Credentials;
use crate::vfs::open_file::{Deferred, Description, OpenTarget, Passing};
use crate::vfs::signals::{Delivery, SigInfo, Signal};
use crate::vfs::task::Task;

impl Task {
    /// A child with copies of the descriptors, the address space and the dispositions. Leases stay
    /// the parent's; an object that may not pass by fork is not inherited.
    ///
    /// # Errors
    /// None but the caller's death.
    pub fn fork(&self) -> Result<Task, Errno> {
        self.syscall(|| {
            let child = self.kernel.new_process();
            let inherited: Vec<(Fd, Arc<Description>)> =
                self.process.fds.lock().iter().map(|(fd, description)| (fd, description.get())).collect();
            let mut deferred = Deferred::default();
            for (fd, description) in inherited {
                let passes = match description.open() {
                    OpenTarget::File { .. } => true,
                    OpenTarget::Object(object) => object.may_pass(&self.kernel, Passing::Fork),
                };
                if passes {
                    description.fd_holders().held_by(child.pid());
                    child.fds.lock().replace(fd, description);
                } else {
                    description.put(&mut deferred);
                }
            }
            {
                // The child's lock first: a truncate that visits the parent after the copy finds
                // the child locked until the copy is there, and takes the child's pages too. Lock
                // order: only `fork` locks two address spaces, the child's before its parent's,
                // which has the lower number.
                let mut memory = child.mm.lock();
                *memory = self.process.mm.lock().fork();
            }
            child.set_credentials(self.process.credentials());
            let dispositions = self.process.signals.lock().inherit();
            *child.signals.lock() = dispositions;
            child.memlock.store(self.process.memlock(), Ordering::Relaxed);
            self.run_deferred(deferred);
            let task = self.kernel.spawn_task(Arc::clone(&child));
            self.kernel.born(&child);
            Ok(task)
        })
    }

    /// Changes the user and the capabilities of the process: `setresuid` and `capset`. Only root
    /// may.
    ///
    /// # Errors
    /// EPERM.
    pub fn set_credentials(&self, credentials: Credentials) -> Result<(), Errno> {
        self.syscall(|| {
            if self.process.credentials().uid != 0 {
                return Err(Errno::EPERM);
            }
            self.process.set_credentials(credentials);
            Ok(())
        })
    }

    /// Another thread of the same process.
    pub fn thread(&self) -> Task {
        self.kernel.spawn_task(Arc::clone(&self.process))
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// ESRCH if there is no such process.
    pub fn kill(&self, pid: Pid, signal: Signal) -> Result<(), Errno> {
        self.syscall(|| {
            if self.kernel.processes.get(pid).is_none() {
                return Err(Errno::ESRCH);
            }
            let _delivery: Delivery = self.kernel.send_signal(pid, SigInfo::of(signal));
            Ok(())
        })
    }

    /// Takes the signals queued for the handler, oldest first.
    pub fn take_signals(&self) -> Vec<SigInfo> {
        // The interruption is cleared first: a signal that comes in between is taken or
        // interrupts, never neither.
        let waiters = self.process.waiters.lock().clone();
        for waiter in waiters {
            waiter.signals_taken();
        }
        self.process.signals.lock().take()
    }

    /// Ends the process: `exit_group`.
    pub fn exit(&self) {
        self.kernel.shut_down(&self.process);
    }
}
