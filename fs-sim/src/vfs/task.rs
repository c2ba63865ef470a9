//! Tasks: the threads of simulated processes, and the frame of their system calls.
//!
//! It owns that frame, and the one way in which a task blocks. Invariants: a call of a dead
//! process never runs; a process's exit runs when its last call has left; releases scheduled by a
//! call run at its end, with no lock held. Kernel counterpart: `task_struct`,
//! `exit_to_user_mode_loop`, `task_work_run`.

use std::task::Poll;

use emulator::sync::atomic::{AtomicBool, Ordering};
use emulator::sync::{Arc, Mutex};
use emulator::wait::{SleepKind, WaitError, WaitFor, WaitQueue, Waiter};

use crate::base::errno::Errno;
use crate::base::numbers::{Fd, Pid};
use crate::deadlock::graph::{WaitEnd, WaitFailure, WaitNode, WaitPoll};
use crate::deadlock::need::{Deadlock, Need, Participant};
use crate::vfs::fd_holders::FdHolders;
use crate::vfs::inode::Inode;
use crate::vfs::kernel::Kernel;
use crate::vfs::lifecycle::LastReference;
use crate::vfs::open_file::{AccessMode, Deferred, Description, OpenObject, OpenTarget};
use crate::vfs::process::Process;

/// One thread of a simulated process. One thread of the program drives it at a time.
#[derive(Debug)]
pub struct Task {
    pub(crate) kernel: Arc<Kernel>,
    pub(crate) process: Arc<Process>,
    pub(crate) waiter: Arc<Waiter>,
    /// Whether a call since the last [`Task::take_waited`] had to wait.
    pub(crate) waited: AtomicBool,
}

impl Drop for Task {
    /// The end of a thread: it no longer counts as one that could act for its process.
    fn drop(&mut self) {
        self.process.waiters.lock().retain(|waiter| !Arc::ptr_eq(waiter, &self.waiter));
        self.kernel.helper_gone(self.pid());
    }
}

impl Task {
    /// The kernel it runs on.
    pub fn kernel(&self) -> &Arc<Kernel> {
        &self.kernel
    }

    /// Its process.
    pub fn process(&self) -> &Arc<Process> {
        &self.process
    }

    /// Its process's number.
    pub fn pid(&self) -> Pid {
        self.process.pid()
    }

    /// Its place in wait queues.
    pub fn waiter(&self) -> &Arc<Waiter> {
        &self.waiter
    }

    /// Whether a call since the last question had to wait.
    pub fn take_waited(&self) -> bool {
        self.waited.swap(false, Ordering::Relaxed)
    }

    pub(crate) fn note_waited(&self) {
        self.waited.store(true, Ordering::Relaxed);
    }

    /// Runs deferred releases, and those that they schedule in turn, as part of this task's call.
    /// Called with no lock held. Where the design says so (`evict_while_pinned`), it waits for the
    /// pins of an unlinked file.
    pub fn run_deferred(&self, deferred: Deferred) {
        self.kernel.run_deferred_of(deferred, LastReference::Call(self));
    }

    /// The frame of a system call.
    pub(crate) fn syscall<R>(&self, body: impl FnOnce() -> Result<R, Errno>) -> Result<R, Errno> {
        if let Err(shut) = self.process.life.enter() {
            if shut.last {
                self.kernel.exit_process(&self.process);
            }
            return Err(Errno::Dead);
        }
        let result = body();
        if self.process.life.leave() {
            self.kernel.exit_process(&self.process);
        }
        result
    }

    /// The open file behind `fd`. It stays while the caller uses it: a close meanwhile only frees
    /// the number.
    pub(crate) fn description(&self, fd: Fd) -> Result<Arc<Description>, Errno> {
        self.process.fds.lock().get(fd).cloned()
    }

    /// The frame of a system call on the open file behind `fd`. The call holds a reference of its
    /// own (`fdget`), so a close by another thread releases the file after the call.
    pub(crate) fn with_file<R>(
        &self,
        fd: Fd,
        body: impl FnOnce(&Arc<Description>, &Arc<Inode>, AccessMode) -> Result<R, Errno>,
    ) -> Result<R, Errno> {
        self.with_open(fd, |description| {
            description.opened_file().and_then(|(inode, access)| body(description, inode, access))
        })
    }

    /// As [`Task::with_file`], for calls on the directory too.
    pub(crate) fn with_inode<R>(
        &self,
        fd: Fd,
        body: impl FnOnce(&Arc<Description>, &Arc<Inode>, AccessMode) -> Result<R, Errno>,
    ) -> Result<R, Errno> {
        self.with_named_inode(fd, |description, inode, access| match access.is_open() {
            true => body(description, inode, access),
            false => Err(Errno::EBADF),
        })
    }

    /// As [`Task::with_inode`], for calls that an `O_PATH` descriptor allows too (`fdget_raw`).
    pub(crate) fn with_named_inode<R>(
        &self,
        fd: Fd,
        body: impl FnOnce(&Arc<Description>, &Arc<Inode>, AccessMode) -> Result<R, Errno>,
    ) -> Result<R, Errno> {
        self.with_open(fd, |description| match description.inode() {
            Some((inode, access)) => body(description, inode, access),
            None => Err(Errno::EINVAL),
        })
    }

    /// As [`Task::with_file`], whatever is open.
    pub(crate) fn with_open<R>(
        &self,
        fd: Fd,
        body: impl FnOnce(&Arc<Description>) -> Result<R, Errno>,
    ) -> Result<R, Errno> {
        self.syscall(|| {
            let description = self.process.fds.lock().get(fd)?.get();
            let result = body(&description);
            let mut deferred = Deferred::default();
            description.put(&mut deferred);
            self.run_deferred(deferred);
            result
        })
    }

    /// Puts an open file (with the reference that the caller holds) into the table.
    pub(crate) fn install(&self, description: Arc<Description>) -> Result<Fd, Errno> {
        description.fd_holders().held_by(self.pid());
        let installed = self.process.fds.lock().install(description);
        installed.map_err(|description| {
            description.fd_holders().gone_from(self.pid());
            let mut deferred = Deferred::default();
            description.put(&mut deferred);
            self.run_deferred(deferred);
            Errno::EMFILE
        })
    }

    /// Installs an object of a crate above. `make` gets the record of the descriptor's holders.
    ///
    /// # Errors
    /// EMFILE.
    pub fn install_object(
        &self,
        make: impl FnOnce(Arc<FdHolders>) -> Arc<dyn OpenObject>,
    ) -> Result<(Fd, Arc<dyn OpenObject>), Errno> {
        self.syscall(|| {
            let fd_holders = Arc::new(FdHolders::default());
            let object = make(Arc::clone(&fd_holders));
            let description = self.kernel.new_description(OpenTarget::Object(Arc::clone(&object)), fd_holders);
            Ok((self.install(description)?, object))
        })
    }

    /// The object behind `fd`.
    ///
    /// # Errors
    /// EBADF if nothing is open there, EINVAL if it is a file or the directory.
    pub fn object(&self, fd: Fd) -> Result<Arc<dyn OpenObject>, Errno> {
        self.syscall(|| match self.description(fd)?.open() {
            OpenTarget::Object(object) => Ok(Arc::clone(object)),
            OpenTarget::File { .. } => Err(Errno::EINVAL),
        })
    }

    /// Whether it is the only thread of its process: what only its process could do, only it could.
    pub(crate) fn is_alone(&self) -> bool {
        self.process().waiters.lock().len() == 1
    }

    /// Records that this task got EDEADLK because only its own process could end the wait;
    /// `reason` is the wait that did not begin.
    pub(crate) fn note_self_deadlock(&self, reason: &'static str) {
        let needs = vec![Need::any_of(vec![self.pid()])];
        let (task, pid) = (self.waiter().id(), self.pid());
        let myself = Participant { task, pid, reason, needs, uninterruptible: false };
        self.kernel().note_deadlock(Deadlock { participants: vec![myself] });
    }

    /// Blocks this task on `queue` until `look` says ready, and keeps the wait graph up to date
    /// meanwhile.
    pub(crate) fn block_on<T>(
        &self,
        queue: &WaitQueue,
        how: WaitFor,
        look: impl FnMut() -> WaitPoll<T>,
    ) -> Result<T, WaitFailure> {
        let end = match (how.deadline, how.sleep) {
            (Some(_), _) | (None, SleepKind::Killable) => WaitEnd::Bounded,
            (None, SleepKind::Interruptible) => WaitEnd::Refusable,
            (None, SleepKind::Uninterruptible) => WaitEnd::Stays,
        };
        self.block_until(queue, how, end, look)
    }

    /// As [`Task::block_on`], where `end` says what ends the wait besides its condition.
    pub(crate) fn block_until<T>(
        &self,
        queue: &WaitQueue,
        how: WaitFor,
        end: WaitEnd,
        mut look: impl FnMut() -> WaitPoll<T>,
    ) -> Result<T, WaitFailure> {
        let kernel = self.kernel();
        let id = self.waiter().id();
        let waiter = self.waiter();
        let began = kernel.waits.begins();
        let mut looks = 0;
        let outcome = queue.wait(&kernel.world, waiter, how, || {
            let wakes = waiter.wakes();
            // While `look` runs the task is not blocked: what it finds may end the wait, and other
            // tasks act on that at once.
            if looks > 1 {
                kernel.waits.forget(id);
            }
            looks += 1;
            match look() {
                WaitPoll::Ready(value) => Poll::Ready(Ok(value)),
                // The first look comes before any task could wake this one: too early to be
                // recorded.
                WaitPoll::Blocked(_) if looks == 1 => Poll::Pending,
                // A signal is about to end this wait: it closes no cycle and is part of none.
                WaitPoll::Blocked(_) if waiter.interrupted(how.sleep) => Poll::Pending,
                WaitPoll::Blocked(needs) => {
                    let reason = how.reason;
                    let (waiter, pid, counted_on) = (Arc::clone(waiter), self.pid(), Mutex::default());
                    let node = WaitNode { waiter, wakes, began, pid, reason, needs, end, counted_on };
                    match kernel.waits.record(node, |pid| kernel.tasks_of(pid)) {
                        Ok(()) => Poll::Pending,
                        Err(deadlock) => {
                            kernel.note_deadlock(deadlock);
                            Poll::Ready(Err(WaitFailure::Deadlock))
                        }
                    }
                }
            }
        });
        if looks > 1 {
            kernel.waits.forget(id);
            self.note_waited();
        }
        match outcome {
            Ok(ended) => ended,
            Err(WaitError::Interrupted) => Err(WaitFailure::Interrupted),
            Err(WaitError::TimedOut) => Err(WaitFailure::TimedOut),
        }
    }
}
