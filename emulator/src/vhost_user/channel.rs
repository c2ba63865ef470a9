//! The backend channel: what the device asks of its frontend, and the frontend's answers.
//!
//! It owns the socket that came with `VHOST_USER_SET_BACKEND_REQ_FD`. Invariants: one request is
//! under way at a time, and its answer is awaited for as long as the connection lives; a channel
//! that gave a wrong answer is not used again. Counterparts: `VHOST_USER_BACKEND_SHMEM_MAP` and
//! `VHOST_USER_BACKEND_SHMEM_UNMAP` of QEMU's docs/interop/vhost-user.rst.
//!
//! The vhost crate has such a channel too. Its wait can't be cancelled and its socket is not
//! accessible. A frontend that closed its connection but kept the channel open would block the
//! thread for ever.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use vhost::vhost_user::message::{BackendReq, FrontendReq, VhostUserHeaderFlag, VhostUserMMap, VhostUserMMapFlags};
use vm_memory::ByteValued;

use super::PmemPiece;
use super::pmem::SHMEM_REGION;
use super::wake::{WakeFd, wait_readable};

/// le32 request, le32 flags, le32 size of what follows (in the machine's own byte order, which is
/// little-endian wherever this runs).
pub(super) const HEADER_BYTES: usize = 12;
/// A header and a 64-bit word.
const REPLY_BYTES: usize = HEADER_BYTES + 8;
/// `VHOST_USER_VERSION`.
const VERSION: u32 = 1;

/// What is asked for a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PieceRequest {
    Map,
    Unmap,
}

/// What the frontend said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PieceReply {
    Done,
    /// It would not; its error, as it gave it.
    Refused(u64),
}

/// Why there is no answer, and will be none.
#[derive(Debug, thiserror::Error)]
pub(super) enum ChannelError {
    #[error("the connection ended")]
    Over,
    #[error("the frontend closed the backend channel")]
    Closed,
    #[error("the frontend answered something that was not asked")]
    Nonsense,
    #[error("the backend channel: {0}")]
    Os(#[from] std::io::Error),
}

impl From<rustix::io::Errno> for ChannelError {
    fn from(error: rustix::io::Errno) -> Self {
        ChannelError::Os(error.into())
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Channel {
    socket: OwnedFd,
}

impl Channel {
    pub(super) fn new(socket: OwnedFd) -> Channel {
        Channel { socket }
    }

    /// Asks for `piece` of `file`, and waits for the answer. The wait ends early when `over` wakes
    /// it and `is_over` is true.
    pub(super) fn ask(
        &self,
        ask: PieceRequest,
        piece: PmemPiece,
        file: BorrowedFd<'_>,
        sent: impl FnOnce(),
        over: &WakeFd,
        is_over: impl Fn() -> bool,
    ) -> Result<PieceReply, ChannelError> {
        let code = match ask {
            PieceRequest::Map => BackendReq::SHMEM_MAP as u32,
            PieceRequest::Unmap => BackendReq::SHMEM_UNMAP as u32,
        };
        self.send(code, &mmap(piece, is_writable(file)?), (ask == PieceRequest::Map).then_some(file))?;
        sent();
        let value = self.receive(code, over, is_over)?;
        Ok(if value == 0 { PieceReply::Done } else { PieceReply::Refused(value) })
    }

    /// Waits until the frontend has done what it was asked before.
    ///
    /// Its answer alone does not say so: QEMU 11.1 answers an unmap first and takes the piece from
    /// the guest then (`vhost_user_backend_handle_shmem_unmap`: else a `SET_MEM_TABLE` of its own
    /// could wait for us while we wait for it). But it looks at the next request only after that.
    /// So this one sends `CONFIG_CHANGE_MSG`, which changes nothing, and waits for its answer.
    pub(super) fn settle(
        &self,
        sent: impl FnOnce(),
        over: &WakeFd,
        is_over: impl Fn() -> bool,
    ) -> Result<(), ChannelError> {
        let code = BackendReq::CONFIG_CHANGE_MSG as u32;
        self.send(code, &[], None)?;
        sent();
        // Whether it has a use for it does not matter.
        self.receive(code, over, is_over).map(|_| ())
    }

    fn send(&self, code: u32, body: &[u8], file: Option<BorrowedFd<'_>>) -> Result<(), ChannelError> {
        let flags = VERSION | VhostUserHeaderFlag::NEED_REPLY.bits();
        let header = [code, flags, body.len() as u32].map(u32::to_ne_bytes).concat();
        let files: Vec<BorrowedFd<'_>> = file.into_iter().collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&files)) {
            return Err(rustix::io::Errno::NOMEM.into());
        }
        // One request at a time fits into any socket's buffer, unless another sender fills it; then
        // this thread does not wait.
        let parts = [IoSlice::new(&header), IoSlice::new(body)];
        let sent = rustix::net::sendmsg(&self.socket, &parts, &mut control, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
        if sent == HEADER_BYTES + body.len() { Ok(()) } else { Err(ChannelError::Nonsense) }
    }

    fn receive(&self, code: u32, over: &WakeFd, is_over: impl Fn() -> bool) -> Result<u64, ChannelError> {
        let mut reply = [0_u8; REPLY_BYTES];
        let mut have = 0;
        while have < REPLY_BYTES {
            let [readable, rung] = wait_readable([self.socket.as_fd(), over.as_fd()])?;
            if rung {
                over.clear();
                if is_over() {
                    return Err(ChannelError::Over);
                }
            }
            if !readable {
                continue;
            }
            match rustix::net::recv(&self.socket, &mut reply[have..], RecvFlags::DONTWAIT) {
                Ok((0, _)) => return Err(ChannelError::Closed),
                Ok((more, _)) => have += more,
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let word = |at: usize| reply[at..].first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes));
        let flags = VERSION | VhostUserHeaderFlag::REPLY.bits();
        if word(0) != code || word(4) & 0xf != flags || word(8) != 8 {
            return Err(ChannelError::Nonsense);
        }
        Ok(reply.last_chunk().map_or(u64::MAX, |bytes| u64::from_ne_bytes(*bytes)))
    }
}

/// Whether a frontend can map `file` writable. It is told: QEMU's mmap(2) fails otherwise.
fn is_writable(file: BorrowedFd<'_>) -> Result<bool, ChannelError> {
    Ok(rustix::fs::fcntl_getfl(file)? & OFlags::RWMODE != OFlags::RDONLY)
}

/// A piece as a request's body.
fn mmap(piece: PmemPiece, writable: bool) -> Vec<u8> {
    let body = VhostUserMMap {
        shmid: SHMEM_REGION,
        padding: [0; 7],
        fd_offset: piece.device_offset,
        shm_offset: piece.guest_offset,
        len: piece.len,
        flags: if writable { VhostUserMMapFlags::WRITABLE.bits() } else { 0 },
    };
    body.as_slice().to_vec()
}

/// The backend channel that the next message on `socket` brings, if it brings one: the message is
/// looked at and stays.
///
/// A look at a message duplicates the descriptors it carries (`unix_peek_fds` in
/// net/unix/af_unix.c). Blocks until there is a message or the end of them.
pub(super) fn peek_channel(socket: BorrowedFd<'_>) -> std::io::Result<Option<Channel>> {
    let mut header = [0_u8; HEADER_BYTES];
    let (seen, _) = loop {
        match rustix::net::recv(socket, &mut header, RecvFlags::PEEK) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other?,
        }
    };
    let brings =
        header.first_chunk().is_some_and(|code| u32::from_ne_bytes(*code) == FrontendReq::SET_BACKEND_REQ_FD as u32);
    if seen < HEADER_BYTES || !brings {
        return Ok(None);
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut header)], &mut control, flags)?;
    let files = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(files) => Some(files),
        _ => None,
    });
    Ok(files.flatten().next().map(Channel::new))
}
