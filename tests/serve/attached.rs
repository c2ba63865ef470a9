//! A server's guests: the vhost crate's frontend, attached as QEMU attaches.

use crate::guest::{Asked, Guest, willing};
use crate::server::Server;

impl Server {
    /// A guest at the socket `name`, with a driver that has the device mapped.
    pub fn guest(&self, name: &str) -> Guest {
        self.attach(name).0
    }

    /// The same, and the first piece that it was asked to map.
    pub fn attach(&self, name: &str) -> (Guest, Asked) {
        let mut guest = Guest::connect(&self.socket(name));
        guest.realise(willing());
        guest.start();
        let piece = guest.was_asked();
        (guest, piece)
    }
}

/// Flushes as long as the news of why it must fail is on its way to the port.
pub fn flush_until_it_fails(guest: &mut Guest) {
    assert!((0..1_000_000).any(|_| guest.flush() == 1), "it never fails");
}
