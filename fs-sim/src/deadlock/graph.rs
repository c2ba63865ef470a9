//! The wait graph: which blocked task waits for which, and the refusal of a wait that would close
//! a cycle.
//!
//! It owns one node for every task blocked in a system call. A node names what the task needs:
//! *all* of its needs must be met, each by *any* of the processes that can meet it when the
//! question is asked. EDEADLK is decided in `WaitGraph::record`, which judges only what the new
//! wait can reach. Invariants: at every moment some task of every cycle can run, or its wait has a
//! deadline, or a signal may end it by design (`wait-killable`), or all of its members are
//! uninterruptible (then it is reported as stuck); the task that would close a cycle gets EDEADLK
//! instead **\[chosen\]**, and the members of the cycle are kept. Kernel counterpart:
//! `posix_locks_deadlock` (fs/locks.c).
//!
//! # Why a cycle is looked at twice
//! The nodes are resolved one after the other, while other tasks run. A helper can pass what it
//! holds to another process after the first node was resolved, and then block: the later nodes show
//! a cycle that never existed. So before a wait is refused, every node is resolved once more. If
//! the same waits are still stuck, all of them lasted from the first look to the second, and the
//! second look saw every helper that there was.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use emulator::sync::atomic::{AtomicU64, Ordering};
use emulator::sync::{Arc, Mutex};
use emulator::wait::{Waiter, WaiterId};

use crate::base::numbers::Pid;
use crate::deadlock::need::{Awaited, Deadlock, Need, Participant};

/// How many deadlocks are kept with their participants; all are counted.
pub const DEADLOCKS_MAX: usize = 64;

/// What a blocked task finds when it checks its condition.
pub(crate) enum WaitPoll<T> {
    /// The condition holds.
    Ready(T),
    /// It must wait, for all of these.
    Blocked(Vec<Awaited>),
}

/// Why a wait ended without its condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitFailure {
    /// By a signal.
    Interrupted,
    /// By its deadline.
    TimedOut,
    /// It never began, or was ended: it closed a cycle.
    Deadlock,
}

/// What ends a wait besides its condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitEnd {
    /// A deadline, or a fatal signal by design: it is part of no deadlock.
    Bounded,
    /// EDEADLK.
    Refusable,
    /// Nothing: a cycle of such waits stays, and is reported as stuck.
    Stays,
}

#[derive(Debug)]
pub(crate) struct WaitNode {
    pub(crate) waiter: Arc<Waiter>,
    /// How often it had been woken when it began to check; see [`WaitNode::is_stale`].
    pub(crate) wakes: u64,
    /// When its wait began, as [`WaitGraph::begins`] numbers them.
    pub(crate) began: u64,
    pub(crate) pid: Pid,
    pub(crate) reason: &'static str,
    pub(crate) needs: Vec<Awaited>,
    pub(crate) end: WaitEnd,
    /// The processes that could meet a need at some time when it was judged.
    pub(crate) counted_on: Mutex<BTreeSet<Pid>>,
}

impl WaitNode {
    /// Woken since it checked: its needs may be met already, and it is about to check again
    /// itself. A task that meets the need, wakes this one and then waits for it does not take it
    /// for blocked.
    fn is_stale(&self) -> bool {
        self.waiter.wakes() != self.wakes
    }

    fn participant(&self) -> Participant {
        let needs = self.needs.iter().map(Awaited::need).collect();
        let uninterruptible = self.end == WaitEnd::Stays;
        Participant { task: self.waiter.id(), pid: self.pid, reason: self.reason, needs, uninterruptible }
    }
}

/// A need of a blocked task, with the tasks that could meet it.
struct ResolvedNeed {
    /// Any of these tasks, if there is no process among them that is about to release everything.
    tasks: Option<Vec<WaiterId>>,
    behind: Option<WaiterId>,
}

/// A blocked task, and what it needs at this moment.
struct Reached {
    node: Arc<WaitNode>,
    needs: Vec<ResolvedNeed>,
}

impl Reached {
    fn waiter(&self) -> Arc<Waiter> {
        Arc::clone(&self.node.waiter)
    }
}

/// Blocked tasks that one of them can reach by its needs, directly or not.
type Reach = BTreeMap<WaiterId, Reached>;

type Nodes = BTreeMap<WaiterId, Arc<WaitNode>>;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct WaitGraph {
    nodes: Mutex<Nodes>,
    /// Held while a new wait is judged: of two waits that close a cycle together, one is refused.
    judging: Mutex<()>,
    began: AtomicU64,
}

impl WaitGraph {
    /// A number for a wait that begins.
    pub(crate) fn begins(&self) -> u64 {
        self.began.fetch_add(1, Ordering::Relaxed)
    }

    /// Records that a task is blocked. Where that closes a cycle, the wait of the cycle that began
    /// last, of those that can be refused, is refused: if it is this one, nothing is recorded, and
    /// the error names the cycle, this task first; else that task checks its wait again.
    pub(crate) fn record(&self, node: WaitNode, tasks_of: impl Fn(Pid) -> Vec<WaiterId>) -> Result<(), Deadlock> {
        let waiter = node.waiter.id();
        let _judging = self.judging.lock();
        self.nodes.lock().insert(waiter, Arc::new(node));
        let mut reach = self.reach(waiter, &tasks_of);
        // A change that stands behind one that waits for its process passes it: it checks its wait
        // again, this task too.
        let passing: Vec<Arc<Waiter>> =
            reach.values().filter(|reached| passes(&reach, reached)).map(Reached::waiter).collect();
        // Of each cycle one wait is refused.
        loop {
            let stuck = stuck_in(&reach);
            match youngest(&reach, &stuck) {
                Some(youngest) if youngest.waiter.id() == waiter => {
                    let again = self.reach(waiter, &tasks_of);
                    if same_waits(&reach, &again, &stuck) && stuck.is_subset(&stuck_in(&again)) {
                        self.forget(waiter);
                        return Err(Deadlock { participants: cycle_of(&again, waiter, &stuck) });
                    }
                    reach = again;
                }
                Some(youngest) => {
                    let victim = youngest.waiter.id();
                    youngest.waiter.look_again();
                    reach.remove(&victim);
                }
                None => break,
            }
        }
        passing.iter().for_each(|waiter| waiter.look_again());
        Ok(())
    }

    /// The greatest set of unbounded waits that no running task can end.
    pub(crate) fn stuck(&self, tasks_of: impl Fn(Pid) -> Vec<WaiterId>) -> Vec<Participant> {
        let nodes = self.nodes.lock().clone();
        let all: Reach = nodes.into_iter().map(|(task, node)| (task, resolve(node, &tasks_of))).collect();
        stuck_in(&all).iter().filter_map(|task| all.get(task)).map(|reached| reached.node.participant()).collect()
    }

    /// As [`WaitGraph::stuck`], of the waits that can be refused alone: those that neither a signal
    /// nor a refusal ends count as waits that end.
    pub(crate) fn unrefused(&self, tasks_of: impl Fn(Pid) -> Vec<WaiterId>) -> Vec<Participant> {
        let mut nodes = self.nodes.lock().clone();
        nodes.retain(|_, node| node.end != WaitEnd::Stays);
        let all: Reach = nodes.into_iter().map(|(task, node)| (task, resolve(node, &tasks_of))).collect();
        stuck_in(&all).iter().filter_map(|task| all.get(task)).map(|reached| reached.node.participant()).collect()
    }

    /// Whether `task` is blocked and waits, directly or not, for a task of `pid`.
    pub(crate) fn waits_for(&self, task: WaiterId, pid: Pid, tasks_of: impl Fn(Pid) -> Vec<WaiterId>) -> bool {
        leads_to(&self.reach(task, &tasks_of), task, &tasks_of(pid))
    }

    /// `pid` can no longer satisfy a need that it could. Of every cycle that is closed by that, the
    /// youngest wait that can be refused checks its condition again, and is refused.
    pub(crate) fn gone(&self, pid: Pid, tasks_of: impl Fn(Pid) -> Vec<WaiterId>) {
        let concerned: Vec<Arc<WaitNode>> = {
            let nodes = self.nodes.lock();
            let counts = |node: &&Arc<WaitNode>| node.counted_on.lock().contains(&pid);
            nodes.values().filter(|node| node.end != WaitEnd::Bounded).filter(counts).cloned().collect()
        };
        for node in concerned {
            let reach = self.reach(node.waiter.id(), &tasks_of);
            match youngest(&reach, &stuck_in(&reach)) {
                Some(youngest) => youngest.waiter.look_again(),
                None => node.waiter.look_again(),
            }
        }
    }

    /// Whether `task` is in a wait that neither a signal nor a refusal ends.
    pub(crate) fn is_unendable(&self, task: WaiterId) -> bool {
        self.nodes.lock().get(&task).is_some_and(|node| node.end == WaitEnd::Stays)
    }

    pub(crate) fn forget(&self, waiter: WaiterId) {
        self.nodes.lock().remove(&waiter);
    }

    /// Every blocked task, its reason and its needs.
    pub(crate) fn blocked(&self) -> Vec<Participant> {
        let nodes: Vec<Arc<WaitNode>> = self.nodes.lock().values().cloned().collect();
        nodes.iter().map(|node| node.participant()).collect()
    }

    /// What `task` can reach, itself included, if it is blocked.
    fn reach(&self, task: WaiterId, tasks_of: &impl Fn(Pid) -> Vec<WaiterId>) -> Reach {
        let mut reach = Reach::new();
        let mut next = VecDeque::from([task]);
        while let Some(task) = next.pop_front() {
            if reach.contains_key(&task) {
                continue;
            }
            // Who can meet a need is asked without the lock of the nodes.
            let Some(node) = self.nodes.lock().get(&task).cloned() else { continue };
            let reached = resolve(node, tasks_of);
            next.extend(reached.needs.iter().filter_map(|need| need.tasks.as_ref()).flatten());
            reach.insert(task, reached);
        }
        reach
    }
}

/// Asks who can meet the needs of a blocked task. The processes and their tasks are those of one
/// moment: a helper may pass on what it holds between two questions, so the first question is asked
/// again at the end.
///
/// A process is listed in `counted_on` before its tasks are asked for: if it goes before that, the
/// last question finds it gone; if it goes later, [`WaitGraph::gone`] finds it listed. Two tasks
/// may resolve one node at once, so what is listed stays listed.
fn resolve(node: Arc<WaitNode>, tasks_of: &impl Fn(Pid) -> Vec<WaiterId>) -> Reached {
    let ask = || node.needs.iter().map(Awaited::need).collect::<Vec<Need>>();
    let mut needs = ask();
    loop {
        node.counted_on.lock().extend(needs.iter().flat_map(|need| need.any_of.iter().copied()));
        let tasks: Vec<_> = needs.iter().map(|need| able(need, tasks_of)).collect();
        let now = ask();
        if now == needs {
            let resolved = tasks.into_iter().zip(&node.needs);
            let needs = resolved.map(|(tasks, awaited)| ResolvedNeed { tasks, behind: awaited.behind }).collect();
            return Reached { node, needs };
        }
        needs = now;
    }
}

/// Whether the tasks in `waiting` are in one and the same wait in both.
fn same_waits(a: &Reach, b: &Reach, waiting: &BTreeSet<WaiterId>) -> bool {
    let node = |reach: &Reach, task: &WaiterId| reach.get(task).map(|reached| Arc::as_ptr(&reached.node));
    waiting.iter().all(|task| node(a, task) == node(b, task))
}

/// The tasks that could meet a need; none if it can be met without them: by a party outside of this
/// kernel, or by a process that is dying and about to release everything.
fn able(need: &Need, tasks_of: &impl Fn(Pid) -> Vec<WaiterId>) -> Option<Vec<WaiterId>> {
    if need.any_of.is_empty() && need.task.is_none() {
        return None;
    }
    let mut able: Vec<WaiterId> = need.task.into_iter().collect();
    for pid in &need.any_of {
        let tasks = tasks_of(*pid);
        if tasks.is_empty() {
            return None;
        }
        able.extend(tasks);
    }
    Some(able)
}

/// Whether `from` waits, directly or not, for one of `targets`.
fn leads_to(reach: &Reach, from: WaiterId, targets: &[WaiterId]) -> bool {
    let mut seen = BTreeSet::new();
    let mut next = vec![from];
    while let Some(task) = next.pop() {
        let Some(reached) = reach.get(&task).filter(|_| seen.insert(task)) else { continue };
        for able in reached.needs.iter().filter_map(|need| need.tasks.as_ref()).flatten() {
            if targets.contains(able) {
                return true;
            }
            next.push(*able);
        }
    }
    false
}

/// The tasks that can never continue: the greatest set of unbounded waits in which every task has
/// a need that only blocked members of the set could meet.
fn stuck_in(reach: &Reach) -> BTreeSet<WaiterId> {
    let may_stay = |reached: &Reached| reached.node.end != WaitEnd::Bounded && !reached.node.is_stale();
    let mut stuck: BTreeSet<WaiterId> =
        reach.iter().filter(|(_, reached)| may_stay(reached)).map(|(task, _)| *task).collect();
    loop {
        let before = stuck.len();
        let hopeless = |task: &WaiterId| {
            let reached = reach.get(task);
            reached.is_some_and(|reached| reached.needs.iter().any(|need| is_hopeless(reach, reached, need, &stuck)))
        };
        let next: BTreeSet<WaiterId> = stuck.iter().copied().filter(hopeless).collect();
        stuck = next;
        if stuck.len() == before {
            return stuck;
        }
    }
}

/// Whether only members of `stuck` could meet the need. A change that stands behind another passes
/// it if that one waits for its process.
fn is_hopeless(reach: &Reach, reached: &Reached, need: &ResolvedNeed, stuck: &BTreeSet<WaiterId>) -> bool {
    let Some(tasks) = &need.tasks else { return false };
    tasks.iter().all(|task| stuck.contains(task)) && !passes_by(reach, reached, need)
}

/// Whether a blocked task stands behind a change that waits, directly or not, for its process.
fn passes(reach: &Reach, reached: &Reached) -> bool {
    reached.needs.iter().any(|need| passes_by(reach, reached, need))
}

fn passes_by(reach: &Reach, reached: &Reached, need: &ResolvedNeed) -> bool {
    let of_process = |other: &&Reached| other.node.pid == reached.node.pid;
    let own = || reach.values().filter(of_process).map(|other| other.node.waiter.id()).collect::<Vec<_>>();
    need.behind.is_some_and(|ahead| leads_to(reach, ahead, &own()))
}

/// Of the stuck tasks the one that began to wait last, among those that can be refused and are
/// members of a cycle: a task that waits behind a cycle of uninterruptible waits waits on.
fn youngest<'r>(reach: &'r Reach, stuck: &BTreeSet<WaiterId>) -> Option<&'r Arc<WaitNode>> {
    let members = stuck.iter().filter_map(|task| reach.get(task)).map(|reached| &reached.node);
    let refusable = members.filter(|node| node.end == WaitEnd::Refusable);
    refusable.filter(|node| is_in_cycle(reach, node.waiter.id(), stuck)).max_by_key(|node| node.began)
}

/// Whether a stuck task waits, directly or not, for itself.
fn is_in_cycle(reach: &Reach, task: WaiterId, stuck: &BTreeSet<WaiterId>) -> bool {
    let mut seen = BTreeSet::new();
    let mut next = vec![task];
    while let Some(reached) = next.pop().and_then(|task| reach.get(&task)) {
        for need in reached.needs.iter().filter(|need| is_hopeless(reach, reached, need, stuck)) {
            let able = need.tasks.iter().flatten().copied();
            next.extend(able.filter(|able| seen.insert(*able)));
        }
        if seen.contains(&task) {
            return true;
        }
    }
    false
}

/// Of the stuck tasks those that `first` waits for, directly or not, without those that merely
/// wait behind the cycle. `first` leads.
fn cycle_of(reach: &Reach, first: WaiterId, stuck: &BTreeSet<WaiterId>) -> Vec<Participant> {
    let mut found = vec![first];
    let mut at = 0;
    while let Some(reached) = found.get(at).and_then(|task| reach.get(task)) {
        at += 1;
        for need in reached.needs.iter().filter(|need| is_hopeless(reach, reached, need, stuck)) {
            for task in need.tasks.iter().flatten() {
                if !found.contains(task) {
                    found.push(*task);
                }
            }
        }
    }
    found.iter().filter_map(|task| reach.get(task)).map(|reached| reached.node.participant()).collect()
}

#[cfg(all(test, not(any(daxlab_loom, daxlab_shuttle))))]
mod tests {
    use emulator::World;
    use emulator::device::Device;

    use super::WaitEnd::{Bounded, Refusable, Stays};
    use super::*;
    use crate::vfs::kernel::{Kernel, KernelConfig};
    use crate::vfs::signals::{Disposition, Signal};
    use emulator::wait::{WaitFor, WaitQueue};

    fn node(pid: u32, needs: &[&[u32]], end: WaitEnd) -> WaitNode {
        let need = |any: &&[u32]| Awaited::from(Need::any_of(any.iter().map(|p| Pid(*p)).collect()));
        let waiter = Waiter::new(WaiterId(u64::from(pid)));
        WaitNode {
            wakes: waiter.wakes(),
            waiter,
            began: u64::from(pid),
            pid: Pid(pid),
            reason: "a test",
            needs: needs.iter().map(need).collect(),
            end,
            counted_on: Mutex::default(),
        }
    }

    /// One task for each process, with the process's number.
    fn one_task(pid: Pid) -> Vec<WaiterId> {
        vec![WaiterId(u64::from(pid.0))]
    }

    fn reach_of(nodes: Vec<WaitNode>, tasks_of: impl Fn(Pid) -> Vec<WaiterId>) -> Reach {
        nodes.into_iter().map(|node| (node.waiter.id(), resolve(Arc::new(node), &tasks_of))).collect()
    }

    fn stuck(nodes: &[(u32, &[&[u32]], WaitEnd)], who: u32) -> bool {
        let nodes = nodes.iter().map(|(pid, needs, end)| node(*pid, needs, *end)).collect();
        super::stuck_in(&reach_of(nodes, one_task)).contains(&WaiterId(u64::from(who)))
    }

    #[test]
    fn a_cycle_is_stuck_unless_one_member_can_move() {
        assert!(stuck(&[(1, &[&[2]], Refusable), (2, &[&[1]], Refusable)], 1));
        assert!(stuck(&[(1, &[&[1]], Refusable)], 1), "waiting for oneself");
        assert!(!stuck(&[(1, &[&[2]], Refusable), (2, &[&[1]], Bounded)], 1), "a deadline ends it");
        assert!(!stuck(&[(1, &[&[2]], Refusable), (2, &[&[3]], Refusable)], 1), "3 is awake");
        assert!(!stuck(&[(1, &[&[2, 3]], Refusable), (2, &[&[1]], Refusable)], 1), "3 could do it as well");
        assert!(stuck(&[(1, &[&[3], &[2]], Refusable), (2, &[&[1]], Refusable)], 1), "all needs must be met");
    }

    #[test]
    fn a_cycle_names_its_members_and_not_those_who_wait_behind_it() {
        let graph = WaitGraph::default();
        for (pid, needs) in [(1, 2), (2, 3), (4, 1), (5, 6)] {
            assert_eq!(graph.record(node(pid, &[&[needs]], Refusable), one_task), Ok(()));
        }
        assert_eq!(graph.stuck(one_task), []);
        let deadlock = graph.record(node(3, &[&[1]], Refusable), one_task).unwrap_err();
        let members: Vec<u32> = deadlock.participants.iter().map(|participant| participant.pid.0).collect();
        assert_eq!(members, [3, 1, 2], "the refused one first");
        assert_eq!(
            deadlock.to_string(),
            "deadlock: task 3 of process 3: a test, needs [process 1] <- task 1 of process 1: a test, needs [process 2] \
             <- task 2 of process 2: a test, needs [process 3]"
        );
        assert_eq!(graph.blocked().len(), 4, "the refused one is not blocked");
        // Had it been recorded, the tasks behind the cycle would be stuck too.
        graph.nodes.lock().insert(WaiterId(3), Arc::new(node(3, &[&[1]], Refusable)));
        let stuck: Vec<u32> = graph.stuck(one_task).iter().map(|participant| participant.pid.0).collect();
        assert_eq!(stuck, [1, 2, 3, 4]);
    }

    #[test]
    fn a_wait_that_cannot_be_refused_ends_the_youngest_that_can() {
        let graph = WaitGraph::default();
        let (first, second) = (node(1, &[&[2]], Refusable), node(2, &[&[3]], Refusable));
        let (older, younger) = (Arc::clone(&first.waiter), Arc::clone(&second.waiter));
        for node in [first, second] {
            assert_eq!(graph.record(node, one_task), Ok(()));
        }
        let before = (older.wakes(), younger.wakes());
        assert_eq!(graph.record(node(3, &[&[1]], Stays), one_task), Ok(()));
        assert_eq!((older.wakes(), younger.wakes()), (before.0, before.1 + 1), "process 2 began last");
        let again = WaitNode { wakes: younger.wakes(), waiter: younger, ..node(2, &[&[3]], Refusable) };
        assert!(graph.record(again, one_task).is_err(), "it is refused when it checks again");
    }

    /// A task that waits behind tasks which nothing ends is no member of their cycle.
    #[test]
    fn a_wait_behind_a_stuck_task_goes_on() {
        let graph = WaitGraph::default();
        assert_eq!(graph.record(node(1, &[&[1]], Stays), one_task), Ok(()), "it can't be refused");
        let behind = node(2, &[&[1]], Refusable);
        let before = behind.waiter.wakes();
        let waiter = Arc::clone(&behind.waiter);
        assert_eq!(graph.record(behind, one_task), Ok(()));
        assert_eq!(waiter.wakes(), before);
        let stuck = graph.stuck(one_task);
        let who: Vec<(u32, bool)> = stuck.iter().map(|task| (task.pid.0, task.uninterruptible)).collect();
        assert_eq!(who, [(1, true), (2, false)]);
    }

    #[test]
    fn who_could_help_when_the_question_is_asked_counts() {
        let graph = WaitGraph::default();
        let helpers = Arc::new(Mutex::new(vec![Pid(1)]));
        let asked = Arc::clone(&helpers);
        let waits = WaitNode {
            needs: vec![Awaited::ask(move || Need::any_of(asked.lock().clone()))],
            ..node(2, &[], Refusable)
        };
        assert_eq!(graph.record(waits, one_task), Ok(()));
        // A child of process 1 that was forked after process 2 began to wait.
        helpers.lock().push(Pid(3));
        assert_eq!(graph.record(node(1, &[&[2]], Refusable), one_task), Ok(()));
        assert_eq!(graph.stuck(one_task), []);
        helpers.lock().pop();
        let wakes = |task: u64| graph.nodes.lock()[&WaiterId(task)].waiter.wakes();
        let before = (wakes(1), wakes(2));
        graph.gone(Pid(3), one_task);
        assert_eq!(
            (wakes(1), wakes(2)),
            (before.0, before.1 + 1),
            "process 2 has the greater number here: it began last"
        );
    }

    /// A helper passes on what it holds after its process was named, and ends: the new one counts.
    #[test]
    fn a_helper_that_hands_on_while_it_is_asked_for_counts() {
        let helpers = Arc::new(Mutex::new(vec![Pid(1)]));
        let asked = Arc::clone(&helpers);
        let waits = WaitNode {
            needs: vec![Awaited::ask(move || Need::any_of(asked.lock().clone()))],
            ..node(2, &[], Refusable)
        };
        // Before process 1 is asked for its tasks, one of them has handed on to process 3, and
        // ended.
        let tasks_of = |pid: Pid| {
            *helpers.lock() = vec![Pid(1), Pid(3)];
            one_task(pid)
        };
        let reached = resolve(Arc::new(waits), &tasks_of);
        assert_eq!(reached.needs[0].tasks, Some(vec![WaiterId(1), WaiterId(3)]));
    }

    /// Process 3 passes what it holds to process 4, after it was asked what process 1 needs, and
    /// waits then. The waits of 1, 3 and 2 seem to be a cycle.
    #[test]
    fn a_cycle_that_never_existed_is_seen_through() {
        let graph = WaitGraph::default();
        let helpers = Arc::new(Mutex::new(vec![Pid(3)]));
        let (asked, hands_on) = (Arc::clone(&helpers), Arc::clone(&helpers));
        let first = WaitNode {
            needs: vec![Awaited::ask(move || Need::any_of(asked.lock().clone()))],
            ..node(1, &[], Refusable)
        };
        let third = WaitNode {
            needs: vec![Awaited::ask(move || {
                *hands_on.lock() = vec![Pid(3), Pid(4)];
                Need::any_of(vec![Pid(2)])
            })],
            ..node(3, &[], Refusable)
        };
        for node in [first, third] {
            graph.nodes.lock().insert(node.waiter.id(), Arc::new(node));
        }
        let youngest = WaitNode { began: 9, ..node(2, &[&[1]], Refusable) };
        assert_eq!(graph.record(youngest, one_task), Ok(()), "process 4 can help");
        assert_eq!(graph.stuck(one_task), []);
    }

    /// A task is late with an old answer: the process that another question has found since still
    /// counts when it goes.
    #[test]
    fn a_process_that_was_found_once_stays_counted_on() {
        let graph = Arc::new(WaitGraph::default());
        let helpers = Arc::new(Mutex::new(vec![Pid(3)]));
        let (asked, other) = (Arc::clone(&helpers), Arc::downgrade(&graph));
        let is_first = AtomicU64::new(1);
        let waits = WaitNode {
            needs: vec![Awaited::ask(move || {
                let answer = Need::any_of(asked.lock().clone());
                if is_first.swap(0, Ordering::Relaxed) == 1 {
                    // Meanwhile process 3 passes what it holds to process 4 and goes.
                    *asked.lock() = vec![Pid(4)];
                    other.upgrade().expect("the graph").gone(Pid(3), one_task);
                    other.upgrade().expect("the graph").stuck(one_task);
                }
                answer
            })],
            ..node(1, &[], Refusable)
        };
        let waiter = Arc::clone(&waits.waiter);
        assert_eq!(graph.record(waits, one_task), Ok(()));
        helpers.lock().clear();
        let before = waiter.wakes();
        graph.gone(Pid(4), one_task);
        assert!(waiter.wakes() > before, "it checks its wait again");
    }

    #[test]
    fn a_change_passes_one_that_waits_for_its_own_process() {
        let graph = WaitGraph::default();
        let behind = |pid: u32, ahead: u64| WaitNode {
            needs: vec![Awaited::behind(WaiterId(ahead))],
            ..node(pid, &[], Refusable)
        };
        let (third, second) = (behind(3, 2), behind(2, 1));
        let waiter = Arc::clone(&third.waiter);
        for node in [third, second] {
            assert_eq!(graph.record(node, one_task), Ok(()));
        }
        let before = waiter.wakes();
        assert_eq!(graph.record(node(1, &[&[3]], Refusable), one_task), Ok(()), "no cycle: process 3 passes it");
        assert!(waiter.wakes() > before, "it is told that it can pass");
        assert!(graph.waits_for(WaiterId(2), Pid(3), one_task), "not directly");
        assert!(!graph.waits_for(WaiterId(2), Pid(4), one_task));
    }

    #[test]
    fn who_was_woken_since_it_looked_is_not_taken_for_blocked() {
        let nodes = vec![node(1, &[&[2]], Refusable), node(2, &[&[1]], Refusable)];
        let second = Arc::clone(&nodes[1].waiter);
        let reach = reach_of(nodes, one_task);
        assert!(super::stuck_in(&reach).contains(&WaiterId(1)));
        second.interrupt(false);
        assert!(!super::stuck_in(&reach).contains(&WaiterId(1)), "2 is about to look again");
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
            task.block_on(&queue, how, || WaitPoll::<()>::Blocked(vec![Need::any_of(vec![task.pid()]).into()]))
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
        let nodes = || vec![node(1, &[&[2]], Refusable), node(2, &[&[1]], Refusable)];
        let two_threads = |pid: Pid| match pid {
            Pid(2) => vec![WaiterId(2), WaiterId(22)],
            other => one_task(other),
        };
        assert!(!super::stuck_in(&reach_of(nodes(), two_threads)).contains(&WaiterId(1)));
        assert!(super::stuck_in(&reach_of(nodes(), one_task)).contains(&WaiterId(1)));
    }
}
