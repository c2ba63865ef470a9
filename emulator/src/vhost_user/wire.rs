//! vhost-user messages on a stream socket: whole ones, with the descriptors that came along.
//!
//! It owns the bytes and descriptors of a message that has not arrived whole. Invariants: nothing
//! is read past a message's end; at most [`BODY_MAX`] bytes and [`FILES_MAX`] descriptors are kept;
//! a descriptor is closed unless its message is handed on. Counterpart: `struct vhost_user_header`
//! of QEMU's docs/interop/vhost-user.rst.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};

/// le32 request, le32 flags, le32 size of what follows (in the machine's own byte order, which is
/// little-endian wherever this runs).
pub(super) const HEADER_BYTES: usize = 12;
/// The longest body, as in the vhost crate.
pub(super) const BODY_MAX: usize = 4096;
/// The most descriptors of one message, as in the vhost crate.
pub(super) const FILES_MAX: usize = 32;

/// The version in a message's flags.
pub(super) const VERSION: u32 = 1;
/// The bits of the version.
const VERSION_BITS: u32 = 3;
/// It is a reply.
pub(super) const REPLY: u32 = 1 << 2;
/// Its sender waits for a reply.
pub(super) const NEED_REPLY: u32 = 1 << 3;

/// A message's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MessageHeader {
    pub(super) request: u32,
    pub(super) flags: u32,
    pub(super) size: u32,
}

impl MessageHeader {
    pub(super) fn parse(bytes: [u8; HEADER_BYTES]) -> MessageHeader {
        let [request, flags, size] = [0, 4, 8].map(|at| bytes[at..].first_chunk().copied().unwrap_or_default());
        let [request, flags, size] = [request, flags, size].map(u32::from_ne_bytes);
        MessageHeader { request, flags, size }
    }

    fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        for (at, word) in [self.request, self.flags, self.size].into_iter().enumerate() {
            bytes[4 * at..4 * at + 4].copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    /// Whether the end of the message can be known. If not, nothing that follows can be read.
    fn is_framed(self) -> bool {
        self.flags & VERSION_BITS == VERSION && self.size as usize <= BODY_MAX
    }
}

/// A message, whole.
#[derive(Debug)]
pub(super) struct WireMessage {
    pub(super) header: MessageHeader,
    pub(super) body: Vec<u8>,
    pub(super) files: Vec<OwnedFd>,
}

/// What a read of the socket brought.
#[derive(Debug)]
pub(super) enum WireRead {
    Message(WireMessage),
    /// A message that is not whole, or nothing.
    Part,
    /// The other side closed the connection between two messages.
    End,
}

/// Why no further message can be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    #[error("the connection ended in the middle of a message")]
    Torn,
    #[error("a header with flags {:#x} and a body of {} bytes: version 1 and at most {BODY_MAX} bytes were expected", .0.flags, .0.size)]
    Frame(MessageHeader),
    #[error(
        "the descriptors of a message did not arrive: more than {FILES_MAX}, or this process has no descriptor left"
    )]
    Descriptors,
    #[error("the socket: {0}")]
    Os(#[from] io::Error),
}

impl From<Errno> for WireError {
    fn from(error: Errno) -> Self {
        WireError::Os(error.into())
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct MessageReader {
    header: [u8; HEADER_BYTES],
    /// Bytes of header and body so far.
    have: usize,
    body: Vec<u8>,
    files: Vec<OwnedFd>,
}

impl MessageReader {
    /// Whether a message has begun and is not whole.
    pub(super) fn is_within(&self) -> bool {
        self.have > 0
    }

    /// Reads what is there, without waiting, up to the end of one message.
    pub(super) fn read(&mut self, socket: BorrowedFd<'_>) -> Result<WireRead, WireError> {
        while self.have < HEADER_BYTES {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_MAX))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut parts = [IoSliceMut::new(&mut self.header[self.have..])];
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            let received = match rustix::net::recvmsg(socket, &mut parts, &mut control, flags) {
                Err(Errno::AGAIN) => return Ok(WireRead::Part),
                Err(Errno::INTR) => continue,
                other => other?,
            };
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(files) = message {
                    self.files.extend(files);
                }
            }
            if received.flags.contains(ReturnFlags::CTRUNC) || self.files.len() > FILES_MAX {
                self.files.clear();
                return Err(WireError::Descriptors);
            }
            match received.bytes {
                0 if self.is_within() => return Err(WireError::Torn),
                0 => return Ok(WireRead::End),
                more => self.have += more,
            }
        }
        let header = MessageHeader::parse(self.header);
        if !header.is_framed() {
            self.files.clear();
            return Err(WireError::Frame(header));
        }
        self.body.resize(header.size as usize, 0);
        while self.have < HEADER_BYTES + self.body.len() {
            // Descriptors that come here belong to no message: the kernel closes them.
            match rustix::net::recv(socket, &mut self.body[self.have - HEADER_BYTES..], RecvFlags::DONTWAIT) {
                Err(Errno::AGAIN) => return Ok(WireRead::Part),
                Err(Errno::INTR) => {}
                Ok((0, _)) => return Err(WireError::Torn),
                Ok((more, _)) => self.have += more,
                Err(error) => return Err(error.into()),
            }
        }
        self.have = 0;
        let (body, files) = (std::mem::take(&mut self.body), std::mem::take(&mut self.files));
        Ok(WireRead::Message(WireMessage { header, body, files }))
    }
}

/// Sends a message in one piece. Bytes that the socket does not take at once are waited for by
/// `wait`, which fails if they are not to be waited for.
pub(super) fn send(
    socket: BorrowedFd<'_>,
    header: MessageHeader,
    body: &[u8],
    files: &[BorrowedFd<'_>],
    wait: impl Fn() -> io::Result<()>,
) -> io::Result<()> {
    let header = header.to_bytes();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_MAX))];
    let mut sent = 0;
    while sent < HEADER_BYTES + body.len() {
        let mut control = SendAncillaryBuffer::new(&mut space);
        // They go with the first byte.
        if sent == 0 && !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(files)) {
            return Err(Errno::NOMEM.into());
        }
        let parts = match sent.checked_sub(HEADER_BYTES) {
            None => [IoSlice::new(&header[sent..]), IoSlice::new(body)],
            Some(within) => [IoSlice::new(&[]), IoSlice::new(&body[within..])],
        };
        match rustix::net::sendmsg(socket.as_fd(), &parts, &mut control, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Ok(more) => sent += more,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait()?,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
