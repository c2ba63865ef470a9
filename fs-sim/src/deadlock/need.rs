//! What a blocked task needs, and reports of deadlocks.
//!
//! It owns these values and their wording. Who can meet a need is asked for when a cycle is judged
//! (`Awaited`), not when the wait begins: a child that was forked, or a process that received a
//! descriptor, meanwhile counts. Invariant: a need names at least one process, task or outside
//! party, or it can be met by the passage of time. Kernel counterpart: the `blocked_by` links of
//! `struct file_lock`.

use emulator::wait::WaiterId;

use crate::base::numbers::Pid;

/// One thing that a blocked task needs: any of these can bring it about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// Any task of any of these processes.
    pub any_of: Vec<Pid>,
    /// Or this one task, whatever other tasks of its process could do.
    pub task: Option<WaiterId>,
    /// Or a party outside of this kernel, in words, where there is neither: it may always still
    /// act.
    pub outside: Option<String>,
}

impl Need {
    /// A need that any of these processes can meet.
    pub(crate) fn any_of(processes: Vec<Pid>) -> Need {
        Need { any_of: processes, task: None, outside: None }
    }

    /// A need that only this task can meet.
    pub(crate) fn task(task: WaiterId) -> Need {
        Need { any_of: Vec::new(), task: Some(task), outside: None }
    }
}

/// What a blocked task waits for: a need, and who can meet it at the moment of the question.
pub(crate) struct Awaited {
    ask: Box<dyn Fn() -> Need + Send + Sync>,
    /// The change that it stands behind, has no turn, and is passed as soon as it waits for the
    /// process of this one.
    pub(crate) behind: Option<WaiterId>,
}

impl Awaited {
    /// `ask` says who can meet it now. It is called with no lock of the wait graph's nodes held,
    /// and neither waits nor records a wait.
    pub(crate) fn ask(ask: impl Fn() -> Need + Send + Sync + 'static) -> Awaited {
        Awaited { ask: Box::new(ask), behind: None }
    }

    /// It stands behind the layout change of `task`.
    pub(crate) fn behind(task: WaiterId) -> Awaited {
        Awaited { behind: Some(task), ..Awaited::from(Need::task(task)) }
    }

    /// The need, with those who can meet it now.
    pub(crate) fn need(&self) -> Need {
        (self.ask)()
    }
}

impl From<Need> for Awaited {
    fn from(need: Need) -> Awaited {
        Awaited::ask(move || need.clone())
    }
}

impl std::fmt::Debug for Awaited {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.need())
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
    /// What it needs, all of it.
    pub needs: Vec<Need>,
    /// Whether no signal ends its wait, not even SIGKILL, and it can't be refused: the design has
    /// such waits (`pin_wait_holds = inode`, `evict_while_pinned = wait`).
    pub uninterruptible: bool,
}

impl std::fmt::Display for Participant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let needs: Vec<String> = self.needs.iter().map(Need::to_string).collect();
        write!(f, "task {} of process {}: {}, needs [{}]", self.task.0, self.pid, self.reason, needs.join("; "))
    }
}

/// A cycle of waits that was refused with EDEADLK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deadlock {
    /// The members of the cycle; the first got EDEADLK.
    pub participants: Vec<Participant>,
}

impl std::fmt::Display for Deadlock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let participants: Vec<String> = self.participants.iter().map(Participant::to_string).collect();
        write!(f, "deadlock: {}", participants.join(" <- "))
    }
}
