//! Tasks: the threads of simulated processes, and their system calls that concern processes.
//!
//! It owns the frame of every system call. Invariants: a call of a dead process never runs; a process's exit runs when its
//! last call has left; releases scheduled by a call run at its end, with no lock held. Kernel counterpart: `task_struct`,
//! `exit_to_user_mode_loop`, `task_work_run`.

use emulator::sync::Arc;
use emulator::sync::atomic::{AtomicBool, Ordering};
use emulator::wait::{Waiter, WaiterId};

use super::address_space::Backing;
use super::custody::Custody;
use super::description::{Access, Deferred, Description, DescriptionId, Open, OpenObject, Pass};
use super::fd_table::Fd;
use super::signals::{SigInfo, Signal};
use super::{Credentials, Process};
use super::{Pid, signals};
use crate::Kernel;
use crate::anon::AnonMemory;
use crate::errno::Errno;
use crate::inode::Inode;

/// See the module. One thread of the lab drives one task at a time.
#[derive(Debug)]
pub struct Task {
    kernel: Arc<Kernel>,
    process: Arc<Process>,
    waiter: Arc<Waiter>,
    /// Whether a call since the last [`Task::take_waited`] had to wait.
    waited: AtomicBool,
}

/// What `recv_fd` found in the inbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// A descriptor was installed.
    Fd(Fd),
    /// The message's descriptor was dropped by the design's rule: `MSG_CTRUNC`.
    Truncated,
}

impl Kernel {
    /// A waiter for work that no task does.
    pub(crate) fn new_waiter(&self) -> Arc<Waiter> {
        Waiter::new(WaiterId(self.next_waiter.fetch_add(1, Ordering::Relaxed)))
    }

    /// A new process with one task.
    pub fn spawn(self: &Arc<Self>) -> Task {
        let process = self.new_process();
        let task = self.spawn_task(Arc::clone(&process));
        self.born(&process);
        task
    }

    pub(crate) fn spawn_task(self: &Arc<Self>, process: Arc<Process>) -> Task {
        let waiter = self.new_waiter();
        process.waiters.lock().push(Arc::clone(&waiter));
        Task { kernel: Arc::clone(self), process, waiter, waited: AtomicBool::new(false) }
    }

    pub(crate) fn new_description(&self, open: Open, custody: Arc<Custody>) -> Arc<Description> {
        Description::new(DescriptionId(self.next_description.fetch_add(1, Ordering::Relaxed)), open, custody)
    }
}

impl Drop for Task {
    /// A thread's end: it no longer counts as somebody who could act for its process.
    fn drop(&mut self) {
        self.process.waiters.lock().retain(|waiter| !Arc::ptr_eq(waiter, &self.waiter));
        self.kernel.waits.gone(self.pid());
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

    /// Its place to wait.
    pub fn waiter(&self) -> &Arc<Waiter> {
        &self.waiter
    }

    /// Whether a call since the last look had to wait for somebody.
    pub fn take_waited(&self) -> bool {
        self.waited.swap(false, Ordering::Relaxed)
    }

    pub(crate) fn note_waited(&self) {
        self.waited.store(true, Ordering::Relaxed);
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

    /// The description behind `fd`. It stays alive while the caller uses it: closing meanwhile only unlinks the number.
    pub(crate) fn description(&self, fd: Fd) -> Result<Arc<Description>, Errno> {
        self.process.fds.lock().get(fd).cloned()
    }

    /// The frame of a system call on the open file behind `fd`. The call holds a reference of its own (`fdget`), so that a
    /// close of the descriptor by another thread releases the file after it, not under it.
    pub(crate) fn with_file<R>(
        &self,
        fd: Fd,
        body: impl FnOnce(&Arc<Description>, &Arc<Inode>, Access) -> Result<R, Errno>,
    ) -> Result<R, Errno> {
        self.with_named_file(fd, |description, inode, access| match access.is_open() {
            true => body(description, inode, access),
            false => Err(Errno::EBADF),
        })
    }

    /// As [`Task::with_file`], for what an `O_PATH` descriptor allows as well (`fdget_raw`).
    pub(crate) fn with_named_file<R>(
        &self,
        fd: Fd,
        body: impl FnOnce(&Arc<Description>, &Arc<Inode>, Access) -> Result<R, Errno>,
    ) -> Result<R, Errno> {
        self.syscall(|| {
            let description = self.process.fds.lock().get(fd)?.get();
            let result = match description.file() {
                Some((inode, access)) => body(&description, inode, access),
                None => Err(Errno::EINVAL),
            };
            let mut deferred = Deferred::default();
            description.put(&mut deferred);
            self.kernel.run_deferred(deferred);
            result
        })
    }

    /// Puts a description (with the reference the caller holds) into the table.
    pub(crate) fn install(&self, description: Arc<Description>) -> Result<Fd, Errno> {
        description.custody().held_by(self.pid());
        let installed = self.process.fds.lock().install(description);
        installed.map_err(|description| {
            description.custody().gone_from(self.pid());
            let mut deferred = Deferred::default();
            description.put(&mut deferred);
            self.kernel.run_deferred(deferred);
            Errno::EMFILE
        })
    }

    /// Installs an object of a crate above. `make` gets the custody by which the object can tell who holds it.
    ///
    /// # Errors
    /// EMFILE.
    pub fn install_object(
        &self,
        make: impl FnOnce(Arc<Custody>) -> Arc<dyn OpenObject>,
    ) -> Result<(Fd, Arc<dyn OpenObject>), Errno> {
        self.syscall(|| {
            let custody = Arc::new(Custody::default());
            let object = make(Arc::clone(&custody));
            let description = self.kernel.new_description(Open::Object(Arc::clone(&object)), custody);
            Ok((self.install(description)?, object))
        })
    }

    /// The object behind `fd`.
    ///
    /// # Errors
    /// EBADF if nothing is open there, EINVAL if it is a file.
    pub fn object(&self, fd: Fd) -> Result<Arc<dyn OpenObject>, Errno> {
        self.syscall(|| match self.description(fd)?.open() {
            Open::Object(object) => Ok(Arc::clone(object)),
            Open::File { .. } => Err(Errno::EINVAL),
        })
    }

    /// Closes a descriptor. The number is free at once; if this was the last reference, the release happens here and may
    /// wait where the design says `wait-killable` (a fatal signal ends that wait).
    ///
    /// # Errors
    /// EBADF; EINTR if the wait was ended by a fatal signal.
    pub fn close(&self, fd: Fd) -> Result<(), Errno> {
        self.syscall(|| {
            let description = self.process.fds.lock().take(fd)?;
            self.close_description(&description)
        })
    }

    fn close_description(&self, description: &Arc<Description>) -> Result<(), Errno> {
        description.custody().gone_from(self.pid());
        self.kernel.waits.gone(self.pid());
        if description.put_is_last() {
            let mut deferred = Deferred::default();
            match description.open() {
                Open::File { inode, access } => {
                    self.kernel.release_base_lease(inode, description.id(), *access);
                    self.kernel.release_file(inode, description.id(), Some(self), &mut deferred);
                }
                Open::Object(object) => object.release(&self.kernel, &mut deferred),
            }
            self.kernel.run_deferred(deferred);
        }
        if self.process.is_dying() { Err(Errno::EINTR) } else { Ok(()) }
    }

    /// A second descriptor for the same open description.
    ///
    /// # Errors
    /// EBADF, EMFILE.
    pub fn dup(&self, fd: Fd) -> Result<Fd, Errno> {
        self.syscall(|| {
            let description = self.process.fds.lock().get(fd)?.get();
            self.install(description)
        })
    }

    /// Makes `to` a descriptor for what `from` is; what was open at `to` is closed first, as by [`Task::close`].
    ///
    /// # Errors
    /// EBADF; EINTR as for [`Task::close`].
    pub fn dup2(&self, from: Fd, to: Fd) -> Result<Fd, Errno> {
        self.syscall(|| {
            if from == to {
                return self.description(from).map(|_| to);
            }
            if to.0 as usize >= super::fd_table::FDS_MAX {
                return Err(Errno::EBADF);
            }
            let description = self.process.fds.lock().get(from)?.get();
            description.custody().held_by(self.pid());
            let replaced = self.process.fds.lock().replace(to, description);
            match replaced {
                Some(description) => self.close_description(&description).map(|()| to),
                None => Ok(to),
            }
        })
    }

    /// A child with copies of the descriptors, the address space and the dispositions. Leases stay the parent's; an object
    /// that may not pass by fork is not inherited.
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
                    Open::File { .. } => true,
                    Open::Object(object) => object.may_pass(&self.kernel, Pass::Fork),
                };
                if passes {
                    description.custody().held_by(child.pid());
                    child.fds.lock().replace(fd, description);
                } else {
                    description.put(&mut deferred);
                }
            }
            let memory = self.process.mm.lock().fork();
            *child.mm.lock() = memory;
            child.set_credentials(self.process.credentials());
            let dispositions = self.process.signals.lock().inherit();
            *child.signals.lock() = dispositions;
            child.memlock.store(self.process.memlock(), Ordering::Relaxed);
            self.kernel.run_deferred(deferred);
            let task = self.kernel.spawn_task(Arc::clone(&child));
            self.kernel.born(&child);
            Ok(task)
        })
    }

    /// Changes on whose behalf the process acts: `setresuid` and `capset`. Only root may.
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

    /// Sends a descriptor to `pid`'s inbox (`sendmsg` with SCM_RIGHTS).
    ///
    /// # Errors
    /// EBADF; EPERM if the design denies passing it; ECONNREFUSED if the receiver is gone; EAGAIN if its inbox is full.
    pub fn send_fd(&self, pid: Pid, fd: Fd) -> Result<(), Errno> {
        self.syscall(|| {
            let description = self.process.fds.lock().get(fd)?.get();
            let sent = self.send_description(pid, &description);
            if sent.is_err() {
                let mut deferred = Deferred::default();
                description.put(&mut deferred);
                self.kernel.run_deferred(deferred);
            }
            sent
        })
    }

    fn send_description(&self, pid: Pid, description: &Arc<Description>) -> Result<(), Errno> {
        let receiver = self.kernel.processes.get(pid).ok_or(Errno::ECONNREFUSED)?;
        // Custody first, then the judgement: whoever registers a pin meanwhile announces it first and looks at the custody
        // then, so that one of the two sees the other.
        description.custody().entered_queue();
        let sent = match description.open() {
            Open::Object(object) if !object.may_pass(&self.kernel, Pass::Send) => Err(Errno::EPERM),
            _ => receiver.inbox.push(description),
        };
        sent.inspect_err(|_| description.custody().left_queue())
    }

    /// Takes the oldest message from the inbox (`recvmsg`).
    ///
    /// # Errors
    /// EAGAIN if there is none; EMFILE.
    pub fn recv_fd(&self) -> Result<Received, Errno> {
        self.syscall(|| {
            let description = self.process.inbox.pop().ok_or(Errno::EAGAIN)?;
            let passes = match description.open() {
                Open::File { .. } => true,
                Open::Object(object) => object.may_pass(&self.kernel, Pass::Receive(self.pid())),
            };
            if passes {
                let custody = Arc::clone(description.custody());
                let installed = self.install(description);
                custody.left_queue();
                return installed.map(Received::Fd);
            }
            description.custody().left_queue();
            let mut deferred = Deferred::default();
            description.put(&mut deferred);
            self.kernel.run_deferred(deferred);
            Ok(Received::Truncated)
        })
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
            let _delivery: signals::Delivery = self.kernel.send_signal(pid, SigInfo { signal, ino: None });
            Ok(())
        })
    }

    /// Takes what is queued for the handler, oldest first.
    pub fn take_signals(&self) -> Vec<SigInfo> {
        // Forgotten first: a signal that comes between the two is taken or interrupts, never neither.
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

    /// Maps `len` bytes of the file open as `fd` from byte `offset` (page aligned) on, shared. The mapping holds the open
    /// file. Returns its address.
    ///
    /// # Errors
    /// EBADF, EACCES (access mode), EINVAL (length 0, alignment, not a file), ENOMEM.
    pub fn mmap(&self, fd: Fd, offset: u64, len: u64, write: bool) -> Result<u64, Errno> {
        self.syscall(|| {
            if !offset.is_multiple_of(crate::BLOCK) || offset.checked_add(len).is_none_or(|end| end > crate::FILE_MAX) {
                return Err(Errno::EINVAL);
            }
            let description = self.process.fds.lock().get(fd)?.get();
            let allowed = description.file().map(|(_, access)| match access.is_open() {
                true if access.read && (access.write || !write) => Ok(()),
                true => Err(Errno::EACCES),
                false => Err(Errno::EBADF),
            });
            let mapped = match allowed {
                Some(Ok(())) => {
                    let backing = Backing::File { description, offset };
                    self.process.mm.lock().map(len, write, backing)
                }
                refused => {
                    let errno = refused.and_then(Result::err).unwrap_or(Errno::EINVAL);
                    Err((errno, Backing::File { description, offset }))
                }
            };
            mapped.map_err(|(errno, backing)| {
                if let Backing::File { description, .. } = backing {
                    let mut deferred = Deferred::default();
                    description.put(&mut deferred);
                    self.kernel.run_deferred(deferred);
                }
                errno
            })
        })
    }

    /// Maps `len` zero bytes of anonymous shared memory. Returns its address, and the memory for the program's own use.
    ///
    /// # Errors
    /// EINVAL (length 0), ENOMEM (more than [`crate::ANON_MAX`] bytes, too many mappings).
    pub fn mmap_anonymous(&self, len: u64) -> Result<(u64, Arc<AnonMemory>), Errno> {
        self.syscall(|| {
            if self.process.mm.lock().anonymous().saturating_add(len) > crate::ANON_MAX {
                return Err(Errno::ENOMEM);
            }
            let memory = Arc::new(AnonMemory::new(crate::round_up(len).unwrap_or(0) as usize));
            let backing = Backing::Anon { memory: Arc::clone(&memory), offset: 0 };
            let start = self.process.mm.lock().map(len, true, backing).map_err(|(errno, _)| errno)?;
            Ok((start, memory))
        })
    }

    /// Unmaps `va..va+len`. Never waits, whatever is pinned behind it.
    ///
    /// # Errors
    /// EINVAL (alignment, length 0).
    pub fn munmap(&self, va: u64, len: u64) -> Result<(), Errno> {
        self.syscall(|| {
            let mappings = self.process.mm.lock().unmap(va, len)?;
            // ORDERING: SeqCst, after the mappings are gone and before this call returns: an access that begins later sees it.
            self.process.unmaps.fetch_add(1, Ordering::SeqCst);
            let mut deferred = Deferred::default();
            for mapping in mappings {
                mapping.put(&mut deferred);
            }
            self.kernel.run_deferred(deferred);
            Ok(())
        })
    }
}
