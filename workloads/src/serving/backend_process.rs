//! The backend process: the process in which a guest's device lives.
//!
//! It owns the listening socket, the connection and descriptors of the memory, and answers FLUSH
//! by itself. It asks the server what to map, and does what the server says. Invariants: once the
//! server has ended every flush fails, nothing new is mapped, and no further guest is admitted,
//! until the guest hangs up: then the process ends; between a demand that nothing be mapped and
//! the next pieces handed out, every flush fails; two backend processes share no lock.
//!
//! # Why a process
//! QEMU can't connect such a device again, and a guest whose flush is never answered hangs in its
//! fsync. So the process that answers must outlive the server, whether that is stopped or killed.
//! What a hostile frontend could break, it breaks here. The image's lock, which lives in its open
//! file, is this process's too: no other server gets the image while a guest may still write to
//! it.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::task::Poll;
use std::time::Duration;

use emulator::World;
use emulator::device::persistence::DurableImage;
use emulator::device::{Device, OpenError};
use emulator::pin::gate::Gate;
use emulator::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use emulator::sync::{Arc, Mutex, thread};
use emulator::vhost_user::{
    FlushError, Medium, MessageTrace, Peer, PmemPiece, RefusalReport, Unmapped, VhostOptions, VhostServer, VhostStats,
    ViolationReport,
};
use emulator::wait::{WaitFor, WaitQueue, Waiter, WaiterId};

use super::flush_shaping::FlushShaping;
use super::link::{Counted, FromPort, Granted, Link, LinkError, PATIENCE, TakeReason, ToPort, decode_pieces};
use super::message_trace::FileTrace;
use super::render;
use crate::messages::socket;

/// After how long a frontend that has not unmapped is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// A port's life, from its starter's socket to the end of its last guest.
///
/// # Errors
/// It could not be made: the starter is told by the end of the socket.
pub fn main(socket: OwnedFd) -> io::Result<()> {
    // A terminal's Ctrl-C is for the server. The call fails only for a leader of a group, which no
    // terminal's signal reaches either.
    let _session = rustix::process::setsid();
    let link = Link::new(socket);
    let Some((ToPort::Start { bytes, read_only, trace, strict }, fds)) = link.next::<ToPort>() else {
        return Ok(());
    };
    let mut fds = fds.into_iter();
    let (Some(listener), Some(memory)) = (fds.next(), fds.next()) else {
        return Err(io::Error::other("the start comes without its descriptors"));
    };
    let trace = trace.and_then(|socket| Some(Arc::new(FileTrace::new(fds.next()?, socket))));
    let read_only = read_only.then(|| reopened_to_read(&memory)).transpose()?;
    let memory = BackendMemory::new(memory, bytes, fds.next()).map_err(io::Error::other)?;
    let port = Arc::new(BackendPort::new(link, memory, read_only, trace.clone()));
    let door = listener.try_clone()?;
    let listener = UnixListener::from(listener);
    let name = socket::Name::of(&listener);
    let removed = name.clone();
    let remove_socket = move || removed.into_iter().for_each(socket::Name::remove);
    let options = VhostOptions {
        trace: trace.map(|trace| trace as Arc<dyn MessageTrace>),
        refusals: Some(BackendPort::told_refusals(&port)),
        violations: strict.then(|| BackendPort::told_violations(&port)),
        ..VhostOptions::default()
    };
    let medium = Arc::clone(&port) as Arc<dyn Medium>;
    let server = VhostServer::start_with(listener, medium, options, remove_socket)?;
    port.send(&FromPort::Ready);
    port.serve_link(&server, name);
    // No frontend may wait here in vain.
    let _shut = rustix::net::shutdown(&door, rustix::net::Shutdown::Both);
    server.join();
    Ok(())
}

/// What guests have mapped, and its durable copy where the power-cut model has one.
struct BackendMemory {
    live: Device,
    durable: Option<DurableImage>,
    /// What flushes have compared with the copy, and copied to it, in bytes.
    compared: AtomicU64,
    copied: AtomicU64,
}

impl BackendMemory {
    fn new(memory: OwnedFd, bytes: u64, durable: Option<OwnedFd>) -> Result<BackendMemory, OpenError> {
        Ok(BackendMemory {
            live: Device::from_fd(memory, bytes)?,
            durable: durable.map(|durable| DurableImage::from_fd(durable, bytes)).transpose()?,
            compared: AtomicU64::new(0),
            copied: AtomicU64::new(0),
        })
    }

    /// Makes what was stored to `pieces` durable.
    fn flush(&self, pieces: &[PmemPiece]) -> Result<(), FlushError> {
        if let Some(durable) = &self.durable {
            let ranges = pieces.iter().map(|piece| piece.device_offset..piece.device_offset + piece.len);
            let flushed = durable.flush(&self.live, ranges).map_err(io::Error::other)?;
            // ORDERING: Relaxed: numbers for a question, each right by itself.
            self.compared.fetch_add(flushed.bytes_compared, Ordering::Relaxed);
            self.copied.fetch_add(flushed.bytes_copied, Ordering::Relaxed);
        }
        Ok(self.live.sync()?)
    }
}

/// The same file, open for reading only: a process that gets this descriptor can't map it writable.
fn reopened_to_read(memory: &OwnedFd) -> io::Result<OwnedFd> {
    Ok(std::fs::File::open(format!("/proc/self/fd/{}", memory.as_raw_fd()))?.into())
}

/// What the guest of this port has: its connection and the pieces of its device.
#[derive(Default)]
struct DeviceState {
    /// The connection there is.
    connection: Option<u64>,
    /// How often its memory was taken.
    takes: u64,
    /// It has been taken, and not been given again.
    taken: Option<TakeReason>,
    /// Demands that are being carried out.
    unmapping: u32,
    /// What the guest was given last.
    pieces: Arc<[PmemPiece]>,
}

/// See the module.
struct BackendPort {
    link: Link<Granted>,
    memory: BackendMemory,
    trace: Option<Arc<FileTrace>>,
    /// What a frontend gets instead if its guest may only read.
    read_only: Option<OwnedFd>,
    /// The server has ended.
    over: AtomicBool,
    shaping: FlushShaping,
    device_state: Mutex<DeviceState>,
    /// Flushes pass here; shut as long as the guest's memory is taken.
    flushing: Gate,
    changed: WaitQueue,
    /// For waits on `changed`.
    world: World,
}

impl BackendPort {
    /// A port without a guest.
    fn new(
        link: Link<Granted>,
        memory: BackendMemory,
        read_only: Option<OwnedFd>,
        trace: Option<Arc<FileTrace>>,
    ) -> BackendPort {
        BackendPort {
            link,
            memory,
            trace,
            read_only,
            over: AtomicBool::new(false),
            shaping: FlushShaping::new(),
            device_state: Mutex::new(DeviceState::default()),
            flushing: Gate::new(),
            changed: WaitQueue::new(),
            world: World::real(0),
        }
    }

    /// Sends a message to a server that may have ended. If it has, the link is closed.
    fn send(&self, what: &FromPort) {
        let _gone = self.link.tell(what, &[]);
    }

    /// Does what the server says, until the link's end; then the port is over, and the socket's
    /// file is removed. Returns when every demand has been fulfilled, or its guest is gone.
    fn serve_link(&self, server: &VhostServer, name: Option<socket::Name>) {
        thread::scope(|scope| {
            while let Some((message, _)) = self.link.next::<ToPort>() {
                let done = |number| self.send(&FromPort::Reply { number, reply: Counted::Done });
                match message {
                    ToPort::Take { number, connection, why } if self.take(connection, why) => {
                        // It ends when the frontend has answered or hung up.
                        let taken = move || self.taken(number, connection, server);
                        if thread::try_spawn_scoped(scope, taken).is_err() {
                            // This thread waits instead: other messages wait with it.
                            taken();
                        }
                    }
                    ToPort::Take { number, .. } => {
                        self.send(&FromPort::Taken { number, pieces: 0, acknowledged: true });
                    }
                    ToPort::FailFlush { number, rule } => {
                        self.shaping.fail(rule);
                        done(number);
                    }
                    ToPort::DelayFlush { number, delay_ns } => {
                        self.shaping.delay(Duration::from_nanos(delay_ns));
                        done(number);
                    }
                    ToPort::Count { number } => {
                        let stats = server.stats();
                        let reply = Counted::Counters { counters: self.counters(&stats), problem: stats.problem };
                        self.send(&FromPort::Reply { number, reply });
                    }
                    ToPort::End { number } => {
                        self.end();
                        done(number);
                    }
                    ToPort::Reply { number, reply } => self.link.replied(number, reply),
                    ToPort::TraceBegins => self.trace.iter().for_each(|trace| trace.begin()),
                    // Once only.
                    ToPort::Start { .. } => {}
                }
            }
            // Before flushes fail, which is how another process may learn of the server's end: from
            // here on another server may have the path.
            name.into_iter().for_each(socket::Name::remove);
            self.end();
            self.link.over();
        });
    }

    /// The server ends: every flush fails from now on.
    fn end(&self) {
        self.over.store(true, Ordering::SeqCst);
        self.shaping.wake();
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// Tells the server what a frontend does against the specification.
    fn told_violations(port: &Arc<BackendPort>) -> ViolationReport {
        let port = Arc::clone(port);
        Arc::new(move |what: &str| port.send(&FromPort::Violation { what: what.to_owned() }))
    }

    /// Tells the server of frontends that were refused here.
    fn told_refusals(port: &Arc<BackendPort>) -> RefusalReport {
        let port = Arc::clone(port);
        Arc::new(move |why: &str| port.send(&FromPort::Refused { why: why.to_owned() }))
    }

    /// The connection there is.
    fn connection(&self) -> Option<u64> {
        self.device_state.lock().connection
    }

    /// From now on flushes of `connection` fail; true if something may be mapped for it.
    fn take(&self, connection: u64, why: TakeReason) -> bool {
        let mut device_state = self.device_state.lock();
        let there = device_state.connection == Some(connection);
        if there {
            device_state.takes += 1;
            device_state.taken = Some(why);
            device_state.unmapping += 1;
            self.flushing.close();
        }
        there
    }

    /// Has everything unmapped, waits for the flush that began before, and says so.
    fn taken(&self, number: u64, connection: u64, server: &VhostServer) {
        let gone = || self.device_state.lock().connection != Some(connection);
        let mut unmapped = server.unmap();
        // A frontend that does not answer, or can't be asked, has it mapped until it answers or
        // ends.
        while !unmapped.acknowledged && !self.wait("a frontend lets go", Some(ASK_AGAIN), gone) {
            unmapped = Unmapped { pieces: unmapped.pieces, ..server.unmap() };
        }
        self.wait("a flush that has begun", None, || self.flushing.inside() == 0);
        self.device_state.lock().unmapping -= 1;
        self.changed.wake_all();
        let pieces = unmapped.pieces as u64;
        self.send(&FromPort::Taken { number, pieces, acknowledged: unmapped.acknowledged });
    }

    /// Waits for something that comes by itself; false if it has not come within `limit`.
    fn wait(&self, reason: &'static str, limit: Option<Duration>, ready: impl Fn() -> bool) -> bool {
        let waiter = Waiter::new(WaiterId(self.link.number()));
        let poll = || if ready() { Poll::Ready(()) } else { Poll::Pending };
        let how = WaitFor::uninterruptible(reason).until(limit.map(|limit| self.world.now().after(limit)));
        self.changed.wait(&self.world, &waiter, how, poll).is_ok()
    }

    fn counters(&self, stats: &VhostStats) -> BTreeMap<String, u64> {
        let mut counters = render::counters(stats);
        counters.insert("delayed".to_owned(), self.shaping.delayed());
        if self.memory.durable.is_some() {
            // ORDERING: Relaxed: see where they are written.
            for (name, counter) in
                [("model_bytes_compared", &self.memory.compared), ("model_bytes_copied", &self.memory.copied)]
            {
                counters.insert(name.to_owned(), counter.load(Ordering::Relaxed));
            }
        }
        counters
    }
}

impl Medium for BackendPort {
    fn fd(&self) -> BorrowedFd<'_> {
        self.read_only.as_ref().map_or(self.memory.live.fd(), AsFd::as_fd)
    }

    fn connect(&self, peer: Peer, process: Option<OwnedFd>) -> Result<u64, String> {
        // A demand for the last guest ends with that guest, and must not meet this one.
        self.wait("the last guest's end", None, || self.device_state.lock().unmapping == 0);
        self.flushing.reopen();
        let mut connection = 0;
        let process = process.as_ref().map(AsFd::as_fd);
        let granted = self.link.ask_with(process.as_slice(), PATIENCE, |number| {
            connection = number;
            *self.device_state.lock() = DeviceState { connection: Some(number), ..DeviceState::default() };
            FromPort::Connected { number, peer: peer.into() }
        });
        let refused = match granted {
            Ok(Granted::Device { bytes }) => return Ok(bytes),
            Ok(Granted::No(why)) => why,
            Ok(other) => format!("the server's answer does not fit the request: {other:?}"),
            Err(LinkError::Over) => "the server has ended".to_owned(),
            Err(LinkError::Silent) => {
                // It may be granted too late: then no guest is there.
                self.send(&FromPort::Gone { number: 0, connection });
                "the server does not answer".to_owned()
            }
        };
        self.device_state.lock().connection = None;
        Err(refused)
    }

    fn attach(&self) -> Vec<PmemPiece> {
        let (connection, takes) = {
            let device_state = self.device_state.lock();
            (device_state.connection, device_state.takes)
        };
        let Some(connection) = connection else { return Vec::new() };
        let pieces = match self.link.ask(|number| FromPort::Attach { number, connection }) {
            Ok(Granted::Pieces(pieces)) => decode_pieces(pieces),
            Ok(_) | Err(_) => return Vec::new(),
        };
        let mut device_state = self.device_state.lock();
        // Pieces that were revoked after the request are not mapped. A revocation after this lock
        // is taken sees them as mapped.
        if pieces.is_empty() || device_state.takes != takes || device_state.connection != Some(connection) {
            return Vec::new();
        }
        device_state.taken = None;
        device_state.pieces = pieces.clone().into();
        self.flushing.reopen();
        pieces
    }

    fn flush(&self) -> Result<(), FlushError> {
        if self.is_over() {
            return Err(FlushError::Gone);
        }
        if self.shaping.fails() {
            return Err(FlushError::Told);
        }
        // Before the memory is looked at: what is taken meanwhile makes it fail.
        self.shaping.hold_up(|| self.is_over());
        if self.is_over() {
            return Err(FlushError::Gone);
        }
        let flushed = match self.flushing.enter() {
            Ok(()) => {
                let pieces = Arc::clone(&self.device_state.lock().pieces);
                let flushed = self.memory.flush(&pieces);
                if !self.flushing.leave() {
                    return flushed;
                }
                flushed
            }
            Err(_shut) => match self.device_state.lock().taken {
                Some(TakeReason::PowerCut) => Err(FlushError::Gone),
                Some(TakeReason::Revoked) | None => Err(FlushError::Revoked),
            },
        };
        // The last one out of a gate that was shut meanwhile.
        self.changed.wake_all();
        flushed
    }

    fn speaks(&self) {
        if let Some(connection) = self.connection() {
            self.send(&FromPort::Speaks { connection });
        }
    }

    fn mapping_refused(&self, answer: i64) {
        if let Some(connection) = self.connection() {
            self.send(&FromPort::RefusesToMap { connection, answer });
        }
    }

    fn not_started(&self) {
        self.send(&FromPort::NotStarted);
    }

    fn gone(&self) {
        let connection = self.device_state.lock().connection.take();
        self.changed.wake_all();
        if let Some(connection) = connection {
            // A server that does not answer has ended, or will see that the link is closed.
            let _released = self.link.ask(|number| FromPort::Gone { number, connection });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A port, and the server's end of its link.
    fn port() -> (Arc<BackendPort>, Link<Counted>) {
        let (ours, theirs) = crate::messages::pair().unwrap();
        let memory = rustix::fs::memfd_create("memory", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&memory, 2 << 20).unwrap();
        let memory = BackendMemory::new(memory, 2 << 20, None).unwrap();
        (Arc::new(BackendPort::new(Link::new(ours), memory, None, None)), Link::new(theirs))
    }

    #[test]
    fn pieces_that_were_taken_after_they_were_asked_for_are_not_mapped() {
        for taken in [true, false] {
            let (port, server) = port();
            port.device_state.lock().connection = Some(7);
            let attached = thread::scope(|scope| {
                let attach = scope.spawn(|| port.attach());
                let Some((FromPort::Attach { number, connection: 7 }, _)) = server.next() else {
                    panic!("no pieces are asked for")
                };
                assert!(!taken || port.take(7, TakeReason::Revoked));
                port.link.replied(number, Granted::Pieces(vec![(0, 0, 2 << 20)]));
                attach.join().unwrap()
            });
            assert_eq!(attached.len(), usize::from(!taken));
            assert_eq!(port.flush().is_err(), taken);
        }
    }

    #[test]
    fn the_next_guest_waits_for_the_end_of_what_was_demanded_of_the_last() {
        let (port, server) = port();
        port.device_state.lock().unmapping = 1;
        thread::scope(|scope| {
            let connect = scope.spawn(|| port.connect(Peer { pid: None, uid: 0 }, None));
            while !port.changed.has_sleepers() {
                assert!(!connect.is_finished(), "it did not wait");
                thread::yield_now();
            }
            assert_eq!(port.device_state.lock().connection, None);
            port.device_state.lock().unmapping = 0;
            port.changed.wake_all();
            let Some((FromPort::Connected { number, .. }, _)) = server.next() else { panic!("no guest is told of") };
            port.link.replied(number, Granted::Device { bytes: 2 << 20 });
            assert_eq!(connect.join().unwrap(), Ok(2 << 20));
        });
    }
}
