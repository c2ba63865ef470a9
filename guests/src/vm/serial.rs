//! A guest's two serial lines: the console, and the one that carries commands.
//!
//! It owns the reading of both. Invariants: the tail of the console that is kept is bounded; a
//! marker is found wherever the reads end. Counterpart: serial8250, drivers/tty/serial/8250 in
//! Linux.

use std::collections::VecDeque;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io::{self, Read};
use std::os::unix::net::UnixStream;

use emulator::sync::{Arc, Mutex, thread};

/// 128 random bits: a token that the output of a command cannot contain by chance.
pub(super) fn token() -> String {
    let random = || RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", random(), random())
}

/// The end of what the console and QEMU itself said.
#[derive(Debug, Default)]
pub(super) struct Console {
    pub(super) tail: VecDeque<u8>,
}

/// How much of it is kept, in bytes.
const CONSOLE_MAX: usize = 64 << 10;

/// Reads `from` into the tail on a thread that ends with QEMU. Without a reader, a full console
/// would block the guest.
pub(super) fn keep(
    mut from: impl Read + Send + 'static,
    console: &Arc<Mutex<Console>>,
) -> io::Result<thread::JoinHandle<()>> {
    let console = Arc::clone(console);
    thread::try_spawn(move || {
        let mut chunk = [0; 4096];
        while let Ok(read @ 1..) = from.read(&mut chunk) {
            let mut console = console.lock();
            console.tail.extend(&chunk[..read]);
            let over = console.tail.len().saturating_sub(CONSOLE_MAX);
            console.tail.drain(..over);
        }
    })
}

/// The second serial line, as lines.
pub(super) struct SerialLines {
    pub(super) from: UnixStream,
    pub(super) buffer: Vec<u8>,
}

/// Why there was no line.
pub(super) enum NoLine {
    NotYet,
    End,
}

impl SerialLines {
    /// Bytes up to and with the first place where `marker` ends, which are taken away.
    pub(super) fn take_until(&mut self, marker: &[u8], from: &mut usize) -> Option<Vec<u8>> {
        let start = from.saturating_sub(marker.len());
        let at = self.buffer[start..].windows(marker.len()).position(|window| window == marker);
        *from = self.buffer.len();
        at.map(|at| self.buffer.drain(..start + at + marker.len()).collect())
    }

    /// Reads once.
    pub(super) fn fill(&mut self) -> Result<(), NoLine> {
        let mut chunk = [0; 64 << 10];
        match self.from.read(&mut chunk) {
            Ok(0) => Err(NoLine::End),
            Ok(read) => {
                self.buffer.extend_from_slice(&chunk[..read]);
                Ok(())
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                Err(NoLine::NotYet)
            }
            Err(_) => Err(NoLine::End),
        }
    }
}

/// RFC 4648 section 4.
pub(super) fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for digit in 0..4 {
            let value = bits >> (18 - 6 * digit) & 63;
            text.push(if digit <= group.len() { char::from(DIGITS[value as usize]) } else { '=' });
        }
    }
    text
}
