//! The supervisor thread: starts the actors, watches them, kills the processes that an
//! administrator would kill, and ends the run within a bound.
//!
//! It owns the run's clock and its end. Invariants:
//! - A process that blocks in `close` longer than the job's patience is killed, as by an
//!   administrator. The supervisor kills no other process before the stop.
//! - After the stop every actor that can move exits. Its exit wakes the tasks that waited for it,
//!   and they exit in turn, until no actor is left.
//! - If every actor left has slept for the standstill time, and none is woken or looks at its
//!   condition, a task sleeps without a waker: invariant 6 is broken. The supervisor reports the
//!   sleepers and kills them. It leaves actors behind of which none ends even then. How slow the
//!   machine is, or how many tasks look at one condition, decides neither.
//!
//! Kernel counterpart: khungtaskd, and the administrator who reads its messages.

use std::collections::{BTreeMap, BTreeSet};
use std::task::Poll;
use std::time::Duration;

use emulator::race_point;
use emulator::runtime::clock::Nanos;
use emulator::runtime::world::{Rest, Sleeper};
use emulator::sync::thread::{self, JoinHandle};
use emulator::sync::{Arc, Mutex, race};
use emulator::wait::{WaitFor, WaiterId};
use fs_sim::base::numbers::Pid;
use fs_sim::vfs::signals::{SigInfo, Signal};

use super::changers::FileWorker;
use super::config::{RaceError, Snapshot, StopFlag};
use super::op_stream::{ActorStep, OpStream};
use super::registrant::Registrant;
use super::shared::RaceShared;
use super::stats::ActorStats;

/// The time between two rounds of the supervisor.
const ROUND: Duration = Duration::from_millis(1);
/// The time between two progress reports.
const REPORT_INTERVAL: Duration = Duration::from_millis(200);
/// The wait reason of a `close` that blocks, as the list of sleepers shows it.
const CLOSING: &str = "close while pinned";

/// The steps that each actor took; for tests.
pub(super) type TakenSteps = Mutex<BTreeMap<usize, Vec<ActorStep>>>;

/// How a run ended.
#[derive(Debug, Default)]
pub(super) struct RunEnd {
    /// The merged counts of all actors.
    pub(super) stats: ActorStats,
    /// Processes killed because they blocked in `close`.
    pub(super) reaped: u64,
    /// Processes killed after the stop. The design did not cause these kills.
    pub(super) killed_at_end: u64,
    /// Tasks that were stuck at the end, because the design has waits that nothing ends.
    pub(super) stuck: u64,
    /// Nanoseconds from the start of the first actor to the stop.
    pub(super) elapsed: u64,
    /// Whether the stop came from outside.
    pub(super) interrupted: bool,
    /// Actors that did not end, and panics of others.
    pub(super) broken: Vec<String>,
    /// Whether actors were left behind, so that the machine is not at rest.
    pub(super) left_behind: bool,
    /// Not every actor has run: this machine gave no thread.
    pub(super) no_thread: Option<RaceError>,
}

/// Runs every actor of `shared` for `duration`, or until `stop`.
pub(super) fn supervise(
    shared: &Arc<RaceShared>,
    duration: Duration,
    stop: &StopFlag,
    report: &mut dyn FnMut(&Snapshot),
    taken: Option<&Arc<TakenSteps>>,
) -> RunEnd {
    let world = Arc::clone(shared.kernel.world());
    let start = world.now();
    let (actors, no_thread) = start_actors(shared, taken);
    let mut watch = SupervisorWatch { shared, asleep_since: BTreeMap::new() };
    let mut ended = RunEnd { no_thread, ..RunEnd::default() };
    let deadline = start.after(duration);
    let mut next_report = start.after(REPORT_INTERVAL);
    while shared.unfinished() > 0 {
        let now = world.now();
        ended.interrupted = stop.is_set();
        if now >= deadline || ended.interrupted || ended.no_thread.is_some() {
            break;
        }
        if now >= next_report {
            report(&shared.snapshot(now.since(start)));
            next_report = now.after(REPORT_INTERVAL);
        }
        ended.reaped += watch.reap(now);
        shared.network.deliver(&shared.kernel, &shared.payloads, now, &mut ended.stats);
        watch.sleep(deadline);
    }
    ended.elapsed = world.now().since(start);
    shared.stop();
    watch.wind_up(&mut ended);
    if shared.unfinished() > 0 {
        ended.left_behind = true;
        let (left, within) = (shared.unfinished(), shared.limits.watchdog);
        ended.broken.push(format!("invariant 6: {left} actors did not end, none of them within {within:?}"));
        ended.broken.extend(watch.blocked());
    }
    if !ended.left_behind {
        shared.kernel.end_ownerless_io();
    }
    for (actor, handle) in actors {
        // If an actor was left behind, joining could wait for it forever, so no thread is joined.
        if ended.left_behind {
            break;
        }
        match handle.join() {
            Ok(stats) => ended.stats.merge(stats),
            Err(panic) => {
                let message = panic.downcast_ref::<String>().map(String::as_str);
                let message = message.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
                ended.broken.push(format!("actor {actor} panicked: {message}"));
            }
        }
    }
    ended
}

/// An actor that runs.
type RunningActor = (usize, JoinHandle<ActorStats>);

/// Starts every actor. If the machine gives no thread for one, it and those after it are not
/// started, and count as finished.
fn start_actors(shared: &Arc<RaceShared>, taken: Option<&Arc<TakenSteps>>) -> (Vec<RunningActor>, Option<RaceError>) {
    let of = shared.slots.len();
    let mut actors = Vec::with_capacity(of);
    for actor in 0..of {
        let (own, taken) = (Arc::clone(shared), taken.map(Arc::clone));
        match thread::try_spawn(move || run_actor(&own, actor, taken.as_deref())) {
            Ok(thread) => actors.push((actor, thread)),
            Err(source) => {
                (actor..of).for_each(|_| shared.finished());
                return (actors, Some(RaceError::Thread { actor: actor + 1, of, source }));
            }
        }
    }
    (actors, None)
}

/// Which task has slept since when, and for which reason.
struct SupervisorWatch<'a> {
    shared: &'a Arc<RaceShared>,
    asleep_since: BTreeMap<WaiterId, (Sleeper, Nanos)>,
}

impl SupervisorWatch<'_> {
    /// Sleeps until the next round, `until` at the latest, or until the last actor has finished.
    /// The next round comes earlier if a disk or the network has something to do.
    fn sleep(&self, until: Nanos) {
        let shared = self.shared;
        let round = shared.kernel.world().now().after(ROUND).min(until);
        let until = shared.network.next_due(&shared.kernel).map_or(round, |due| due.min(round));
        // This waiter belongs to no process, so no signal reaches it.
        let waiter = emulator::wait::Waiter::new(WaiterId(u64::MAX));
        let how = WaitFor::uninterruptible("supervisor's next round").until(Some(until));
        let ready = || if shared.unfinished() == 0 { Poll::Ready(()) } else { Poll::Pending };
        let _ended = shared.changed.wait(shared.kernel.world(), &waiter, how, ready);
    }

    /// The tasks that have slept for one and the same reason for `patience` or longer.
    fn asleep_for(&mut self, now: Nanos, patience: Duration) -> Vec<Sleeper> {
        let mut since = BTreeMap::new();
        for sleeper in self.shared.kernel.world().sleepers() {
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
        self.shared.kernel.send_signal(pid, SigInfo::of(Signal::Sigkill));
    }

    /// The administrator's round: kills every process that has blocked in `close` for too long.
    /// Returns how many it killed.
    fn reap(&mut self, now: Nanos) -> u64 {
        let patience = self.shared.job.reaper_patience;
        let mut reaped = 0;
        for sleeper in self.asleep_for(now, patience) {
            if sleeper.reason == CLOSING
                && let Some(pid) = self.shared.process_of(sleeper.waiter)
            {
                self.kill(pid);
                reaped += 1;
            }
        }
        reaped
    }

    /// After the stop: waits until every actor has ended, or none has for the watchdog's time. On a
    /// standstill it reports the sleepers in `broken` and kills them. Tasks that are stuck because
    /// the design has waits that nothing ends are counted in `stuck`, and let go. Disks go on, and
    /// the network's peer acknowledges everything that is sent.
    fn wind_up(&mut self, ended: &mut RunEnd) {
        let world = Arc::clone(self.shared.kernel.world());
        let mut give_up = world.now().after(self.shared.limits.watchdog);
        let mut left = self.shared.unfinished();
        self.asleep_since.clear();
        let mut let_go = BTreeSet::new();
        while self.shared.unfinished() > 0 && world.now() < give_up {
            if self.shared.unfinished() < left {
                left = self.shared.unfinished();
                give_up = world.now().after(self.shared.limits.watchdog);
            }
            ended.killed_at_end += self.reap(world.now());
            self.shared.kernel.complete_due_io();
            self.acknowledge_all(&mut ended.stats);
            let unendable = self.shared.kernel.stuck().into_iter().filter(|task| task.uninterruptible);
            let_go.extend(unendable.map(|task| task.task));
            if self.shared.kernel.tear_down_stuck() {
                // A task stays stuck until the last copy under a revoked region has ended: it
                // counts once.
                ended.stuck = let_go.len() as u64;
            }
            let still = self.asleep_for(world.now(), self.shared.limits.standstill);
            if ended.broken.is_empty() && self.stands_still(&still) {
                let what = "invariant 6: every actor left is asleep, and no task is left to wake them";
                ended.broken.push(what.to_owned());
                ended.broken.extend(self.blocked());
                for pid in still.iter().filter_map(|sleeper| self.shared.process_of(sleeper.waiter)) {
                    self.kill(pid);
                    ended.killed_at_end += 1;
                }
            }
            self.sleep(Nanos(u64::MAX));
        }
        self.acknowledge_all(&mut ended.stats);
    }

    fn acknowledge_all(&self, stats: &mut ActorStats) {
        let shared = self.shared;
        shared.network.acknowledge(&shared.kernel, &shared.payloads, Nanos(u64::MAX), stats);
    }

    /// Whether the tasks `still`, which have slept for long, are all that is left, and nothing but
    /// a caller outside the race could move one of them.
    fn stands_still(&self, still: &[Sleeper]) -> bool {
        let left = self.shared.unfinished() as usize;
        // With no sleeper left, the last actor has just ended: that is no standstill.
        let asleep = !still.is_empty() && still.len() >= left;
        // A task that was woken, or looks at its condition, is listed as a sleeper too.
        let at_rest = || self.shared.kernel.world().rest(left) == Rest::Quiet;
        asleep && still.iter().all(|sleeper| sleeper.deadline.is_none()) && at_rest()
    }

    /// The blocked tasks, and what blocks each of them.
    fn blocked(&self) -> Vec<String> {
        let kernel = &self.shared.kernel;
        let blocked = kernel.blocked().into_iter().map(|who| format!("invariant 6: blocked: {who}"));
        let asleep = kernel.world().sleepers().into_iter();
        blocked.chain(asleep.map(|one| format!("invariant 6: asleep: task {}, {}", one.waiter.0, one.reason))).collect()
    }
}

/// Reports the actor's end when it is dropped, also after a panic.
struct FinishedGuard<'a>(&'a RaceShared);

impl Drop for FinishedGuard<'_> {
    fn drop(&mut self) {
        self.0.finished();
    }
}

/// The body of an actor's thread.
fn run_actor(shared: &Arc<RaceShared>, actor: usize, taken: Option<&TakenSteps>) -> ActorStats {
    let _finished = FinishedGuard(shared);
    race::arm(shared.kernel.world().stream("race points", actor as u64), shared.job.race_points);
    let role = shared.slots[actor].role;
    let choices = OpStream::new(shared.seed, &shared.job, actor as u64, role);
    let mut record = Vec::new();
    let mut stats = ActorStats::default();
    let mut registrant = Registrant::new(shared, actor);
    let mut worker = FileWorker::new(shared, actor);
    for (choice, _) in choices.zip(0..shared.limits.choices_max) {
        if shared.is_stopping() {
            break;
        }
        if taken.is_some() {
            record.push(choice);
        }
        match choice {
            ActorStep::Registrant(step) => registrant.step(&mut stats, &step),
            other => worker.step(&mut stats, &other),
        }
        shared.slots[actor].live.publish(&stats);
    }
    registrant.finish(&mut stats);
    if let Some(taken) = taken {
        taken.lock().insert(actor, record);
    }
    stats
}

impl FileWorker {
    /// One step of a role that works on one file at a time. Refusals and lost races are counted;
    /// the actor goes on.
    fn step(&mut self, stats: &mut ActorStats, choice: &ActorStep) {
        self.respawn_if_killed();
        let (_worked, pause) = match choice {
            ActorStep::Truncater(step) => (self.truncater(stats, step), step.pause),
            ActorStep::Puncher(step) => (self.puncher(stats, step), step.pause),
            ActorStep::DirectIo(step) => (self.direct_io(stats, step), step.pause),
            ActorStep::Extender(step) => (self.extender(stats, step), step.pause),
            ActorStep::AddressIo(step) => (self.address_io(stats, step), step.pause),
            ActorStep::Umem(step) => (self.umem(stats, step), step.pause),
            ActorStep::Ring(step) => (self.ring(stats, step), step.pause),
            ActorStep::Guest(step) => (self.guest(stats, step), step.pause),
            ActorStep::LayoutClient(step) => (self.layout_client(stats, step), step.pause),
            ActorStep::Collapser(step) => (self.collapser(stats, step), step.pause),
            ActorStep::Reflinker(step) => (self.reflinker(stats, step), step.pause),
            ActorStep::Defragmenter(step) => (self.defragmenter(stats, step), step.pause),
            ActorStep::Registrant(_) => (Ok(()), 0),
        };
        self.shared.pause(&self.task, pause);
    }
}
