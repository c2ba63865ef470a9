//! The driver's side of the real machine.
//!
//! It owns the processes of one scenario, and the names that the scenario has given to things.
//! Invariants: between two calls every process sleeps where the driver saw it asleep, or is dead
//! ([`LinuxMachine::settle`]). Names stand for the kernel's own numbers, as on the simulated
//! machine. Kernel counterpart: a shell with job control.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use emulator::sync::thread::yield_now;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::process::{Signal, pidfd_send_signal};

use super::child::wire::{self, ChildFailure, ChildReply, ChildRequest, ChildValue};
use super::clock::BreakClock;
use super::device_dax::DeviceDaxPart;
use super::disks::RamDisks;
use super::host::Host;
use super::names::{NamedThing, ScenarioNames};
use super::process::{ChildProcess, NOW, PendingRequest, ProcessSockets, ProcessState, is_ready, new_sockets};
use super::request::{self, PreparedOp, errno_name, is_calm, lease_name, signal_name, signal_number};
use super::setup;
use super::spin::SpinProof;
use crate::language::{Actor, Query, QuerySubject, Setup, processes_named};
use crate::machines::machine::{Machine, Progress, Trouble};
use crate::ops::{ByteRange, Bytes, Op, SignalName, Verb};

/// How many consecutive looks must find all processes asleep.
const LOOKS: u32 = 3;
/// Looks without a pause, before the driver waits between looks.
const EAGER_LOOKS: u32 = 200;
/// After this many looks the result is inconclusive: about 20 s, at a millisecond for each later
/// look.
const LOOKS_MAX: u32 = 20_000;
/// The longest time, in seconds, for an operation that can't block.
const ANSWER_SECONDS_MAX: u32 = 60;

const MILLISECOND: Timespec = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
const SECOND: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// The machine; see the module.
#[derive(Debug)]
pub struct LinuxMachine {
    processes: BTreeMap<String, ChildProcess>,
    pub(super) names: ScenarioNames,
    dir: PathBuf,
    clock: BreakClock,
    /// The limit of locked memory that each process starts with.
    memlock: Option<u64>,
    programs: u32,
    /// What the processes have mapped of the device.
    device_dax: Vec<DeviceDaxPart>,
    disks: RamDisks,
    /// Whether a process that nothing can end may be left at the end.
    leaves_processes: bool,
    /// Set when an answer shows that this host can't run the scenario.
    trouble: Option<Trouble>,
    host: Rc<Host>,
}

impl LinuxMachine {
    /// A machine for a scenario. The files named in `programs` can be executed.
    ///
    /// # Errors
    /// [`Trouble::CannotRun`] if files can't be made; [`Trouble::Script`] for an illegal file name.
    pub fn new(host: &Rc<Host>, setup: &Setup, programs: &[String]) -> Result<LinuxMachine, Trouble> {
        let file_system = host.file_system();
        if setup.dax && !file_system.dax {
            let name = &file_system.name;
            return Err(Trouble::CannotRun(format!("{name} is used without DAX here: a guest has it (`--on guest`)")));
        }
        let dir = host.new_dir()?;
        setup::make_files(&dir, setup, programs)?;
        Ok(LinuxMachine {
            processes: BTreeMap::new(),
            names: ScenarioNames::default(),
            dir,
            clock: BreakClock::new(setup.options.lease_break_time, host.break_time().cloned()),
            memlock: setup.memlock,
            programs: 0,
            device_dax: Vec::new(),
            disks: RamDisks::default(),
            leaves_processes: false,
            trouble: None,
            host: Rc::clone(host),
        })
    }

    /// Lets the scenario leave a process that nothing can end, on a Linux that is thrown away.
    pub fn leaving_processes(mut self) -> LinuxMachine {
        self.leaves_processes = self.host.is_disposable();
        self
    }

    /// Makes the process if it does not exist.
    fn ensure_process(&mut self, name: &str) -> Result<(), Trouble> {
        if self.processes.contains_key(name) {
            return Ok(());
        }
        let (sockets, control, inbox) = new_sockets()?;
        let pid = self.host.spawn(control.as_fd(), inbox.as_fd())?;
        self.add_process(name, pid, sockets)?;
        match self.memlock {
            Some(bytes) => self.limit_locked(name, bytes),
            None => Ok(()),
        }
    }

    fn add_process(&mut self, name: &str, pid: i32, sockets: ProcessSockets) -> Result<(), Trouble> {
        self.processes.insert(name.to_owned(), ChildProcess::new(pid, sockets)?);
        self.names.pids.insert(name.to_owned(), pid);
        Ok(())
    }

    fn process(&mut self, name: &str) -> Result<&mut ChildProcess, Trouble> {
        let unknown = || Trouble::Script(format!("there is no process `{name}` yet"));
        self.processes.get_mut(name).ok_or_else(unknown)
    }

    /// Sends a request to an idle process.
    fn send(
        &mut self,
        to: &str,
        request: &ChildRequest,
        fds: &[OwnedFd],
        pending: PendingRequest,
    ) -> Result<(), Trouble> {
        let process = self.process(to)?;
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        match wire::send(process.sockets.control.as_fd(), request, &fds) {
            Ok(()) => {
                process.state = ProcessState::Busy(Box::new(pending));
                Ok(())
            }
            Err(Errno::MSGSIZE) => Err(Trouble::Script("the names of this step are too long".to_owned())),
            Err(errno) => Err(Trouble::Inconclusive(format!("{to} can't be sent a request: {errno}"))),
        }
    }

    /// Starts `op` of the process `who`; returns the outcome if it needs no request.
    fn begin(&mut self, who: &str, op: &Op, bind: Option<&str>) -> Result<Option<&'static str>, Trouble> {
        let bind = bind.map(str::to_owned);
        let mut pending = PendingRequest { op: Some(op.clone()), bind, birth: None, on_behalf: None };
        let mut fds = Vec::new();
        let request = match op {
            Op::Fork {} => {
                let (ours, control, inbox) = new_sockets()?;
                pending.birth = Some(ours);
                fds = vec![control, inbox];
                ChildRequest::Fork
            }
            Op::Send { process, fd } => {
                let fd = self.names.fd(fd)?;
                let inbox = &self.process(process)?.sockets.inbox;
                fds.push(inbox.try_clone().map_err(|error| Trouble::CannotRun(error.to_string()))?);
                ChildRequest::Send { fd }
            }
            Op::Exec { file } => {
                let path = request::path(&self.dir, file)?;
                let key = format!("program {}", self.programs);
                self.programs += 1;
                self.ensure_process(&key)?;
                pending.on_behalf = Some(who.to_owned());
                self.process(who)?.state = ProcessState::Delegated;
                self.send(&key, &ChildRequest::Exec { path }, &[], pending)?;
                return Ok(None);
            }
            Op::End { program } => return self.end_program(program).map(Some),
            Op::RamDisk { length, delay } => {
                let disk = self.ram_disk(length.0, delay.is_some())?;
                if let Some(bind) = pending.bind {
                    self.names.things.insert(bind, disk);
                }
                return Ok(Some("ok"));
            }
            Op::SubmitReadInto { .. } | Op::SubmitWriteFrom { .. } => match self.disks.submit(op, who, &self.names)? {
                PreparedOp::Ask(request) => request,
                PreparedOp::Plain(outcome) => return Ok(Some(outcome)),
            },
            Op::Complete { io } => {
                let (number, owner) = self.names.io(io)?;
                if owner != who {
                    return self.complete_for(&owner, number).map(Some);
                }
                self.disks.release(number);
                ChildRequest::CompleteIo { number }
            }
            Op::Credentials { .. } if !self.host.is_root() => {
                return Err(Trouble::CannotRun("only root can change a process's user".to_owned()));
            }
            Op::Tmpfile { length } => {
                let folder = self.host.page_cache_folder(&self.dir)?;
                ChildRequest::Tmpfile { folder, size: request::signed(length.0) }
            }
            Op::MmapDevDax { length } => {
                let part = self.host.device_dax(length.0)?;
                let (path, offset, len) = (part.path(), part.offset, part.len);
                self.device_dax.push(part);
                ChildRequest::MapDeviceDax { path, offset, len }
            }
            _ => match request::translate(op, who, &self.dir, &self.names)? {
                PreparedOp::Ask(request) => request,
                PreparedOp::Plain(outcome) => return Ok(Some(outcome)),
            },
        };
        self.send(who, &request, &fds, pending)?;
        Ok(None)
    }

    /// Kills a running program.
    fn end_program(&mut self, program: &str) -> Result<&'static str, Trouble> {
        let key = match self.names.get(program)? {
            NamedThing::Program(key) => key.clone(),
            _ => return Err(Trouble::Script(format!("`{program}` is not a program"))),
        };
        // If the program has already ended, the signal fails, which changes nothing.
        let _ = pidfd_send_signal(&self.process(&key)?.death, Signal::KILL);
        self.until_dead(&key)?;
        Ok("ok")
    }

    /// A RAM disk that I/O can be held back from.
    fn ram_disk(&mut self, len: u64, has_delay: bool) -> Result<NamedThing, Trouble> {
        if has_delay {
            return Err(Trouble::CannotRun("a real disk's I/O takes no time that a scenario sets".to_owned()));
        }
        if !self.host.is_disposable() {
            let why = "only in a guest can RAM disks be overwritten (`--on guest`)";
            return Err(Trouble::CannotRun(why.to_owned()));
        }
        self.disks.open(len)
    }

    /// Lets I/O of another process end, which can't ask for it any more: it is exiting. A living
    /// one completes its own.
    fn complete_for(&mut self, owner: &str, number: u32) -> Result<&'static str, Trouble> {
        let owner = self.process(owner)?;
        if !owner.is_dead() && !owner.watch.exits() {
            return Ok("EINVAL");
        }
        self.disks.release(number);
        self.settle(None)?;
        Ok("ok")
    }

    /// Makes a request of the driver's own, which can neither block nor affect another process.
    ///
    /// # Errors
    /// The process is in another call, or gives no answer.
    pub(super) fn ask_process(
        &mut self,
        who: &str,
        request: &ChildRequest,
    ) -> Result<Result<ChildValue, ChildFailure>, Trouble> {
        match self.process(who)?.state {
            ProcessState::Idle => {}
            ProcessState::Dead | ProcessState::Running => return Err(Trouble::Script(format!("{who} is dead"))),
            ProcessState::Busy(_) | ProcessState::Delegated => {
                return Err(Trouble::Script(format!("{who}, which this needs, is in a call that blocks")));
            }
        }
        let own = PendingRequest { op: None, bind: None, birth: None, on_behalf: None };
        self.send(who, request, &[], own)?;
        self.until_answered(who)?;
        let none = || Trouble::Inconclusive(format!("{who} has died without an answer"));
        self.process(who)?.answer.take().ok_or_else(none)
    }

    /// Waits until the operation of `who` is answered. It must be one that can neither block nor
    /// affect another process.
    fn until_answered(&mut self, who: &str) -> Result<(), Trouble> {
        for _ in 0..ANSWER_SECONDS_MAX {
            if !matches!(self.process(who)?.state, ProcessState::Busy(_)) {
                return Ok(());
            }
            self.collect(SECOND)?;
        }
        Err(Trouble::Inconclusive(format!("{who} neither answers nor blocks")))
    }

    fn until_dead(&mut self, who: &str) -> Result<(), Trouble> {
        for _ in 0..ANSWER_SECONDS_MAX {
            if self.process(who)?.is_dead() {
                return Ok(());
            }
            self.collect(SECOND)?;
        }
        Err(Trouble::Inconclusive(format!("{who} does not die")))
    }

    /// Waits until every process sleeps where it may. `actor` is excepted if it has answered.
    fn settle(&mut self, actor: Option<&str>) -> Result<(), Trouble> {
        self.processes.values().for_each(|process| process.spin.set(SpinProof::default()));
        let mut asleep = 0;
        for look in 0..LOOKS_MAX {
            let news = self.collect(if look < EAGER_LOOKS { NOW } else { MILLISECOND })?;
            let answered = |name: &String, process: &ChildProcess| {
                Some(name.as_str()) == actor && matches!(process.state, ProcessState::Idle) && !process.closed
            };
            // Every process is looked at, as one that spins must be seen several times.
            let quiet = self.awake().filter(|(name, process)| !answered(name, process)).count() == 0;
            let quiet = quiet && self.kernel_is_quiet();
            asleep = if quiet && !news { asleep + 1 } else { 0 };
            if asleep == LOOKS {
                return Ok(());
            }
            if !quiet && look < EAGER_LOOKS {
                yield_now();
            }
        }
        let awake: Vec<String> =
            self.awake().map(|(name, process)| format!("{name} ({})", process.watch.whereabouts())).collect();
        Err(Trouble::Inconclusive(format!("{} neither sleeps nor ends", awake.join(", "))))
    }

    /// Looks at all processes; those that do not sleep where they may.
    fn awake(&self) -> impl Iterator<Item = (&String, &ChildProcess)> {
        self.processes.iter().filter(|(name, process)| !process.sleeps(self.disks.holds_io_of(name)))
    }

    /// Whether no worker of the kernel ends I/O at this moment. Only processes that spin, and the
    /// driver, may be runnable. A worker acts for a process only where I/O is held back, or a ring
    /// reads.
    fn kernel_is_quiet(&self) -> bool {
        let spinning = self.processes.values().filter(|process| process.spins()).count();
        let reads_by_ring = |process: &ChildProcess| process.is_in(Verb::RingRead);
        let has_workers = !self.disks.is_empty() || self.processes.values().any(reads_by_ring);
        !has_workers || runnable().is_none_or(|runnable| runnable <= 1 + spinning)
    }

    /// Takes the answers and deaths that are there or arrive within `patience`. True if there were
    /// any.
    fn collect(&mut self, patience: Timespec) -> Result<bool, Trouble> {
        let living: Vec<String> =
            self.processes.iter().filter(|(_, process)| !process.is_dead()).map(|(name, _)| name.clone()).collect();
        let mut fds = Vec::new();
        for process in living.iter().filter_map(|name| self.processes.get(name)) {
            fds.push(PollFd::new(&process.death, PollFlags::IN));
            // Polling a closed socket would always return at once.
            let control = if process.closed { &process.death } else { &process.sockets.control };
            fds.push(PollFd::new(control, PollFlags::IN));
        }
        match poll(&mut fds, Some(&patience)) {
            Ok(0) => return Ok(false),
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(true),
            Err(errno) => return Err(Trouble::CannotRun(format!("poll: {errno}"))),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        for (name, ready) in living.iter().zip(ready.chunks(2)) {
            let (dead, spoke) = (ready[0], ready[1]);
            if spoke {
                self.listen(name)?;
            }
            if dead {
                self.note_death(name);
            }
        }
        match self.trouble.take() {
            Some(trouble) => Err(trouble),
            None => Ok(true),
        }
    }

    /// Takes the messages of a process.
    fn listen(&mut self, name: &str) -> Result<(), Trouble> {
        loop {
            let process = self.process(name)?;
            if process.closed {
                return Ok(());
            }
            match wire::receive::<ChildReply>(&process.sockets.control, RecvFlags::DONTWAIT) {
                Ok(Some((ChildReply::Began { handled }, _))) => process.handled.extend(handled),
                Ok(Some((ChildReply::Done { result, handled }, _))) => {
                    process.handled.extend(handled);
                    if let ProcessState::Busy(pending) = std::mem::replace(&mut process.state, ProcessState::Idle) {
                        self.conclude(name, *pending, result)?;
                    }
                }
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Ok(None) | Err(_) => {
                    process.closed = true;
                    self.started(name)?;
                }
            }
        }
    }

    /// A process whose control socket is closed and that does not die has become the program of its
    /// `exec`.
    fn started(&mut self, name: &str) -> Result<(), Trouble> {
        let process = self.process(name)?;
        let executes = matches!(&process.state, ProcessState::Busy(pending) if pending.op.as_ref().is_some_and(|op| op.verb() == Verb::Exec));
        if !executes || is_ready(&process.death) {
            return Ok(());
        }
        if let ProcessState::Busy(pending) = std::mem::replace(&mut process.state, ProcessState::Running) {
            if let Some(bind) = pending.bind {
                self.names.things.insert(bind, NamedThing::Program(name.to_owned()));
            }
            self.set_outcome(name, pending.on_behalf.as_deref(), "ok".to_owned());
        }
        Ok(())
    }

    fn note_death(&mut self, name: &str) {
        let Some(process) = self.processes.get_mut(name) else { return };
        match std::mem::replace(&mut process.state, ProcessState::Dead) {
            ProcessState::Busy(pending) => {
                let exits = pending.op.as_ref().is_some_and(|op| op.verb() == Verb::Exit);
                self.set_outcome(name, pending.on_behalf.as_deref(), if exits { "ok" } else { "killed" }.to_owned());
            }
            ProcessState::Delegated => self.set_outcome(name, None, "killed".to_owned()),
            ProcessState::Idle | ProcessState::Running | ProcessState::Dead => {}
        }
    }

    /// Records the outcome of an operation for the process that the operation belongs to.
    fn set_outcome(&mut self, name: &str, on_behalf: Option<&str>, outcome: String) {
        if let Some(process) = self.processes.get_mut(on_behalf.unwrap_or(name)) {
            if matches!(process.state, ProcessState::Delegated) {
                process.state = ProcessState::Idle;
            }
            process.outcome = Some(outcome);
        }
    }

    /// Turns an answer into the outcome, and binds the name of the result.
    fn conclude(
        &mut self,
        name: &str,
        pending: PendingRequest,
        result: Result<ChildValue, ChildFailure>,
    ) -> Result<(), Trouble> {
        let PendingRequest { op, bind, birth, on_behalf } = pending;
        let Some(op) = op else {
            self.process(name)?.answer = Some(result);
            return Ok(());
        };
        let outcome = match (result, &op) {
            (Ok(ChildValue::Number(pid)), Op::Fork {}) => {
                let pid = i32::try_from(pid).unwrap_or_default();
                if let (Some(bind), Some(sockets)) = (bind, birth) {
                    self.add_process(&bind, pid, sockets)?;
                    for thing in self.names.things.values_mut() {
                        if let NamedThing::Map { owners, .. } = thing
                            && owners.contains(name)
                        {
                            owners.insert(bind.clone());
                        }
                    }
                }
                "ok".to_owned()
            }
            (Ok(ChildValue::Number(size)), Op::Stat { .. } | Op::Fstat { .. }) => {
                format!("ok {}", crate::input::Size(size.unsigned_abs()))
            }
            (Ok(ChildValue::Number(lease)), Op::GetLease { .. } | Op::GetDeleg { .. }) => {
                format!("ok {}", lease_name(lease))
            }
            (Ok(ChildValue::Number(number)), op) => {
                let thing = match op {
                    Op::Mmap { range: ByteRange { len, .. }, .. }
                    | Op::MmapAnon { length: Bytes(len) }
                    | Op::MmapDevDax { length: Bytes(len) } => {
                        let len = *len;
                        NamedThing::Map { at: number as u64, len, owners: BTreeSet::from([name.to_owned()]) }
                    }
                    Op::FixedBuffers { map, range } => NamedThing::Ring {
                        fd: i32::try_from(number).unwrap_or(-1),
                        buffer: self.names.address(map)?.saturating_add(range.offset),
                    },
                    Op::SubmitReadInto { .. } | Op::SubmitWriteFrom { .. } => {
                        NamedThing::Io { number: number as u32, owner: name.to_owned() }
                    }
                    _ => NamedThing::Fd(i32::try_from(number).unwrap_or(-1)),
                };
                if let Some(bind) = bind {
                    self.names.things.insert(bind, thing);
                }
                "ok".to_owned()
            }
            (Ok(ChildValue::Bytes(bytes)), _) => format!("ok {bytes}"),
            (Ok(ChildValue::Same(same)), _) => if same { "ok same" } else { "ok differs" }.to_owned(),
            (Ok(ChildValue::Nothing | ChildValue::Verbs(_)), _) => "ok".to_owned(),
            (Err(failure), op) => self.failed(op, failure),
        };
        self.set_outcome(name, on_behalf.as_deref(), outcome);
        Ok(())
    }

    /// The outcome of an operation that failed. What this host can't do at all ends the scenario.
    fn failed(&mut self, op: &Op, failure: ChildFailure) -> String {
        let file_system = self.host.file_system().name.as_str();
        let (outcome, lacks) = match (failure, op) {
            (ChildFailure::Errno(libc::EOPNOTSUPP | libc::ENOTTY), Op::Exchange { .. }) if file_system == "xfs" => {
                let why = "this XFS can't exchange ranges: it needs Linux 6.10 and `mkfs.xfs -i exchange=1`";
                ("EOPNOTSUPP".to_owned(), Some(why.to_owned()))
            }
            (
                ChildFailure::Errno(libc::EOPNOTSUPP),
                Op::Zero { .. } | Op::Collapse { .. } | Op::Insert { .. } | Op::Punch { .. },
            ) => ("EOPNOTSUPP".to_owned(), Some(format!("{file_system} can't do `{}`", op.verb()))),
            (ChildFailure::NoDelegations, _) => {
                let why = format!("this kernel has no delegations (F_SETDELEG), or none for this on {file_system}");
                ("EINVAL".to_owned(), Some(why))
            }
            (ChildFailure::Lacks(what), _) => ("ENOSYS".to_owned(), Some(format!("this kernel has {what}"))),
            // Verbs are the driver's own requests.
            (ChildFailure::Verbs(failure), _) => {
                self.trouble = Some(Trouble::Inconclusive(format!("`{}` ended with {failure:?}", op.verb())));
                return "EINVAL".to_owned();
            }
            (ChildFailure::NotHeld, _) => {
                ("EIO".to_owned(), Some("I/O to a suspended disk ended all the same".to_owned()))
            }
            (ChildFailure::Errno(number), _) => (errno_name(number), None),
            (ChildFailure::Signal(number), _) => (signal_name(number), None),
        };
        self.trouble = lacks.map(Trouble::CannotRun).or(self.trouble.take());
        outcome
    }

    /// Kills all processes and removes the files.
    fn end(&mut self) -> Vec<String> {
        self.disks.release_all();
        for process in self.processes.values().filter(|process| !process.is_dead()) {
            // It fails only for a process that has ended meanwhile.
            let _ = pidfd_send_signal(&process.death, Signal::KILL);
        }
        // All are killed. One that sleeps all the same, while no other runs, is there for good.
        if self.leaves_processes && self.settle(None).is_ok() && !self.processes.values().all(ChildProcess::is_dead) {
            self.processes.clear();
            // To remove a directory is to wait for the end of a file that had a name in it.
            self.host.keep_dir();
            return Vec::new();
        }
        let names: Vec<String> = self.processes.keys().cloned().collect();
        let mut wrong: Vec<String> =
            names.iter().filter_map(|name| self.until_dead(name).err()).map(|trouble| trouble.to_string()).collect();
        self.processes.clear();
        if !wrong.is_empty() {
            // It may wait for its file, and so would the removal of the directory.
            self.host.keep_dir();
        }
        if self.host.keeps_dir() {
            return wrong;
        }
        if let Err(error) = std::fs::remove_dir_all(&self.dir)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            wrong.push(format!("{} can't be removed: {error}", self.dir.display()));
        }
        wrong
    }
}

impl Machine for LinuxMachine {
    fn perform(&mut self, actor: &Actor, op: &Op, bind: Option<&str>) -> Result<Progress, Trouble> {
        if actor.thread != 1 {
            return Err(Trouble::CannotRun("a process on the real kernel has only one thread in scenarios".to_owned()));
        }
        let who = actor.process.as_str();
        self.ensure_process(who)?;
        match self.process(who)?.state {
            ProcessState::Idle => {}
            ProcessState::Dead | ProcessState::Running => return Err(Trouble::Script(format!("{who} is dead"))),
            ProcessState::Busy(_) | ProcessState::Delegated => {
                return Err(Trouble::Script(format!("{who} is still in a call that blocks")));
            }
        }
        for process in processes_named(op) {
            self.ensure_process(&process)?;
        }
        self.process(who)?.outcome = None;
        self.clock.operation_begins();
        if let Some(outcome) = self.verbs(who, op, bind)? {
            self.clock.operation_ended();
            return Ok(Progress::Done(outcome));
        }
        if let Some(outcome) = self.begin(who, op, bind)? {
            return Ok(Progress::Done(outcome.to_owned()));
        }
        match is_calm(op.verb()) {
            true => self.until_answered(who)?,
            false => self.settle(Some(who))?,
        }
        self.clock.operation_ended();
        self.progress(actor)
    }

    fn progress(&mut self, actor: &Actor) -> Result<Progress, Trouble> {
        let process = self.process(&actor.process)?;
        match (process.outcome.take(), &process.state) {
            (Some(outcome), _) => Ok(Progress::Done(outcome)),
            (None, ProcessState::Busy(_) | ProcessState::Delegated) => Ok(Progress::Blocked(String::new())),
            (None, _) => Err(Trouble::Script(format!("{actor} is not in a call"))),
        }
    }

    fn kill(&mut self, process: &str, signal: &'static str) -> Result<(), Trouble> {
        let target = self.process(process)?;
        if target.is_dead() {
            return Err(Trouble::Script(format!("{process} is dead")));
        }
        let number = SignalName::from_word(signal).and_then(|name| Signal::from_named_raw(signal_number(name)));
        let number = number.ok_or_else(|| Trouble::Script(format!("there is no {signal} here")))?;
        pidfd_send_signal(&target.death, number)
            .map_err(|errno| Trouble::CannotRun(format!("{process} can't be sent {signal}: {errno}")))?;
        self.settle(None)
    }

    fn advance(&mut self, span: Duration) -> Result<(), Trouble> {
        self.clock.advance(span)?;
        self.settle(None)
    }

    fn ask(&mut self, query: &Query) -> Result<String, Trouble> {
        let of = query.of.as_str();
        match query.subject {
            QuerySubject::Signals => {
                if matches!(self.process(of)?.state, ProcessState::Idle) {
                    // Its answer brings them along.
                    let _nothing = self.ask_process(of, &ChildRequest::Handled)?;
                }
                let handled: Vec<String> = self.process(of)?.handled.drain(..).map(signal_name).collect();
                Ok(if handled.is_empty() { "none".to_owned() } else { handled.join(" ") })
            }
            QuerySubject::Process => Ok(if self.process(of)?.is_dead() { "dead" } else { "alive" }.to_owned()),
            QuerySubject::Size => match std::fs::metadata(request::path(&self.dir, of)?) {
                Ok(metadata) => Ok(crate::input::Size(metadata.len()).to_string()),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    Err(Trouble::Script(format!("there is no file `{of}` now")))
                }
                Err(error) => Err(Trouble::CannotRun(format!("`{of}` can't be examined: {error}"))),
            },
            QuerySubject::Blocks => match std::fs::metadata(request::path(&self.dir, of)?) {
                // It counts blocks of 512 bytes.
                Ok(metadata) => Ok(metadata.blocks().div_ceil(fs_sim::BLOCK / 512).to_string()),
                Err(error) => Err(Trouble::CannotRun(format!("`{of}` can't be examined: {error}"))),
            },
            QuerySubject::Locked => {
                let pid = self.names.pid(of)?;
                self.process(of)?.locked_pages(pid)
            }
            other => Err(Trouble::CannotRun(format!("a real Linux can't answer `{}`", other.facts().0))),
        }
    }

    fn state(&self) -> Vec<String> {
        let line = |(name, process): (&String, &ChildProcess)| match &process.state {
            ProcessState::Idle => format!("{name} lives"),
            ProcessState::Busy(pending) => match &pending.op {
                Some(op) => format!("{name} is in `{}` ({})", op.verb(), process.watch.whereabouts()),
                None => format!("{name} is being queried"),
            },
            ProcessState::Delegated => format!("{name} is in `exec`"),
            ProcessState::Running => format!("{name} runs"),
            ProcessState::Dead => format!("{name} is dead"),
        };
        self.processes.iter().map(line).collect()
    }

    fn finish(mut self: Box<Self>) -> Vec<String> {
        self.end()
    }
}

impl Drop for LinuxMachine {
    fn drop(&mut self) {
        self.end();
    }
}

/// The number of runnable threads of this machine, the caller's own included: the fourth field of
/// /proc/loadavg, `RUNNABLE/ALL`.
fn runnable() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/loadavg").ok()?;
    text.split_ascii_whitespace().nth(3)?.split_once('/')?.0.parse().ok()
}
