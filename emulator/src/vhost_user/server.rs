//! A guest's socket: accepts frontends, serves one at a time, and refuses the others.
//!
//! It owns the listening socket, the thread that accepts, and the thread of the connection there
//! is. Invariants: one connection is served at a time, and the next begins only after
//! [`Medium::gone`] was called for the one before; `gone` is called exactly once per connection
//! that the medium admitted, after every flush and attach has returned; a frontend that connects
//! while another is attached is hung up on at once; a lack of descriptors or memory is waited out.
//! Counterpart: QEMU's chardev sockets, which also serve one at a time.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use super::connection::{ConnectionContext, FrontendConnection, MessageLimits, serve};
use super::mapping::Unmapped;
use super::relay::ViolationReport;
use super::stats::VhostStats;
use super::trace::{MessageTrace, MessageTracer};
use super::wake::{BackendWaits, WakeFd, is_hung_up, wait_readable};
use super::{Medium, Peer};
use crate::runtime::shortage::{AcceptShortage, is_shortage};
use crate::runtime::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::runtime::sync::thread::{self, JoinHandle};
use crate::runtime::sync::{Arc, Mutex};
use crate::runtime::world::World;

/// Takes why a frontend was hung up on before the medium was asked. Called from the thread that
/// accepts, on which it must not wait.
pub type RefusalReport = Arc<dyn Fn(&str) + Send + Sync>;

/// How a server serves.
#[derive(Clone)]
pub struct VhostOptions {
    /// How long a frontend may be silent.
    pub limits: MessageLimits,
    /// Where each message is written to as a line.
    pub trace: Option<Arc<dyn MessageTrace>>,
    /// What a frontend does against the specification is given to this, also where it does no harm;
    /// at most [`super::VIOLATIONS_MAX`] of one connection.
    pub violations: Option<ViolationReport>,
    /// Who is hung up on without the medium being asked, because another frontend is attached, say,
    /// is given to this.
    pub refusals: Option<RefusalReport>,
    /// The clock.
    pub world: Arc<World>,
}

impl Default for VhostOptions {
    fn default() -> VhostOptions {
        let (limits, world) = (MessageLimits::default(), Arc::new(World::real(0)));
        VhostOptions { limits, trace: None, violations: None, refusals: None, world }
    }
}

/// A guest's device at its socket. See the module; dropping it hangs up and waits for the threads.
pub struct VhostServer {
    shared: Arc<ServerShared>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for VhostServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VhostServer").field("connected", &self.is_connected()).finish_non_exhaustive()
    }
}

struct ServerShared {
    context: ConnectionContext,
    trace: Option<Arc<dyn MessageTrace>>,
    refusals: Option<RefusalReport>,
    world: Arc<World>,
    /// What is served at the moment.
    connection: Mutex<Option<Arc<FrontendConnection>>>,
    /// How many frontends connected so far.
    connected: AtomicU64,
    /// No further connection is accepted.
    closing: AtomicBool,
    /// The present connection must end too.
    aborting: AtomicBool,
    wake: WakeFd,
}

/// The frontend that is served, and its thread.
struct AttachedFrontend {
    peer: Peer,
    socket: UnixStream,
    thread: JoinHandle<()>,
}

impl VhostServer {
    /// As [`VhostServer::start_with`], with the default options.
    ///
    /// # Errors
    /// As there.
    pub fn start(
        listener: UnixListener,
        medium: Arc<dyn Medium>,
        before_close: impl FnOnce() + Send + 'static,
    ) -> io::Result<VhostServer> {
        VhostServer::start_with(listener, medium, VhostOptions::default(), before_close)
    }

    /// Serves `medium` to one frontend of `listener` at a time.
    ///
    /// When it accepts no further frontend, it calls `before_close` and then closes the listener:
    /// the socket's file is removed there, because the path may belong to another listener later.
    ///
    /// # Errors
    /// The operating system's, if it has no descriptors or no threads left.
    pub fn start_with(
        listener: UnixListener,
        medium: Arc<dyn Medium>,
        options: VhostOptions,
        before_close: impl FnOnce() + Send + 'static,
    ) -> io::Result<VhostServer> {
        // A frontend that the thread saw connecting may be gone when the thread accepts.
        listener.set_nonblocking(true)?;
        let shared = Arc::new(ServerShared::new(medium, options)?);
        let served = Arc::clone(&shared);
        let thread = thread::try_spawn(move || {
            let attached = served.accept(&listener);
            let closed = catch_unwind(AssertUnwindSafe(before_close));
            drop(listener);
            if let Some(attached) = attached {
                let _ended = attached.thread.join();
            }
            if let Err(panic) = closed {
                resume_unwind(panic);
            }
        })?;
        Ok(VhostServer { shared, thread: Some(thread) })
    }

    /// Has every piece of the connection there is unmapped. Blocks until the frontend has answered
    /// for each, has hung up, or let 10 s of real time pass; may be called again, and by several
    /// threads. Only a driver that takes the device later, and a medium that gives
    /// it pieces, can map something again.
    pub fn unmap(&self) -> Unmapped {
        let connection = self.shared.connection.lock().clone();
        connection.map_or(Unmapped { pieces: 0, acknowledged: true }, |connection| connection.unmap())
    }

    /// What was done so far.
    pub fn stats(&self) -> VhostStats {
        self.shared.context.counters.snapshot(self.shared.world.now())
    }

    /// Whether a frontend is being served.
    pub fn is_connected(&self) -> bool {
        self.shared.connection.lock().is_some()
    }

    /// Accepts no further frontend, removes the socket's file, and waits until the connection there
    /// is (if any) has ended.
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
            connection.send_away();
        }
        self.finish();
    }
}

impl ServerShared {
    fn new(medium: Arc<dyn Medium>, options: VhostOptions) -> io::Result<ServerShared> {
        let VhostOptions { limits, trace, violations, refusals, world } = options;
        let waits = Arc::new(BackendWaits::new(Arc::clone(&world)));
        Ok(ServerShared {
            context: ConnectionContext { medium, counters: Arc::default(), waits, limits, violations },
            trace,
            refusals,
            world,
            connection: Mutex::new(None),
            connected: AtomicU64::new(0),
            closing: AtomicBool::new(false),
            aborting: AtomicBool::new(false),
            wake: WakeFd::new()?,
        })
    }

    fn problem(&self, what: impl Into<String>) {
        self.context.counters.problem(what);
    }

    /// Accepts frontends until it is told to end, or can't. Returns the one that is still served.
    fn accept(self: &Arc<Self>, listener: &UnixListener) -> Option<AttachedFrontend> {
        let mut attached = None;
        let mut shortage = AcceptShortage::new();
        while !self.closing.load(Ordering::SeqCst) {
            let accepted = match wait_readable([listener.as_fd(), self.wake.as_fd()], None) {
                Ok([_, true]) => {
                    self.wake.clear();
                    continue;
                }
                Ok([true, false]) => listener.accept(),
                Ok([false, false]) => continue,
                Err(error) => Err(error),
            };
            match accepted {
                Ok((socket, _)) => {
                    if shortage.is_over() {
                        self.problem("frontends are accepted again");
                    }
                    attached = self.take(socket, attached);
                }
                Err(error) if is_passing(&error) => {}
                Err(error) if is_shortage(&error) => {
                    let (pause, is_news) = shortage.met(false);
                    if is_news {
                        self.problem(format!("accept: {error}; frontends wait until there is more; raise the limits (`ulimit -n`) or end other programs"));
                    }
                    let _over_or_told_to_end = wait_readable([self.wake.as_fd()], Some(pause));
                }
                Err(error) => {
                    self.problem(format!("no further frontend is accepted: {error}"));
                    break;
                }
            }
        }
        attached
    }

    /// Serves the frontend at `socket`, or refuses it. Returns the one that is served then.
    fn take(self: &Arc<Self>, socket: UnixStream, attached: Option<AttachedFrontend>) -> Option<AttachedFrontend> {
        let peer = match Peer::of(&socket) {
            Ok(peer) => peer,
            Err(error) => {
                self.turn_away(&format!("who connected is not told: {error}"));
                return attached;
            }
        };
        if let Some(there) = attached {
            // One that hung up, or was hung up on, is waited for: its flush may still run.
            if !there.thread.is_finished() && !is_hung_up(there.socket.as_fd()) {
                self.turn_away(&format!(
                    "{} connected while {} is attached: one guest at a time",
                    name(peer),
                    name(there.peer)
                ));
                return Some(there);
            }
            let _ended = there.thread.join();
        }
        let shared = Arc::clone(self);
        let thread = socket.try_clone().and_then(|clone| {
            let thread = thread::try_spawn(move || shared.serve(&clone, peer))?;
            Ok(AttachedFrontend { peer, socket, thread })
        });
        thread.map_err(|error| self.turn_away(&format!("setting up: {error}"))).ok()
    }

    /// Refuses a frontend of which the medium does not know.
    fn turn_away(&self, why: &str) {
        self.refuse(why);
        self.refusals.iter().for_each(|report| report(why));
    }

    fn refuse(&self, why: impl std::fmt::Display) {
        self.context.counters.refused.add(1);
        self.problem(format!("connection refused: {why}"));
    }

    /// The life of a connection's thread.
    fn serve(&self, socket: &UnixStream, peer: Peer) {
        if catch_unwind(AssertUnwindSafe(|| self.admit(socket, peer))).is_err() {
            *self.connection.lock() = None;
            self.problem("connection ended: the medium panicked");
        }
        // The thread that accepts has the socket too.
        let _hung_up_already = socket.shutdown(std::net::Shutdown::Both);
    }

    /// Asks the medium, and serves `socket` if it says yes.
    fn admit(&self, socket: &UnixStream, peer: Peer) {
        let number = self.connected.fetch_add(1, Ordering::SeqCst) + 1;
        let tracer = MessageTracer::new(self.trace.clone(), Arc::clone(&self.world), number);
        tracer.note(format_args!("{} connected", name(peer)));
        let bytes = match self.context.medium.connect(peer, peer.process(socket)) {
            Ok(bytes) => bytes,
            Err(why) => {
                tracer.note(format_args!("refused: {why}"));
                self.refuse(why);
                return;
            }
        };
        self.context.counters.connections.add(1);
        let ended = FrontendConnection::new(socket, bytes, &self.context).and_then(|connection| {
            let connection = Arc::new(connection);
            *self.connection.lock() = Some(Arc::clone(&connection));
            if self.aborting.load(Ordering::SeqCst) {
                connection.hang_up();
            }
            serve(&connection, bytes, &self.context, &tracer)
        });
        *self.connection.lock() = None;
        self.context.counters.starting(None);
        match ended {
            Ok(()) => tracer.note("hung up"),
            Err(why) => {
                tracer.note(format_args!("ended: {why}"));
                self.context.counters.broken.add(1);
                self.problem(format!("connection ended: {why}"));
            }
        }
        self.context.medium.gone();
    }
}

fn name(peer: Peer) -> String {
    peer.pid.map_or_else(|| "a process that is not known".to_owned(), |pid| format!("process {pid}"))
}

/// Whether the next connection may be accepted all the same.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted)
}
