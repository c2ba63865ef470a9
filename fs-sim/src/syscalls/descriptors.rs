//! Calls on descriptors: close, dup, passing by a socket.
//!
//! It owns the moving of descriptors between tables and inboxes. Invariant: a passed descriptor is
//! counted in exactly one table or queue at a time. Kernel counterpart: fs/file.c, net/core/scm.c.

use emulator::sync::Arc;

use crate::base::errno::Errno;
use crate::base::numbers::{Fd, Pid};
use crate::vfs::fd_table::FDS_MAX;
use crate::vfs::lifecycle::LastReference;
use crate::vfs::open_file::{Deferred, Description, OpenTarget, Passing};
use crate::vfs::task::Task;

/// What `recv_fd` found in the inbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// A descriptor was installed.
    Fd(Fd),
    /// The message's descriptor was dropped by the design's rule: `MSG_CTRUNC`.
    Truncated,
}

impl Task {
    /// Closes a descriptor. The number is free at once. If this was the last reference, the
    /// release happens here and may wait where the design says `wait-killable` (a fatal signal
    /// ends that wait).
    ///
    /// # Errors
    /// EBADF; EINTR if a fatal signal ended the wait.
    pub fn close(&self, fd: Fd) -> Result<(), Errno> {
        self.syscall(|| {
            let description = self.process.fds.lock().take(fd)?;
            close_description(self, &description)
        })
    }

    /// A second descriptor for the same open file.
    ///
    /// # Errors
    /// EBADF, EMFILE.
    pub fn dup(&self, fd: Fd) -> Result<Fd, Errno> {
        self.syscall(|| {
            let description = self.process.fds.lock().get(fd)?.get();
            self.install(description)
        })
    }

    /// Makes `to` a descriptor of the open file behind `from`. What was open as `to` is closed
    /// first, as by [`Task::close`].
    ///
    /// # Errors
    /// EBADF; EINTR as for [`Task::close`].
    pub fn dup2(&self, from: Fd, to: Fd) -> Result<Fd, Errno> {
        self.syscall(|| {
            if from == to {
                return self.description(from).map(|_| to);
            }
            if to.0 as usize >= FDS_MAX {
                return Err(Errno::EBADF);
            }
            let description = self.process.fds.lock().get(from)?.get();
            description.fd_holders().held_by(self.pid());
            let replaced = self.process.fds.lock().replace(to, description);
            match replaced {
                Some(description) => close_description(self, &description).map(|()| to),
                None => Ok(to),
            }
        })
    }

    /// Sends a descriptor to `pid`'s inbox (`sendmsg` with SCM_RIGHTS).
    ///
    /// # Errors
    /// EBADF; EPERM if the design denies passing it; ECONNREFUSED if the receiver is gone; EAGAIN
    /// if its inbox is full.
    pub fn send_fd(&self, pid: Pid, fd: Fd) -> Result<(), Errno> {
        self.syscall(|| {
            let description = self.process.fds.lock().get(fd)?.get();
            let sent = send_description(self, pid, &description);
            if sent.is_err() {
                let mut deferred = Deferred::default();
                description.put(&mut deferred);
                self.run_deferred(deferred);
            }
            sent
        })
    }

    /// Takes the oldest message from the inbox (`recvmsg`).
    ///
    /// # Errors
    /// EAGAIN if there is none; EMFILE.
    pub fn recv_fd(&self) -> Result<Received, Errno> {
        self.syscall(|| {
            let description = self.process.inbox.pop(self.pid()).ok_or(Errno::EAGAIN)?;
            let fd_holders = Arc::clone(description.fd_holders());
            let passes = match description.open() {
                OpenTarget::File { .. } => true,
                OpenTarget::Object(object) => object.may_pass(&self.kernel, Passing::Receive(self.pid())),
            };
            if passes {
                let installed = self.install(description);
                fd_holders.left_queue();
                fd_holders.gone_from(self.pid());
                if installed.is_err() {
                    self.kernel.helper_gone(self.pid());
                }
                return installed.map(Received::Fd);
            }
            fd_holders.left_queue();
            fd_holders.gone_from(self.pid());
            self.kernel.helper_gone(self.pid());
            let mut deferred = Deferred::default();
            description.put(&mut deferred);
            self.run_deferred(deferred);
            Ok(Received::Truncated)
        })
    }
}

fn close_description(task: &Task, description: &Arc<Description>) -> Result<(), Errno> {
    description.fd_holders().gone_from(task.pid());
    task.kernel.helper_gone(task.pid());
    if description.put_is_last() {
        let mut deferred = Deferred::default();
        match description.open() {
            OpenTarget::File { inode, access } => {
                task.kernel().lifecycle.file_released(
                    task.kernel(),
                    inode,
                    (description.id(), *access),
                    LastReference::Close(task),
                );
            }
            OpenTarget::Object(object) => object.release(&task.kernel, &mut deferred),
        }
        task.kernel.run_deferred_of(deferred, LastReference::Close(task));
    }
    if task.process.is_dying() { Err(Errno::EINTR) } else { Ok(()) }
}

fn send_description(task: &Task, pid: Pid, description: &Arc<Description>) -> Result<(), Errno> {
    let receiver = task.kernel.processes.get(pid).ok_or(Errno::ECONNREFUSED)?;
    // The queue is counted before the object is judged. A registration announces its pin first and
    // checks the holders then, so one of the two sees the other.
    description.fd_holders().entered_queue();
    let sent = match description.open() {
        OpenTarget::Object(object) if !object.may_pass(&task.kernel, Passing::Send) => Err(Errno::EPERM),
        _ => receiver.inbox.push(description),
    };
    sent.inspect_err(|_| description.fd_holders().left_queue())
}
