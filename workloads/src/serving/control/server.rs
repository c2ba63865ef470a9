//! The listening side of a control socket.
//!
//! It owns the socket's path, which it removes at its end unless another process has it by then,
//! and a thread for each connection. Invariants: each connection gets one answer, also one that
//! sends nothing, too much or nonsense, and one of a user that may not ask; where [`ASKERS_MAX`]
//! connections have not sent their request, the oldest silent one makes way for the next; at most
//! [`ASKERS_MAX`] requests that wait are carried out at once, and [`RESERVED`] further places are
//! kept for requests that don't wait and for `revoke`, which ends the waits of others; work for an
//! asker that has hung up is told so at once.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::messages::peers::{self, AllowedPeers, RefusalLog};
use crate::messages::socket::{self, ListenError};
use emulator::runtime::clock::Clock;
use emulator::sync::atomic::{AtomicBool, Ordering};
use emulator::sync::thread::{self, JoinHandle};
use emulator::sync::{Arc, Mutex};
use emulator::vhost_user::Peer;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::accept::{SpareDescriptor, accept_until, lacking};
use super::protocol::{PATIENCE, REQUEST_MAX, Response};
use super::request::decode;
use crate::ops::Op;

/// The most connections that have not sent their request, and the most requests that may wait.
const ASKERS_MAX: usize = 32;
/// Places in addition, for requests that don't wait and for `revoke`.
const RESERVED: usize = 8;
/// The most connections that are served at once.
const CONNECTIONS_MAX: usize = 2 * ASKERS_MAX + RESERVED;

/// Does what is asked.
pub trait Handler: Send + Sync + 'static {
    /// Answers. Called from many threads at once; a handler that waits must be able to learn that
    /// `asker` has hung up.
    fn handle(&self, request: &Op, asker: &Asker<'_>) -> Response;
}

/// The party that waits for an answer.
pub struct Asker<'a> {
    /// Where it asks from; none if it is a part of this process, which never hangs up.
    stream: Option<&'a UnixStream>,
}

impl Asker<'_> {
    /// An asker that is a part of this process.
    pub(in crate::serving) const WITHIN: Asker<'static> = Asker { stream: None };

    /// Runs `body`; meanwhile, if the asker hangs up (or the server ends), calls `gone` from
    /// another thread. When this returns `gone` has been called, or never will be.
    ///
    /// # Errors
    /// The machine gave no thread's means (descriptors); `body` did not run.
    pub fn unless_gone<R>(&self, gone: impl FnOnce() + Send + 'static, body: impl FnOnce() -> R) -> io::Result<R> {
        let Some(stream) = self.stream else { return Ok(body()) };
        let (ours, theirs) = UnixStream::pair()?;
        let asker = stream.try_clone()?;
        let watcher = thread::try_spawn(move || {
            if hung_up_first(&asker, &theirs) {
                gone();
            }
        })?;
        let result = body();
        drop(ours);
        let _ended = watcher.join();
        Ok(result)
    }
}

/// Waits until one of two hangs up; whether it was the first.
fn hung_up_first(one: &UnixStream, other: &UnixStream) -> bool {
    loop {
        // Only unrequested events: a peer that merely finished sending still waits for its answer.
        let mut fds = [one, other].map(|stream| PollFd::from_borrowed_fd(stream.as_fd(), PollFlags::empty()));
        match poll(&mut fds, None) {
            Ok(_) if !fds[1].revents().is_empty() => return false,
            Ok(_) if !fds[0].revents().is_empty() => return true,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

/// See the module. Its end is its drop.
pub struct ControlServer {
    path: PathBuf,
    name: Option<socket::Name>,
    /// The one that the thread accepts at.
    listener: UnixListener,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    handler: Arc<dyn Handler>,
    allowed: AllowedPeers,
    refusals: RefusalLog,
    tell: Tell,
    over: AtomicBool,
    /// How long an asker may take to send its request.
    patience: Duration,
    /// Those that are served now, by their order.
    askers: Mutex<BTreeMap<u64, Connection>>,
}

/// A connection that is served.
struct Connection {
    stream: UnixStream,
    /// Its request was read, and is carried out.
    has_asked: bool,
}

/// What a server of this module tells people: one line, such as that it lacks descriptors.
pub type Tell = Box<dyn Fn(&str) + Send + Sync>;

impl ControlServer {
    /// Listens at `path`, for the users that are `allowed`. A socket without a listener is
    /// replaced. `tell` gets what goes wrong later.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn listen(
        path: &Path,
        allowed: AllowedPeers,
        handler: Arc<dyn Handler>,
        tell: Tell,
    ) -> Result<ControlServer, ListenError> {
        ControlServer::listen_with(path, allowed, handler, tell, PATIENCE)
    }

    fn listen_with(
        path: &Path,
        allowed: AllowedPeers,
        handler: Arc<dyn Handler>,
        tell: Tell,
        patience: Duration,
    ) -> Result<ControlServer, ListenError> {
        let listener = socket::listen(path, &allowed)?;
        let name = socket::Name::of(&listener);
        // What fails from here on leaves no socket behind.
        let os = |source| {
            name.iter().cloned().for_each(socket::Name::remove);
            ListenError::Os { path: path.to_owned(), source }
        };
        let accepted_at = listener.try_clone().map_err(os)?;
        let spare = SpareDescriptor::new().map_err(os)?;
        let askers = Mutex::new(BTreeMap::new());
        let (over, refusals) = (AtomicBool::new(false), RefusalLog::new());
        let shared = Arc::new(Shared { handler, allowed, refusals, tell, over, patience, askers });
        let served = Arc::clone(&shared);
        let thread = thread::try_spawn(move || {
            let mut numbers = 0..;
            let is_over = || served.over.load(Ordering::SeqCst);
            accept_until(&accepted_at, spare, is_over, &served.tell, |stream| {
                // A connection that breaks off concerns no other.
                let _broken = numbers.next().map(|number| served.take(number, stream));
            });
        });
        let thread = thread.map_err(os)?;
        Ok(ControlServer { path: path.to_owned(), name, listener, shared, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Shared {
    /// Serves a connection on a thread of its own, if there is one left.
    fn take(self: &Arc<Self>, number: u64, stream: UnixStream) -> io::Result<()> {
        stream.set_write_timeout(Some(PATIENCE))?;
        let peer = Peer::of(&stream)?;
        if let Err(why) = self.allowed.admit(&peer) {
            if let Some(more) = self.refusals.met() {
                (self.tell)(&format!("control socket: {} was refused: {why}{more}", peers::shown(peer.pid)));
            }
            return Response::refusal(&why).send(&stream);
        }
        let known = match stream.try_clone() {
            Ok(known) => known,
            Err(error) => return Response::refusal(&lacking(&error)).send(&stream),
        };
        let (dismissed, is_full) = {
            let mut askers = self.askers.lock();
            let dismissed = oldest_silent(&askers).and_then(|oldest| askers.remove(&oldest));
            let is_full = askers.len() >= CONNECTIONS_MAX;
            if !is_full {
                askers.insert(number, Connection { stream: known, has_asked: false });
            }
            (dismissed, is_full)
        };
        if let Some(silent) = dismissed {
            let why = format!("no request came while {ASKERS_MAX} others connected; ask again");
            let _broken = Response::refusal(&why).send(&silent.stream);
            let _hung_up = silent.stream.shutdown(Shutdown::Both);
        }
        if is_full {
            return Response::refusal(&format!("{CONNECTIONS_MAX} others are being answered; ask again")).send(&stream);
        }
        let stream = Arc::new(stream);
        let (shared, served) = (Arc::clone(self), Arc::clone(&stream));
        let spawned = thread::try_spawn(move || {
            let _known = Known { shared: &shared, number };
            let _broken = shared.serve(number, &served);
        });
        // It ends by itself.
        spawned.map(drop).or_else(|error| {
            self.askers.lock().remove(&number);
            Response::refusal(&lacking(&error)).send(&stream)
        })
    }

    fn serve(&self, number: u64, stream: &UnixStream) -> io::Result<()> {
        let request = read_request(stream, self.patience)?;
        let admitted = self.admit(number, request.as_ref().ok());
        // It has been dismissed meanwhile, with its answer.
        let Some(admitted) = admitted else { return Ok(()) };
        let response = match admitted.and(request) {
            Err(why) => Response::Refused { why },
            Ok(request) => self.handler.handle(&request, &Asker { stream: Some(stream) }),
        };
        response.send(stream)
    }

    /// Gives a place to the asker `number`, of which `request` was read if it is one; none if it is
    /// no longer served.
    fn admit(&self, number: u64, request: Option<&Op>) -> Option<Result<(), String>> {
        let mut askers = self.askers.lock();
        let under_way = askers.values().filter(|asker| asker.has_asked).count();
        let asker = askers.get_mut(&number)?;
        asker.has_asked = true;
        let is_urgent =
            request.is_none_or(|request| !request.verb().may_wait() || matches!(request, Op::Revoke { .. }));
        let places = if is_urgent { ASKERS_MAX + RESERVED } else { ASKERS_MAX };
        Some(if under_way < places {
            Ok(())
        } else {
            Err(format!(
                "{under_way} requests are being carried out, and this one would be one too many; end one of them (Ctrl-C), or free what they wait for with `revoke`, and ask again"
            ))
        })
    }
}

/// The asker that has to make way if too many have not sent their request: the first that has sent
/// nothing since it was last read from.
fn oldest_silent(askers: &BTreeMap<u64, Connection>) -> Option<u64> {
    let waiting: Vec<_> = askers.iter().filter(|(_, asker)| !asker.has_asked).collect();
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    let is_silent = |asker: &Connection| {
        let mut fds = [PollFd::from_borrowed_fd(asker.stream.as_fd(), PollFlags::IN)];
        poll(&mut fds, Some(&at_once)) == Ok(0)
    };
    let silent = || waiting.iter().find(|(_, asker)| is_silent(asker));
    (waiting.len() >= ASKERS_MAX).then(silent).flatten().map(|(number, _)| **number)
}

/// Reads the request that `stream` sends within `patience`.
///
/// # Errors
/// The connection broke off. The inner error is why what came is no request.
fn read_request(stream: &UnixStream, patience: Duration) -> io::Result<Result<Op, String>> {
    const FORM: &str = "a request is one line of JSON, such as {\"command\":\"pins\"}";
    let clock = Clock::real();
    let (mut line, mut chunk) = (Vec::new(), [0; 4096]);
    let mut reader = stream;
    while !line.contains(&b'\n') {
        let left = patience.saturating_sub(Duration::from_nanos(clock.now().0));
        let late = || {
            let found = line.len();
            format!("no whole request came within {} s, only {found} bytes; {FORM}", patience.as_secs_f64())
        };
        if left.is_zero() {
            return Ok(Err(late()));
        }
        stream.set_read_timeout(Some(left))?;
        match reader.read(&mut chunk) {
            // A line that ends with the connection's sending side is a request too.
            Ok(0) => break,
            Ok(read) => line.extend_from_slice(&chunk[..read]),
            Err(error) => match error.kind() {
                io::ErrorKind::Interrupted => {}
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => return Ok(Err(late())),
                _ => return Err(error),
            },
        }
        if line.len() as u64 > REQUEST_MAX {
            return Ok(Err(format!("the request is longer than {REQUEST_MAX} bytes; {FORM}")));
        }
    }
    line.truncate(line.iter().position(|byte| *byte == b'\n').unwrap_or(line.len()));
    let not_understood = |why: String| format!("the request is not understood: {why}; {FORM}");
    Ok(match std::str::from_utf8(&line) {
        Ok(text) => decode(text).map_err(|error| not_understood(error.to_string())),
        Err(error) => Err(not_understood(format!("it is no UTF-8 from byte {} on", error.valid_up_to()))),
    })
}

/// A connection on the list, as long as it is served: also if its handler panics.
struct Known<'a> {
    shared: &'a Shared,
    number: u64,
}

impl Drop for Known<'_> {
    fn drop(&mut self) {
        self.shared.askers.lock().remove(&self.number);
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        // The thread waits in accept(2), at a path that another process may have by now: accept(2)
        // fails from here on.
        let _woken = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
        // An asker that still waits gets no answer, and its work is told.
        for asker in self.shared.askers.lock().values() {
            let _hung_up = asker.stream.shutdown(Shutdown::Both);
        }
        if let Some(name) = self.name.take() {
            name.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, Write};

    use super::*;

    struct NoHandler;

    impl Handler for NoHandler {
        fn handle(&self, _request: &Op, _asker: &Asker<'_>) -> Response {
            Response::Refused { why: "handled".to_owned() }
        }
    }

    /// An asker that sends a byte again and again resets no limit: the whole request has one.
    #[test]
    fn a_request_that_trickles_in_is_answered_at_the_limit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control");
        let patience = Duration::from_millis(100);
        let _server =
            ControlServer::listen_with(&path, AllowedPeers::with(&[]), Arc::new(NoHandler), Box::new(|_| {}), patience)
                .unwrap();
        let stream = UnixStream::connect(&path).unwrap();
        let mut sending = stream.try_clone().unwrap();
        let moment = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
        let trickle = thread::try_spawn(move || {
            // It ends when the server hangs up.
            while sending.write_all(b" ").is_ok() {
                let _paced = poll(&mut [], Some(&moment));
            }
        });
        let mut line = String::new();
        io::BufReader::new(&stream).read_line(&mut line).unwrap();
        assert!(line.starts_with("{\"refused\"") && line.contains("no whole request came within 0.1 s"), "{line}");
        trickle.unwrap().join().unwrap();
    }
}
