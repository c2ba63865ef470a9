//! Simulated processes: what the kernel keeps for each.
//!
//! It owns a process's descriptor table, address space, signals, inbox and exit. Invariants: a
//! process exits exactly once, in the last task to leave a system call after the process was ended
//! (`life`); nothing it held outlives the exit unless another process holds it too; no lock of a
//! process is held while a reference is released. Kernel counterpart: `task_struct`, `do_exit`
//! (kernel/exit.c), `task_work_run` for deferred releases.

use emulator::pin::gate::Gate;
use emulator::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use emulator::sync::{Arc, Mutex};
use emulator::wait::Waiter;

use crate::base::errno::Errno;
use crate::base::numbers::{Fd, Pid};
use crate::vfs::address_space::{AddressSpace, Backing};
use crate::vfs::attachments::{Attachment, Attachments};
use crate::vfs::credentials::Credentials;
use crate::vfs::fd_holders::{FdHolders, Inbox};
use crate::vfs::fd_table::FdTable;
use crate::vfs::kernel::Kernel;
use crate::vfs::open_file::Deferred;
use crate::vfs::signals::{Disposition, Signal, Signals};

/// See the module.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    /// Counts system calls in progress; closed once a fatal signal or an exit came.
    pub(crate) life: Gate,
    exited: AtomicBool,
    pub(crate) fds: Mutex<FdTable>,
    pub(crate) mm: Mutex<AddressSpace>,
    pub(crate) signals: Mutex<Signals>,
    /// The waiters of its tasks (threads).
    pub(crate) waiters: Mutex<Vec<Arc<Waiter>>>,
    pub(crate) inbox: Inbox,
    credentials: Mutex<Credentials>,
    /// What the layers above keep with it.
    attached: Attachments,
    /// Pages locked by long-term pins that this process registered; given back at their release,
    /// also after passing.
    pub(crate) locked_pages: AtomicU64,
    /// `RLIMIT_MEMLOCK`, in pages.
    pub(crate) memlock: AtomicU64,
    /// How often it has unmapped memory: an address translated before the last time may no longer
    /// hold.
    pub(crate) unmaps: AtomicU64,
}

impl Process {
    pub(crate) fn new(pid: Pid, memlock: u64) -> Process {
        Process {
            pid,
            life: Gate::new(),
            exited: AtomicBool::new(false),
            fds: Mutex::new(FdTable::default()),
            mm: Mutex::new(AddressSpace::default()),
            signals: Mutex::new(Signals::default()),
            waiters: Mutex::new(Vec::new()),
            inbox: Inbox::default(),
            credentials: Mutex::new(Credentials::ROOT),
            attached: Attachments::default(),
            locked_pages: AtomicU64::new(0),
            memlock: AtomicU64::new(memlock),
            unmaps: AtomicU64::new(0),
        }
    }

    /// What a layer above keeps with it.
    pub(crate) fn attached<A: Attachment>(&self) -> &A {
        self.attached.get()
    }

    /// Its number.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// The user and capabilities it acts with.
    pub fn credentials(&self) -> Credentials {
        *self.credentials.lock()
    }

    pub(crate) fn set_credentials(&self, credentials: Credentials) {
        *self.credentials.lock() = credentials;
    }

    /// Pages locked on its account.
    pub fn locked_pages(&self) -> u64 {
        self.locked_pages.load(Ordering::Relaxed)
    }

    /// How many pages it may lock: `RLIMIT_MEMLOCK`, in pages.
    pub fn memlock(&self) -> u64 {
        self.memlock.load(Ordering::Relaxed)
    }

    /// Whether it is dying or dead.
    pub fn is_dying(&self) -> bool {
        self.life.is_closed()
    }

    /// The lowest descriptor under which it holds the open file with these holders.
    pub fn fd_of(&self, fd_holders: &Arc<FdHolders>) -> Option<Fd> {
        let fds = self.fds.lock();
        fds.iter().find(|(_, description)| Arc::ptr_eq(description.fd_holders(), fd_holders)).map(|(fd, _)| fd)
    }

    /// Whether `va..va+len` lies in one mapping that allows stores.
    pub(crate) fn maps_writable(&self, va: u64, len: u64) -> bool {
        self.mm.lock().find(va, len).is_some_and(|mapping| mapping.write)
    }

    /// Whether `va..va+len` lies in one mapping that no gate is for: of a file that is not DAX, or
    /// of the volume's device.
    pub(crate) fn maps_ungated(&self, va: u64, len: u64) -> bool {
        self.mm
            .lock()
            .find(va, len)
            .is_some_and(|mapping| matches!(mapping.backing, Backing::Memory { .. } | Backing::Device { .. }))
    }

    /// What is mapped at `va..va+len`; see [`AddressSpace::target`].
    ///
    /// # Errors
    /// As there.
    pub(crate) fn target(&self, va: u64, len: u64, write: bool) -> Result<Backing, Errno> {
        self.mm.lock().target(va, len, write)
    }

    /// Sets what `signal` does to this process. Kernel: `sigaction`. SIGKILL can't be changed.
    pub fn set_disposition(&self, signal: Signal, disposition: Disposition) {
        self.signals.lock().set_disposition(signal, disposition);
    }

    /// Sets whether SIGBUS comes when a page goes bad that the process has mapped, or, as without
    /// this call, only at its next access to it. A forked child inherits it. Kernel:
    /// `prctl(PR_MCE_KILL)`.
    pub fn set_early_kill(&self, early: bool) {
        self.signals.lock().early_kill = early;
    }
}

impl Kernel {
    /// A new process with nothing open. It counts as inside a call until [`Kernel::born`]: a
    /// signal that ends it before it is complete finds it so, and what it was given meanwhile is
    /// given back.
    pub(crate) fn new_process(&self) -> Arc<Process> {
        let pid = Pid(self.next_pid.fetch_add(1, Ordering::Relaxed));
        let process = Arc::new(Process::new(pid, self.memlock_pages));
        let _nobody_knows_it = process.life.enter();
        self.processes.insert(pid, Arc::clone(&process));
        process
    }

    /// A process is complete: it lives, or exits because of a signal that came meanwhile.
    pub(crate) fn born(self: &Arc<Self>, process: &Arc<Process>) {
        if process.life.leave() {
            self.exit_process(process);
        }
    }

    /// Ends `process`: no further call enters, its sleeps are interrupted, and the last task to
    /// leave a call runs the exit.
    pub(crate) fn shut_down(self: &Arc<Self>, process: &Arc<Process>) {
        let (inside, _) = process.life.close();
        let waiters = process.waiters.lock().clone();
        for waiter in waiters {
            waiter.interrupt(true);
        }
        match inside {
            0 => self.exit_process(process),
            // Until its last task has left its call it only ends its waits.
            _ => self.helper_gone(process.pid),
        }
    }

    /// Gives back everything a dead process held: what the layers above keep with it (I/O in
    /// flight, programs), then mappings, descriptors and inbox, as `do_exit` does. Idempotent.
    /// Never waits: where a last close would wait, the lease becomes a zombie.
    pub(crate) fn exit_process(self: &Arc<Self>, process: &Arc<Process>) {
        if process.exited.swap(true, Ordering::SeqCst) {
            return;
        }
        let mut deferred = Deferred::default();
        self.lifecycle.process_exits(self, process, &mut deferred);
        let mappings = process.mm.lock().take_all();
        for mapping in mappings {
            mapping.put(&mut deferred);
        }
        let descriptors = process.fds.lock().take_all();
        for description in descriptors {
            description.fd_holders().gone_from(process.pid);
            description.put(&mut deferred);
        }
        for description in process.inbox.close() {
            description.fd_holders().left_queue();
            description.put(&mut deferred);
        }
        self.processes.remove(process.pid);
        self.run_deferred(deferred);
        self.helper_gone(process.pid);
    }
}
