//! Simulated processes: what the kernel keeps for each.
//!
//! It owns a process's descriptor table, address space, signals, inbox and its death. Invariants: a process exits exactly
//! once, by whoever is last out of its system calls after its door was shut (`life`); nothing it held survives
//! the exit unless somebody else holds it too; no lock of a process is held while a reference is released. Kernel
//! counterpart: `task_struct`, `do_exit` (kernel/exit.c), `task_work_run` for what is deferred.

pub mod address_space;
pub mod custody;
pub mod description;
pub mod fd_table;
pub mod program;
pub mod signals;
pub mod task;

use emulator::pin::gate::Gate;
use emulator::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use emulator::sync::{Arc, Mutex};
use emulator::wait::Waiter;

use crate::Kernel;
use crate::file_ops::direct_io;
use address_space::AddressSpace;
use custody::Inbox;
use description::Deferred;
use fd_table::FdTable;
use signals::{Disposition, Signal, Signals};

/// A process's number. Never reused within a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pid(pub u32);

impl std::fmt::Display for Pid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// On whose behalf a process acts, and what it may do that its user may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// The user (real, effective and saved alike); 0, root, passes every check of a file's mode.
    pub uid: u32,
    /// CAP_LEASE: base leases on files of other users.
    pub cap_lease: bool,
}

impl Credentials {
    /// Root with all it may do: what a process starts with.
    pub const ROOT: Credentials = Credentials { uid: 0, cap_lease: true };

    /// A user without privileges.
    pub const fn user(uid: u32) -> Credentials {
        Credentials { uid, cap_lease: false }
    }
}

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
    /// Its tasks (threads) as far as waiting goes.
    pub(crate) waiters: Mutex<Vec<Arc<Waiter>>>,
    pub(crate) inbox: Inbox,
    credentials: Mutex<Credentials>,
    /// Direct I/O submitted and not completed.
    pub(crate) in_flight: Mutex<Vec<direct_io::Request>>,
    pub(crate) programs: Mutex<Vec<program::Running>>,
    /// Pages locked by long-term pins that this process registered; given back at their release, also after passing.
    pub(crate) locked_pages: AtomicU64,
    /// `RLIMIT_MEMLOCK`, in pages.
    pub(crate) memlock: AtomicU64,
    /// How often it unmapped memory: a translation of an address read before the last time may no longer hold.
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
            in_flight: Mutex::new(Vec::new()),
            programs: Mutex::new(Vec::new()),
            locked_pages: AtomicU64::new(0),
            memlock: AtomicU64::new(memlock),
            unmaps: AtomicU64::new(0),
        }
    }

    /// Its number.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// On whose behalf it acts.
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

    /// The lowest descriptor under which it holds the description with this custody.
    pub fn fd_of(&self, custody: &Arc<custody::Custody>) -> Option<fd_table::Fd> {
        let fds = self.fds.lock();
        fds.iter().find(|(_, description)| Arc::ptr_eq(description.custody(), custody)).map(|(fd, _)| fd)
    }

    /// Sets what `signal` does to this process. Kernel: `sigaction`. SIGKILL can't be changed.
    pub fn set_disposition(&self, signal: Signal, disposition: Disposition) {
        self.signals.lock().set_disposition(signal, disposition);
    }
}

impl Kernel {
    /// A new process with nothing open, and as if inside a call until [`Kernel::born`]: a signal that ends it before it is
    /// whole finds it there, and what it was given meanwhile is given back.
    pub(crate) fn new_process(&self) -> Arc<Process> {
        let pid = Pid(self.next_pid.fetch_add(1, Ordering::Relaxed));
        let process = Arc::new(Process::new(pid, self.memlock_pages));
        let _nobody_knows_it = process.life.enter();
        self.processes.insert(pid, Arc::clone(&process));
        process
    }

    /// A process is whole: it lives, or dies of what it was sent meanwhile.
    pub(crate) fn born(self: &Arc<Self>, process: &Arc<Process>) {
        if process.life.leave() {
            self.exit_process(process);
        }
    }

    /// Ends `process`: shuts its door, interrupts its sleeps, and lets the last one out do the exit.
    pub(crate) fn shut_down(self: &Arc<Self>, process: &Arc<Process>) {
        let (inside, _) = process.life.close();
        let waiters = process.waiters.lock().clone();
        for waiter in waiters {
            waiter.interrupt(true);
        }
        if inside == 0 {
            self.exit_process(process);
        }
    }

    /// Gives back everything a dead process held: I/O in flight and programs first, then mappings, then descriptors, then its inbox (as `do_exit` does).
    /// Idempotent. Never waits: where a last close would, the lease becomes a zombie.
    pub(crate) fn exit_process(self: &Arc<Self>, process: &Arc<Process>) {
        if process.exited.swap(true, Ordering::SeqCst) {
            return;
        }
        let mut deferred = Deferred::default();
        let in_flight = std::mem::take(&mut *process.in_flight.lock());
        for request in in_flight {
            // Nobody is left to hear how it went.
            let _unheard = request.finish(self, None, &mut deferred);
        }
        let programs = std::mem::take(&mut *process.programs.lock());
        for running in programs {
            running.end(self);
        }
        let mappings = process.mm.lock().take_all();
        for mapping in mappings {
            mapping.put(&mut deferred);
        }
        let descriptors = process.fds.lock().take_all();
        for description in descriptors {
            description.custody().gone_from(process.pid);
            description.put(&mut deferred);
        }
        for description in process.inbox.close() {
            description.custody().left_queue();
            description.put(&mut deferred);
        }
        self.processes.remove(process.pid);
        self.run_deferred(deferred);
        self.waits.gone(process.pid);
    }
}
