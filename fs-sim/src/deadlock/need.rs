//! TODO

use emulator::wait::WaiterId;

use crate::base::numbers::Pid;

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
