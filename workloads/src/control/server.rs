//! The listening side of a control socket.
//!
//! It owns the socket's path, which it removes at its end, and one thread. Invariant: the machine asked is the one published last;
//! a connection that sends nothing, too much or nonsense is answered or dropped, and the next one served.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use emulator::socket::{self, ListenError};
use emulator::sync::atomic::{AtomicBool, Ordering};
use emulator::sync::thread::{self, JoinHandle};
use emulator::sync::{Arc, Mutex};
use fs_sim::Kernel;

use super::answers::answer;
use super::protocol::{PATIENCE, REQUEST_MAX, Response};

/// See the module. Its end is its drop.
pub struct Server {
    path: PathBuf,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    machine: Mutex<Option<Arc<Kernel>>>,
    over: AtomicBool,
}

impl Server {
    /// Listens at `path`. A socket that nobody listens at any more is replaced.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn listen(path: &Path) -> Result<Server, ListenError> {
        let listener = socket::listen(path)?;
        let shared = Arc::new(Shared::default());
        let served = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if served.over.load(Ordering::SeqCst) {
                    return;
                }
                // A connection that breaks off concerns nobody else.
                let _broken = stream.and_then(|stream| serve(stream, &served));
            }
        });
        Ok(Server { path: path.to_owned(), shared, thread: Some(thread) })
    }

    /// Questions are about `kernel` from now on.
    pub fn publish(&self, kernel: &Arc<Kernel>) {
        *self.shared.machine.lock() = Some(Arc::clone(kernel));
    }
}

fn serve(mut stream: UnixStream, shared: &Shared) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new((&stream).take(REQUEST_MAX)).read_line(&mut line)?;
    let machine = shared.machine.lock().clone();
    let response = match (serde_json::from_str(&line), machine) {
        (Err(error), _) => Response::Refused { why: format!("the request is not understood: {error}") },
        (Ok(_), None) => Response::Refused { why: "no machine runs yet: ask again".to_owned() },
        (Ok(request), Some(kernel)) => answer(&kernel, &request),
    };
    let mut text = serde_json::to_string(&response)?;
    text.push('\n');
    stream.write_all(text.as_bytes())
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        // The thread waits for somebody to connect.
        let _woken = UnixStream::connect(&self.path);
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
        let _removed = std::fs::remove_file(&self.path);
    }
}
