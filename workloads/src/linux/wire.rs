//! What the driver and its child processes say to each other.
//!
//! It owns the messages and their carriage: one JSON text a packet of a Unix SEQPACKET socket, with descriptors beside it.
//! Invariants: a message has at most [`MESSAGE_MAX`] bytes and [`FDS_MAX`] descriptors; a process sends exactly one
//! [`Reply::Done`] for a [`Request`] that it survives, after one [`Reply::Began`] if the request can block. Kernel counterpart:
//! unix(7).

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The longest message in bytes: a path or two, or the runs of bytes that a read tells.
const MESSAGE_MAX: usize = 16 << 10;
/// The most descriptors of a message.
const FDS_MAX: usize = 2;

/// What a process is asked to do. Descriptors are numbers of that process, `-1` for one that was closed.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    /// The zygote: make a process. Carries its control socket and its inbox.
    Spawn,
    /// A copy of this process. Carries the copy's control socket and inbox.
    Fork,
    /// End, without an answer.
    Exit,
    /// Send a signal.
    Kill { pid: i32, signal: i32 },
    /// Set a disposition.
    Signal { signal: i32, disposition: Disposition },
    /// Change user and capabilities.
    Credentials { uid: u32, cap_lease: bool },
    /// `dup(2)`.
    Dup { fd: i32 },
    /// `dup2(2)`.
    Dup2 { from: i32, to: i32 },
    /// `close(2)`.
    Close { fd: i32 },
    /// `sendmsg(2)` with the descriptor. Carries the inbox to send to.
    Send { fd: i32 },
    /// `recvmsg(2)` on the process's own inbox.
    Receive,
    /// `openat(2)` with these flags.
    Open { path: String, flags: i32 },
    /// `pread(2)`.
    Read { fd: i32, offset: i64, len: u64 },
    /// `pwrite(2)`.
    Write { fd: i32, offset: i64, len: u64, byte: u8 },
    /// `truncate(2)`.
    Truncate { path: String, size: i64 },
    /// `ftruncate(2)`.
    Ftruncate { fd: i32, size: i64 },
    /// `fallocate(2)`.
    Fallocate { fd: i32, mode: i32, offset: i64, len: i64 },
    /// `unlink(2)`.
    Unlink { path: String },
    /// `rename(2)`.
    Rename { from: String, to: String },
    /// `link(2)`.
    Link { path: String, name: String },
    /// `chmod(2)` to what it is.
    Chmod { path: String },
    /// `utimensat(2)` to now.
    Utime { path: String },
    /// `stat(2)`.
    Stat { path: String },
    /// `fstat(2)`.
    Fstat { fd: i32 },
    /// `fcntl(2)` with a number as its argument.
    Fcntl { fd: i32, command: i32, argument: i32 },
    /// `execve(2)`: what answers is the failure; success closes the control socket.
    Exec { path: String },
    /// `mmap(2)`, shared; of anonymous memory without a descriptor.
    Map { fd: Option<i32>, offset: u64, len: u64, write: bool },
    /// `munmap(2)`.
    Unmap { at: u64, len: u64 },
    /// Loads through a mapping.
    Load { at: u64, len: u64 },
    /// Stores through a mapping.
    Store { at: u64, len: u64, byte: u8 },
    /// Tell the signals handled since they were last told.
    Handled,
}

/// What a signal does to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Disposition {
    Handler,
    Ignore,
    Default,
}

/// What a process answers.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Reply {
    /// The request is next, and may block; the signals handled before it.
    Began { handled: Vec<i32> },
    /// The request is over; the signals handled before this answer.
    Done { result: Result<Value, Failure>, handled: Vec<i32> },
}

/// What a request comes to.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Value {
    /// Nothing but success.
    Nothing,
    /// A descriptor, a size, a process's number, an address.
    Number(i64),
    /// Bytes that were read, in the words of scenarios.
    Bytes(String),
}

/// Why a request failed.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Failure {
    /// The system call's error.
    Errno(i32),
    /// The access would have raised this signal.
    Signal(i32),
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Failure::Errno(errno.raw_os_error())
    }
}

/// Two connected sockets, closed by `execve`.
pub(super) fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

/// Sends a message. Never waits for room: a socket has room for many messages, and at most a few are ever unread.
///
/// # Errors
/// Whatever `sendmsg` says; EMSGSIZE also for what is longer than [`MESSAGE_MAX`].
pub(super) fn send(socket: BorrowedFd<'_>, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let text = serde_json::to_vec(message).map_err(|_| Errno::INVAL)?;
    match text.len() > MESSAGE_MAX {
        true => Err(Errno::MSGSIZE),
        false => send_bytes(socket, &text, fds),
    }
}

/// Sends bytes with descriptors beside them.
pub(super) fn send_bytes(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::INVAL);
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL | SendFlags::DONTWAIT).map(|_| ())
}

/// Receives a message; none at the end of the conversation.
///
/// # Errors
/// Whatever `recvmsg` says (EINTR, EAGAIN); EBADMSG for what is no message.
pub(super) fn receive<T: DeserializeOwned>(
    socket: impl AsFd,
    flags: RecvFlags,
) -> Result<Option<(T, Vec<OwnedFd>)>, Errno> {
    let mut buffer = vec![0; MESSAGE_MAX];
    let (len, fds) = receive_bytes(socket, &mut buffer, flags)?;
    match len {
        0 => Ok(None),
        len => serde_json::from_slice(&buffer[..len]).map(|message| Some((message, fds))).map_err(|_| Errno::BADMSG),
    }
}

/// Receives bytes and the descriptors beside them.
pub(super) fn receive_bytes(
    socket: impl AsFd,
    buffer: &mut [u8],
    flags: RecvFlags,
) -> Result<(usize, Vec<OwnedFd>), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let message = recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut ancillary, flags | RecvFlags::CMSG_CLOEXEC)?;
    let fds = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    Ok((message.bytes, fds))
}
