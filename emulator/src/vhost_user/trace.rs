//! The messages of a connection as lines of text, for `serve --trace`.
//!
//! It owns the lines' format and nothing else. Invariant: without a sink nothing is formatted.
//! Counterpart: QEMU's trace events `vhost_user_read` and `vhost_user_write`.
//!
//! # Format
//! Seconds, the connection's number, the direction (`->` from the frontend, `<-` to it), the
//! message's name, its fields, and behind a colon what became of it:
//! ```text
//! 0.001204 1 -> SET_MEM_TABLE flags 0x9 size 40 files 1: forwarded
//! 0.001377 1 <- SET_MEM_TABLE size 8 value 0
//! 0.001412 1 <- SHMEM_MAP shm_offset 0x0 fd_offset 0x0 len 0x600000 files 1
//! 0.001633 1 -> SHMEM_MAP: 0
//! ```

use std::fmt;

use vhost::vhost_user::message::{BackendReq, FrontendReq};

use super::PmemPiece;
use super::wire::MessageHeader;
use crate::runtime::sync::Arc;
use crate::runtime::world::World;

/// Where the lines go. Called from several threads, and not to wait long: a frontend waits for its
/// answer meanwhile.
pub trait MessageTrace: Send + Sync {
    /// Takes a line without its end.
    fn line(&self, line: &str);
}

/// See the module.
#[derive(Clone)]
pub(super) struct MessageTracer {
    sink: Option<Arc<dyn MessageTrace>>,
    world: Arc<World>,
    connection: u64,
}

impl fmt::Debug for MessageTracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MessageTracer").field("connection", &self.connection).finish_non_exhaustive()
    }
}

/// A message's name: the specification's, or its number.
pub(super) fn request_name(request: u32) -> String {
    FrontendReq::try_from(request).map_or_else(|_| format!("request {request}"), |known| format!("{known:?}"))
}

impl MessageTracer {
    pub(super) fn new(sink: Option<Arc<dyn MessageTrace>>, world: Arc<World>, connection: u64) -> MessageTracer {
        MessageTracer { sink, world, connection }
    }

    /// Without lines.
    #[cfg(test)]
    pub(super) fn silent() -> MessageTracer {
        MessageTracer::new(None, Arc::new(World::real(0)), 0)
    }

    fn line(&self, rest: impl FnOnce() -> String) {
        if let Some(sink) = &self.sink {
            let micros = self.world.now().0 / 1_000;
            sink.line(&format!("{}.{:06} {} {}", micros / 1_000_000, micros % 1_000_000, self.connection, rest()));
        }
    }

    /// What happened to the connection.
    pub(super) fn note(&self, what: impl fmt::Display) {
        self.line(|| format!("-- {what}"));
    }

    /// The frontend sent a message, and what became of it.
    pub(super) fn received(&self, header: MessageHeader, files: usize, verdict: impl fmt::Display) {
        let MessageHeader { request, flags, size } = header;
        self.line(|| format!("-> {} flags {flags:#x} size {size} files {files}: {verdict}", request_name(request)));
    }

    /// The frontend was answered.
    pub(super) fn replied(&self, request: u32, body: &[u8]) {
        self.line(|| {
            let value = body.first_chunk().filter(|_| body.len() == 8).map(|value| u64::from_ne_bytes(*value));
            let value = value.map_or_else(String::new, |value| format!(" value {value:#x}"));
            format!("<- {} size {}{value}", request_name(request), body.len())
        });
    }

    /// The frontend was asked for something on the backend channel.
    pub(super) fn asked(&self, request: BackendReq, piece: Option<PmemPiece>, files: usize) {
        self.line(|| {
            let piece = piece.map_or_else(String::new, |PmemPiece { guest_offset, device_offset, len }| {
                format!(" shm_offset {guest_offset:#x} fd_offset {device_offset:#x} len {len:#x}")
            });
            format!("<- {request:?}{piece} files {files}")
        });
    }

    /// What it answered, or why it did not.
    pub(super) fn answered(&self, request: BackendReq, answer: &Result<u64, impl fmt::Display>) {
        self.line(|| match answer {
            Ok(value) => format!("-> {request:?}: {}", value.cast_signed()),
            Err(why) => format!("-> {request:?}: none: {why}"),
        });
    }
}
