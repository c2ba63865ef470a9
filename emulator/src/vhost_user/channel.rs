//! The backend channel: what the device asks of its frontend, and the frontend's answers.
//!
//! It owns the socket that came with `VHOST_USER_SET_BACKEND_REQ_FD`. Invariants: one request is
//! under way at a time; the wait for its answer ends when the channel or the connection does, and a
//! frontend that lets [`SILENCE`] pass is reported; a channel that gave a wrong answer is not used
//! again; nothing is sent for which a feature was not negotiated. Counterparts:
//! `VHOST_USER_BACKEND_SHMEM_MAP` and `VHOST_USER_BACKEND_SHMEM_UNMAP` of QEMU's
//! docs/interop/vhost-user.rst.
//!
//! The vhost crate has such a channel too, which the daemon would hand out. Its wait can't be
//! cancelled and its socket is not accessible. A frontend that closed its connection but kept the
//! channel open would block the thread for ever.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::fs::OFlags;
use vhost::vhost_user::message::{BackendReq, VhostUserMMap, VhostUserMMapFlags};
use vm_memory::ByteValued;

use super::PmemPiece;
use super::pmem::SHMEM_REGION;
use super::trace::MessageTracer;
use super::wake::{WakeFd, wait_readable};
use super::wire::{MessageHeader, MessageReader, NEED_REPLY, REPLY, VERSION, WireError, WireRead, send};

/// After how long a frontend that does not answer is reported. It is still waited for: its process
/// may be stopped, and answers when it continues.
const SILENCE: Duration = Duration::from_secs(10);

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

impl From<WireError> for ChannelError {
    fn from(error: WireError) -> Self {
        match error {
            WireError::Os(error) => ChannelError::Os(error),
            WireError::Torn => ChannelError::Closed,
            WireError::Frame(_) | WireError::Descriptors => ChannelError::Nonsense,
        }
    }
}

/// What a wait for an answer has to do with the connection.
pub(super) trait ChannelWait {
    /// Called once the request was sent.
    fn sent(&self);
    /// Rung when the connection ends.
    fn wake(&self) -> &WakeFd;
    /// Whether it has ended.
    fn is_over(&self) -> bool;
    /// Called once if the frontend has not answered `request` within [`SILENCE`].
    fn silent(&self, request: BackendReq, limit: Duration);
}

/// See the module.
#[derive(Debug)]
pub(super) struct Channel {
    socket: OwnedFd,
    /// `CONFIG` was negotiated.
    has_config: bool,
    tracer: MessageTracer,
}

impl Channel {
    /// The channel over `socket` of a frontend that negotiated all that mapping needs, and `CONFIG`
    /// if `has_config`.
    pub(super) fn new(socket: OwnedFd, has_config: bool, tracer: MessageTracer) -> Channel {
        Channel { socket, has_config, tracer }
    }

    /// Asks for `piece` of `file`, and waits for the answer.
    pub(super) fn ask(
        &self,
        ask: PieceRequest,
        piece: PmemPiece,
        file: BorrowedFd<'_>,
        wait: &impl ChannelWait,
    ) -> Result<PieceReply, ChannelError> {
        let request = match ask {
            PieceRequest::Map => BackendReq::SHMEM_MAP,
            PieceRequest::Unmap => BackendReq::SHMEM_UNMAP,
        };
        let sent = (ask == PieceRequest::Map).then_some(file);
        let value = self.exchange(request, Some((piece, is_writable(file)?)), sent, wait)?;
        Ok(if value == 0 { PieceReply::Done } else { PieceReply::Refused(value) })
    }

    /// Waits until the frontend has done what it was asked before. `last` of `file` was unmapped
    /// before.
    ///
    /// Its answer alone does not say so: QEMU 11.1 answers an unmap first and takes the piece from
    /// the guest then (`vhost_user_backend_handle_shmem_unmap`: else a `SET_MEM_TABLE` of its own
    /// could wait for us while we wait for it). But it looks at the next request only after that.
    /// So this one sends a request that changes nothing, and waits for its answer:
    /// `CONFIG_CHANGE_MSG`, or where that was not negotiated, the same unmap once more, which the
    /// frontend refuses. A frontend that closes the channel instead has also done it.
    pub(super) fn settle(
        &self,
        last: PmemPiece,
        file: BorrowedFd<'_>,
        wait: &impl ChannelWait,
    ) -> Result<(), ChannelError> {
        let settled = if self.has_config {
            self.exchange(BackendReq::CONFIG_CHANGE_MSG, None, None, wait)
        } else {
            self.exchange(BackendReq::SHMEM_UNMAP, Some((last, is_writable(file)?)), None, wait)
        };
        match settled {
            // Whether it has a use for it does not matter.
            Ok(_) | Err(ChannelError::Closed) => Ok(()),
            Err(why) => Err(why),
        }
    }

    /// Sends a request, and waits for the value in its answer.
    fn exchange(
        &self,
        request: BackendReq,
        piece: Option<(PmemPiece, bool)>,
        file: Option<BorrowedFd<'_>>,
        wait: &impl ChannelWait,
    ) -> Result<u64, ChannelError> {
        let body = piece.map(|(piece, writable)| mmap(piece, writable)).unwrap_or_default();
        let header = MessageHeader { request: request as u32, flags: VERSION | NEED_REPLY, size: body.len() as u32 };
        let files: Vec<BorrowedFd<'_>> = file.into_iter().collect();
        // One request at a time fits into any socket's buffer, unless another sender fills it; then
        // this thread does not wait.
        send(self.socket.as_fd(), header, &body, &files, || Err(std::io::ErrorKind::WouldBlock.into())).map_err(
            |error| match error.kind() {
                std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::ConnectionReset => ChannelError::Closed,
                _ => error.into(),
            },
        )?;
        self.tracer.asked(request, piece.map(|(piece, _)| piece), files.len());
        wait.sent();
        let answered = self.receive(request, wait);
        self.tracer.answered(request, &answered);
        answered
    }

    fn receive(&self, request: BackendReq, wait: &impl ChannelWait) -> Result<u64, ChannelError> {
        let mut reader = MessageReader::default();
        let mut silence = Some(SILENCE);
        let reply = loop {
            match reader.read(self.socket.as_fd()) {
                Err(WireError::Os(error)) if error.kind() == std::io::ErrorKind::ConnectionReset => {
                    return Err(ChannelError::Closed);
                }
                other => match other? {
                    WireRead::Message(reply) => break reply,
                    WireRead::End => return Err(ChannelError::Closed),
                    WireRead::Part => {}
                },
            }
            match wait_readable([self.socket.as_fd(), wait.wake().as_fd()], silence)? {
                [_, true] => {
                    wait.wake().clear();
                    if wait.is_over() {
                        return Err(ChannelError::Over);
                    }
                }
                [true, false] => {}
                [false, false] => {
                    silence = None;
                    wait.silent(request, SILENCE);
                }
            }
        };
        let header = MessageHeader { request: request as u32, flags: VERSION | REPLY, size: 8 };
        let fits = MessageHeader { flags: reply.header.flags & 0xf, ..reply.header } == header;
        match reply.body.first_chunk() {
            Some(value) if fits => Ok(u64::from_ne_bytes(*value)),
            _ => Err(ChannelError::Nonsense),
        }
    }
}

/// Whether a frontend can map `file` writable. It is told: QEMU's mmap(2) fails otherwise.
fn is_writable(file: BorrowedFd<'_>) -> Result<bool, ChannelError> {
    let flags = rustix::fs::fcntl_getfl(file).map_err(std::io::Error::from)?;
    Ok(flags & OFlags::RWMODE != OFlags::RDONLY)
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
