//! A frontend's connection, from its first message to the end of everything done for it.
//!
//! It owns the threads that serve the connection: the one that runs it handles its messages, one
//! maps pieces, and the daemon has two. Invariants: when it returns, every flush and attach has
//! returned and all threads but its own are gone; before the server closes a connection, it asks
//! the frontend to unmap everything, because a frontend keeps its mappings when its connection
//! ends; a panic ends the connection and nothing else; a frontend that is silent before its first
//! message, or in the middle of one, is waited for until a deadline. Counterparts: `vu_dispatch` of
//! libvhost-user, QEMU's chardev sockets.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use rustix::net::RecvFlags;
use vm_memory::GuestMemoryMmap;

use super::channel::Channel;
use super::daemon::PmemDaemon;
use super::device::PmemDevice;
use super::mapping::{PATIENCE, PieceMapping, Unmapped};
use super::queue::RequestQueue;
use super::relay::{MessageRelay, RelayEffects, ViolationReport};
use super::stats::VhostCounters;
use super::table::FileId;
use super::trace::MessageTracer;
use super::vring::SharedMemory;
use super::wake::{BackendWaits, wait_readable, wait_writable};
use super::wire::{MessageHeader, MessageReader, REPLY, VERSION, WireError, WireRead, send};
use super::{Medium, NOT_STARTED, PmemPiece};
use crate::device::{FOLIO, MAX_BYTES};
use crate::runtime::clock::Nanos;
use crate::runtime::sync::thread::{self, JoinHandle};
use crate::runtime::sync::{Arc, Mutex};

/// How long a frontend may be silent. Between two messages it may for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageLimits {
    /// From connecting to the end of the first message.
    pub first_message: Duration,
    /// From the first byte of a message to its last; and for taking a reply.
    pub rest_of_message: Duration,
}

impl Default for MessageLimits {
    fn default() -> MessageLimits {
        MessageLimits { first_message: Duration::from_secs(30), rest_of_message: Duration::from_secs(30) }
    }
}

/// How long the next byte may take to come.
#[derive(Clone, Copy, Debug)]
struct MessagePatience {
    limits: MessageLimits,
    connected: Nanos,
    /// No message has come whole so far.
    first: bool,
    /// When the message that is coming began.
    begun: Option<Nanos>,
}

impl MessagePatience {
    fn new(limits: MessageLimits, now: Nanos) -> MessagePatience {
        MessagePatience { limits, connected: now, first: true, begun: None }
    }

    /// A message came whole. True for the first one.
    fn whole(&mut self) -> bool {
        self.begun = None;
        std::mem::take(&mut self.first)
    }

    /// Part of a message came.
    fn part(&mut self, now: Nanos) {
        self.begun.get_or_insert(now);
    }

    /// When the wait for the next byte ends; none: never.
    fn deadline(&self) -> Option<Nanos> {
        let rest = self.begun.map(|begun| begun.after(self.limits.rest_of_message));
        let first = self.first.then(|| self.connected.after(self.limits.first_message));
        match (first, rest) {
            (Some(first), Some(rest)) => Some(first.min(rest)),
            (first, rest) => first.or(rest),
        }
    }

    /// What the frontend failed to send in time.
    fn missed(&self) -> String {
        if self.first {
            format!("no whole message within {:?} of connecting", self.limits.first_message)
        } else {
            format!("a message that began and was not whole within {:?}", self.limits.rest_of_message)
        }
    }
}

/// A start of the device that may not come to its end.
#[derive(Clone, Copy, Debug, Default)]
struct StartWatch {
    /// The start that the medium was told of.
    told: Option<Nanos>,
}

impl StartWatch {
    /// When the medium must be told of a start that began at `since` and is still under way.
    fn deadline(self, since: Option<Nanos>) -> Option<Nanos> {
        since.filter(|_| since != self.told).map(|since| since.after(NOT_STARTED))
    }

    /// Whether the medium must be told now. True once for each start.
    fn is_overdue(&mut self, since: Option<Nanos>, now: Nanos) -> bool {
        let overdue = self.deadline(since).is_some_and(|deadline| deadline <= now);
        if overdue {
            self.told = since;
        }
        overdue
    }
}

/// What all connections of a server have in common.
pub(super) struct ConnectionContext {
    pub(super) medium: Arc<dyn Medium>,
    pub(super) counters: Arc<VhostCounters>,
    pub(super) waits: Arc<BackendWaits>,
    pub(super) limits: MessageLimits,
    /// Takes what is against the specification.
    pub(super) violations: Option<ViolationReport>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct FrontendConnection {
    socket: UnixStream,
    mapping: Arc<PieceMapping>,
    counters: Arc<VhostCounters>,
    /// Why a thread of the connection ended it. The frontend's hang-up that follows is no cause.
    failure: Mutex<Option<String>>,
}

impl FrontendConnection {
    /// For `socket`, whose guest's device has `bytes` bytes.
    pub(super) fn new(
        socket: &UnixStream,
        bytes: u64,
        context: &ConnectionContext,
    ) -> Result<FrontendConnection, String> {
        if bytes == 0 || !bytes.is_multiple_of(FOLIO) || bytes > MAX_BYTES {
            return Err(format!("a guest's device of {bytes} bytes: it must be a multiple of 2 MiB, at most 1 TiB"));
        }
        let (counters, waits) = (Arc::clone(&context.counters), Arc::clone(&context.waits));
        let socket = socket.try_clone().map_err(setting_up)?;
        let mapping = PieceMapping::new(bytes, Arc::clone(&counters), waits).map_err(setting_up)?;
        Ok(FrontendConnection { socket, mapping: Arc::new(mapping), counters, failure: Mutex::default() })
    }

    /// Has everything unmapped; see [`super::VhostServer::unmap`].
    pub(super) fn unmap(&self) -> Unmapped {
        self.mapping.unmap(PATIENCE)
    }

    /// Has everything unmapped, and hangs up.
    pub(super) fn send_away(&self) {
        self.mapping.unmap_for_good();
        self.hang_up();
    }

    /// Hangs up; the guest keeps what it has mapped.
    pub(super) fn hang_up(&self) {
        let _hung_up_already = self.socket.shutdown(std::net::Shutdown::Both);
    }

    /// A thread of the connection ended for a reason of its own.
    fn fail(&self, why: &str) {
        let why = format!("a thread of the connection ended: {why}");
        self.counters.problem(format!("connection ended: {why}"));
        self.failure.lock().get_or_insert(why);
        self.send_away();
        self.mapping.end();
    }
}

fn setting_up(error: io::Error) -> String {
    format!("setting up: {error}")
}

/// A connection's threads. Its drop ends the connection and joins them.
struct ServedConnection {
    connection: Arc<FrontendConnection>,
    workers: Vec<JoinHandle<()>>,
    /// The frontend is gone, or has been sent away. If not, a message made its handler panic.
    hung_up: bool,
}

impl ServedConnection {
    /// Has everything unmapped, and hangs up. By a thread of its own: a frontend that waits for an
    /// answer to a message does not unmap.
    fn send_away(&mut self, device: &Arc<PmemDevice>) {
        device.end();
        let connection = Arc::clone(&self.connection);
        match thread::try_spawn(move || connection.send_away()) {
            Ok(worker) => self.workers.push(worker),
            Err(_) => self.connection.send_away(),
        }
    }
}

impl Drop for ServedConnection {
    fn drop(&mut self) {
        if !self.hung_up {
            self.connection.mapping.unmap_for_good();
        }
        self.connection.mapping.end();
        self.connection.hang_up();
        for worker in self.workers.drain(..) {
            let _ended = worker.join();
        }
    }
}

/// Serves `connection` to its end. Why it ended, unless the frontend hung up between two messages.
pub(super) fn serve(
    connection: &Arc<FrontendConnection>,
    bytes: u64,
    context: &ConnectionContext,
    tracer: &MessageTracer,
) -> Result<(), String> {
    let ended = catch_unwind(AssertUnwindSafe(|| {
        let mut served = ServedConnection { connection: Arc::clone(connection), workers: Vec::new(), hung_up: false };
        let ended = serve_messages(&mut served, bytes, context, tracer);
        served.hung_up = true;
        ended
    }));
    let failure = connection.failure.lock().take();
    match ended {
        Ok(handled) => failure.map_or(handled, Err),
        Err(_) => Err("a message made its handler panic".to_owned()),
    }
}

fn serve_messages(
    served: &mut ServedConnection,
    bytes: u64,
    context: &ConnectionContext,
    tracer: &MessageTracer,
) -> Result<(), String> {
    let connection = Arc::clone(&served.connection);
    let own = FileId::of(context.medium.fd()).map_err(setting_up)?;
    let memory = SharedMemory::new(GuestMemoryMmap::new());
    let failed = Arc::clone(&connection);
    let device = Arc::new(PmemDevice::new(
        bytes,
        Arc::clone(&context.medium),
        Arc::clone(&connection.mapping),
        RequestQueue::new(memory.clone(), Arc::clone(&context.counters)),
        Arc::clone(&context.waits),
        Box::new(move || failed.fail("it panicked")),
    ));
    let daemon = PmemDaemon::start(Arc::clone(&device), memory).map_err(setting_up)?;
    served.workers.push(map_pieces(&connection, &context.medium).map_err(setting_up)?);
    let effects = ConnectionEffects {
        mapping: Arc::clone(&connection.mapping),
        device: Arc::clone(&device),
        waits: Arc::clone(&context.waits),
    };
    let (counters, tracer) = (Arc::clone(&context.counters), tracer.clone());
    let mut relay = MessageRelay::new(own, daemon, effects, counters, tracer, context.violations.clone());
    let mut patience = MessagePatience::new(context.limits, context.waits.now());
    let mut loops = MessageLoop::default();
    loop {
        match loops.step(&connection.socket, &mut relay, &mut patience, context) {
            LoopStep::Next => {}
            LoopStep::SendAway => served.send_away(&device),
            LoopStep::Over => return loops.wrong.map_or(Ok(()), Err),
        }
    }
}

/// Starts the thread that maps pieces.
fn map_pieces(connection: &Arc<FrontendConnection>, medium: &Arc<dyn Medium>) -> io::Result<JoinHandle<()>> {
    let (connection, medium) = (Arc::clone(connection), Arc::clone(medium));
    thread::try_spawn(move || {
        if catch_unwind(AssertUnwindSafe(|| connection.mapping.run(&*medium))).is_err() {
            connection.fail("it panicked");
        }
    })
}

/// What is to be done after a look at the socket.
enum LoopStep {
    Next,
    /// The frontend was wrong, for the first time.
    SendAway,
    Over,
}

/// The messages of a connection.
#[derive(Default)]
struct MessageLoop {
    reader: MessageReader,
    start: StartWatch,
    /// Why the frontend is being sent away. Its messages are answered meanwhile.
    wrong: Option<String>,
    /// Where its next message begins is not known.
    unreadable: bool,
}

impl MessageLoop {
    fn step(
        &mut self,
        socket: &UnixStream,
        relay: &mut MessageRelay<PmemDaemon, ConnectionEffects>,
        patience: &mut MessagePatience,
        context: &ConnectionContext,
    ) -> LoopStep {
        let read = if self.unreadable { discard(socket) } else { self.reader.read(socket.as_fd()) };
        match read {
            Ok(WireRead::Message(message)) => {
                if patience.whole() {
                    context.medium.speaks();
                }
                let request = message.header.request;
                let relayed = relay.handle(message);
                if let Some(Err(error)) = relayed.reply.map(|body| reply(socket, request, &body, context.limits)) {
                    self.unreadable = true;
                    return self.wrong(format!("replying: {error}"));
                }
                match relayed.outcome {
                    Ok(()) => LoopStep::Next,
                    Err(why) => self.wrong(why.to_string()),
                }
            }
            Ok(WireRead::End) => LoopStep::Over,
            Err(WireError::Os(error)) if !self.reader.is_within() && error.kind() == io::ErrorKind::ConnectionReset => {
                // It hung up without having read everything.
                LoopStep::Over
            }
            Err(why @ (WireError::Frame(_) | WireError::Descriptors)) => {
                self.unreadable = true;
                relay.violated(&why);
                self.wrong(why.to_string())
            }
            Err(why @ (WireError::Torn | WireError::Os(_))) => {
                if matches!(why, WireError::Torn) {
                    relay.violated(&why);
                }
                self.wrong.get_or_insert(why.to_string());
                LoopStep::Over
            }
            Ok(WireRead::Part) => self.wait(socket, patience, context),
        }
    }

    /// Waits for more bytes.
    fn wait(&mut self, socket: &UnixStream, patience: &mut MessagePatience, context: &ConnectionContext) -> LoopStep {
        let now = context.waits.now();
        if self.reader.is_within() {
            patience.part(now);
        }
        // A frontend that is being sent away is hung up on in bounded time.
        let deadline = patience.deadline().filter(|_| self.wrong.is_none());
        let since = context.counters.starting_since();
        let first = deadline.into_iter().chain(self.start.deadline(since)).min();
        let limit = first.map(|first| Duration::from_nanos(first.since(now)));
        match wait_readable([socket.as_fd()], limit) {
            Ok([true]) => LoopStep::Next,
            Ok([false]) if deadline.is_none_or(|deadline| context.waits.now() < deadline) => {
                if self.start.is_overdue(since, context.waits.now()) {
                    context.medium.not_started();
                }
                LoopStep::Next
            }
            Ok([false]) => {
                self.unreadable = true;
                self.wrong(patience.missed())
            }
            Err(error) => {
                self.wrong.get_or_insert(format!("waiting: {error}"));
                LoopStep::Over
            }
        }
    }

    fn wrong(&mut self, why: String) -> LoopStep {
        if self.wrong.is_some() {
            return LoopStep::Next;
        }
        self.wrong = Some(why);
        LoopStep::SendAway
    }
}

/// Reads bytes, and forgets them.
fn discard(socket: &UnixStream) -> Result<WireRead, WireError> {
    match rustix::net::recv(socket, &mut [0; 4096], RecvFlags::DONTWAIT) {
        Ok((0, _)) => Ok(WireRead::End),
        Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(WireRead::Part),
        Err(error) => Err(error.into()),
    }
}

fn reply(socket: &UnixStream, request: u32, body: &[u8], limits: MessageLimits) -> io::Result<()> {
    let header = MessageHeader { request, flags: VERSION | REPLY, size: body.len() as u32 };
    let wait = || match wait_writable(socket.as_fd(), limits.rest_of_message) {
        Ok(true) => Ok(()),
        Ok(false) => Err(io::Error::other("the frontend does not read its replies")),
        Err(error) => Err(error),
    };
    match send(socket.as_fd(), header, body, &[], wait) {
        // It hung up, which the next read shows.
        Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => Ok(()),
        other => other,
    }
}

/// What a connection's messages do beside the daemon.
struct ConnectionEffects {
    mapping: Arc<PieceMapping>,
    device: Arc<PmemDevice>,
    waits: Arc<BackendWaits>,
}

impl RelayEffects for ConnectionEffects {
    fn channel(&mut self, channel: Result<Channel, String>) {
        self.mapping.set_channel(channel);
    }

    fn driver(&mut self) {
        self.mapping.attach();
        // The frontend waits for this message's answer, or the next one's, before it lets the
        // driver continue.
        self.mapping.hold_start();
    }

    fn mapped(&self) -> Vec<PmemPiece> {
        self.mapping.mapped()
    }

    fn told_table(&mut self, own_parts: Vec<(u64, u64)>) {
        self.mapping.told_table(own_parts);
    }

    fn located(&mut self, start: u64) {
        self.device.set_start(start);
    }

    fn now(&self) -> Nanos {
        self.waits.now()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Nanos {
        Nanos(seconds * 1_000_000_000)
    }

    #[test]
    fn a_frontend_may_be_silent_for_so_long_and_between_messages_for_ever() {
        let limits = MessageLimits { first_message: Duration::from_secs(7), rest_of_message: Duration::from_secs(3) };
        let mut patience = MessagePatience::new(limits, at(100));
        assert_eq!(patience.deadline(), Some(at(107)));
        patience.part(at(101));
        patience.part(at(103));
        assert_eq!(patience.deadline(), Some(at(104)), "from its first byte");
        assert!(patience.missed().contains("within 7s of connecting"));
        assert!(patience.whole() && !patience.whole(), "it is the first one once");
        assert_eq!(patience.deadline(), None);
        patience.part(at(1_000));
        assert_eq!(patience.deadline(), Some(at(1_003)));
        assert!(patience.missed().contains("not whole within 3s"));
        let mut slow = MessagePatience::new(limits, at(100));
        slow.part(at(106));
        assert_eq!(slow.deadline(), Some(at(107)), "a byte at a time does not make the first message later");
    }

    #[test]
    fn each_start_that_does_not_end_is_told_once() {
        let mut start = StartWatch::default();
        assert_eq!(start.deadline(None), None);
        assert!(!start.is_overdue(None, at(100)));
        assert_eq!(start.deadline(Some(at(100))), Some(at(101)));
        assert!(!start.is_overdue(Some(at(100)), at(100)), "it has just begun");
        assert!(start.is_overdue(Some(at(100)), at(101)));
        assert_eq!(start.deadline(Some(at(100))), None);
        assert!(!start.is_overdue(Some(at(100)), at(500)), "the medium knows");
        assert!(start.is_overdue(Some(at(600)), at(601)), "the next start");
    }
}
