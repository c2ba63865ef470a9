//! Sockets between processes: the messages of this program, listening at a path ([`socket`]), and
//! who may connect there ([`peers`]).
//!
//! It owns the messages' transport: each message is one packet of a Unix SEQPACKET socket and holds
//! one JSON text, with descriptors beside it. Invariant: a message has at most `MESSAGE_MAX`
//! bytes and `FDS_MAX` descriptors, and arrives whole or not at all. Kernel counterpart: unix(7).

pub mod peers;
pub mod socket;

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The longest message in bytes. The longest kinds are two paths, the byte runs that a read found,
/// and the pieces of a guest's device.
pub(crate) const MESSAGE_MAX: usize = 16 << 10;
/// The most descriptors of a message.
pub(crate) const FDS_MAX: usize = 4;

/// Two connected sockets that `execve` closes.
pub(crate) fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

/// Sends a message. It never waits for room: a socket has room for many messages, and at most a few
/// are unread at any time.
///
/// # Errors
/// The errno of `sendmsg`; EMSGSIZE also for a message longer than `MESSAGE_MAX`.
pub(crate) fn send(socket: BorrowedFd<'_>, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let text = serde_json::to_vec(message).map_err(|_| Errno::INVAL)?;
    match text.len() > MESSAGE_MAX {
        true => Err(Errno::MSGSIZE),
        false => send_bytes(socket, &text, fds),
    }
}

/// Sends bytes with descriptors beside them.
pub(crate) fn send_bytes(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::INVAL);
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL | SendFlags::DONTWAIT).map(|_| ())
}

/// Receives a message; none when the peer has closed the socket.
///
/// # Errors
/// The errno of `recvmsg` (EINTR, EAGAIN); EBADMSG for a packet that is not a message.
pub(crate) fn receive<T: DeserializeOwned>(
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
pub(crate) fn receive_bytes(
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
