//! The listening side of a control socket.
//!
//! It owns the socket's path, which it removes at its end unless another process has it by then,
//! and a thread for each connection, at most [`ASKERS_MAX`] at once. Invariant: a connection that
//! sends nothing, too much or nonsense is answered or dropped, and holds up no other; work for an
//! asker that has hung up is told so at once; where descriptors or threads run out, the asker is
//! told, and the server neither spins nor ends.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use crate::messages::socket::{self, ListenError};
use emulator::sync::atomic::{AtomicBool, Ordering};
use emulator::sync::thread::{self, JoinHandle};
use emulator::sync::{Arc, Mutex};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::protocol::{PATIENCE, REQUEST_MAX, Response};
use super::request::decode;
use crate::ops::Op;

/// The most connections that are served at once.
pub(super) const ASKERS_MAX: usize = 32;
/// How long the listening thread waits when not even a connection can be refused, in nanoseconds.
const RETRY_NS: i64 = 50_000_000;

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
    over: AtomicBool,
    /// Those that are served now.
    askers: Mutex<BTreeMap<u64, UnixStream>>,
}

impl ControlServer {
    /// Listens at `path`. A socket without a listener is replaced.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn listen(path: &Path, handler: Arc<dyn Handler>) -> Result<ControlServer, ListenError> {
        let listener = socket::listen(path)?;
        let name = socket::Name::of(&listener);
        let os = |source| ListenError::Os { path: path.to_owned(), source };
        let accepted_at = listener.try_clone().map_err(os)?;
        let mut spare = SpareDescriptor::new().map_err(os)?;
        let askers = Mutex::new(BTreeMap::new());
        let shared = Arc::new(Shared { handler, over: AtomicBool::new(false), askers });
        let served = Arc::clone(&shared);
        let thread = thread::try_spawn(move || {
            for (number, stream) in (0..).zip(accepted_at.incoming()) {
                if served.over.load(Ordering::SeqCst) {
                    return;
                }
                // A connection that breaks off concerns no other.
                let _broken = match stream {
                    Ok(stream) => served.take(number, stream),
                    Err(error) => spare.turn_away(&accepted_at, &error),
                };
            }
        });
        let thread = thread.map_err(|source| {
            name.iter().cloned().for_each(socket::Name::remove);
            os(source)
        })?;
        Ok(ControlServer { path: path.to_owned(), name, listener, shared, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// A descriptor in reserve, for when this process has no other left: a connection is accepted with
/// it, told so, and closed. Without it the connection would stay in the queue, and accept(2) would
/// fail over and over at once.
struct SpareDescriptor(Option<OwnedFd>);

impl SpareDescriptor {
    fn new() -> io::Result<SpareDescriptor> {
        Ok(SpareDescriptor(Some(File::open("/dev/null")?.into())))
    }

    /// Answers the connection that could not be accepted because of `error`. If that is impossible
    /// too, waits a moment, in which others may give descriptors or memory back.
    fn turn_away(&mut self, listener: &UnixListener, error: &io::Error) -> io::Result<()> {
        if error.kind() == io::ErrorKind::Interrupted || error.kind() == io::ErrorKind::ConnectionAborted {
            return Ok(());
        }
        drop(self.0.take());
        // Another thread may have taken the descriptor, so that accept(2) fails again: it must not
        // wait, as the next connection may be long in coming.
        let told = listener.set_nonblocking(true).and_then(|()| {
            let (stream, _) = listener.accept()?;
            stream.set_write_timeout(Some(PATIENCE))?;
            refuse(&stream, &lacking(error))
        });
        listener.set_nonblocking(false)?;
        *self = SpareDescriptor::new().unwrap_or(SpareDescriptor(None));
        if self.0.is_none() || told.is_err() {
            let moment = Timespec { tv_sec: 0, tv_nsec: RETRY_NS };
            let _later = poll(&mut [], Some(&moment));
        }
        told
    }
}

/// What an asker is told if this process lacks something.
fn lacking(error: &io::Error) -> String {
    format!("this process can't answer now: {error}; ask again when it has fewer connections, or raise its limits")
}

fn refuse(stream: &UnixStream, why: &str) -> io::Result<()> {
    send(stream, &Response::Refused { why: why.to_owned() })
}

impl Shared {
    /// Serves a connection on a thread of its own, if there is one left.
    fn take(self: &Arc<Self>, number: u64, stream: UnixStream) -> io::Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let known = match stream.try_clone() {
            Ok(known) => known,
            Err(error) => return refuse(&stream, &lacking(&error)),
        };
        let full = {
            let mut askers = self.askers.lock();
            let full = askers.len() >= ASKERS_MAX;
            if !full {
                askers.insert(number, known);
            }
            full
        };
        if full {
            return refuse(&stream, &format!("{ASKERS_MAX} others are being answered; ask again"));
        }
        let stream = Arc::new(stream);
        let (shared, served) = (Arc::clone(self), Arc::clone(&stream));
        let spawned = thread::try_spawn(move || {
            let _known = Known { shared: &shared, number };
            let _broken = shared.serve(&served);
        });
        // It ends by itself.
        spawned.map(drop).or_else(|error| {
            self.askers.lock().remove(&number);
            refuse(&stream, &lacking(&error))
        })
    }

    fn serve(&self, stream: &UnixStream) -> io::Result<()> {
        let mut line = String::new();
        BufReader::new(stream.take(REQUEST_MAX)).read_line(&mut line)?;
        let response = match decode(&line) {
            Err(error) => Response::Refused { why: format!("the request is not understood: {error}") },
            Ok(request) => self.handler.handle(&request, &Asker { stream: Some(stream) }),
        };
        send(stream, &response)
    }
}

fn send(mut stream: &UnixStream, response: &Response) -> io::Result<()> {
    let mut text = serde_json::to_string(response)?;
    text.push('\n');
    stream.write_all(text.as_bytes())
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
            let _hung_up = asker.shutdown(Shutdown::Both);
        }
        if let Some(name) = self.name.take() {
            name.remove();
        }
    }
}
