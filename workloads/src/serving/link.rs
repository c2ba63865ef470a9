//! The messages between the server and a backend process.
//!
//! It owns the messages (one a packet, [`crate::messages`]) and the waiting for replies.
//! Invariants: every request gets at most one reply, by its number; a message is at most
//! [`crate::messages::MESSAGE_MAX`] bytes, which a device of
//! [`PIECES_MAX`](emulator::vhost_user::PIECES_MAX) pieces keeps; a waiter stops waiting when the
//! link ends.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::task::Poll;
use std::time::Duration;

use emulator::World;
use emulator::sync::Mutex;
use emulator::sync::atomic::{AtomicU64, Ordering};
use emulator::vhost_user::{Peer, PmemPiece};
use emulator::wait::{WaitError, WaitFor, WaitQueue, Waiter, WaiterId};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::messages;
use crate::ops::FlushRule;

/// How long one side waits for the other's reply: far longer than it can take.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);
/// How long a backend process is waited for by a question that must not wait: one that runs answers
/// in a millisecond.
pub(super) const AT_ONCE: Duration = Duration::from_millis(500);

/// A message of the server to a backend process.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum ToPort {
    /// The first: what it serves. Carries the listening socket, the memory, the trace's file and
    /// the durable copy if there are any.
    Start {
        /// The memory's length in bytes.
        bytes: u64,
        /// Whether guests may only read it.
        read_only: bool,
        /// What the lines of a trace begin with, if there is one.
        trace: Option<String>,
        /// Whether violations of the specification are told.
        strict: bool,
    },
    /// The trace may be written to its file.
    TraceBegins,
    /// The reply to a request.
    Reply { number: u64, reply: Granted },
    /// Nothing may stay mapped for this connection, and flushes fail until the device is attached
    /// again with pieces. [`FromPort::Taken`] follows.
    Take { number: u64, connection: u64, why: TakeReason },
    /// Which flushes are told to fail. A reply follows.
    FailFlush { number: u64, rule: FlushRule },
    /// How long each flush is held up. A reply follows.
    DelayFlush { number: u64, delay_ns: u64 },
    /// The counters. A reply follows.
    Count { number: u64 },
    /// The server is about to end: every flush fails from now on. A reply follows.
    End { number: u64 },
}

/// Why a guest's memory is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum TakeReason {
    /// The guest no longer has it.
    Revoked,
    /// The power is gone.
    PowerCut,
}

/// What a port is given.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Granted {
    /// To `Connected`: the device has this many bytes.
    Device { bytes: u64 },
    /// To `Connected`: no, and why.
    No(String),
    /// To `Attach`: guest offset, device offset, length.
    Pieces(Vec<(u64, u64, u64)>),
    /// To `Gone`.
    Released,
}

/// What a port says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum FromPort {
    /// It listens.
    Ready,
    /// A frontend connected. The number is the connection's from now on. Carries a descriptor of
    /// the frontend's process, if it can be had.
    Connected { number: u64, peer: PeerSeen },
    /// A frontend did something against the specification.
    Violation { what: String },
    /// A frontend was refused without a question to the server, as while another one is attached.
    Refused { why: String },
    /// A frontend sent its first message.
    Speaks { connection: u64 },
    /// A frontend refused to map a piece.
    RefusesToMap { connection: u64, answer: i64 },
    /// The frontend has not started the device in time.
    NotStarted,
    /// A driver took the device.
    Attach { number: u64, connection: u64 },
    /// The frontend hung up.
    Gone { number: u64, connection: u64 },
    /// Nothing is mapped any more.
    Taken { number: u64, pieces: u64, acknowledged: bool },
    /// The reply to a request.
    Reply { number: u64, reply: Counted },
}

/// A [`Peer`] as a message carries it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct PeerSeen {
    pid: Option<u32>,
    uid: u32,
}

impl From<Peer> for PeerSeen {
    fn from(peer: Peer) -> PeerSeen {
        PeerSeen { pid: peer.pid, uid: peer.uid }
    }
}

impl From<PeerSeen> for Peer {
    fn from(seen: PeerSeen) -> Peer {
        Peer { pid: seen.pid, uid: seen.uid }
    }
}

/// What a port answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Counted {
    /// Done.
    Done,
    /// Its counters, by name, and the last thing that went wrong.
    Counters { counters: BTreeMap<String, u64>, problem: Option<String> },
}

/// Why nothing can be had over a link.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    /// The other side is gone.
    #[error("the other process is gone")]
    Over,
    /// It gave no answer.
    #[error("the other process gives no answer")]
    Silent,
}

/// One end of a link, on which answers of kind `A` come.
#[derive(Debug)]
pub(super) struct Link<A> {
    socket: OwnedFd,
    /// For its own waits: it is in no other wait queue.
    world: World,
    next: AtomicU64,
    replies: Mutex<Replies<A>>,
    changed: WaitQueue,
}

#[derive(Debug)]
struct Replies<A> {
    over: bool,
    /// Asked for; the answer once it is there.
    expected: BTreeMap<u64, Option<A>>,
}

impl<A> Link<A> {
    pub(super) fn new(socket: OwnedFd) -> Link<A> {
        let replies = Replies { over: false, expected: BTreeMap::new() };
        Link {
            socket,
            world: World::real(0),
            next: AtomicU64::new(1),
            replies: Mutex::new(replies),
            changed: WaitQueue::new(),
        }
    }

    /// A number for a request.
    pub(super) fn number(&self) -> u64 {
        // ORDERING: Relaxed: a number, nothing more.
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Says something. Never waits.
    pub(super) fn tell(&self, what: &impl Serialize, fds: &[BorrowedFd<'_>]) -> Result<(), LinkError> {
        messages::send(self.socket.as_fd(), what, fds).map_err(|_| LinkError::Over)
    }

    /// Says something that has a reply, and waits for it.
    pub(super) fn ask<M: Serialize>(&self, what: impl FnOnce(u64) -> M) -> Result<A, LinkError> {
        self.ask_with(&[], PATIENCE, what)
    }

    /// The same, with descriptors beside it, and another limit.
    pub(super) fn ask_with<M: Serialize>(
        &self,
        fds: &[BorrowedFd<'_>],
        limit: Duration,
        what: impl FnOnce(u64) -> M,
    ) -> Result<A, LinkError> {
        let number = self.number();
        self.replies.lock().expected.insert(number, None);
        let answered = self.tell(&what(number), fds).and_then(|()| self.wait(number, limit));
        self.replies.lock().expected.remove(&number);
        answered
    }

    fn wait(&self, number: u64, limit: Duration) -> Result<A, LinkError> {
        let how = WaitFor::uninterruptible("a reply").until(Some(self.world.now().after(limit)));
        let waiter = Waiter::new(WaiterId(number));
        let arrived = self.changed.wait(&self.world, &waiter, how, || {
            let mut replies = self.replies.lock();
            match replies.expected.get_mut(&number).and_then(Option::take) {
                Some(answer) => Poll::Ready(Ok(answer)),
                None if replies.over => Poll::Ready(Err(LinkError::Over)),
                None => Poll::Pending,
            }
        });
        arrived.unwrap_or_else(|_: WaitError| Err(LinkError::Silent))
    }

    /// A reply arrived. A reply without a waiter is dropped.
    pub(super) fn replied(&self, number: u64, answer: A) {
        if let Some(slot) = self.replies.lock().expected.get_mut(&number) {
            *slot = Some(answer);
        }
        self.changed.wake_all();
    }

    /// The next message; none at the end of the link.
    pub(super) fn next<M: DeserializeOwned>(&self) -> Option<(M, Vec<OwnedFd>)> {
        loop {
            match messages::receive(&self.socket, RecvFlags::empty()) {
                // A packet that is no message of this protocol is skipped.
                Err(Errno::INTR | Errno::BADMSG) => {}
                Ok(Some(message)) => return Some(message),
                Ok(None) | Err(_) => return None,
            }
        }
    }

    /// The link has ended: every waiter stops.
    pub(super) fn over(&self) {
        self.replies.lock().over = true;
        self.changed.wake_all();
    }

    /// Ends it for both sides.
    pub(super) fn hang_up(&self) {
        // It may have ended already.
        let _ended = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
        self.over();
    }
}

/// Pieces as a message carries them.
pub(super) fn encode_pieces(pieces: &[PmemPiece]) -> Vec<(u64, u64, u64)> {
    pieces.iter().map(|piece| (piece.guest_offset, piece.device_offset, piece.len)).collect()
}

/// The pieces of a message.
pub(super) fn decode_pieces(pieces: Vec<(u64, u64, u64)>) -> Vec<PmemPiece> {
    let piece = |(guest_offset, device_offset, len)| PmemPiece { guest_offset, device_offset, len };
    pieces.into_iter().map(piece).collect()
}
