//! The server's side of its backend processes: which guest is attached, and what is held for it.
//!
//! It owns each backend process's link, its thread and, for a file, the simulated process that has
//! the file for the guest: that process takes lease and pins when a guest connects, and exits when
//! the guest has ended, which gives everything back, NIC regions included. Invariants: what is
//! held for a guest is held until it has hung up or, if its backend process is dead, until its own
//! process has ended, and no longer, unless it was revoked and the guest has unmapped it; an
//! export is told that nothing is mapped only after the backend process, or the guest's end, has
//! said so. Counterpart: `vfio_pin_pages` and the release of its container.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::task::Poll;
use std::time::Duration;

use emulator::runtime::clock::{Clock, Nanos};
use emulator::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use emulator::sync::thread::{self, JoinHandle};
use emulator::sync::{Arc, Mutex};
use emulator::vhost_user::{PIECES_MAX, Peer, PmemPiece};
use emulator::wait::{WaitError, WaitFor, WaitQueue, Waiter};
use fs_sim::Task;
use fs_sim::base::numbers::Pid;
use fs_sim::pinning::guest_export::{GuestExport, GuestMapping};
use fs_sim::vfs::signals::{SigInfo, Signal};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Config;
use super::files;
use super::link::{Counted, FromPort, Granted, Link, LinkError, TakeReason, ToPort, encode_pieces};
use super::machine::{ServedMachine, ServedMemory};
use super::render;
use crate::messages::{
    self,
    peers::{self, AllowedPeers, RefusalLog},
};
use crate::ops::FlushRule;

/// How long a port may take to start.
const START_MAX: Duration = Duration::from_secs(20);
/// How long a port without a guest may take to end.
const END_MAX: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

/// See the module.
pub(super) struct Port {
    /// Where guests connect.
    pub(super) socket: PathBuf,
    /// The file that they get; none for an image.
    pub(super) file: Option<String>,
    link: Link<Counted>,
    process: Mutex<Child>,
    pid: u32,
    state: Mutex<State>,
    changed: WaitQueue,
    allowed: AllowedPeers,
    refusals: RefusalLog,
    /// For how long ago demands were made.
    clock: Clock,
}

#[derive(Default)]
struct State {
    ready: bool,
    /// The port's process is gone.
    ended: bool,
    guest: Option<Arc<Guest>>,
    /// The process that is about to take the file for the next one.
    exporter: Option<Pid>,
    /// Demands not yet fulfilled, by number.
    takes: BTreeMap<u64, Demand>,
}

/// A demand that nothing stay mapped.
#[derive(Clone, Copy)]
struct Demand {
    connection: u64,
    why: TakeReason,
    since: Nanos,
}

/// A guest that has not unmapped what was demanded.
pub(super) struct Unanswered {
    pub(super) guest: Arc<Guest>,
    /// How long ago it was asked.
    pub(super) asked_ns: u64,
}

/// A guest that is attached.
pub(super) struct Guest {
    pub(super) connection: u64,
    /// The frontend's process.
    pub(super) pid: Option<u32>,
    pub(super) since: Nanos,
    /// What is held for the guest; none for an image.
    pub(super) holds: Option<Holds>,
    /// How many pieces it was given last.
    pub(super) pieces: AtomicU64,
    /// How often it was given any.
    pub(super) attaches: AtomicU64,
    /// It was revoked by an administrator.
    pub(super) revoked: AtomicBool,
    /// Its process has sent a message of vhost-user.
    speaks: AtomicBool,
    /// The end of a revocation was told, and nothing was given to it since.
    revocation_told: AtomicBool,
    /// The most pieces that one of the demands under way had unmapped.
    unmapped: AtomicU64,
    /// Tells of the process's end; none if it could not be had.
    process: Option<OwnedFd>,
}

/// What is held for a guest.
pub(super) struct Holds {
    /// The process that serves it.
    pub(super) task: Task,
    pub(super) export: Arc<GuestExport>,
}

impl Guest {
    /// Whether it was revoked, by an administrator or by a layout change.
    pub(super) fn is_revoked(&self) -> bool {
        // ORDERING: SeqCst: set before the demand is made, so the thread that hands out pieces
        // later sees it.
        let by_hand = self.revoked.load(Ordering::SeqCst);
        by_hand || self.holds.as_ref().is_some_and(|holds| holds.export.is_revoked())
    }

    /// Who it is. A process that has said nothing may be any.
    pub(super) fn who(&self) -> String {
        match self.pid {
            Some(pid) if self.speaks.load(Ordering::SeqCst) => format!("QEMU process {pid}"),
            pid => peers::shown(pid),
        }
    }

    /// The simulated process that has the file for it; none once a revoke has ended that.
    pub(super) fn file_process(&self) -> Option<Pid> {
        let holds = self.holds.as_ref().filter(|_| !self.revoked.load(Ordering::SeqCst));
        holds.map(|holds| holds.task.pid())
    }
}

/// A guest's mapping, as the export knows it.
struct MappedByGuest {
    port: Arc<Port>,
    connection: u64,
    who: String,
}

impl GuestMapping for MappedByGuest {
    fn unmap(&self) {
        self.port.take(self.connection, TakeReason::Revoked);
    }

    fn describe(&self) -> String {
        self.who.clone()
    }
}

impl Port {
    /// Starts a port for `listener`, and a thread that attends to it.
    pub(super) fn start(
        machine: &Arc<ServedMachine>,
        config: &Config,
        socket: PathBuf,
        listener: &UnixListener,
        trace: Option<BorrowedFd<'_>>,
        file: Option<String>,
    ) -> std::io::Result<Arc<Port>> {
        let (ours, theirs) = messages::pair()?;
        let mut command = Command::new(&config.program);
        command.arg0("daxlab").arg("guest-port");
        command.stdin(Stdio::from(theirs)).stdout(Stdio::null()).stderr(Stdio::null());
        let command = without_inherited_descriptors(&mut command).spawn()?;
        let port = Arc::new(Port {
            socket,
            file,
            link: Link::new(ours),
            pid: command.id(),
            process: Mutex::new(command),
            state: Mutex::default(),
            changed: WaitQueue::new(),
            allowed: config.allowed.clone(),
            refusals: RefusalLog::new(),
            clock: Clock::real(),
        });
        let mut fds: Vec<BorrowedFd<'_>> = vec![listener.as_fd(), machine.device().fd()];
        fds.extend(trace);
        fds.extend(machine.durable().map(|durable| durable.fd()));
        let start = ToPort::Start {
            bytes: machine.device().bytes(),
            read_only: config.read_only,
            trace: trace.map(|_| port.shown()),
            strict: config.strict,
        };
        // If the backend process has already ended, its message `Ready` never arrives.
        let _gone = port.link.tell(&start, &fds);
        let (attended, with) = (Arc::clone(&port), Arc::clone(machine));
        // It ends with the link.
        if let Err(error) = thread::try_spawn(move || attended.attend(&with)) {
            port.link.hang_up();
            return Err(error);
        }
        let until = machine.waits().now().after(START_MAX);
        let how = WaitFor::uninterruptible("a port's start").until(Some(until));
        let started = port.changed.wait(machine.waits(), &machine.waiter(), how, || {
            let state = port.state.lock();
            if state.ready || state.ended { Poll::Ready(state.ready) } else { Poll::Pending }
        });
        if started == Ok(true) { Ok(port) } else { Err(std::io::Error::other("the port's process does not start")) }
    }

    /// The trace's file is this server's from now on.
    pub(super) fn begin_trace(&self) {
        self.send(&ToPort::TraceBegins);
    }

    /// Listens to the port until it is gone.
    fn attend(self: &Arc<Self>, machine: &Arc<ServedMachine>) {
        // An export can wait for a layout change, and the change for a message that only this
        // thread reads. So a thread of its own admits a guest.
        let mut admission: Option<JoinHandle<()>> = None;
        while let Some((message, fds)) = self.link.next::<FromPort>() {
            match message {
                FromPort::Ready => {
                    self.state.lock().ready = true;
                    self.changed.wake_all();
                }
                FromPort::Connected { number, peer } => {
                    // The previous guest is gone, so the thread that admitted it ends without a
                    // wait.
                    admission.take().into_iter().for_each(ended);
                    let (port, with) = (Arc::clone(self), Arc::clone(machine));
                    let process = fds.into_iter().next();
                    let admitting = thread::try_spawn(move || {
                        let reply = port.connected(&with, number, (peer.into(), process));
                        port.send(&ToPort::Reply { number, reply });
                    });
                    match admitting {
                        Ok(thread) => admission = Some(thread),
                        Err(error) => {
                            let reply = Granted::No(format!("no thread could be created: {error}"));
                            self.send(&ToPort::Reply { number, reply });
                        }
                    }
                }
                FromPort::Violation { what } => {
                    machine.tell(&format!("{}: the frontend violates the specification: {what}", self.shown()));
                }
                FromPort::Refused { why } => {
                    if let Some(more) = self.refusals.met() {
                        machine.tell(&format!("{}: refused: {why}{more}", self.shown()));
                    }
                }
                FromPort::Speaks { connection } => {
                    self.attached(connection).iter().for_each(|guest| guest.speaks.store(true, Ordering::SeqCst));
                }
                FromPort::RefusesToMap { connection, answer } => self.refuses_to_map(machine, connection, answer),
                FromPort::NotStarted => {
                    machine.tell(&format!("{}: {}", self.shown(), render::NOT_STARTED));
                }
                FromPort::Attach { number, connection } => {
                    let pieces = self.attach(machine, connection);
                    self.send(&ToPort::Reply { number, reply: Granted::Pieces(encode_pieces(&pieces)) });
                }
                FromPort::Gone { number, connection } => {
                    self.give_up(machine);
                    admission.take().into_iter().for_each(ended);
                    self.gone(machine, connection);
                    self.send(&ToPort::Reply { number, reply: Granted::Released });
                }
                FromPort::Taken { number, pieces, acknowledged } => self.taken(machine, number, pieces, acknowledged),
                FromPort::Reply { number, reply } => self.link.replied(number, reply),
            }
        }
        self.give_up(machine);
        admission.take().into_iter().for_each(ended);
        self.lost(machine);
    }

    /// Interrupts the export that is being made for a guest, if there is one.
    fn give_up(&self, machine: &ServedMachine) {
        let exporter = self.state.lock().exporter;
        if let (Some(kernel), Some(pid)) = (machine.kernel(), exporter) {
            let _over = kernel.send_signal(pid, SigInfo::of(Signal::Sigterm));
        }
    }

    /// Says something to a port; that it is gone is told by the end of the link.
    fn send(&self, what: &ToPort) {
        let _gone = self.link.tell(what, &[]);
    }

    /// Where it listens, as text: a path need be none.
    pub(super) fn shown(&self) -> String {
        self.socket.display().to_string()
    }

    /// A guest has connected.
    fn connected(
        self: &Arc<Self>,
        machine: &Arc<ServedMachine>,
        connection: u64,
        (peer, process): (Peer, Option<OwnedFd>),
    ) -> Granted {
        let (pid, named) = (peer.pid, peers::shown(peer.pid));
        if let Err(why) = self.allowed.admit(&peer) {
            if let Some(more) = self.refusals.met() {
                machine.tell(&format!("{}: {named} was refused: {why}{more}", self.shown()));
            }
            return Granted::No(why);
        }
        // No power cut happens while the guest is being admitted.
        let admitted = machine.under_power(|| {
            let (guest, bytes) = self.admit(machine, connection, pid, process)?;
            self.state.lock().guest = Some(Arc::clone(&guest));
            Ok((guest, bytes))
        });
        match admitted.unwrap_or_else(|| Err("the power is failing".to_owned())) {
            Ok((guest, bytes)) => {
                machine.tell(&format!("{}: {named} is attached{}", self.shown(), held(&guest)));
                self.changed.wake_all();
                Granted::Device { bytes }
            }
            Err(why) => {
                machine.tell(&format!("{}: {named} was turned away: {why}", self.shown()));
                Granted::No(why)
            }
        }
    }

    /// Takes what the guest needs.
    fn admit(
        self: &Arc<Self>,
        machine: &Arc<ServedMachine>,
        connection: u64,
        pid: Option<u32>,
        process: Option<OwnedFd>,
    ) -> Result<(Arc<Guest>, u64), String> {
        let (holds, bytes) = match (machine.backing(), &self.file) {
            (ServedMemory::Files(kernel), Some(file)) => {
                let who = pid.map_or_else(|| peers::shown(None), |pid| format!("QEMU process {pid}"));
                let who = format!("guest at {}, {who}", self.shown());
                let mapping = MappedByGuest { port: Arc::clone(self), connection, who };
                let task = kernel.spawn();
                self.state.lock().exporter = Some(task.pid());
                let exported = files::export_as(task, file, Arc::new(mapping));
                self.state.lock().exporter = None;
                let exported = exported.map_err(|error| error.to_string())?;
                if let Some(durable) = machine.durable() {
                    // What its blocks held before, perhaps another file's data, must not come back
                    // by a power cut.
                    let flushed = durable.flush(machine.device(), files::places(kernel, file));
                    if let Err(error) = flushed {
                        exported.holds.task.exit();
                        return Err(format!("the durable copy: {error}"));
                    }
                }
                (Some(exported.holds), exported.bytes)
            }
            _ => (None, machine.device().bytes()),
        };
        let guest = Guest {
            connection,
            pid,
            since: machine.waits().now(),
            holds,
            pieces: AtomicU64::new(0),
            attaches: AtomicU64::new(0),
            revoked: AtomicBool::new(false),
            speaks: AtomicBool::new(false),
            revocation_told: AtomicBool::new(false),
            unmapped: AtomicU64::new(0),
            process,
        };
        Ok((Arc::new(guest), bytes))
    }

    /// The guest's driver takes the device: what it may map.
    fn attach(&self, machine: &ServedMachine, connection: u64) -> Vec<PmemPiece> {
        let Some(guest) = self.attached(connection) else { return Vec::new() };
        if guest.is_revoked() || machine.power_is_failing() {
            return Vec::new();
        }
        let pieces = match (machine.backing(), &guest.holds) {
            (ServedMemory::Files(kernel), Some(holds)) => files::pieces(&holds.export, kernel),
            _ => vec![PmemPiece { guest_offset: 0, device_offset: 0, len: machine.device().bytes() }],
        };
        if pieces.len() > PIECES_MAX {
            // Its holes were filled when it was pinned.
            machine.tell(&format!(
                "{}: the file lies in {} extents now, and QEMU can't map it",
                self.shown(),
                pieces.len()
            ));
            if let (Some(kernel), Some(holds)) = (machine.kernel(), &guest.holds) {
                holds.export.unmapped(kernel);
            }
            return Vec::new();
        }
        // ORDERING: Relaxed: numbers for questions.
        guest.pieces.store(pieces.len() as u64, Ordering::Relaxed);
        if !pieces.is_empty() {
            guest.attaches.fetch_add(1, Ordering::Relaxed);
            guest.revocation_told.store(false, Ordering::SeqCst);
            machine.tell(&format!("{}: {} maps {}", self.shown(), guest.who(), counted(pieces.len() as u64, "piece")));
        }
        pieces
    }

    /// The frontend has refused a piece: the guest has no memory.
    fn refuses_to_map(&self, machine: &ServedMachine, connection: u64, answer: i64) {
        let Some(guest) = self.attached(connection) else { return };
        // ORDERING: Relaxed: a number for questions.
        guest.pieces.store(0, Ordering::Relaxed);
        machine.tell(&format!(
            "{}: {} refused to map (it answered {answer}; its own stderr may say why): its guest has no memory, and every FLUSH fails",
            self.shown(),
            guest.who()
        ));
    }

    /// The guest has hung up, or its process has ended: everything goes back.
    fn gone(&self, machine: &ServedMachine, connection: u64) {
        let guest = {
            let mut state = self.state.lock();
            let there = state.guest.take_if(|guest| guest.connection == connection);
            state.takes.retain(|_, demand| demand.connection != connection);
            there
        };
        if let Some(guest) = guest {
            if let (ServedMemory::Files(kernel), Some(holds)) = (machine.backing(), &guest.holds) {
                // Before the exit: the exit of the simulated process would ask the guest to unmap.
                holds.export.unmapped(kernel);
                machine.nic().forget(holds.task.pid());
                holds.task.exit();
            }
            let silent = match guest.speaks.load(Ordering::SeqCst) {
                true => "",
                false => ", and has sent no message of vhost-user",
            };
            machine.tell(&format!("{}: {} is gone{silent}", self.shown(), guest.who()));
            machine.tell_of_full_disk();
        }
        self.changed.wake_all();
    }

    /// Demands that nothing of `connection` stay mapped. Never waits; the demand's number.
    pub(super) fn take(&self, connection: u64, why: TakeReason) -> u64 {
        let number = self.link.number();
        let demand = Demand { connection, why, since: self.clock.now() };
        self.state.lock().takes.insert(number, demand);
        // A dead backend's guest may have it mapped as long as it lives.
        self.send(&ToPort::Take { number, connection, why });
        number
    }

    /// Takes from a guest, for an administrator, all that is held for it: nothing stays mapped,
    /// flushes fail, and then lease, pins and NIC regions go. Never waits. Returns the demand's
    /// number.
    pub(super) fn revoke(&self, machine: &ServedMachine, guest: &Guest) -> u64 {
        guest.revoked.store(true, Ordering::SeqCst);
        let demand = self.take(guest.connection, TakeReason::Revoked);
        if let Some(holds) = &guest.holds {
            // The exit also asks the export to unmap. `GuestExport::unmapped` releases the pins
            // and the lease.
            machine.nic().forget(holds.task.pid());
            holds.task.exit();
        }
        demand
    }

    /// A demand was fulfilled.
    fn taken(&self, machine: &ServedMachine, number: u64, pieces: u64, acknowledged: bool) {
        let (demand, guest) = {
            let state = self.state.lock();
            (state.takes.get(&number).copied(), state.guest.clone())
        };
        if let (Some(demand), Some(guest)) = (demand, guest)
            && guest.connection == demand.connection
        {
            // ORDERING: Relaxed: a number for questions.
            guest.pieces.store(0, Ordering::Relaxed);
            if let (TakeReason::Revoked, ServedMemory::Files(kernel), Some(holds)) =
                (demand.why, machine.backing(), &guest.holds)
            {
                holds.export.unmapped(kernel);
            }
            self.tell_taken(machine, &guest, (number, demand.why), pieces, acknowledged);
        }
        self.state.lock().takes.remove(&number);
        self.changed.wake_all();
    }

    /// Says that a guest's memory was taken. A revocation makes several demands, and is told once.
    fn tell_taken(
        &self,
        machine: &ServedMachine,
        guest: &Guest,
        (number, why): (u64, TakeReason),
        pieces: u64,
        acknowledged: bool,
    ) {
        let pieces = pieces.max(guest.unmapped.fetch_max(pieces, Ordering::SeqCst));
        if why == TakeReason::Revoked {
            let is_other = |(other, demand): (&u64, &Demand)| {
                *other != number && demand.connection == guest.connection && demand.why == why
            };
            if self.state.lock().takes.iter().any(is_other) || guest.revocation_told.swap(true, Ordering::SeqCst) {
                return;
            }
        }
        guest.unmapped.store(0, Ordering::SeqCst);
        let how = if acknowledged { "" } else { " (it hung up)" };
        let why = match why {
            TakeReason::Revoked => "revoked",
            TakeReason::PowerCut => "without power",
        };
        let pieces = counted(pieces, "piece");
        machine.tell(&format!("{}: {} is {why}: {pieces} unmapped{how}, flushes fail", self.shown(), guest.who()));
    }

    /// Whether a revoke has taken all that `guest` had.
    pub(super) fn has_nothing_left(&self, guest: &Guest) -> bool {
        let demanded = self.state.lock().takes.values().any(|demand| demand.connection == guest.connection);
        guest.revoked.load(Ordering::SeqCst) && guest.revocation_told.load(Ordering::SeqCst) && !demanded
    }

    /// Waits until a demand was fulfilled, or its guest is gone.
    ///
    /// # Errors
    /// `waiter` was interrupted.
    pub(super) fn wait_taken(
        &self,
        machine: &ServedMachine,
        number: u64,
        waiter: &Arc<Waiter>,
    ) -> Result<(), WaitError> {
        self.changed.wait(machine.waits(), waiter, WaitFor::interruptible("a guest lets go"), || {
            if self.state.lock().takes.contains_key(&number) { Poll::Pending } else { Poll::Ready(()) }
        })
    }

    /// The backend process has ended. Its guest may live on, and keeps what it has mapped until it
    /// ends.
    fn lost(&self, machine: &ServedMachine) {
        self.state.lock().ended = true;
        self.link.over();
        self.changed.wake_all();
        if machine.is_ending() {
            return;
        }
        let _reaped = self.has_died();
        machine.tell(&format!("{}: its port has ended unexpectedly; no guest can attach there any more", self.shown()));
        let Some(guest) = self.guest() else { return };
        let Some(process) = &guest.process else {
            machine.tell(&format!(
                "{}: the server cannot see when the guest of this socket ends, so its pins stay until the server ends",
                self.shown()
            ));
            return;
        };
        machine.tell(&format!("{}: its pins stay until {} has ended", self.shown(), guest.who()));
        if wait_for_end(process, None) {
            self.gone(machine, guest.connection);
        } else {
            machine.tell(&format!(
                "{}: the end of {} can't be waited for, so its pins stay",
                self.shown(),
                guest.who()
            ));
        }
    }

    /// The guest that is attached.
    pub(super) fn guest(&self) -> Option<Arc<Guest>> {
        self.state.lock().guest.clone()
    }

    /// The guest of this connection, if it is attached.
    fn attached(&self, connection: u64) -> Option<Arc<Guest>> {
        self.guest().filter(|guest| guest.connection == connection)
    }

    /// The guest, if it was asked to unmap and has not done it.
    pub(super) fn unanswered(&self) -> Option<Unanswered> {
        let state = self.state.lock();
        let guest = state.guest.clone()?;
        let demands = state.takes.values().filter(|demand| demand.connection == guest.connection);
        let since = demands.map(|demand| demand.since).min()?;
        Some(Unanswered { guest, asked_ns: self.clock.now().since(since) })
    }

    /// Whether the port's process is gone.
    pub(super) fn has_ended(&self) -> bool {
        self.state.lock().ended
    }

    /// The number of the port's process.
    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Makes flushes fail, or lets them succeed again.
    pub(super) fn fail_flush(&self, rule: FlushRule) -> Result<(), LinkError> {
        self.link.ask(|number| ToPort::FailFlush { number, rule }).map(|_| ())
    }

    /// Holds up each flush for so long.
    pub(super) fn delay_flush(&self, delay_ns: u64) -> Result<(), LinkError> {
        self.link.ask(|number| ToPort::DelayFlush { number, delay_ns }).map(|_| ())
    }

    /// What its device counted, and the last thing that went wrong there. Waits for the process for
    /// at most `limit`.
    pub(super) fn counters(&self, limit: Duration) -> Result<(BTreeMap<String, u64>, Option<String>), LinkError> {
        match self.link.ask_with(&[], limit, |number| ToPort::Count { number })? {
            Counted::Counters { counters, problem } => Ok((counters, problem)),
            Counted::Done => Err(LinkError::Silent),
        }
    }

    /// Ends the link. With a guest the backend process lives on, and this is true; without one it
    /// ends, and this returns when it has.
    pub(super) fn part(&self) -> bool {
        // Once it has answered, no flush succeeds any more. A process that is dead, or does not
        // answer, finds the end of the link.
        let _told = self.link.ask(|number| ToPort::End { number });
        self.link.hang_up();
        // Looked at last: a guest may have come until now.
        if self.guest().is_some() && !self.has_died() {
            return true;
        }
        // No other process gets this process number before this thread reaps the child.
        if watch(self.pid).is_some_and(|process| !wait_for_end(&process, Some(END_MAX))) {
            // No guest is attached, so a kill loses nothing.
            let _gone = self.process.lock().kill();
        }
        let _reaped = self.has_died();
        false
    }

    /// Whether the process has ended, as its parent sees it.
    fn has_died(&self) -> bool {
        self.process.lock().try_wait().is_ok_and(|status| status.is_some())
    }
}

/// Has `command` start its program with its three standard descriptors only: the server may have
/// been started with others, which no guest's process needs. Linux before 5.11 can't do it; there
/// they stay open.
fn without_inherited_descriptors(command: &mut Command) -> &mut Command {
    let close_at_exec = || {
        // SAFETY: close_range(2) with this flag marks descriptors and touches no memory. It is
        // called directly, as is safe between fork(2) and execve(2).
        let _unknown_to_old_kernels =
            unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
        Ok(())
    };
    // SAFETY: the closure allocates nothing and takes no lock.
    unsafe { command.pre_exec(close_at_exec) }
}

/// A descriptor that tells of the end of a child that was not reaped.
fn watch(pid: u32) -> Option<OwnedFd> {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).ok()?)?;
    rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok()
}

/// Waits until a process has ended; false if it has not within `limit`.
fn wait_for_end(process: &OwnedFd, limit: Option<Timespec>) -> bool {
    loop {
        let mut fds = [PollFd::new(process, PollFlags::IN)];
        match poll(&mut fds, limit.as_ref()) {
            Ok(0) => return false,
            Ok(_) => return true,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

/// Waits for a thread's end.
fn ended(thread: JoinHandle<()>) {
    // One that panicked has ended too.
    let _ended = thread.join();
}

/// What is held for a guest, in words.
fn held(guest: &Guest) -> String {
    guest.holds.as_ref().map_or(String::new(), |holds| format!("; process {} holds the file for it", holds.task.pid()))
}

/// `1 piece`, `2 pieces`.
pub(super) fn counted(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}
