//! The wait graph: which blocked task waits for which, and the refusal of a wait that would close
//! a cycle.
//!
//! It owns one node for every task blocked in a system call. A node names what the task needs:
//! *all* of its needs must be met, each by *any* of the processes listed for it. EDEADLK is
//! decided in `WaitGraph::record`. Invariants: at every moment some task of every cycle can run,
//! or its wait has a deadline, or a signal may end it by design (`wait-killable`); the task that
//! would close a cycle of waits without one gets EDEADLK instead **\[chosen\]**, and the members
//! of the cycle are kept. Kernel counterpart: `posix_locks_deadlock` (fs/locks.c).

use std::collections::{BTreeMap, BTreeSet};

use emulator::sync::{Arc, Mutex};
use emulator::wait::{Waiter, WaiterId};

use crate::base::numbers::Pid;
use crate::deadlock::need::{Deadlock, Need, Participant};

/// How many deadlocks are kept with their participants; all are counted.
pub const DEADLOCKS_MAX: usize = 64;

/// What a blocked task finds when it checks its condition.
pub(crate) enum WaitPoll<T> {
    /// The condition holds.
    Ready(T),
    /// It must wait, for all of these.
    Blocked(Vec<Need>),
}

/// Why a wait ended without its condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitFailure {
    /// By a signal.
    Interrupted,
    /// By its deadline.
    TimedOut,
    /// It never began: it would have closed a cycle.
    Deadlock,
}

#[derive(Debug)]
pub(crate) struct WaitNode {
    pub(crate) waiter: Arc<Waiter>,
    /// How often it had been woken when it began to check; see [`WaitNode::is_stale`].
    pub(crate) wakes: u64,
    pub(crate) pid: Pid,
    pub(crate) reason: &'static str,
    pub(crate) needs: Vec<Need>,
    /// A deadline, or a fatal signal by design, ends this wait: it is part of no deadlock.
    pub(crate) bounded: bool,
}

impl WaitNode {
    /// Woken since it checked: its needs may be met already, and it is about to check again
    /// itself. A task that meets the need, wakes this one and then waits for it does not take it
    /// for blocked.
    fn is_stale(&self) -> bool {
        self.waiter.wakes() != self.wakes
    }

    fn participant(&self) -> Participant {
        Participant { task: self.waiter.id(), pid: self.pid, reason: self.reason, needs: self.needs.clone() }
    }
}

/// The tasks of each process that a node needs; none for a process that is dying and about to
/// release everything.
type Tasks = BTreeMap<Pid, Vec<WaiterId>>;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct WaitGraph(Mutex<BTreeMap<WaiterId, WaitNode>>);

impl WaitGraph {
    /// Records that a task is blocked. Where that closes a cycle nothing is recorded, and the
    /// error names the cycle, this task first.
    pub(crate) fn record(&self, node: WaitNode, tasks_of: impl Fn(Pid) -> Vec<WaiterId>) -> Result<(), Deadlock> {
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
            // Looked up without the graph's lock; a task recorded meanwhile may need still other
            // processes.
            tasks.extend(unknown.into_iter().map(|pid| (pid, tasks_of(pid))));
        }
    }

    /// The greatest set of unbounded waits that no running task can end.
    pub(crate) fn stuck(&self, tasks_of: impl Fn(Pid) -> Vec<WaiterId>) -> Vec<Participant> {
        let mut tasks = Tasks::new();
        loop {
            let unknown = {
                let nodes = self.0.lock();
                let unknown = unknown(nodes.values(), &tasks);
                if unknown.is_empty() {
                    let stuck = stuck(&nodes, &tasks);
                    return stuck.iter().filter_map(|task| nodes.get(task)).map(WaitNode::participant).collect();
                }
                unknown
            };
            tasks.extend(unknown.into_iter().map(|pid| (pid, tasks_of(pid))));
        }
    }

    /// `pid` can no longer satisfy a need. Every task that waits for it checks its wait again, and
    /// may find that the wait has closed a cycle.
    pub(crate) fn gone(&self, pid: Pid) {
        let concerned: Vec<Arc<Waiter>> = {
            let nodes = self.0.lock();
            let needs = |node: &&WaitNode| !node.bounded && node.needs.iter().any(|need| need.any_of.contains(&pid));
            nodes.values().filter(needs).map(|node| Arc::clone(&node.waiter)).collect()
        };
        for waiter in concerned {
            waiter.look_again();
        }
    }

    pub(crate) fn forget(&self, waiter: WaiterId) {
        self.0.lock().remove(&waiter);
    }

    /// Every blocked task, its reason and its needs.
    pub(crate) fn blocked(&self) -> Vec<Participant> {
        self.0.lock().values().map(WaitNode::participant).collect()
    }
}

/// The processes that `nodes` need and `tasks` doesn't know yet.
fn unknown<'n>(nodes: impl Iterator<Item = &'n WaitNode>, tasks: &Tasks) -> BTreeSet<Pid> {
    let pids = nodes.flat_map(|node| &node.needs).flat_map(|need| &need.any_of);
    pids.copied().filter(|pid| !tasks.contains_key(pid)).collect()
}

/// The tasks that can never continue: the greatest set of unbounded waits in which every task has
/// a need that only blocked members of the set could meet.
pub(crate) fn stuck(nodes: &BTreeMap<WaiterId, WaitNode>, tasks: &Tasks) -> BTreeSet<WaiterId> {
    let mut stuck: BTreeSet<WaiterId> =
        nodes.iter().filter(|(_, node)| !node.bounded && !node.is_stale()).map(|(waiter, _)| *waiter).collect();
    loop {
        let freed: Vec<WaiterId> = stuck
            .iter()
            .filter(|waiter| {
                let hopeless = |node: &WaitNode| node.needs.iter().any(|need| is_hopeless(need, &stuck, tasks));
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
        // An unknown or dead process is about to release everything: it can meet the need.
        tasks.get(pid).is_some_and(|tasks| !tasks.is_empty() && tasks.iter().all(|task| stuck.contains(task)))
    };
    // A need that only a party outside of this kernel could meet is never hopeless.
    let possible = !need.any_of.is_empty() || need.task.is_some();
    possible && need.any_of.iter().all(helpless) && need.task.iter().all(|task| stuck.contains(task))
}

/// Of the stuck tasks those that `first` waits for, directly or not, without those that merely
/// wait behind the cycle. `first` leads.
fn cycle_of(
    nodes: &BTreeMap<WaiterId, WaitNode>,
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
    found.iter().filter_map(|task| nodes.get(task)).map(WaitNode::participant).collect()
}

#[cfg(all(test, not(any(daxlab_loom, daxlab_shuttle))))]
mod tests {
    use emulator::World;
    use emulator::device::Device;

    use super::*;
    use crate::vfs::kernel::{Kernel, KernelConfig};
    use crate::vfs::signals::{Disposition, Signal};
    use emulator::wait::{WaitFor, WaitQueue};

    fn node(pid: u32, needs: &[&[u32]], bounded: bool) -> WaitNode {
        let needs = needs.iter().map(|any| Need::any_of(any.iter().map(|p| Pid(*p)).collect())).collect();
        let waiter = Waiter::new(WaiterId(u64::from(pid)));
        WaitNode { wakes: waiter.wakes(), waiter, pid: Pid(pid), reason: "a test", needs, bounded }
    }

    fn is_stuck(nodes: &BTreeMap<WaiterId, WaitNode>, who: WaiterId, tasks: &Tasks) -> bool {
        super::stuck(nodes, tasks).contains(&who)
    }

    /// One task for each process, with the process's number.
    pub(crate) fn stuck(nodes: &[(u32, &[&[u32]], bool)], who: u32) -> bool {
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
        assert_eq!(graph.blocked().len(), 4, "the refused one is not blocked");
        // Had it been recorded, the tasks behind the cycle would be stuck too.
        let refused = node(3, &[&[1]], false);
        graph.0.lock().insert(WaiterId(3), refused);
        let stuck: Vec<u32> = graph.stuck(tasks_of).iter().map(|participant| participant.pid.0).collect();
        assert_eq!(stuck, [1, 2, 3, 4]);
    }

    #[test]
    fn who_was_woken_since_it_looked_is_not_taken_for_blocked() {
        let graph: BTreeMap<WaiterId, WaitNode> =
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
        let kernel = Kernel::new(Arc::new(World::manual(1)), device, KernelConfig::new(axes)).unwrap();
        let task = kernel.spawn();
        let queue = WaitQueue::new();
        let for_itself = || {
            let how = WaitFor::interruptible("itself");
            task.block_on(&queue, how, || WaitPoll::<()>::Blocked(vec![Need::any_of(vec![task.pid()])]))
        };
        assert_eq!(for_itself(), Err(WaitFailure::Deadlock));
        task.process().set_disposition(Signal::Sigusr1, Disposition::Handler);
        task.kill(task.pid(), Signal::Sigusr1).unwrap();
        assert_eq!(for_itself(), Err(WaitFailure::Interrupted));
        task.take_signals();
        assert_eq!(for_itself(), Err(WaitFailure::Deadlock));
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
