//! The layout changes of one file that are under way or queued, and what each waits for.
//!
//! It owns no state and decides nothing: the order is that of the file's queue for layout changes,
//! and what stands against a change is judged as in `blockers`. An answer is a snapshot, exact
//! while no task runs: of a change that runs, the pins that it is about to meet are not told.
//! Kernel counterpart: /proc/PID/stack of the tasks in `xfs_break_layouts`.

use std::fmt;

use emulator::runtime::clock::Nanos;
use emulator::sync::Arc;
use emulator::wait::WaiterId;
use serde::Serialize;

use crate::base::numbers::{Ino, Pid};
use crate::holders::holder::Holder;
use crate::holders::list::{notify_only, pin_holders};
use crate::inspect::blockers::{Blocker, FileBlocks, WaitingTask, judged, waiting_tasks};
use crate::vfs::change_state::ChangeState;
use crate::vfs::inode::Inode;
use crate::vfs::kernel::Kernel;
use crate::vfs::layout_turn::ChangeView;

/// A layout change of one file. One of two files is told for each of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PendingChange {
    /// The inode.
    pub ino: u64,
    /// The task that makes the change.
    pub task: u64,
    /// Its process; none for the kernel's own work.
    pub pid: Option<u32>,
    /// `queued`, `judging`, `waiting`, `closed` or `published`: docs/states/layout-change.md.
    pub state: &'static str,
    /// The file blocks that it touches, by its last plan.
    pub ranges: Vec<FileBlocks>,
    /// Whether it has the turn for them: no other change of them proceeds.
    pub has_turn: bool,
    /// Whether it keeps reads, writes and changes by other tasks waiting (`pin_wait_holds`).
    pub holds_inode: bool,
    /// The tasks of the changes that come before it.
    pub behind: Vec<u64>,
    /// What it sleeps on, if it sleeps.
    pub sleep: Option<WaitingTask>,
    /// The leases, pins, clients, guests and I/O that it meets where it waits.
    pub blockers: Vec<Blocker>,
    /// When it took its place, in nanoseconds of the kernel's clock.
    pub arrived_ns: u64,
    /// When it came into its state.
    pub since_ns: u64,
    /// When this was asked.
    pub now_ns: u64,
}

impl Kernel {
    /// The layout changes of `ino` that are under way or queued, in the order of arrival; `None` if
    /// there is no such inode.
    pub fn pending_changes(&self, ino: Ino) -> Option<Vec<PendingChange>> {
        let inode = self.inodes.get(ino).or_else(|| self.ghosts.get(ino))?;
        let waiting = waiting_tasks(self);
        let line = inode.turn.line();
        Some(line.into_iter().map(|change| pending(self, &inode, change, &waiting)).collect())
    }

    /// The process of a task.
    fn process_of(&self, task: WaiterId) -> Option<Pid> {
        let has = |waiters: &[Arc<emulator::wait::Waiter>]| waiters.iter().any(|waiter| waiter.id() == task);
        let processes = self.processes.snapshot().into_iter();
        processes.into_iter().find(|(_, process)| has(&process.waiters.lock())).map(|(pid, _)| pid)
    }
}

fn pending(kernel: &Kernel, inode: &Inode, change: ChangeView, waiting: &[(WaiterId, WaitingTask)]) -> PendingChange {
    let sleep = waiting.iter().find(|(task, _)| *task == change.task).map(|(_, sleep)| sleep.clone());
    let pid = sleep.as_ref().map(|sleep| Pid(sleep.pid)).or_else(|| kernel.process_of(change.task));
    let behind = match pid {
        Some(pid) if change.state == ChangeState::Queued => inode.turn.before(kernel, change.task, pid),
        _ => Vec::new(),
    };
    let blockers = match (&change.waiting, pid) {
        (Some(ranges), Some(pid)) => {
            let known = |holder: &Arc<Holder>| change.pins.holders.contains(&holder.id);
            let holders = pin_holders(inode).all().into_iter().chain(notify_only(inode).all());
            let met: Vec<_> = holders.filter(known).collect();
            judged(kernel, inode, ranges, &met, &change.pins.io_pages, pid)
        }
        _ => Vec::new(),
    };
    let Nanos(now_ns) = kernel.world.now();
    PendingChange {
        ino: inode.ino().0,
        task: change.task.0,
        pid: pid.map(|pid| pid.0),
        state: state_word(change.state),
        ranges: change.ranges.iter().map(FileBlocks::from).collect(),
        has_turn: change.state.has_turn(),
        holds_inode: change.holds_inode,
        behind: behind.into_iter().map(|task| task.0).collect(),
        sleep,
        blockers,
        arrived_ns: change.times.arrived.0,
        since_ns: change.times.since.0,
        now_ns,
    }
}

fn state_word(state: ChangeState) -> &'static str {
    match state {
        ChangeState::Queued => "queued",
        ChangeState::Judging => "judging",
        ChangeState::Waiting => "waiting",
        ChangeState::Closed => "closed",
        ChangeState::Published => "published",
        ChangeState::Over => "over",
    }
}

fn seconds(now_ns: u64, then_ns: u64) -> f64 {
    now_ns.saturating_sub(then_ns) as f64 / 1e9
}

/// Lines that each end with a line end.
impl fmt::Display for PendingChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges: Vec<String> = self.ranges.iter().map(FileBlocks::to_string).collect();
        write!(f, "inode {}: change of {}, task {} of ", self.ino, ranges.join(", "), self.task)?;
        match self.pid {
            Some(pid) => write!(f, "process {pid}")?,
            None => f.write_str("the kernel")?,
        }
        let (state, arrived) = (seconds(self.now_ns, self.since_ns), seconds(self.now_ns, self.arrived_ns));
        write!(f, ": {} for {state:.3} s, came {arrived:.3} s ago", self.state)?;
        if self.has_turn {
            f.write_str(", has the turn")?;
        }
        if self.holds_inode {
            f.write_str(", holds the inode")?;
        }
        writeln!(f)?;
        if !self.behind.is_empty() {
            let behind: Vec<String> = self.behind.iter().map(|task| format!("task {task}")).collect();
            writeln!(f, "  stands behind {}", behind.join(", "))?;
        }
        if let Some(sleep) = &self.sleep {
            writeln!(f, "  sleeps: {}", sleep.reason)?;
            for need in &sleep.needs {
                writeln!(f, "    needs {need}")?;
            }
        }
        self.blockers.iter().try_for_each(|blocker| writeln!(f, "  meets {blocker}"))
    }
}
