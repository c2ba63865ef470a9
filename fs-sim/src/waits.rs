//! Who waits for whom: the graph of blocked tasks, and the refusal to close a cycle.
//!
//! It owns one node for every task blocked in a system call. A node names what the task needs: *all* of its needs must be
//! met, each by *any* of the processes listed for it. Invariant: at every moment some task of every cycle can move, or its
//! wait has a deadline, or a signal may end it by design (`wait-killable`); the task that would close a cycle of waits
//! without one gets EDEADLK instead **\[chosen\]**. Kernel counterpart: `posix_locks_deadlock` (fs/locks.c).

use std::collections::{BTreeMap, BTreeSet};
use std::task::Poll;

use emulator::sync::{Arc, Mutex};
use emulator::wait::{Sleep, WaitError, WaitFor, WaitQueue, Waiter, WaiterId};

use crate::process::Pid;
use crate::process::task::Task;

/// One thing a blocked task needs: any of these can bring it about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// Any task of any of these processes.
    pub any_of: Vec<Pid>,
    /// Or this one task, whatever else its process could do.
    pub task: Option<WaiterId>,
}

impl Need {
    /// What any of these processes can bring about.
    pub(crate) fn any_of(processes: Vec<Pid>) -> Need {
        Need { any_of: processes, task: None }
    }

    /// What only this task can.
    pub(crate) fn task(task: WaiterId) -> Need {
        Need { any_of: Vec::new(), task: Some(task) }
    }
}

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
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct WaitGraph(Mutex<BTreeMap<WaiterId, Node>>);

impl WaitGraph {
    /// Records that a task is blocked. False (and nothing recorded) if that closes a cycle.
    fn record(&self, node: Node, tasks_of: impl Fn(Pid) -> Vec<WaiterId>) -> bool {
        let waiter = node.waiter.id();
        let mut tasks: BTreeMap<Pid, Vec<WaiterId>> = BTreeMap::new();
        loop {
            let unknown: BTreeSet<Pid> = {
                let mut nodes = self.0.lock();
                let pids = nodes.values().chain([&node]).flat_map(|node| &node.needs).flat_map(|need| &need.any_of);
                let unknown: BTreeSet<Pid> = pids.copied().filter(|pid| !tasks.contains_key(pid)).collect();
                if unknown.is_empty() {
                    nodes.insert(waiter, node);
                    let cycle = is_stuck(&nodes, waiter, &tasks);
                    if cycle {
                        nodes.remove(&waiter);
                    }
                    return !cycle;
                }
                unknown
            };
            // Looked up without the graph's lock; whoever was recorded meanwhile may need others still.
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

    /// Who is blocked, and what each needs.
    pub(crate) fn blocked(&self) -> Vec<(WaiterId, Pid, Vec<Need>)> {
        self.0.lock().iter().map(|(waiter, node)| (*waiter, node.pid, node.needs.clone())).collect()
    }
}

/// Whether `waiter` can never go on: the greatest set of unbounded waits in which everybody has a need that only blocked
/// members of the set could meet.
fn is_stuck(nodes: &BTreeMap<WaiterId, Node>, waiter: WaiterId, tasks: &BTreeMap<Pid, Vec<WaiterId>>) -> bool {
    let mut stuck: BTreeSet<WaiterId> =
        nodes.iter().filter(|(_, node)| !node.bounded && !node.is_stale()).map(|(waiter, _)| *waiter).collect();
    loop {
        let helpless = |pid: &Pid| {
            // An unknown or dead process is about to let go of everything: it is not helpless.
            tasks.get(pid).is_some_and(|tasks| !tasks.is_empty() && tasks.iter().all(|task| stuck.contains(task)))
        };
        let freed: Vec<WaiterId> = stuck
            .iter()
            .filter(|waiter| {
                nodes.get(waiter).is_none_or(|node| {
                    !node.needs.iter().any(|need| {
                        let somebody = !need.any_of.is_empty() || need.task.is_some();
                        somebody
                            && need.any_of.iter().all(helpless)
                            && need.task.iter().all(|task| stuck.contains(task))
                    })
                })
            })
            .copied()
            .collect();
        if freed.is_empty() {
            return stuck.contains(&waiter);
        }
        for waiter in freed {
            stuck.remove(&waiter);
        }
    }
}

impl Task {
    /// Blocks this task on `queue` until `look` says ready, keeping the wait graph true on the way.
    pub(crate) fn block_on<T>(
        &self,
        queue: &WaitQueue,
        how: WaitFor,
        mut look: impl FnMut() -> Look<T>,
    ) -> Result<T, Ended> {
        let kernel = self.kernel();
        let id = self.waiter().id();
        let bounded = how.deadline.is_some() || how.sleep == Sleep::Killable;
        let tasks_of = |pid: Pid| match kernel.processes.get(pid) {
            Some(process) if !process.is_dying() => process.waiters.lock().iter().map(|waiter| waiter.id()).collect(),
            _ => Vec::new(),
        };
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
                Look::Blocked(needs) => {
                    let node = Node { waiter: Arc::clone(waiter), wakes, pid: self.pid(), needs, bounded };
                    if kernel.waits.record(node, tasks_of) {
                        return Poll::Pending;
                    }
                    kernel.counters.deadlocks.add(1);
                    Poll::Ready(Err(Ended::Deadlock))
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
    use super::*;

    fn node(pid: u32, needs: &[&[u32]], bounded: bool) -> Node {
        let needs =
            needs.iter().map(|any| Need { any_of: any.iter().map(|p| Pid(*p)).collect(), task: None }).collect();
        let waiter = Waiter::new(WaiterId(u64::from(pid)));
        Node { wakes: waiter.wakes(), waiter, pid: Pid(pid), needs, bounded }
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
    fn who_was_woken_since_it_looked_is_not_taken_for_blocked() {
        let graph: BTreeMap<WaiterId, Node> =
            [(WaiterId(1), node(1, &[&[2]], false)), (WaiterId(2), node(2, &[&[1]], false))].into();
        let tasks = (1..3).map(|pid| (Pid(pid), vec![WaiterId(u64::from(pid))])).collect();
        assert!(is_stuck(&graph, WaiterId(1), &tasks));
        graph[&WaiterId(2)].waiter.interrupt(false);
        assert!(!is_stuck(&graph, WaiterId(1), &tasks), "2 is about to look again");
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
