//! The thread pool: one thread of this program for each thread of a scenario's processes.
//!
//! It owns the threads and the calls in progress. A thread whose process is gone waits in
//! [`IdleThreads`] for another. Invariants: a worker has at most one call; an idle thread has
//! nothing of a machine; [`ThreadPool::settle`] returns when every call has ended or its thread
//! sleeps on the simulated kernel's own queues, and nothing is in progress that could wake one.

use std::collections::BTreeMap;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use emulator::World;
use emulator::runtime::clock::Nanos;
use emulator::runtime::world::Rest;
use emulator::sync::thread;
use emulator::sync::{Arc, Mutex};
use fs_sim::{Kernel, Task};

use super::calls::Done;
use crate::language::Actor;
use crate::machines::machine::{NoThread, Trouble};

/// A call, as the caller of [`ThreadPool::begin`] has it.
type Job = Box<dyn FnOnce(&Task) -> Done + Send>;
/// A call with all that it needs, as a thread gets it.
type Work = Box<dyn FnOnce() + Send>;

/// A thread that does what it is sent, until its sender is gone.
struct WorkerThread {
    work: Sender<Work>,
}

/// Threads that have no process now, for machines that follow one another.
#[derive(Clone, Default)]
pub(crate) struct IdleThreads(Arc<Mutex<Vec<WorkerThread>>>);

impl IdleThreads {
    /// A thread, new if none is idle.
    fn take(&self) -> std::io::Result<WorkerThread> {
        if let Some(idle) = self.0.lock().pop() {
            return Ok(idle);
        }
        let (work, incoming) = channel::<Work>();
        let _ends_by_itself = thread::try_spawn(move || incoming.into_iter().for_each(|work| work()))?;
        Ok(WorkerThread { work })
    }
}

struct Worker {
    task: Arc<Task>,
    /// What came of the call.
    done: Arc<Mutex<Option<Done>>>,
    thread: WorkerThread,
    busy: Option<CallInProgress>,
}

/// A call in progress.
struct CallInProgress {
    bind: Option<String>,
}

/// What a call came to, and the name for what it made.
pub(super) struct Finished {
    pub(super) actor: Actor,
    pub(super) done: Done,
    pub(super) bind: Option<String>,
}

/// See the module.
#[derive(Default)]
pub(super) struct ThreadPool {
    workers: BTreeMap<Actor, Worker>,
    idle: IdleThreads,
}

/// How long a call may run without ending or sleeping, in nanoseconds: a limit for errors of the
/// machine itself, far beyond what any call takes.
const RUNAWAY: u64 = 60_000_000_000;
/// How often the next move is looked for before this thread sleeps until it comes.
const SPINS: u32 = 64;
/// How long it sleeps at most before it checks whether a thread spins.
const PATIENCE: Duration = Duration::from_millis(50);

impl ThreadPool {
    /// Without an actor. Threads come from `idle`, and go there.
    pub(super) fn new(idle: IdleThreads) -> ThreadPool {
        ThreadPool { workers: BTreeMap::new(), idle }
    }

    /// The task of an actor.
    pub(super) fn task(&self, actor: &Actor) -> Option<&Arc<Task>> {
        self.workers.get(actor).map(|worker| &worker.task)
    }

    /// Any task of a process.
    pub(super) fn task_of(&self, process: &str) -> Option<&Arc<Task>> {
        self.workers.iter().find(|(actor, _)| actor.process == process).map(|(_, worker)| &worker.task)
    }

    /// Every worker, with whether a call is in progress.
    pub(super) fn all(&self) -> impl Iterator<Item = (&Actor, &Arc<Task>, bool)> {
        self.workers.iter().map(|(actor, worker)| (actor, &worker.task, worker.busy.is_some()))
    }

    /// Gives `task` a thread of its own.
    ///
    /// # Errors
    /// [`Trouble::CannotRun`]: the machine gives no thread. The process has ended.
    pub(super) fn spawn(&mut self, actor: Actor, task: Task) -> Result<(), Trouble> {
        let thread = self.idle.take().map_err(|error| {
            task.exit();
            Trouble::CannotRun(NoThread(error).to_string())
        })?;
        let (task, done) = (Arc::new(task), Arc::new(Mutex::new(None)));
        self.workers.insert(actor, Worker { task, done, thread, busy: None });
        Ok(())
    }

    /// Begins a call.
    pub(super) fn begin(&mut self, actor: &Actor, bind: Option<String>, job: Job) -> Result<(), Trouble> {
        let worker = self.workers.get_mut(actor).ok_or_else(|| Trouble::Script(format!("{actor} does not exist")))?;
        worker.busy = Some(CallInProgress { bind });
        let (task, done) = (Arc::clone(&worker.task), Arc::clone(&worker.done));
        let work: Work = Box::new(move || {
            let result = job(&task);
            let world = Arc::clone(task.kernel().world());
            // When the call is seen to be over, this thread has nothing of the machine any more.
            drop(task);
            *done.lock() = Some(result);
            world.stirred();
        });
        worker.thread.work.send(work).map_err(|_| Trouble::Script(format!("{actor} is gone")))
    }

    /// Waits until every thread is at rest. Threads that were woken continue one after the other,
    /// the longest sleeper first. Returns the calls that have ended since, in the order of their
    /// actors.
    pub(super) fn settle(&mut self, world: &World, clock: &World) -> Result<Vec<Finished>, Trouble> {
        let since = clock.now();
        loop {
            let moves = world.moves();
            let under_way =
                self.workers.values().filter(|worker| worker.busy.is_some() && worker.done.lock().is_none()).count();
            if under_way == 0 {
                break;
            }
            match world.rest(under_way) {
                Rest::Quiet => break,
                Rest::Turn(turn) => world.grant(turn),
                Rest::Moving => self.watch(world, clock, moves, since)?,
            }
        }
        let mut finished = Vec::new();
        for (actor, worker) in &mut self.workers {
            if worker.busy.is_none() {
                continue;
            }
            if let Some(done) = worker.done.lock().take() {
                let call = worker.busy.take();
                finished.push(Finished { actor: actor.clone(), done, bind: call.and_then(|call| call.bind) });
            }
        }
        Ok(finished)
    }

    /// A thread runs: waits for the next move.
    fn watch(&self, world: &World, clock: &World, moves: u64, since: Nanos) -> Result<(), Trouble> {
        for _ in 0..SPINS {
            if world.moves() != moves {
                return Ok(());
            }
            thread::yield_now();
        }
        world.wait_for_move(moves, PATIENCE);
        if clock.now().since(since) > RUNAWAY {
            return Err(Trouble::Inconclusive("a call neither ends nor sleeps".to_owned()));
        }
        // A thread that runs without a move may be spinning until a woken thread continues.
        if world.moves() == moves
            && let Some(turn) = world.next_turn()
        {
            world.grant(turn);
        }
        Ok(())
    }

    /// Whether the actor's call is in progress.
    pub(super) fn is_busy(&self, actor: &Actor) -> bool {
        self.workers.get(actor).is_some_and(|worker| worker.busy.is_some())
    }

    /// Ends every process and every thread.
    pub(super) fn shut_down(&mut self, kernel: &Arc<Kernel>, world: &World, clock: &World) -> Vec<String> {
        for worker in self.workers.values() {
            worker.task.exit();
        }
        let mut wrong = Vec::new();
        // The exit woke blocked tasks. Each needs a turn to see why.
        if let Err(trouble) = self.settle(world, clock) {
            wrong.push(trouble.to_string());
        }
        // What no process ends, and a wait that nothing ends, by design, end with the machine.
        kernel.end_ownerless_io();
        if let Err(trouble) = self.settle(world, clock) {
            wrong.push(trouble.to_string());
        }
        if kernel.tear_down_stuck()
            && let Err(trouble) = self.settle(world, clock)
        {
            wrong.push(trouble.to_string());
        }
        // What the last exits left behind.
        kernel.end_ownerless_io();
        let stuck: Vec<Actor> =
            self.workers.iter().filter(|(_, worker)| worker.busy.is_some()).map(|(actor, _)| actor.clone()).collect();
        for (actor, worker) in std::mem::take(&mut self.workers) {
            match stuck.contains(&actor) {
                // Its thread sleeps on, or has panicked, although its process is dead.
                true => wrong.push(format!("invariant 6: {actor} is still in a call although its process has ended")),
                false => self.idle.0.lock().push(worker.thread),
            }
        }
        wrong
    }
}
