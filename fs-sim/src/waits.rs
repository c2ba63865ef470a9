//! Who waits for whom: the graph of blocked tasks, and the refusal to close a cycle.
//!
//! It owns one node for every task blocked in a system call. A node names what the task needs: *all* of its needs must be
//! met, each by *any* of the processes listed for it. Invariant: at every moment some task of every cycle can move, or its
//! wait has a deadline, or a signal may end it by design (`wait-killable`); the task that would close a cycle of waits
//! without one gets EDEADLK instead **\[chosen\]**, and who was in the cycle is kept ([`Kernel::deadlocks`]). Kernel counterpart: `posix_locks_deadlock` (fs/locks.c).

use std::collections::{BTreeMap, BTreeSet};
use std::task::Poll;

use emulator::sync::{Arc, Mutex};
use emulator::wait::{SleepKind, WaitError, WaitFor, WaitQueue, Waiter, WaiterId};

use crate::Kernel;
use crate::holders::Holder;
use crate::process::Pid;
use crate::process::task::Task;

/// One thing a blocked task needs: any of these can bring it about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// Any task of any of these processes.
    pub any_of: Vec<Pid>,
    /// Or this one task, whatever else its process could do.
    pub task: Option<WaiterId>,
    /// Or somebody outside of this kernel, in words, where there is neither: nobody can say that it never will.
    pub outside: Option<String>,
}

impl Need {
    /// What any of these processes can bring about.
    pub(crate) fn any_of(processes: Vec<Pid>) -> Need {
        Need { any_of: processes, task: None, outside: None }
    }

    /// What those can who could let go of a holder's pins: the processes, or, left behind by all of them, its guest.
    pub(crate) fn of_holder(holder: &Holder) -> Need {
        let info = holder.object.describe();
        let outside = info.guest.filter(|_| info.processes.is_empty());
        Need { any_of: info.processes, task: None, outside }
    }

    /// What the virtual machine can that has a holder's memory mapped, if one has.
    pub(crate) fn of_guest(holder: &Holder) -> Option<Need> {
        let guest = holder.object.describe().guest?;
        Some(Need { any_of: Vec::new(), task: None, outside: Some(guest) })
    }

    /// What only this task can.
    pub(crate) fn task(task: WaiterId) -> Need {
        Need { any_of: Vec::new(), task: Some(task), outside: None }
    }
}

impl std::fmt::Display for Need {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let processes = self.any_of.iter().map(|pid| format!("process {pid}"));
        let task = self.task.iter().map(|task| format!("task {}", task.0));
        let outside = self.outside.iter().cloned();
        f.write_str(&processes.chain(task).chain(outside).collect::<Vec<_>>().join(" or "))
    }
}

/// A task in a cycle of waits, or one that waits in vain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Participant {
    /// The task.
    pub task: WaiterId,
    /// Its process.
    pub pid: Pid,
    /// What it waits for, or would have waited for, in words.
    pub reason: &'static str,
    /// All of these it needs.
    pub needs: Vec<Need>,
}

impl std::fmt::Display for Participant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let needs: Vec<String> = self.needs.iter().map(Need::to_string).collect();
        write!(f, "task {} of process {}: {}, needs [{}]", self.task.0, self.pid, self.reason, needs.join("; "))
    }
}

/// A cycle of waits that somebody was kept from closing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deadlock {
    /// Those in the cycle; the first is the one that got EDEADLK.
    pub participants: Vec<Participant>,
}

impl std::fmt::Display for Deadlock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let participants: Vec<String> = self.participants.iter().map(Participant::to_string).collect();
        write!(f, "deadlock: {}", participants.join(" <- "))
    }
}

/// How many deadlocks are kept with their participants; all are counted.
pub const DEADLOCKS_MAX: usize = 64;

/// What a blocked task finds when it looks.
pub(crate) enum Look<T> {
    /// It may go on.
    Ready(T),
    /// It must wait, for all of these.
    Blocked(Vec<Need>),
}

/// Why a wait ended without its condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// By a signal.
    Interrupted,
    /// By its deadline.
    TimedOut,
    /// Never begun: it would have closed a cycle.
    Deadlock,
}

#[derive(Debug)]
struct Node {
    waiter: Arc<Waiter>,
    /// How often it had been woken when it began to look; see [`Node::is_stale`].
    wakes: u64,
    pid: Pid,
    reason: &'static str,
    needs: Vec<Need>,
    /// A deadline or a fatal signal by design ends this wait: it is nobody's deadlock.
    bounded: bool,
}

impl Node {
    /// Woken since it looked: its needs may be met already, and it is about to look (and to judge) again itself. So whoever
    /// meets a need and wakes, and then waits for the one it woke, does not take it for blocked.
    fn is_stale(&self) -> bool {
        self.waiter.wakes() != self.wakes
    }

    fn participant(&self) -> Participant {
        Participant { task: self.waiter.id(), pid: self.pid, reason: self.reason, needs: self.needs.clone() }
    }
}

/// The tasks of each process that somebody needs; none for one that is dying and about to let go of everything.
type Tasks = BTreeMap<Pid, Vec<WaiterId>>;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct WaitGraph(Mutex<BTreeMap<WaiterId, Node>>);

impl WaitGraph {
    /// Records that a task is blocked; where that closes a cycle nothing is recorded, and it gets the cycle, itself first.
    fn record(&self, node: Node, tasks_of: impl Fn(Pid) -> Vec<WaiterId>) -> Result<(), Deadlock> {
        let waiter = node.waiter.id();
        let mut tasks = Tasks::new();
        loop {
            let unknown: BTreeSet<Pid> = {
                let mut nodes = self.0.lock();
                let unknown = unknown(nodes.values().chain([&node]), &tasks);
                if unknown.is_empty() {
                    nodes.insert(waiter, node);
                    let stuck = stuck(&nodes, &tasks);
                    if !stuck.contains(&waiter) {
                        return Ok(());
                    }
                    let participants = cycle_of(&nodes, waiter, &stuck, &tasks);
                    nodes.remove(&waiter);
                    return Err(Deadlock { participants });
                }
                unknown
            };
            // Looked up without the graph's lock; whoever was recorded meanwhile may need others still.
            tasks.extend(unknown.into_iter().map(|pid| (pid, tasks_of(pid))));
        }
    }

    /// The greatest set of unbounded waits that nobody awake can end.
    fn stuck(&self, tasks_of: impl Fn(Pid) -> Vec<WaiterId>) -> Vec<Participant> {
        let mut tasks = Tasks::new();
        loop {
            let unknown = {
                let nodes = self.0.lock();
                let unknown = unknown(nodes.values(), &tasks);
                if unknown.is_empty() {
                    let stuck = stuck(&nodes, &tasks);
                    return stuck.iter().filter_map(|task| nodes.get(task)).map(Node::participant).collect();
                }
                unknown
            };
            tasks.extend(unknown.into_iter().map(|pid| (pid, tasks_of(pid))));
        }
    }

    /// Those who could meet a need have become fewer, `pid` being no longer one of them: whoever needs it looks again, and may
    /// find that its wait has closed a cycle.
    pub(crate) fn gone(&self, pid: Pid) {
        let concerned: Vec<Arc<Waiter>> = {
            let nodes = self.0.lock();
            let needs = |node: &&Node| !node.bounded && node.needs.iter().any(|need| need.any_of.contains(&pid));
            nodes.values().filter(needs).map(|node| Arc::clone(&node.waiter)).collect()
        };
        for waiter in concerned {
            waiter.look_again();
        }
    }

    fn forget(&self, waiter: WaiterId) {
        self.0.lock().remove(&waiter);
    }

    /// Who is blocked, why, and what each needs.
    pub(crate) fn blocked(&self) -> Vec<Participant> {
        self.0.lock().values().map(Node::participant).collect()
    }
}

/// The processes that `nodes` need and `tasks` doesn't know yet.
fn unknown<'n>(nodes: impl Iterator<Item = &'n Node>, tasks: &Tasks) -> BTreeSet<Pid> {
    let pids = nodes.flat_map(|node| &node.needs).flat_map(|need| &need.any_of);
    pids.copied().filter(|pid| !tasks.contains_key(pid)).collect()
}

/// Those who can never go on: the greatest set of unbounded waits in which everybody has a need that only blocked members
/// of the set could meet.
fn stuck(nodes: &BTreeMap<WaiterId, Node>, tasks: &Tasks) -> BTreeSet<WaiterId> {
    let mut stuck: BTreeSet<WaiterId> =
        nodes.iter().filter(|(_, node)| !node.bounded && !node.is_stale()).map(|(waiter, _)| *waiter).collect();
    loop {
        let freed: Vec<WaiterId> = stuck
            .iter()
            .filter(|waiter| {
                let hopeless = |node: &Node| node.needs.iter().any(|need| is_hopeless(need, &stuck, tasks));
                !nodes.get(waiter).is_some_and(hopeless)
            })
            .copied()
            .collect();
        if freed.is_empty() {
            return stuck;
        }
        for waiter in freed {
            stuck.remove(&waiter);
        }
    }
}

/// Whether only members of `stuck` could meet the need.
fn is_hopeless(need: &Need, stuck: &BTreeSet<WaiterId>, tasks: &Tasks) -> bool {
    let helpless = |pid: &Pid| {
        // An unknown or dead process is about to let go of everything: it is not helpless.
        tasks.get(pid).is_some_and(|tasks| !tasks.is_empty() && tasks.iter().all(|task| stuck.contains(task)))
    };
    // What only somebody outside could meet is never hopeless.
    let somebody = !need.any_of.is_empty() || need.task.is_some();
    somebody && need.any_of.iter().all(helpless) && need.task.iter().all(|task| stuck.contains(task))
}

/// Of the stuck ones those that `first` waits for, directly or not; not those who merely wait behind the cycle. It leads.
fn cycle_of(
    nodes: &BTreeMap<WaiterId, Node>,
    first: WaiterId,
    stuck: &BTreeSet<WaiterId>,
    tasks: &Tasks,
) -> Vec<Participant> {
    let mut found = vec![first];
    let mut at = 0;
    while let Some(node) = found.get(at).and_then(|task| nodes.get(task)) {
        at += 1;
        for need in node.needs.iter().filter(|need| is_hopeless(need, stuck, tasks)) {
            let tasks = need.any_of.iter().filter_map(|pid| tasks.get(pid)).flatten().chain(&need.task);
            for task in tasks {
                if !found.contains(task) {
                    found.push(*task);
                }
            }
        }
    }
    found.iter().filter_map(|task| nodes.get(task)).map(Node::participant).collect()
}

impl Kernel {
    /// The tasks that could act for `pid`; none if it is dying.
    fn tasks_of(&self, pid: Pid) -> Vec<WaiterId> {
        match self.processes.get(pid) {
            Some(process) if !process.is_dying() => process.waiters.lock().iter().map(|waiter| waiter.id()).collect(),
            _ => Vec::new(),
        }
    }

    /// The cycles of waits that somebody was kept from closing (EDEADLK), with their participants: the first
    /// [`DEADLOCKS_MAX`] of them. All are counted in [`crate::counters::Counters::deadlocks`].
    pub fn deadlocks(&self) -> Vec<Deadlock> {
        self.deadlocks.lock().clone()
    }

    /// Those who wait, without a deadline, for what only others of them could bring about: the greatest such set. For
    /// whoever finds everybody asleep; empty unless somebody who could have helped has ended since they fell asleep.
    pub fn stuck(&self) -> Vec<Participant> {
        self.waits.stuck(|pid| self.tasks_of(pid))
    }

    pub(crate) fn note_deadlock(&self, deadlock: Deadlock) {
        self.counters.deadlocks.add(1);
        let mut deadlocks = self.deadlocks.lock();
        if deadlocks.len() < DEADLOCKS_MAX {
            deadlocks.push(deadlock);
        }
    }
}

impl Task {
    /// This task was kept from waiting for what only its own process could bring about: EDEADLK, with `reason` the wait that
    /// was not begun.
    pub(crate) fn note_self_deadlock(&self, reason: &'static str) {
        let needs = vec![Need::any_of(vec![self.pid()])];
        let myself = Participant { task: self.waiter().id(), pid: self.pid(), reason, needs };
        self.kernel().note_deadlock(Deadlock { participants: vec![myself] });
    }

    /// Blocks this task on `queue` until `look` says ready, keeping the wait graph true on the way.
    pub(crate) fn block_on<T>(
        &self,
        queue: &WaitQueue,
        how: WaitFor,
        mut look: impl FnMut() -> Look<T>,
    ) -> Result<T, Ended> {
        let kernel = self.kernel();
        let id = self.waiter().id();
        let bounded = how.deadline.is_some() || how.sleep == SleepKind::Killable;
        let waiter = self.waiter();
        let mut looks = 0;
        let outcome = queue.wait(&kernel.world, waiter, how, || {
            let wakes = waiter.wakes();
            // While it looks it is not blocked: what it finds may be the end of the wait, and others act on it at once.
            if looks > 1 {
                kernel.waits.forget(id);
            }
            looks += 1;
            match look() {
                Look::Ready(value) => Poll::Ready(Ok(value)),
                // The first look is before anybody could wake this task: too early to be recorded.
                Look::Blocked(_) if looks == 1 => Poll::Pending,
                // A signal is about to end this wait: it closes no cycle, and is no link of one.
                Look::Blocked(_) if waiter.interrupted(how.sleep) => Poll::Pending,
                Look::Blocked(needs) => {
                    let reason = how.reason;
                    let node = Node { waiter: Arc::clone(waiter), wakes, pid: self.pid(), reason, needs, bounded };
                    match kernel.waits.record(node, |pid| kernel.tasks_of(pid)) {
                        Ok(()) => Poll::Pending,
                        Err(deadlock) => {
                            kernel.note_deadlock(deadlock);
                            Poll::Ready(Err(Ended::Deadlock))
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
            Err(WaitError::Interrupted) => Err(Ended::Interrupted),
            Err(WaitError::TimedOut) => Err(Ended::TimedOut),
        }
    }
}

#[cfg(all(test, not(any(daxlab_loom, daxlab_shuttle))))]
mod tests {
    use emulator::World;
    use emulator::device::Device;

    use super::*;
    use crate::process::signals::{Disposition, Signal};
    use crate::{Config, Kernel};

    fn node(pid: u32, needs: &[&[u32]], bounded: bool) -> Node {
        let needs = needs.iter().map(|any| Need::any_of(any.iter().map(|p| Pid(*p)).collect())).collect();
        let waiter = Waiter::new(WaiterId(u64::from(pid)));
        Node { wakes: waiter.wakes(), waiter, pid: Pid(pid), reason: "a test", needs, bounded }
    }

    fn is_stuck(nodes: &BTreeMap<WaiterId, Node>, who: WaiterId, tasks: &Tasks) -> bool {
        super::stuck(nodes, tasks).contains(&who)
    }

    /// One task a process, numbered alike.
    fn stuck(nodes: &[(u32, &[&[u32]], bool)], who: u32) -> bool {
        let graph = nodes.iter().map(|(pid, needs, b)| (WaiterId(u64::from(*pid)), node(*pid, needs, *b))).collect();
        let tasks = (1..9).map(|pid| (Pid(pid), vec![WaiterId(u64::from(pid))])).collect();
        is_stuck(&graph, WaiterId(u64::from(who)), &tasks)
    }

    #[test]
    fn a_cycle_is_stuck_unless_one_member_can_move() {
        assert!(stuck(&[(1, &[&[2]], false), (2, &[&[1]], false)], 1));
        assert!(stuck(&[(1, &[&[1]], false)], 1), "waiting for oneself");
        assert!(!stuck(&[(1, &[&[2]], false), (2, &[&[1]], true)], 1), "a deadline ends it");
        assert!(!stuck(&[(1, &[&[2]], false), (2, &[&[3]], false)], 1), "3 is awake");
        assert!(!stuck(&[(1, &[&[2, 3]], false), (2, &[&[1]], false)], 1), "3 could do it as well");
        assert!(stuck(&[(1, &[&[3], &[2]], false), (2, &[&[1]], false)], 1), "all needs must be met");
    }

    #[test]
    fn a_cycle_names_its_members_and_not_those_who_wait_behind_it() {
        let graph = WaitGraph::default();
        let tasks_of = |pid: Pid| vec![WaiterId(u64::from(pid.0))];
        for (pid, needs) in [(1, 2), (2, 3), (4, 1), (5, 6)] {
            assert_eq!(graph.record(node(pid, &[&[needs]], false), tasks_of), Ok(()));
        }
        assert_eq!(graph.stuck(tasks_of), []);
        let deadlock = graph.record(node(3, &[&[1]], false), tasks_of).unwrap_err();
        let members: Vec<u32> = deadlock.participants.iter().map(|participant| participant.pid.0).collect();
        assert_eq!(members, [3, 1, 2], "the refused one first");
        assert_eq!(
            deadlock.to_string(),
            "deadlock: task 3 of process 3: a test, needs [process 1] <- task 1 of process 1: a test, needs [process 2] \
             <- task 2 of process 2: a test, needs [process 3]"
        );
        assert_eq!(graph.blocked().len(), 4, "the refused one waits for nobody");
        // Had it been let in, those behind the cycle were stuck as well.
        let refused = node(3, &[&[1]], false);
        graph.0.lock().insert(WaiterId(3), refused);
        let stuck: Vec<u32> = graph.stuck(tasks_of).iter().map(|participant| participant.pid.0).collect();
        assert_eq!(stuck, [1, 2, 3, 4]);
    }

    #[test]
    fn who_was_woken_since_it_looked_is_not_taken_for_blocked() {
        let graph: BTreeMap<WaiterId, Node> =
            [(WaiterId(1), node(1, &[&[2]], false)), (WaiterId(2), node(2, &[&[1]], false))].into();
        let tasks = (1..3).map(|pid| (Pid(pid), vec![WaiterId(u64::from(pid))])).collect();
        assert!(is_stuck(&graph, WaiterId(1), &tasks));
        graph[&WaiterId(2)].waiter.interrupt(false);
        assert!(!is_stuck(&graph, WaiterId(1), &tasks), "2 is about to look again");
    }

    #[test]
    fn a_signal_that_is_pending_ends_a_wait_before_it_can_be_a_deadlock() {
        let device = Device::memory(4 << 20).unwrap();
        let axes = crate::design::presets()[0].axes;
        let kernel = Kernel::new(Arc::new(World::manual(1)), device, Config::new(axes)).unwrap();
        let task = kernel.spawn();
        let queue = WaitQueue::new();
        let for_itself = || {
            let how = WaitFor::interruptible("itself");
            task.block_on(&queue, how, || Look::<()>::Blocked(vec![Need::any_of(vec![task.pid()])]))
        };
        assert_eq!(for_itself(), Err(Ended::Deadlock));
        task.process().set_disposition(Signal::Sigusr1, Disposition::Handler);
        task.kill(task.pid(), Signal::Sigusr1).unwrap();
        assert_eq!(for_itself(), Err(Ended::Interrupted));
        task.take_signals();
        assert_eq!(for_itself(), Err(Ended::Deadlock));
    }

    #[test]
    fn a_process_with_a_free_thread_is_not_helpless() {
        let graph = [(WaiterId(1), node(1, &[&[2]], false)), (WaiterId(2), node(2, &[&[1]], false))].into();
        let mut tasks: BTreeMap<Pid, Vec<WaiterId>> =
            [(Pid(1), vec![WaiterId(1)]), (Pid(2), vec![WaiterId(2), WaiterId(22)])].into();
        assert!(!is_stuck(&graph, WaiterId(1), &tasks));
        tasks.insert(Pid(2), vec![WaiterId(2)]);
        assert!(is_stuck(&graph, WaiterId(1), &tasks));
    }
}
