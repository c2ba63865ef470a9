//! A medium that a test controls and that records every call.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::mpsc::{Receiver, Sender, channel};

use emulator::sync::{Arc, Mutex};
use emulator::vhost_user::{FlushError, Medium, Peer, PmemPiece, VhostOptions, VhostServer};

use crate::guest::memfd;

pub const MIB: u64 = 1 << 20;
pub const BYTES: u64 = 6 * MIB;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Connect(Peer),
    Attach,
    Flush,
    Gone,
    NotStarted,
}

/// What a blocked flush is ended with.
pub type Outcome = Result<(), FlushError>;

pub struct TestMedium {
    pub file: File,
    pub pieces: Mutex<Vec<PmemPiece>>,
    pub admit: Mutex<Result<u64, String>>,
    pub events: Mutex<Vec<Event>>,
    /// Where a flush tells that it began, and waits to be ended; none: it succeeds at once.
    gate: Mutex<Option<(Sender<()>, Receiver<Outcome>)>>,
    attach_gate: Mutex<Option<(Sender<()>, Receiver<()>)>>,
    gone: Mutex<Option<Sender<()>>>,
    /// Flushes have a bug.
    pub panics: Mutex<bool>,
}

impl TestMedium {
    pub fn new() -> Arc<TestMedium> {
        Arc::new(TestMedium {
            file: memfd(BYTES),
            pieces: Mutex::new(vec![PmemPiece { guest_offset: 0, device_offset: 0, len: BYTES }]),
            admit: Mutex::new(Ok(BYTES)),
            events: Mutex::default(),
            gate: Mutex::default(),
            attach_gate: Mutex::default(),
            gone: Mutex::default(),
            panics: Mutex::default(),
        })
    }

    /// From now on each flush says when it began, and ends when and as it is told.
    pub fn hold_flushes(&self) -> (Receiver<()>, Sender<Outcome>) {
        let (began, begins) = channel();
        let (end, ends) = channel();
        *self.gate.lock() = Some((began, ends));
        (begins, end)
    }

    /// The same for attaches.
    pub fn hold_attaches(&self) -> (Receiver<()>, Sender<()>) {
        let (began, begins) = channel();
        let (end, ends) = channel();
        *self.attach_gate.lock() = Some((began, ends));
        (begins, end)
    }

    /// Tells when a connection is gone.
    pub fn tell_gone(&self) -> Receiver<()> {
        let (sender, receiver) = channel();
        *self.gone.lock() = Some(sender);
        receiver
    }

    pub fn count(&self, what: impl Fn(&Event) -> bool) -> usize {
        self.events.lock().iter().filter(|event| what(event)).count()
    }

    pub fn flushes(&self) -> usize {
        self.count(|event| *event == Event::Flush)
    }

    pub fn gones(&self) -> usize {
        self.count(|event| *event == Event::Gone)
    }
}

impl Medium for TestMedium {
    fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn connect(&self, peer: Peer, process: Option<OwnedFd>) -> Result<u64, String> {
        assert!(process.is_some(), "the frontend's process is this one");
        let admitted = self.admit.lock().clone();
        if admitted.is_ok() {
            self.events.lock().push(Event::Connect(peer));
        }
        admitted
    }

    fn attach(&self) -> Vec<PmemPiece> {
        self.events.lock().push(Event::Attach);
        let gate = self.attach_gate.lock().take();
        if let Some((began, ends)) = gate {
            let _ = began.send(());
            let _ = ends.recv();
            *self.attach_gate.lock() = Some((began, ends));
        }
        self.pieces.lock().clone()
    }

    fn flush(&self) -> Outcome {
        self.events.lock().push(Event::Flush);
        let panics = std::mem::take(&mut *self.panics.lock());
        assert!(!panics, "as the test wishes");
        let gate = self.gate.lock().take();
        let Some((began, ends)) = gate else { return Ok(()) };
        let _ = began.send(());
        let outcome = ends.recv().unwrap_or(Ok(()));
        *self.gate.lock() = Some((began, ends));
        outcome
    }

    fn not_started(&self) {
        self.events.lock().push(Event::NotStarted);
    }

    fn gone(&self) {
        self.events.lock().push(Event::Gone);
        if let Some(gone) = &*self.gone.lock() {
            let _ = gone.send(());
        }
    }
}

/// A server of a test medium, at a path of its own.
pub struct Served {
    // Dropped in this order: the server removes its socket from the folder.
    pub server: VhostServer,
    pub folder: tempfile::TempDir,
    pub medium: Arc<TestMedium>,
}

impl Served {
    pub fn new() -> Served {
        Served::with(TestMedium::new())
    }

    pub fn with(medium: Arc<TestMedium>) -> Served {
        Served::with_options(medium, VhostOptions::default())
    }

    pub fn with_options(medium: Arc<TestMedium>, options: VhostOptions) -> Served {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("guest.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let remove = move || std::fs::remove_file(path).unwrap();
        let medium_too = Arc::clone(&medium) as Arc<dyn Medium>;
        let server = VhostServer::start_with(listener, medium_too, options, remove).unwrap();
        Served { server, folder, medium }
    }

    pub fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("guest.sock")
    }
}
