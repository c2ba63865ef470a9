//! The thread that is no actor: starts the others, watches, kills what an administrator would kill, and brings all of it to
//! an end that is bounded whatever happens.
//!
//! It owns the run's clock and its end. Invariants: a process that blocks in `close` longer than the job's patience is
//! killed, as by an administrator, and only then; after the stop everybody who can move exits, which wakes whoever waited
//! for him, and so on until nobody is left. If that comes to a standstill, somebody sleeps without a waker: invariant 6 is
//! broken, the sleepers are named and killed, and whoever does not even then come to his end is left behind. Kernel
//! counterpart: khungtaskd, and the person who reads its messages.

use std::collections::BTreeMap;
use std::task::Poll;
use std::time::Duration;

use emulator::race_point;
use emulator::runtime::clock::Nanos;
use emulator::runtime::world::Sleeper;
use emulator::sync::thread::{self, JoinHandle};
use emulator::sync::{Arc, Mutex, race};
use emulator::wait::{WaitFor, WaiterId};
use fs_sim::process::Pid;
use fs_sim::process::signals::{SigInfo, Signal};

use super::arena::Arena;
use super::changers::Worker;
use super::registrant::Registrant;
use super::tally::Tally;
use super::{Snapshot, StopFlag};
use crate::choices::{Choice, Choices};

/// How often the supervisor looks.
const ROUND: Duration = Duration::from_millis(1);
/// How often it tells how things stand.
const TELL: Duration = Duration::from_millis(200);
/// What a blocked close sleeps for, as the register of sleepers calls it.
const CLOSING: &str = "close while pinned";

/// The choices that were taken, actor by actor; for tests.
pub(super) type Taken = Mutex<BTreeMap<usize, Vec<Choice>>>;

/// How the run came to its end.
#[derive(Debug, Default)]
pub(super) struct Ended {
    /// What all actors counted.
    pub(super) tally: Tally,
    /// Processes killed because they blocked in `close`.
    pub(super) reaped: u64,
    /// Processes killed after the stop: not the design's doing.
    pub(super) killed_at_end: u64,
    /// Nanoseconds from the start of the first actor to the stop.
    pub(super) elapsed: u64,
    /// Whether the stop came from outside.
    pub(super) interrupted: bool,
    /// Actors that did not finish, and what went wrong with others.
    pub(super) broken: Vec<String>,
    /// Whether actors were left behind: the machine is not at rest.
    pub(super) left_behind: bool,
}

/// Runs every actor of `arena` for `duration`, or until `stop`.
pub(super) fn supervise(
    arena: &Arc<Arena>,
    duration: Duration,
    stop: &StopFlag,
    tell: &mut dyn FnMut(&Snapshot),
    taken: Option<&Arc<Taken>>,
) -> Ended {
    let world = Arc::clone(arena.kernel.world());
    let start = world.now();
    let mut actors: Vec<(usize, JoinHandle<Tally>)> = Vec::with_capacity(arena.slots.len());
    for actor in 0..arena.slots.len() {
        let (arena, taken) = (Arc::clone(arena), taken.map(Arc::clone));
        actors.push((actor, thread::spawn(move || run_actor(&arena, actor, taken.as_deref()))));
    }
    let mut watch = Watch { arena, asleep_since: BTreeMap::new() };
    let mut ended = Ended::default();
    let deadline = start.after(duration);
    let mut next_tell = start.after(TELL);
    while arena.unfinished() > 0 {
        let now = world.now();
        ended.interrupted = stop.is_set();
        if now >= deadline || ended.interrupted {
            break;
        }
        if now >= next_tell {
            tell(&Snapshot::of(arena, now.since(start)));
            next_tell = now.after(TELL);
        }
        ended.reaped += watch.reap(now);
        watch.sleep(now.after(ROUND).min(deadline));
    }
    ended.elapsed = world.now().since(start);
    arena.stop();
    ended.killed_at_end = watch.wind_up(&mut ended.broken);
    if arena.unfinished() > 0 {
        ended.left_behind = true;
        let (left, within) = (arena.unfinished(), arena.limits.watchdog);
        ended.broken.push(format!("invariant 6: {left} actors did not come to their end within {within:?}"));
        ended.broken.extend(watch.blocked());
    }
    for (actor, handle) in actors {
        // With somebody left behind, those who have finished can't be told from him but by waiting: nobody is joined.
        if ended.left_behind {
            break;
        }
        match handle.join() {
            Ok(tally) => ended.tally.merge(tally),
            Err(panic) => {
                let said = panic.downcast_ref::<String>().map(String::as_str);
                let said = said.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a word");
                ended.broken.push(format!("actor {actor} panicked: {said}"));
            }
        }
    }
    ended
}

/// The supervisor's memory of who sleeps since when.
struct Watch<'a> {
    arena: &'a Arc<Arena>,
    asleep_since: BTreeMap<WaiterId, (Sleeper, Nanos)>,
}

impl Watch<'_> {
    /// Sleeps until `until`, or until the last actor has finished.
    fn sleep(&self, until: Nanos) {
        let arena = self.arena;
        // A waiter of its own, not a process's: nobody can signal it.
        let waiter = emulator::wait::Waiter::new(WaiterId(u64::MAX));
        let how = WaitFor::uninterruptible("supervisor's next round").until(Some(until));
        let ready = || if arena.unfinished() == 0 { Poll::Ready(()) } else { Poll::Pending };
        let _ended = arena.changed.wait(arena.kernel.world(), &waiter, how, ready);
    }

    /// Those who have slept for one reason since `patience` ago or longer.
    fn asleep_for(&mut self, now: Nanos, patience: Duration) -> Vec<Sleeper> {
        let mut since = BTreeMap::new();
        for sleeper in self.arena.kernel.world().sleepers() {
            let before = self.asleep_since.get(&sleeper.waiter).filter(|(before, _)| before.reason == sleeper.reason);
            let at = before.map_or(now, |(_, since)| *since);
            since.insert(sleeper.waiter, (sleeper, at));
        }
        self.asleep_since = since;
        let long = self.asleep_since.values().filter(|(_, since)| now >= since.after(patience));
        long.map(|(sleeper, _)| sleeper.clone()).collect()
    }

    fn kill(&self, pid: Pid) {
        race_point!("supervisor: about to kill");
        self.arena.kernel.send_signal(pid, SigInfo { signal: Signal::Sigkill, ino: None });
    }

    /// The administrator's round: kills whoever has blocked in `close` for too long. How many that were.
    fn reap(&mut self, now: Nanos) -> u64 {
        let patience = self.arena.job.reaper_patience;
        let mut reaped = 0;
        for sleeper in self.asleep_for(now, patience) {
            if sleeper.reason == CLOSING
                && let Some(pid) = self.arena.process_of(sleeper.waiter)
            {
                self.kill(pid);
                reaped += 1;
            }
        }
        reaped
    }

    /// After the stop: waits for everybody to come to his end. Should that come to a standstill, names the sleepers in
    /// `broken` and kills them. How many processes were killed.
    fn wind_up(&mut self, broken: &mut Vec<String>) -> u64 {
        let world = Arc::clone(self.arena.kernel.world());
        let give_up = world.now().after(self.arena.limits.watchdog);
        self.asleep_since.clear();
        let mut killed = 0;
        while self.arena.unfinished() > 0 && world.now() < give_up {
            killed += self.reap(world.now());
            let still = self.asleep_for(world.now(), self.arena.limits.standstill);
            // Nobody asleep is nobody left: the last one has finished a moment ago.
            let nobody_moves = !still.is_empty() && still.len() >= self.arena.unfinished() as usize;
            if broken.is_empty() && nobody_moves && still.iter().all(|sleeper| sleeper.deadline.is_none()) {
                broken.push("invariant 6: everybody left is asleep, and nobody is left to wake them".to_owned());
                broken.extend(self.blocked());
                for pid in still.iter().filter_map(|sleeper| self.arena.process_of(sleeper.waiter)) {
                    self.kill(pid);
                    killed += 1;
                }
            }
            self.sleep(world.now().after(ROUND));
        }
        killed
    }

    /// Who is blocked, and by whom.
    fn blocked(&self) -> Vec<String> {
        let kernel = &self.arena.kernel;
        let blocked = kernel.blocked().into_iter().map(|who| format!("invariant 6: blocked: {who}"));
        let asleep = kernel.world().sleepers().into_iter();
        blocked.chain(asleep.map(|one| format!("invariant 6: asleep: task {}, {}", one.waiter.0, one.reason))).collect()
    }
}

/// Says that an actor has finished, however it did.
struct Finished<'a>(&'a Arena);

impl Drop for Finished<'_> {
    fn drop(&mut self) {
        self.0.finished();
    }
}

/// An actor's whole thread.
fn run_actor(arena: &Arc<Arena>, actor: usize, taken: Option<&Taken>) -> Tally {
    let _finished = Finished(arena);
    race::arm(arena.kernel.world().stream("race points", actor as u64), arena.job.race_points);
    let role = arena.slots[actor].role;
    let choices = Choices::new(arena.seed, &arena.job, actor as u64, role);
    let mut record = Vec::new();
    let mut tally = Tally::default();
    let mut registrant = Registrant::new(arena, actor);
    let mut worker = Worker::new(arena, actor);
    for (choice, _) in choices.zip(0..arena.limits.choices_max) {
        if arena.is_stopping() {
            break;
        }
        if taken.is_some() {
            record.push(choice);
        }
        match choice {
            Choice::Registrant(step) => registrant.step(&mut tally, &step),
            other => worker.step(&mut tally, &other),
        }
        arena.slots[actor].live.publish(&tally);
    }
    registrant.finish(&mut tally);
    if let Some(taken) = taken {
        taken.lock().insert(actor, record);
    }
    tally
}

impl Worker {
    /// One step of a role that works on one file at a time. Refusals and lost races are counted, and lived with.
    fn step(&mut self, tally: &mut Tally, choice: &Choice) {
        self.revive();
        let (_worked, pause) = match choice {
            Choice::Truncater(step) => (self.truncater(tally, step), step.pause),
            Choice::Puncher(step) => (self.puncher(tally, step), step.pause),
            Choice::DirectIo(step) => (self.direct_io(tally, step), step.pause),
            Choice::Extender(step) => (self.extender(tally, step), step.pause),
            Choice::Registrant(_) => (Ok(()), 0),
        };
        self.arena.pause(&self.task, pause);
    }
}
