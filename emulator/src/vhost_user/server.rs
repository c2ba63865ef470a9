//! A guest's socket: accepts frontends, serves one at a time, and ends connections.
//!
//! It owns the listening socket and all threads of a guest. Invariants: one connection is served at
//! a time, and the next is accepted only after [`Medium::gone`] was called for the one before.
//! `gone` is called exactly once per connection, after every flush and attach has returned. Before
//! the server closes a connection, it asks the frontend to unmap everything, because a frontend
//! keeps its mappings when its connection ends. A panic ends the connection and nothing else.
//! Counterparts: `vu_dispatch` of libvhost-user, QEMU's chardev sockets.
//!
//! Threads: one accepts, then handles the connection's messages; one serves the request queue; one
//! maps pieces. The last two live as long as the connection.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};

use rustix::event::epoll;
use vhost::vhost_user::{BackendReqHandler, Error};

use super::backend::{PmemBackend, is_declined};
use super::channel::peek_channel;
use super::mapping::{PATIENCE, PieceMapping, Unmapped};
use super::memory::FileId;
use super::queue::RequestQueue;
use super::stats::{VhostCounters, VhostStats};
use super::wake::{BackendWaits, WakeFd, wait_readable};
use super::{FlushError, Medium, Peer};
use crate::device::{FOLIO, MAX_BYTES};
use crate::runtime::sync::atomic::{AtomicBool, Ordering};
use crate::runtime::sync::thread::{self, JoinHandle};
use crate::runtime::sync::{Arc, Mutex};

/// A guest's device at its socket. See the module; dropping it hangs up and waits for the threads.
#[derive(Debug)]
pub struct VhostServer {
    shared: Arc<ServerShared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct ServerShared {
    counters: Arc<VhostCounters>,
    waits: Arc<BackendWaits>,
    /// What is served at the moment.
    connection: Mutex<Option<FrontendConnection>>,
    /// No further connection is accepted.
    closing: AtomicBool,
    /// The present connection must end too.
    aborting: AtomicBool,
    wake: WakeFd,
}

#[derive(Clone, Debug)]
struct FrontendConnection {
    socket: Arc<UnixStream>,
    queue: Arc<RequestQueue>,
    mapping: Arc<PieceMapping>,
    waits: Arc<BackendWaits>,
    /// Why a thread of the connection ended it. The frontend's hang-up that follows is no cause.
    failure: Arc<Mutex<Option<String>>>,
}

impl VhostServer {
    /// Serves `medium` to one frontend of `listener` at a time.
    ///
    /// When it accepts no further frontend, it calls `before_close` and then closes the listener:
    /// the socket's file is removed there, because the path may belong to another listener later.
    ///
    /// # Errors
    /// The operating system's, if it has no descriptors left.
    pub fn start(
        listener: UnixListener,
        medium: Arc<dyn Medium>,
        before_close: impl FnOnce() + Send + 'static,
    ) -> io::Result<VhostServer> {
        // A frontend that the thread saw connecting may be gone when the thread accepts.
        listener.set_nonblocking(true)?;
        let shared = Arc::new(ServerShared::new()?);
        let served = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            served.accept(&listener, &medium);
            before_close();
            drop(listener);
        });
        Ok(VhostServer { shared, thread: Some(thread) })
    }

    /// Has every piece of the connection there is unmapped. Blocks until the frontend has answered
    /// for each, has hung up, or let 10 s of real time pass; may be called again, and by several
    /// threads. Only a driver that takes the device later, and a medium that gives
    /// it pieces, can map something again.
    pub fn unmap(&self) -> Unmapped {
        let mapping = self.shared.connection.lock().as_ref().map(|connection| Arc::clone(&connection.mapping));
        match mapping {
            Some(mapping) => mapping.unmap(&self.shared.waits, PATIENCE, &self.shared.counters),
            None => Unmapped { pieces: 0, acknowledged: true },
        }
    }

    /// What was done so far.
    pub fn stats(&self) -> VhostStats {
        self.shared.counters.snapshot()
    }

    /// Whether a frontend is being served.
    pub fn is_connected(&self) -> bool {
        self.shared.connection.lock().is_some()
    }

    /// Accepts no further frontend, waits until the connection there is (if any) has ended, and
    /// removes the socket's file.
    pub fn join(mut self) {
        self.finish();
    }

    fn finish(&mut self) {
        // ORDERING: SeqCst, before the ring that makes the thread look.
        self.shared.closing.store(true, Ordering::SeqCst);
        self.shared.wake.ring();
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

impl Drop for VhostServer {
    fn drop(&mut self) {
        if self.thread.is_none() {
            return;
        }
        // ORDERING: SeqCst, before the connection is looked for: one that is set up later finds it
        // set and hangs up.
        self.shared.aborting.store(true, Ordering::SeqCst);
        let connection = self.shared.connection.lock().clone();
        if let Some(connection) = connection {
            connection.mapping.unmap_for_good(&self.shared.waits, &self.shared.counters);
            connection.hang_up();
        }
        self.finish();
    }
}

impl ServerShared {
    fn new() -> io::Result<ServerShared> {
        Ok(ServerShared {
            counters: Arc::default(),
            waits: Arc::new(BackendWaits::new()),
            connection: Mutex::new(None),
            closing: AtomicBool::new(false),
            aborting: AtomicBool::new(false),
            wake: WakeFd::new()?,
        })
    }

    fn accept(&self, listener: &UnixListener, medium: &Arc<dyn Medium>) {
        while !self.closing.load(Ordering::SeqCst) {
            match wait_readable([listener.as_fd(), self.wake.as_fd()]) {
                Ok([_, true]) => self.wake.clear(),
                Ok([true, false]) => match listener.accept() {
                    Ok((socket, _)) => self.admit(socket, medium),
                    Err(error) if is_passing(&error) => {}
                    Err(error) => {
                        self.counters.problem(format!("no further frontend is accepted: {error}"));
                        return;
                    }
                },
                Ok([false, false]) => {}
                Err(error) => {
                    self.counters.problem(format!("no further frontend is accepted: {error}"));
                    return;
                }
            }
        }
    }

    /// Asks the medium, and serves `socket` if it says yes.
    fn admit(&self, socket: UnixStream, medium: &Arc<dyn Medium>) {
        let admitted = Peer::of(&socket).map_err(|error| format!("who connected is not told: {error}"));
        let bytes = match admitted.and_then(|peer| medium.connect(peer)) {
            Ok(bytes) => bytes,
            Err(why) => {
                self.counters.refused.add(1);
                self.counters.problem(format!("connection refused: {why}"));
                return;
            }
        };
        self.counters.connections.add(1);
        if let Err(why) = self.serve(socket, bytes, medium) {
            self.counters.broken.add(1);
            self.counters.problem(format!("connection ended: {why}"));
        }
        medium.gone();
    }

    /// Serves a connection to its end. When it returns, every thread that called the medium is
    /// gone.
    fn serve(&self, socket: UnixStream, bytes: u64, medium: &Arc<dyn Medium>) -> Result<(), String> {
        if bytes == 0 || !bytes.is_multiple_of(FOLIO) || bytes > MAX_BYTES {
            return Err(format!("a guest's device of {bytes} bytes: it must be a multiple of 2 MiB, at most 1 TiB"));
        }
        let os = |error: io::Error| format!("setting up: {error}");
        socket.set_nonblocking(false).map_err(os)?;
        let connection = FrontendConnection {
            socket: Arc::new(socket.try_clone().map_err(os)?),
            queue: Arc::new(RequestQueue::new().map_err(os)?),
            mapping: Arc::new(PieceMapping::new(bytes).map_err(os)?),
            waits: Arc::clone(&self.waits),
            failure: Arc::default(),
        };
        let own = FileId::of(medium.fd()).map_err(os)?;
        let backend = Arc::new(PmemBackend::new(
            bytes,
            medium.pieces_max() > super::PIECES_IN_TABLE,
            own,
            Arc::clone(&connection.queue),
            Arc::clone(&connection.mapping),
            Arc::clone(&self.counters),
            Arc::clone(&self.waits),
        ));
        let ended = catch_unwind(AssertUnwindSafe(|| {
            let mut served =
                ServedMedium { shared: self, connection: &connection, workers: Vec::new(), hung_up: false };
            served.workers.push(self.spawn(&connection, medium, serve_queue));
            served.workers.push(self.spawn(&connection, medium, serve_mapping));
            *self.connection.lock() = Some(connection.clone());
            if self.aborting.load(Ordering::SeqCst) {
                connection.hang_up();
            }
            let ended = handle_messages(socket, &backend, &mut served);
            served.hung_up = true;
            ended
        }));
        let failure = connection.failure.lock().take();
        match ended {
            Ok(handled) => failure.map_or_else(|| handled.map_err(|why| why.to_string()), Err),
            Err(_) => Err("a message made its handler panic".to_owned()),
        }
    }

    fn spawn(&self, connection: &FrontendConnection, medium: &Arc<dyn Medium>, life: ConnectionLoop) -> JoinHandle<()> {
        let (connection, medium) = (connection.clone(), Arc::clone(medium));
        let (counters, waits) = (Arc::clone(&self.counters), Arc::clone(&self.waits));
        thread::spawn(move || {
            let ended = catch_unwind(AssertUnwindSafe(|| life(&connection, &*medium, &counters)));
            let why = match ended {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error.to_string(),
                Err(_) => "it panicked".to_owned(),
            };
            let why = format!("a thread of the connection ended: {why}");
            counters.problem(format!("connection ended: {why}"));
            connection.failure.lock().get_or_insert(why);
            connection.queue.abandon();
            connection.mapping.unmap_for_good(&waits, &counters);
            connection.mapping.end();
            connection.hang_up();
        })
    }
}

/// Serves one connection on this thread, to its end.
pub(super) fn serve_one(socket: UnixStream, medium: &Arc<dyn Medium>) -> io::Result<VhostStats> {
    let shared = ServerShared::new()?;
    shared.admit(socket, medium);
    Ok(shared.counters.snapshot())
}

/// A connection and its threads. Its drop ends the connection and joins the threads.
struct ServedMedium<'a> {
    shared: &'a ServerShared,
    connection: &'a FrontendConnection,
    workers: Vec<JoinHandle<()>>,
    /// The frontend is gone, or has been sent away. If not, a message made its handler panic.
    hung_up: bool,
}

impl ServedMedium<'_> {
    /// Has everything unmapped, and hangs up. By a thread of its own.
    fn send_away(&mut self) {
        let (connection, shared) = (self.connection.clone(), self.shared);
        let (counters, waits) = (Arc::clone(&shared.counters), Arc::clone(&shared.waits));
        self.workers.push(thread::spawn(move || {
            connection.queue.end();
            connection.mapping.unmap_for_good(&waits, &counters);
            connection.hang_up();
        }));
    }
}

impl Drop for ServedMedium<'_> {
    fn drop(&mut self) {
        if !self.hung_up {
            self.connection.queue.end();
            self.connection.mapping.unmap_for_good(&self.shared.waits, &self.shared.counters);
        }
        self.connection.end();
        for worker in self.workers.drain(..) {
            let _ended = worker.join();
        }
        *self.shared.connection.lock() = None;
    }
}

/// What a thread does until its connection ends.
type ConnectionLoop = fn(&FrontendConnection, &dyn Medium, &VhostCounters) -> io::Result<()>;

impl FrontendConnection {
    /// A flush for a guest that has its device.
    fn flush(&self, medium: &dyn Medium) -> Result<(), FlushError> {
        if self.mapping.is_whole(&self.waits) { medium.flush() } else { Err(FlushError::Unmapped) }
    }

    fn hang_up(&self) {
        let _hung_up_already = self.socket.shutdown(std::net::Shutdown::Both);
    }

    /// Tells the threads of the connection to end.
    fn end(&self) {
        self.queue.end();
        self.mapping.end();
        self.hang_up();
    }
}

/// Whether the next connection may be accepted all the same.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted)
}

/// Handles messages until the frontend hangs up between two of them. After one that is wrong it is
/// sent away.
fn handle_messages(socket: UnixStream, backend: &Arc<PmemBackend>, served: &mut ServedMedium<'_>) -> Result<(), Error> {
    let mut handler =
        BackendReqHandler::from_stream(socket.try_clone().map_err(Error::SocketError)?, Arc::clone(backend));
    let mut wrong = None;
    loop {
        let channel = peek_channel(socket.as_fd()).map_err(Error::SocketError)?;
        if let Some(channel) = channel.filter(|_| backend.can_map()) {
            served.connection.mapping.set_channel(channel);
        }
        match handler.handle_request() {
            Ok(()) => {}
            Err(Error::Disconnected) => return wrong.map_or(Ok(()), Err),
            Err(why) if is_declined(&why) => {}
            // The server keeps answering while it asks the frontend to unmap: a frontend that waits
            // for an answer does not send one.
            Err(why) if wrong.is_none() => {
                wrong = Some(why);
                served.send_away();
            }
            Err(_) => {}
        }
    }
}

/// The queue's thread.
fn serve_queue(connection: &FrontendConnection, medium: &dyn Medium, counters: &VhostCounters) -> io::Result<()> {
    const WAKE: u64 = 0;
    const KICK: u64 = 1;
    let queue = &*connection.queue;
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&poll, &queue.wake, epoll::EventData::new_u64(WAKE), epoll::EventFlags::IN)?;
    let mut kick: Option<Arc<OwnedFd>> = None;
    let mut batch = Vec::new();
    let mut events = Vec::with_capacity(2);
    loop {
        events.clear();
        match epoll::wait(&poll, rustix::buffer::spare_capacity(&mut events), None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in &events {
            if event.data.u64() == KICK {
                counters.kicks.add(1);
                continue;
            }
            queue.wake.clear();
            let Some(wanted) = queue.kick() else { return Ok(()) };
            if wanted.as_ref().map(Arc::as_ptr) == kick.as_ref().map(Arc::as_ptr) {
                continue;
            }
            if let Some(old) = kick.take() {
                epoll::delete(&poll, &*old)?;
            }
            if let Some(new) = wanted {
                // Edge-triggered, and never read: every write to an eventfd is an edge, and a read
                // could block on a descriptor that the frontend shares.
                epoll::add(
                    &poll,
                    &*new,
                    epoll::EventData::new_u64(KICK),
                    epoll::EventFlags::IN | epoll::EventFlags::ET,
                )?;
                kick = Some(new);
            }
        }
        queue.drain(&|| connection.flush(medium), counters, &mut batch);
    }
}

/// The mapping thread.
fn serve_mapping(connection: &FrontendConnection, medium: &dyn Medium, counters: &VhostCounters) -> io::Result<()> {
    connection.mapping.run(medium, counters);
    Ok(())
}
