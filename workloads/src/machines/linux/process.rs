//! A process of a scenario, as the driver sees it.
//!
//! It owns its sockets, its state, and the judgement whether it waits. Invariant: a process that is
//! dead stays dead. Kernel counterpart: `struct task_struct`, as far as /proc shows it.

use std::cell::Cell;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::child;
use super::child::wire::{self, ChildFailure, ChildValue};
use super::request::blocks_in;
use super::spin::SpinProof;
use super::watch::{SleepPlace, SleepWatch};
use crate::machines::machine::Trouble;
use crate::ops::{Op, Verb};

pub(super) const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// Where an idle process sleeps.
const IDLE: SleepPlace = SleepPlace { number: libc::SYS_recvmsg, first: Some(child::CONTROL as u64) };

/// A request that was sent and is not answered yet.
#[derive(Debug)]
pub(super) struct PendingRequest {
    /// The operation; none for the driver's own request.
    pub(super) op: Option<Op>,
    pub(super) bind: Option<String>,
    /// The driver's ends of the forked process's sockets.
    pub(super) birth: Option<ProcessSockets>,
    /// The process whose operation this one carries out.
    pub(super) on_behalf: Option<String>,
}

#[derive(Debug)]
pub(super) struct ProcessSockets {
    pub(super) control: OwnedFd,
    /// A descriptor sent here arrives in the process's inbox.
    pub(super) inbox: OwnedFd,
}

#[derive(Debug)]
pub(super) enum ProcessState {
    Idle,
    Busy(Box<PendingRequest>),
    /// Another process carries out its operation.
    Delegated,
    /// The process runs another program.
    Running,
    Dead,
}

#[derive(Debug)]
pub(super) struct ChildProcess {
    pub(super) sockets: ProcessSockets,
    pub(super) watch: SleepWatch,
    /// Whether it spins in its call, as far as the looks of the present wait have shown.
    pub(super) spin: Cell<SpinProof>,
    pub(super) death: OwnedFd,
    pub(super) state: ProcessState,
    /// Its end of the control socket is closed: it is dying, or about to become another program.
    pub(super) closed: bool,
    /// The outcome of the last operation, until the scenario asks for it.
    pub(super) outcome: Option<String>,
    pub(super) handled: Vec<i32>,
    /// What it answered to a request of the driver's own.
    pub(super) answer: Option<Result<ChildValue, ChildFailure>>,
}

impl ChildProcess {
    pub(super) fn new(pid: i32, sockets: ProcessSockets) -> Result<ChildProcess, Trouble> {
        let gone = |error: String| Trouble::CannotRun(format!("process {pid} can't be watched: {error}"));
        let watch = SleepWatch::of(pid).map_err(|error| gone(error.to_string()))?;
        let number = Pid::from_raw(pid).ok_or_else(|| gone("it has no number".to_owned()))?;
        let death = pidfd_open(number, PidfdFlags::empty()).map_err(|errno| gone(errno.to_string()))?;
        Ok(ChildProcess {
            sockets,
            watch,
            spin: Cell::default(),
            death,
            state: ProcessState::Idle,
            closed: false,
            outcome: None,
            handled: Vec::new(),
            answer: None,
        })
    }

    /// The pages that it has pinned for long (`VmPin` of /proc/PID/status); 0 if it is dead.
    pub(super) fn locked_pages(&self, pid: i32) -> Result<String, Trouble> {
        if self.is_dead() {
            return Ok("0".to_owned());
        }
        let cannot = || Trouble::CannotRun(format!("/proc/{pid}/status does not tell of pinned pages"));
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).map_err(|_| cannot())?;
        let kib = status.lines().find_map(|line| line.strip_prefix("VmPin:")?.trim().strip_suffix(" kB"));
        let kib: u64 = kib.and_then(|kib| kib.trim().parse().ok()).ok_or_else(cannot)?;
        Ok((kib * 1024 / fs_sim::BLOCK).to_string())
    }

    /// Whether it is in a call of this operation.
    pub(super) fn is_in(&self, verb: Verb) -> bool {
        matches!(&self.state, ProcessState::Busy(pending) if pending.op.as_ref().is_some_and(|op| op.verb() == verb))
    }

    pub(super) fn is_dead(&self) -> bool {
        matches!(self.state, ProcessState::Dead)
    }

    /// Whether it sleeps where it may, or spins where it may, so that only an action of another
    /// process or of the driver changes its state. `has_io` says whether I/O of it is held back.
    pub(super) fn sleeps(&self, has_io: bool) -> bool {
        let place = match &self.state {
            ProcessState::Dead | ProcessState::Running => return true,
            ProcessState::Idle | ProcessState::Delegated => Some(IDLE),
            ProcessState::Busy(pending) => pending.op.as_ref().and_then(|op| blocks_in(op.verb())),
        };
        self.watch.waits_in_exit(has_io)
            || !self.closed
                && place
                    .is_some_and(|place| self.watch.sleeps_in(place).unwrap_or(false) || self.is_seen_spinning(place))
    }

    /// Looks whether it spins. Only ioctl(2) has a function that does.
    pub(super) fn is_seen_spinning(&self, place: SleepPlace) -> bool {
        if place.number != libc::SYS_ioctl {
            return false;
        }
        let mut proof = self.spin.get();
        let proven = proof.add(self.watch.spinning());
        self.spin.set(proof);
        proven
    }

    /// Whether it has proven to spin.
    pub(super) fn spins(&self) -> bool {
        self.spin.get().is_proven()
    }
}

/// The driver's ends of a new process's sockets, and the process's control socket and inbox.
pub(super) fn new_sockets() -> Result<(ProcessSockets, OwnedFd, OwnedFd), Trouble> {
    let none = |errno: Errno| Trouble::CannotRun(format!("no sockets: {errno}"));
    let (control, theirs) = wire::pair().map_err(none)?;
    let (inbox, receiver) = wire::pair().map_err(none)?;
    Ok((ProcessSockets { control, inbox }, theirs, receiver))
}

pub(super) fn is_ready(fd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    poll(&mut fds, Some(&NOW)).is_ok_and(|ready| ready > 0)
}
