//! Who waits for whom: the graph of blocked tasks, and the refusal to close a cycle.
//!
//! It owns one node for every task blocked in a system call. A node names what the task needs: *all* of its needs must be
//! met, each by *any* of the processes listed for it. Invariant: at every moment some task of every cycle can move, or its
//! wait has a deadline, or a signal may end it by design (`wait-killable`); the task that would close a cycle of waits
//! without one gets EDEADLK instead **\[chosen\]**. Kernel counterpart: `posix_locks_deadlock` (fs/locks.c).

use std::collections::BTreeMap;
use std::task::Poll;

use emulator::sync::Mutex;
use emulator::wait::{Sleep, WaitError, WaitFor, WaitQueue, WaiterId};

use crate::process::Pid;
use crate::process::task::Task;

/// One thing a blocked task needs: any of these processes can bring it about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// Those who can.
    pub any_of: Vec<Pid>,
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
    pid: Pid,
    needs: Vec<Need>,
    /// A deadline or a fatal signal by design ends this wait: it is nobody's deadlock.
    bounded: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct WaitGraph(Mutex<BTreeMap<WaiterId, Node>>);

impl WaitGraph {
    /// Records that `waiter` of `pid` needs `needs`. False (and nothing recorded) if that closes a cycle.
    fn record(
        &self,
        waiter: WaiterId,
        pid: Pid,
        needs: Vec<Need>,
        bounded: bool,
        tasks_of: impl Fn(Pid) -> Vec<WaiterId>,
    ) -> bool {
        let involved: BTreeMap<Pid, Vec<WaiterId>> = {
            let nodes = self.0.lock();
            let pids = nodes.values().flat_map(|node| &node.needs).chain(&needs).flat_map(|need| &need.any_of);
            pids.copied().collect::<std::collections::BTreeSet<_>>()
        }
        .into_iter()
        .map(|pid| (pid, tasks_of(pid)))
        .collect();
        let mut nodes = self.0.lock();
        nodes.insert(waiter, Node { pid, needs, bounded });
        let cycle = is_stuck(&nodes, waiter, &involved);
        if cycle {
            nodes.remove(&waiter);
        }
        !cycle
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
    let mut stuck: std::collections::BTreeSet<WaiterId> =
        nodes.iter().filter(|(_, node)| !node.bounded).map(|(waiter, _)| *waiter).collect();
    loop {
        let helpless = |pid: &Pid| {
            // An unknown or dead process is about to let go of everything: it is not helpless.
            tasks.get(pid).is_some_and(|tasks| !tasks.is_empty() && tasks.iter().all(|task| stuck.contains(task)))
        };
        let freed: Vec<WaiterId> = stuck
            .iter()
            .filter(|waiter| {
                nodes.get(waiter).is_none_or(|node| {
                    !node.needs.iter().any(|need| !need.any_of.is_empty() && need.any_of.iter().all(helpless))
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
        let mut recorded: Option<Vec<Need>> = None;
        let outcome = queue.wait(&kernel.world, self.waiter(), how, || match look() {
            Look::Ready(value) => Poll::Ready(Ok(value)),
            Look::Blocked(needs) => {
                if recorded.as_ref() != Some(&needs) {
                    if !kernel.waits.record(id, self.pid(), needs.clone(), bounded, tasks_of) {
                        kernel.counters.deadlocks.add(1);
                        return Poll::Ready(Err(Ended::Deadlock));
                    }
                    recorded = Some(needs);
                }
                Poll::Pending
            }
        });
        if recorded.is_some() {
            kernel.waits.forget(id);
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
        let needs = needs.iter().map(|any| Need { any_of: any.iter().map(|p| Pid(*p)).collect() }).collect();
        Node { pid: Pid(pid), needs, bounded }
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
    fn a_process_with_a_free_thread_is_not_helpless() {
        let graph = [(WaiterId(1), node(1, &[&[2]], false)), (WaiterId(2), node(2, &[&[1]], false))].into();
        let mut tasks: BTreeMap<Pid, Vec<WaiterId>> =
            [(Pid(1), vec![WaiterId(1)]), (Pid(2), vec![WaiterId(2), WaiterId(22)])].into();
        assert!(!is_stuck(&graph, WaiterId(1), &tasks));
        tasks.insert(Pid(2), vec![WaiterId(2)]);
        assert!(is_stuck(&graph, WaiterId(1), &tasks));
    }
}
