//! What the actors of one race share: the simulated machine, the job, and one slot for each actor.
//!
//! It owns the list of the race's processes, by which the supervisor finds the process behind a
//! blocked task. Invariant: a process is on the list from before its first system call until its
//! task is dropped. Everything else flows one way: actors publish, the supervisor reads. Kernel
//! counterpart: /proc.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::task::Poll;
use std::time::Duration;

use emulator::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use emulator::sync::{Arc, Mutex};
use emulator::wait::{WaitFor, WaitQueue, WaiterId};
use fs_sim::base::numbers::Pid;
use fs_sim::{Kernel, Task};

use super::config::Snapshot;
use super::inbox::PassedContext;
use super::job::{Job, Role};
use super::network::Network;
use super::oracle::{PayloadFile, Payloads, RaceFile};
use super::stats::ActorStats;

/// The counts that an actor publishes while the race runs. Only its own thread writes them.
#[derive(Debug, Default)]
pub(super) struct LiveCounts {
    pub(super) operations: AtomicU64,
    pub(super) truncates: AtomicU64,
    pub(super) registrations: AtomicU64,
    pub(super) dma: AtomicU64,
}

impl LiveCounts {
    /// Publishes the present counts of `stats`.
    pub(super) fn publish(&self, stats: &ActorStats) {
        let counters = &stats.counters;
        // ORDERING: Relaxed: the numbers feed a status line; each is correct by itself, and no
        // other memory depends on them.
        self.operations.store(counters.operations, Ordering::Relaxed);
        self.truncates.store(counters.truncate_done, Ordering::Relaxed);
        self.registrations.store(counters.registrations_granted, Ordering::Relaxed);
        self.dma.store(counters.dma_operations, Ordering::Relaxed);
    }
}

/// One actor as others see it, alone in its cache lines.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct ActorSlot {
    pub(super) role: Role,
    pub(super) live: LiveCounts,
    /// The pid of the registrant's present process; 0 between two processes.
    pub(super) pid: AtomicU32,
    /// Contexts that other registrants have passed to this one and that it has not received yet.
    pub(super) inbox: Mutex<Vec<PassedContext>>,
}

/// What bounds a run besides its clock.
#[derive(Clone, Copy, Debug)]
pub(super) struct RunLimits {
    /// The most steps that an actor takes. Tests that compare steps set it.
    pub(super) choices_max: u64,
    /// After the stop: a standstill is reported if no actor moves, and none has for this long: the
    /// administrator had time to kill what blocks in `close`.
    pub(super) standstill: Duration,
    /// After the stop: if no actor ends for this long, the supervisor leaves those behind that are
    /// left.
    pub(super) watchdog: Duration,
}

impl Default for RunLimits {
    fn default() -> Self {
        RunLimits { choices_max: u64::MAX, standstill: Duration::from_secs(5), watchdog: Duration::from_secs(30) }
    }
}

/// The shared state of one race; see the module.
pub(super) struct RaceShared {
    pub(super) kernel: Arc<Kernel>,
    pub(super) job: Job,
    pub(super) seed: u64,
    pub(super) slots: Vec<ActorSlot>,
    pub(super) limits: RunLimits,
    stopping: AtomicBool,
    /// Pausing actors and the supervisor sleep here.
    pub(super) changed: WaitQueue,
    processes: Mutex<BTreeMap<WaiterId, Pid>>,
    pub(super) running: AtomicU32,
    /// The peer of zero-copy sends.
    pub(super) network: Network,
    /// Makes and checks what is written, and records moves of blocks.
    pub(super) payloads: Payloads,
}

impl RaceShared {
    pub(super) fn new(kernel: Arc<Kernel>, payloads: Payloads, job: Job, seed: u64, limits: RunLimits) -> RaceShared {
        let slot = |role| ActorSlot {
            role,
            live: LiveCounts::default(),
            pid: AtomicU32::new(0),
            inbox: Mutex::new(Vec::new()),
        };
        let slots: Vec<ActorSlot> = job.actors().into_iter().map(slot).collect();
        let running = AtomicU32::new(slots.len() as u32);
        RaceShared {
            kernel,
            job,
            seed,
            slots,
            limits,
            stopping: AtomicBool::new(false),
            changed: WaitQueue::new(),
            processes: Mutex::new(BTreeMap::new()),
            running,
            network: Network::default(),
            payloads,
        }
    }

    /// The name of file number `index`.
    pub(super) fn file_name(index: u64) -> String {
        format!("file-{index}")
    }

    /// The name of an extender's own file.
    pub(super) fn own_file_name(actor: usize) -> String {
        format!("own-{actor}")
    }

    /// Every file that the race can have.
    pub(super) fn files(&self) -> Vec<RaceFile> {
        let moved = |index| Some(index).filter(|index| *index < self.job.files.moved);
        let shared =
            (0..self.job.files.count).map(|index| RaceFile { name: RaceShared::file_name(index), moved: moved(index) });
        let own = (0..self.slots.len()).map(|actor| RaceFile { name: RaceShared::own_file_name(actor), moved: None });
        shared.chain(own).collect()
    }

    /// File number `index`, whose inode is `ino`, as payload names it.
    pub(super) fn payload_file(&self, index: u64, ino: u64) -> PayloadFile {
        if index < self.job.files.moved { PayloadFile::Moved(index) } else { PayloadFile::Inode(ino) }
    }

    /// How the run stands, `elapsed_ns` after its start.
    pub(super) fn snapshot(&self, elapsed_ns: u64) -> Snapshot {
        let mut snapshot = Snapshot { elapsed_ns, stale: self.kernel.counters.stale_dma.get(), ..Snapshot::default() };
        for slot in &self.slots {
            // ORDERING: Relaxed: the numbers feed a status line.
            snapshot.operations += slot.live.operations.load(Ordering::Relaxed);
            snapshot.truncates += slot.live.truncates.load(Ordering::Relaxed);
            snapshot.registrations += slot.live.registrations.load(Ordering::Relaxed);
            snapshot.dma += slot.live.dma.load(Ordering::Relaxed);
        }
        snapshot
    }

    /// Asks every actor to end.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.changed.wake_all();
    }

    /// Whether actors must end.
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// How many actors have not finished.
    pub(super) fn unfinished(&self) -> u32 {
        self.running.load(Ordering::SeqCst)
    }

    /// One actor has ended, normally or by a panic.
    pub(super) fn finished(&self) {
        self.running.fetch_sub(1, Ordering::SeqCst);
        self.changed.wake_all();
    }

    /// Lets `task` sleep for `ns` nanoseconds, or until the race stops or a signal comes.
    pub(super) fn pause(&self, task: &Task, ns: u64) {
        if ns == 0 {
            return;
        }
        let world = self.kernel.world();
        let how =
            WaitFor::interruptible("pause between two steps").until(Some(world.now().after(Duration::from_nanos(ns))));
        let ready = || if self.is_stopping() { Poll::Ready(()) } else { Poll::Pending };
        // The pause is over, however the wait ended.
        let _ended = self.changed.wait(world, task.waiter(), how, ready);
    }

    /// Makes a process and puts it on the list.
    pub(super) fn spawn(self: &Arc<Self>) -> RaceProcess {
        self.adopt(self.kernel.spawn())
    }

    /// Puts a forked process on the list.
    pub(super) fn adopt(self: &Arc<Self>, task: Task) -> RaceProcess {
        self.processes.lock().insert(task.waiter().id(), task.pid());
        RaceProcess { shared: Arc::clone(self), task }
    }

    /// The process whose task sleeps as `waiter`.
    pub(super) fn process_of(&self, waiter: WaiterId) -> Option<Pid> {
        self.processes.lock().get(&waiter).copied()
    }
}

/// A process of the race and its one task.
pub(super) struct RaceProcess {
    shared: Arc<RaceShared>,
    task: Task,
}

impl Deref for RaceProcess {
    type Target = Task;

    fn deref(&self) -> &Task {
        &self.task
    }
}

impl Drop for RaceProcess {
    fn drop(&mut self) {
        // A process never outlives the actor that drives it, even if the actor panics.
        self.task.exit();
        self.shared.processes.lock().remove(&self.task.waiter().id());
    }
}
