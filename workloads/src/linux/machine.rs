//! The driver's side of the real machine.
//!
//! It owns the processes of one scenario, and the names that the scenario has given to things. Invariants: between two calls
//! every process sleeps where it was seen asleep, or is dead ([`Linux::settle`]); names stand for the kernel's own numbers, as
//! they do on the simulated machine. Kernel counterpart: a shell with job control.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use emulator::sync::thread::yield_now;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::clock::Clock;
use super::request::{self, Ready, blocks_in, errno_name, is_calm, lease_name, signal_name, signal_number};
use super::watch::{Place, Watch};
use super::wire::{self, Failure, Reply, Request, Value};
use super::{Host, child, setup};
use crate::ops::{ByteRange, Bytes, Op, SignalName, Verb};
use crate::scenario::machine::{Machine, Progress, Trouble};
use crate::scenario::{Actor, Query, Setup, Subject};

/// How many looks in a row must find everybody asleep.
const LOOKS: u32 = 3;
/// Looks without a pause between them, before the driver starts to wait for news.
const EAGER_LOOKS: u32 = 200;
/// After so many looks it can't be told. With a millisecond for each late one: some 20 s.
const LOOKS_MAX: u32 = 20_000;
/// How many seconds an operation that can't block may take.
const ANSWER_SECONDS_MAX: u32 = 60;

const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
const MILLISECOND: Timespec = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
const SECOND: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Where a process sleeps that has nothing to do.
const IDLE: Place = Place { number: libc::SYS_recvmsg, first: Some(child::CONTROL as u64) };

/// What a name stands for.
#[derive(Clone, Debug)]
pub(super) enum Thing {
    /// A descriptor's number.
    Fd(i32),
    /// A mapping, in the processes that have it.
    Map { at: u64, len: u64, owners: BTreeSet<String> },
    /// A running program, by its key among the processes.
    Program(String),
}

/// The names of a scenario.
#[derive(Debug, Default)]
pub(super) struct Names {
    things: BTreeMap<String, Thing>,
    pids: BTreeMap<String, i32>,
}

impl Names {
    /// What `name` stands for.
    pub(super) fn get(&self, name: &str) -> Result<&Thing, Trouble> {
        let unmade = || Trouble::Script(format!("`{name}` was not made: the step that makes it failed or still waits"));
        self.things.get(name).ok_or_else(unmade)
    }

    /// The number of the descriptor `name`.
    pub(super) fn fd(&self, name: &str) -> Result<i32, Trouble> {
        match self.get(name)? {
            Thing::Fd(fd) => Ok(*fd),
            _ => Err(Trouble::Script(format!("`{name}` is no descriptor"))),
        }
    }

    /// The number of the process `name`, dead or alive.
    pub(super) fn pid(&self, name: &str) -> Result<i32, Trouble> {
        let unknown = || Trouble::Script(format!("there is no process `{name}` yet"));
        self.pids.get(name).copied().ok_or_else(unknown)
    }
}

/// A request that was sent and not yet answered.
#[derive(Debug)]
struct Pending {
    /// None: the driver's own.
    op: Option<Op>,
    bind: Option<String>,
    /// The driver's ends of a copy's sockets.
    birth: Option<Sockets>,
    /// The process whose operation this one carries out.
    on_behalf: Option<String>,
}

#[derive(Debug)]
struct Sockets {
    control: OwnedFd,
    /// What is sent here lies in the process's inbox.
    inbox: OwnedFd,
}

#[derive(Debug)]
enum State {
    Idle,
    Busy(Box<Pending>),
    /// Another process carries its operation out.
    Delegated,
    /// It runs another program.
    Running,
    Dead,
}

#[derive(Debug)]
struct Process {
    sockets: Sockets,
    watch: Watch,
    death: OwnedFd,
    state: State,
    /// Its end of the control socket is closed: it is dying, or about to be another program.
    closed: bool,
    /// Outcome of the operation that was begun last, until it is told.
    outcome: Option<String>,
    handled: Vec<i32>,
}

impl Process {
    fn new(pid: i32, sockets: Sockets) -> Result<Process, Trouble> {
        let gone = |error: String| Trouble::CannotRun(format!("process {pid} can't be watched: {error}"));
        let watch = Watch::of(pid).map_err(|error| gone(error.to_string()))?;
        let number = Pid::from_raw(pid).ok_or_else(|| gone("it has no number".to_owned()))?;
        let death = pidfd_open(number, PidfdFlags::empty()).map_err(|errno| gone(errno.to_string()))?;
        let handled = Vec::new();
        Ok(Process { sockets, watch, death, state: State::Idle, closed: false, outcome: None, handled })
    }

    fn is_dead(&self) -> bool {
        matches!(self.state, State::Dead)
    }

    /// Whether it sleeps where it may: nothing will happen to it unless somebody does something.
    fn sleeps(&self) -> bool {
        let place = match &self.state {
            State::Dead | State::Running => return true,
            State::Idle | State::Delegated => Some(IDLE),
            State::Busy(pending) => pending.op.as_ref().and_then(|op| blocks_in(op.verb())),
        };
        !self.closed && place.is_some_and(|place| self.watch.sleeps_in(place).unwrap_or(false))
    }
}

/// See the module.
#[derive(Debug)]
pub struct Linux {
    processes: BTreeMap<String, Process>,
    names: Names,
    dir: PathBuf,
    clock: Clock,
    programs: u32,
    /// What an answer said about this machine's ability.
    trouble: Option<Trouble>,
    host: Rc<Host>,
}

impl Linux {
    /// A machine for a scenario. The files called in `programs` are there as ones that can be executed.
    ///
    /// # Errors
    /// [`Trouble::CannotRun`] if files can't be made; [`Trouble::Script`] for names that files can't have.
    pub fn new(host: &Rc<Host>, setup: &Setup, programs: &[String]) -> Result<Linux, Trouble> {
        let dir = host.new_dir()?;
        setup::make_files(&dir, setup, programs)?;
        Ok(Linux {
            processes: BTreeMap::new(),
            names: Names::default(),
            dir,
            clock: Clock::new(setup.options.lease_break_time, host.break_time().cloned()),
            programs: 0,
            trouble: None,
            host: Rc::clone(host),
        })
    }

    /// Makes sure that the process exists.
    fn meet(&mut self, name: &str) -> Result<(), Trouble> {
        if self.processes.contains_key(name) {
            return Ok(());
        }
        let (sockets, control, inbox) = new_sockets()?;
        let pid = self.host.spawn(control.as_fd(), inbox.as_fd())?;
        self.spawn(name, pid, sockets)
    }

    fn spawn(&mut self, name: &str, pid: i32, sockets: Sockets) -> Result<(), Trouble> {
        self.processes.insert(name.to_owned(), Process::new(pid, sockets)?);
        self.names.pids.insert(name.to_owned(), pid);
        Ok(())
    }

    fn process(&mut self, name: &str) -> Result<&mut Process, Trouble> {
        let unknown = || Trouble::Script(format!("there is no process `{name}` yet"));
        self.processes.get_mut(name).ok_or_else(unknown)
    }

    /// Sends a request to a process that has nothing to do.
    fn send(&mut self, to: &str, request: &Request, fds: &[OwnedFd], pending: Pending) -> Result<(), Trouble> {
        let process = self.process(to)?;
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        match wire::send(process.sockets.control.as_fd(), request, &fds) {
            Ok(()) => {
                process.state = State::Busy(Box::new(pending));
                Ok(())
            }
            Err(Errno::MSGSIZE) => Err(Trouble::Script("the names of this step are too long".to_owned())),
            Err(errno) => Err(Trouble::Inconclusive(format!("{to} can't be told what to do: {errno}"))),
        }
    }

    /// What `op` of the process `who` asks for beyond a request.
    fn begin(&mut self, who: &str, op: &Op, bind: Option<&str>) -> Result<Option<&'static str>, Trouble> {
        let bind = bind.map(str::to_owned);
        let mut pending = Pending { op: Some(op.clone()), bind, birth: None, on_behalf: None };
        let mut fds = Vec::new();
        let request = match op {
            Op::Fork {} => {
                let (ours, control, inbox) = new_sockets()?;
                pending.birth = Some(ours);
                fds = vec![control, inbox];
                Request::Fork
            }
            Op::Send { process, fd } => {
                let fd = self.names.fd(fd)?;
                let inbox = &self.process(process)?.sockets.inbox;
                fds.push(inbox.try_clone().map_err(|error| Trouble::CannotRun(error.to_string()))?);
                Request::Send { fd }
            }
            Op::Exec { file } => {
                let path = request::path(&self.dir, file)?;
                let key = format!("program {}", self.programs);
                self.programs += 1;
                self.meet(&key)?;
                pending.on_behalf = Some(who.to_owned());
                self.process(who)?.state = State::Delegated;
                self.send(&key, &Request::Exec { path }, &[], pending)?;
                return Ok(None);
            }
            Op::End { program } => {
                let key = match self.names.get(program)? {
                    Thing::Program(key) => key.clone(),
                    _ => return Err(Trouble::Script(format!("`{program}` is no program"))),
                };
                // One that has ended already can't be ended again, which changes nothing.
                let _ = pidfd_send_signal(&self.process(&key)?.death, Signal::KILL);
                self.until_dead(&key)?;
                return Ok(Some("ok"));
            }
            Op::Credentials { .. } if !self.host.is_root() => {
                return Err(Trouble::CannotRun("only root can change a process's user".to_owned()));
            }
            _ => match request::translate(op, who, &self.dir, &self.names)? {
                Ready::Ask(request) => request,
                Ready::Plain(outcome) => return Ok(Some(outcome)),
            },
        };
        self.send(who, &request, &fds, pending)?;
        Ok(None)
    }

    /// Waits until the operation of `who` is answered: one that can neither block nor concern anybody else.
    fn until_answered(&mut self, who: &str) -> Result<(), Trouble> {
        for _ in 0..ANSWER_SECONDS_MAX {
            if !matches!(self.process(who)?.state, State::Busy(_)) {
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

    /// Waits until every process but `actor`, which has its answer if it is not blocked, sleeps where it may.
    fn settle(&mut self, actor: Option<&str>) -> Result<(), Trouble> {
        let mut asleep = 0;
        for look in 0..LOOKS_MAX {
            let news = self.collect(if look < EAGER_LOOKS { NOW } else { MILLISECOND })?;
            let answered = |name: &String, process: &Process| {
                Some(name.as_str()) == actor && matches!(process.state, State::Idle) && !process.closed
            };
            let quiet = self.processes.iter().all(|(name, process)| answered(name, process) || process.sleeps());
            asleep = if quiet && !news { asleep + 1 } else { 0 };
            if asleep == LOOKS {
                return Ok(());
            }
            if !quiet && look < EAGER_LOOKS {
                yield_now();
            }
        }
        let awake: Vec<&str> =
            self.processes.iter().filter(|(_, process)| !process.sleeps()).map(|(name, _)| name.as_str()).collect();
        Err(Trouble::Inconclusive(format!("{} neither sleeps nor ends", awake.join(", "))))
    }

    /// Takes answers and deaths that are there, or come within `patience`. True if there were any.
    fn collect(&mut self, patience: Timespec) -> Result<bool, Trouble> {
        let living: Vec<String> =
            self.processes.iter().filter(|(_, process)| !process.is_dead()).map(|(name, _)| name.clone()).collect();
        let mut fds = Vec::new();
        for process in living.iter().filter_map(|name| self.processes.get(name)) {
            fds.push(PollFd::new(&process.death, PollFlags::IN));
            // A socket that is closed would be ready for ever.
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
                self.bury(name);
            }
        }
        match self.trouble.take() {
            Some(trouble) => Err(trouble),
            None => Ok(true),
        }
    }

    /// Takes what a process has said.
    fn listen(&mut self, name: &str) -> Result<(), Trouble> {
        loop {
            let process = self.process(name)?;
            if process.closed {
                return Ok(());
            }
            match wire::receive::<Reply>(&process.sockets.control, RecvFlags::DONTWAIT) {
                Ok(Some((Reply::Began { handled }, _))) => process.handled.extend(handled),
                Ok(Some((Reply::Done { result, handled }, _))) => {
                    process.handled.extend(handled);
                    if let State::Busy(pending) = std::mem::replace(&mut process.state, State::Idle) {
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

    /// A process whose control socket is closed and that does not die has become the program that it was to execute.
    fn started(&mut self, name: &str) -> Result<(), Trouble> {
        let process = self.process(name)?;
        let executes = matches!(&process.state, State::Busy(pending) if pending.op.as_ref().is_some_and(|op| op.verb() == Verb::Exec));
        if !executes || is_ready(&process.death) {
            return Ok(());
        }
        if let State::Busy(pending) = std::mem::replace(&mut process.state, State::Running) {
            if let Some(bind) = pending.bind {
                self.names.things.insert(bind, Thing::Program(name.to_owned()));
            }
            self.tell(name, pending.on_behalf.as_deref(), "ok".to_owned());
        }
        Ok(())
    }

    fn bury(&mut self, name: &str) {
        let Some(process) = self.processes.get_mut(name) else { return };
        match std::mem::replace(&mut process.state, State::Dead) {
            State::Busy(pending) => {
                let exits = pending.op.as_ref().is_some_and(|op| op.verb() == Verb::Exit);
                self.tell(name, pending.on_behalf.as_deref(), if exits { "ok" } else { "killed" }.to_owned());
            }
            State::Delegated => self.tell(name, None, "killed".to_owned()),
            State::Idle | State::Running | State::Dead => {}
        }
    }

    /// Notes the outcome of an operation for the process that it is an operation of.
    fn tell(&mut self, name: &str, on_behalf: Option<&str>, outcome: String) {
        if let Some(process) = self.processes.get_mut(on_behalf.unwrap_or(name)) {
            if matches!(process.state, State::Delegated) {
                process.state = State::Idle;
            }
            process.outcome = Some(outcome);
        }
    }

    /// What an answer means: the outcome in words, and what the result is called from now on.
    fn conclude(&mut self, name: &str, pending: Pending, result: Result<Value, Failure>) -> Result<(), Trouble> {
        let Pending { op, bind, birth, on_behalf } = pending;
        let Some(op) = op else { return Ok(()) };
        let outcome = match (result, &op) {
            (Ok(Value::Number(pid)), Op::Fork {}) => {
                let pid = i32::try_from(pid).unwrap_or_default();
                if let (Some(bind), Some(sockets)) = (bind, birth) {
                    self.spawn(&bind, pid, sockets)?;
                    for thing in self.names.things.values_mut() {
                        if let Thing::Map { owners, .. } = thing
                            && owners.contains(name)
                        {
                            owners.insert(bind.clone());
                        }
                    }
                }
                "ok".to_owned()
            }
            (Ok(Value::Number(size)), Op::Stat { .. } | Op::Fstat { .. }) => {
                format!("ok {}", fs_sim::input::Size(size.unsigned_abs()))
            }
            (Ok(Value::Number(lease)), Op::GetLease { .. }) => format!("ok {}", lease_name(lease)),
            (Ok(Value::Number(number)), op) => {
                let thing = match op {
                    Op::Mmap { range: ByteRange { len, .. }, .. } | Op::MmapAnon { length: Bytes(len) } => {
                        let len = *len;
                        Thing::Map { at: number as u64, len, owners: BTreeSet::from([name.to_owned()]) }
                    }
                    _ => Thing::Fd(i32::try_from(number).unwrap_or(-1)),
                };
                if let Some(bind) = bind {
                    self.names.things.insert(bind, thing);
                }
                "ok".to_owned()
            }
            (Ok(Value::Bytes(bytes)), _) => format!("ok {bytes}"),
            (Ok(Value::Nothing), _) => "ok".to_owned(),
            (
                Err(Failure::Errno(libc::EOPNOTSUPP)),
                Op::Zero { .. } | Op::Collapse { .. } | Op::Insert { .. } | Op::Punch { .. },
            ) => {
                let file_system = &self.host.file_system().name;
                self.trouble = Some(Trouble::CannotRun(format!("{file_system} can't do `{}`", op.verb())));
                "EOPNOTSUPP".to_owned()
            }
            (Err(Failure::Errno(number)), _) => errno_name(number),
            (Err(Failure::Signal(number)), _) => signal_name(number),
        };
        self.tell(name, on_behalf.as_deref(), outcome);
        Ok(())
    }

    /// Kills everybody, and removes the files.
    fn end(&mut self) -> Vec<String> {
        let names: Vec<String> = self.processes.keys().cloned().collect();
        for process in self.processes.values().filter(|process| !process.is_dead()) {
            // One that has ended meanwhile needs none.
            let _ = pidfd_send_signal(&process.death, Signal::KILL);
        }
        let mut wrong: Vec<String> =
            names.iter().filter_map(|name| self.until_dead(name).err()).map(|trouble| trouble.to_string()).collect();
        self.processes.clear();
        if let Err(error) = std::fs::remove_dir_all(&self.dir)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            wrong.push(format!("{} can't be removed: {error}", self.dir.display()));
        }
        wrong
    }
}

impl Machine for Linux {
    fn perform(&mut self, actor: &Actor, op: &Op, bind: Option<&str>) -> Result<Progress, Trouble> {
        if actor.thread != 1 {
            return Err(Trouble::CannotRun("processes on a real Linux have one thread here".to_owned()));
        }
        let who = actor.process.as_str();
        self.meet(who)?;
        match self.process(who)?.state {
            State::Idle => {}
            State::Dead | State::Running => return Err(Trouble::Script(format!("{who} is dead"))),
            State::Busy(_) | State::Delegated => {
                return Err(Trouble::Script(format!("{who} is still in a call that blocks")));
            }
        }
        self.process(who)?.outcome = None;
        self.clock.operation_begins();
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
            (None, State::Busy(_) | State::Delegated) => Ok(Progress::Blocked(String::new())),
            (None, _) => Err(Trouble::Script(format!("{actor} is in no call"))),
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
            Subject::Signals => {
                if matches!(self.process(of)?.state, State::Idle) {
                    let own = Pending { op: None, bind: None, birth: None, on_behalf: None };
                    self.send(of, &Request::Handled, &[], own)?;
                    self.until_answered(of)?;
                }
                let handled: Vec<String> = self.process(of)?.handled.drain(..).map(signal_name).collect();
                Ok(if handled.is_empty() { "none".to_owned() } else { handled.join(" ") })
            }
            Subject::Process => Ok(if self.process(of)?.is_dead() { "dead" } else { "alive" }.to_owned()),
            Subject::Size => match std::fs::metadata(request::path(&self.dir, of)?) {
                Ok(metadata) => Ok(fs_sim::input::Size(metadata.len()).to_string()),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    Err(Trouble::Script(format!("there is no file `{of}` now")))
                }
                Err(error) => Err(Trouble::CannotRun(format!("`{of}` can't be looked at: {error}"))),
            },
            other => Err(Trouble::CannotRun(format!("a real Linux can't tell `{}`", other.facts().0))),
        }
    }

    fn state(&self) -> Vec<String> {
        let line = |(name, process): (&String, &Process)| match &process.state {
            State::Idle => format!("{name} lives"),
            State::Busy(pending) => match &pending.op {
                Some(op) => format!("{name} is in `{}`", op.verb()),
                None => format!("{name} is being looked at"),
            },
            State::Delegated => format!("{name} is in `exec`"),
            State::Running => format!("{name} runs"),
            State::Dead => format!("{name} is dead"),
        };
        self.processes.iter().map(line).collect()
    }

    fn finish(mut self: Box<Self>) -> Vec<String> {
        self.end()
    }
}

impl Drop for Linux {
    fn drop(&mut self) {
        self.end();
    }
}

/// The driver's ends of a new process's sockets, and the process's control socket and inbox.
fn new_sockets() -> Result<(Sockets, OwnedFd, OwnedFd), Trouble> {
    let none = |errno: Errno| Trouble::CannotRun(format!("no sockets: {errno}"));
    let (control, theirs) = wire::pair().map_err(none)?;
    let (inbox, receiver) = wire::pair().map_err(none)?;
    Ok((Sockets { control, inbox }, theirs, receiver))
}

fn is_ready(fd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    poll(&mut fds, Some(&NOW)).is_ok_and(|ready| ready > 0)
}
