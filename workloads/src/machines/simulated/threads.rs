//! The thread pool: one thread of this program for each thread of a scenario's processes.
//!
//! It owns the threads and the calls in progress. Invariants: a worker has at most one call;
//! [`ThreadPool::settle`] returns when every call has ended or its thread sleeps on the simulated
//! kernel's own queues, and nothing is in progress that could wake one.

use std::collections::BTreeMap;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use emulator::World;
use emulator::runtime::clock::Nanos;
use emulator::runtime::world::Rest;
use emulator::sync::thread::{self, JoinHandle};
use emulator::sync::{Arc, Mutex};
use fs_sim::Task;

use super::calls::Done;
use crate::language::Actor;
use crate::machines::machine::{NoThread, Trouble};

type Job = Box<dyn FnOnce(&Task) -> Done + Send>;

struct Worker {
    task: Arc<Task>,
    jobs: Sender<Job>,
    /// What came of the call.
    done: Arc<Mutex<Option<Done>>>,
    thread: JoinHandle<()>,
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
pub(super) struct ThreadPool(BTreeMap<Actor, Worker>);

/// How long a call may run without ending or sleeping, in nanoseconds: a limit for errors of the
/// machine itself, far beyond what any call takes.
const RUNAWAY: u64 = 60_000_000_000;
/// How often the next move is looked for before this thread sleeps until it comes.
const SPINS: u32 = 64;
/// How long it sleeps at most before it checks whether a thread spins.
const PATIENCE: Duration = Duration::from_millis(50);

impl ThreadPool {
    /// The task of an actor.
    pub(super) fn task(&self, actor: &Actor) -> Option<&Arc<Task>> {
        self.0.get(actor).map(|worker| &worker.task)
    }

    /// Any task of a process.
    pub(super) fn task_of(&self, process: &str) -> Option<&Arc<Task>> {
        self.0.iter().find(|(actor, _)| actor.process == process).map(|(_, worker)| &worker.task)
    }

    /// Every worker, with whether a call is in progress.
    pub(super) fn all(&self) -> impl Iterator<Item = (&Actor, &Arc<Task>, bool)> {
        self.0.iter().map(|(actor, worker)| (actor, &worker.task, worker.busy.is_some()))
    }

    /// Gives `task` a thread of its own.
    ///
    /// # Errors
    /// [`Trouble::CannotRun`]: the machine gives no thread. The process has ended.
    pub(super) fn spawn(&mut self, actor: Actor, task: Task) -> Result<(), Trouble> {
        let task = Arc::new(task);
        let (jobs, work) = channel::<Job>();
        let done = Arc::new(Mutex::new(None));
        let (own_task, own_done) = (Arc::clone(&task), Arc::clone(&done));
        let thread = thread::try_spawn(move || {
            for job in work {
                let result = job(&own_task);
                *own_done.lock() = Some(result);
                own_task.kernel().world().stirred();
            }
        });
        let thread = thread.map_err(|error| {
            task.exit();
            Trouble::CannotRun(NoThread(error).to_string())
        })?;
        self.0.insert(actor, Worker { task, jobs, done, thread, busy: None });
        Ok(())
    }

    /// Begins a call.
    pub(super) fn begin(&mut self, actor: &Actor, bind: Option<String>, job: Job) -> Result<(), Trouble> {
        let worker = self.0.get_mut(actor).ok_or_else(|| Trouble::Script(format!("{actor} does not exist")))?;
        worker.busy = Some(CallInProgress { bind });
        worker.jobs.send(job).map_err(|_| Trouble::Script(format!("{actor} is gone")))
    }

    /// Waits until every thread is at rest. Threads that were woken continue one after the other,
    /// the longest sleeper first. Returns the calls that have ended since, in the order of their
    /// actors.
    pub(super) fn settle(&mut self, world: &World, clock: &World) -> Result<Vec<Finished>, Trouble> {
        let since = clock.now();
        loop {
            let moves = world.moves();
            let under_way =
                self.0.values().filter(|worker| worker.busy.is_some() && worker.done.lock().is_none()).count();
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
        for (actor, worker) in &mut self.0 {
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
        self.0.get(actor).is_some_and(|worker| worker.busy.is_some())
    }

    /// Ends every process and every thread.
    pub(super) fn shut_down(&mut self, world: &World, clock: &World) -> Vec<String> {
        for worker in self.0.values() {
            worker.task.exit();
        }
        let mut wrong = Vec::new();
        // The exit woke blocked tasks. Each needs a turn to see why.
        if let Err(trouble) = self.settle(world, clock) {
            wrong.push(trouble.to_string());
        }
        let stuck: Vec<Actor> =
            self.0.iter().filter(|(_, worker)| worker.busy.is_some()).map(|(actor, _)| actor.clone()).collect();
        for (actor, worker) in std::mem::take(&mut self.0) {
            drop(worker.jobs);
            if stuck.contains(&actor) {
                // Its thread can't be joined: it sleeps on although its process is dead.
                wrong.push(format!("invariant 6: {actor} is still in a call although its process has ended"));
            } else if worker.thread.join().is_err() {
                wrong.push(format!("{actor} panicked"));
            }
        }
        wrong
    }
}
