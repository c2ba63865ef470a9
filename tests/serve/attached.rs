//! A server's guests: the vhost crate's frontend, attached as QEMU attaches.

use tempfile::TempDir;

use crate::guest::{Asked, Guest, willing};
use crate::server::Server;

/// One file `data` of 4 MiB, with a control socket.
pub const FILE: [&str; 6] = ["--control", "a.ctl", "--file", "data", "--create", "4MiB"];

/// A server of [`FILE`] at the sockets `names`, with more arguments, in a folder of its own.
pub fn serve_file(names: &[&str], more: &[&str]) -> (TempDir, Server) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), names, &[&FILE[..], more].concat());
    (dir, server)
}

impl Server {
    /// A guest at the socket `name` that has booted: its driver asks for the device, and what the
    /// server maps in answer is not read yet.
    pub fn boot(&self, name: &str) -> Guest {
        let mut guest = Guest::connect(&self.socket(name));
        guest.realise(willing());
        guest.start();
        guest
    }

    /// A guest at the socket `name`, with a driver that has the device mapped.
    pub fn guest(&self, name: &str) -> Guest {
        self.attach(name).0
    }

    /// The same, and the first piece that it was asked to map.
    pub fn attach(&self, name: &str) -> (Guest, Asked) {
        let guest = self.boot(name);
        let piece = guest.was_asked();
        (guest, piece)
    }
}

/// Flushes as long as the news of why it must fail is on its way to the port.
pub fn flush_until_it_fails(guest: &mut Guest) {
    assert!((0..1_000_000).any(|_| guest.flush() == 1), "it never fails");
}
