//! The vhost-user-backend crate's daemon of one connection, and the private socket to it.
//!
//! It owns the daemon's two threads. Invariants: no other process can reach the daemon; every
//! message is answered before the next is sent; when it is dropped, no flush is under way and both
//! threads have ended. Counterpart: `VhostUserDaemon` of the crate.
//!
//! The crate accepts its connection from a listener. This one has an address that the kernel chose,
//! admits a single connection, and is connected to before the daemon accepts: a process that
//! connects first makes this connection fail, and a later one is never accepted.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use vhost::vhost_user::Listener;
use vhost::vhost_user::message::{FrontendReq, VhostUserProtocolFeatures};
use vhost_user_backend::VhostUserDaemon;
use vmm_sys_util::epoll::EventSet;

use super::device::{END_EVENT, PmemDevice};
use super::vring::SharedMemory;
use super::wake::{WakeFd, wait_readable, wait_writable};
use super::wire::{MessageHeader, MessageReader, NEED_REPLY, REPLY, VERSION, WireError, WireMessage, WireRead, send};
use crate::runtime::sync::Arc;

/// How long the daemon may take for a message that waits for no flush.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why there is no answer, and will be none.
#[derive(Debug, thiserror::Error)]
pub(super) enum DaemonError {
    #[error("the device refused {0:?}")]
    Refused(FrontendReq),
    #[error("the device did not answer {0:?}")]
    Silent(FrontendReq),
    #[error("the device's answer to {0:?} does not fit it")]
    Unfit(FrontendReq),
    #[error("the device's connection: {0}")]
    Wire(#[from] WireError),
}

impl From<io::Error> for DaemonError {
    fn from(error: io::Error) -> Self {
        DaemonError::Wire(error.into())
    }
}

/// What answers messages: the daemon, or what a test puts in its place.
pub(super) trait MessageHandler {
    /// Hands `message` on, and returns the body of the reply.
    fn ask(&mut self, request: FrontendReq, message: &WireMessage) -> Result<Vec<u8>, DaemonError>;
}

/// See the module.
pub(super) struct PmemDaemon {
    /// None only while it is dropped.
    daemon: Option<VhostUserDaemon<Arc<PmemDevice>>>,
    device: Arc<PmemDevice>,
    socket: OwnedFd,
    end: WakeFd,
}

impl PmemDaemon {
    /// Starts the daemon for `device`, whose guest's memory is `memory`. It answers every message
    /// from here on.
    pub(super) fn start(device: Arc<PmemDevice>, memory: SharedMemory) -> io::Result<PmemDaemon> {
        let failed = |error: vhost_user_backend::Error| io::Error::other(error.to_string());
        let (socket, listener) = private_connection()?;
        let end = WakeFd::new()?;
        let daemon = VhostUserDaemon::new("vhost-user".to_owned(), Arc::clone(&device), memory).map_err(failed)?;
        for handler in daemon.get_epoll_handlers() {
            let told = handler.register_listener(end.as_fd().as_raw_fd(), EventSet::IN, END_EVENT.into());
            if let Err(error) = told {
                // Its thread can't be told to end, and a drop would wait for it.
                std::mem::forget(daemon);
                return Err(error);
            }
        }
        let mut started = PmemDaemon { daemon: Some(daemon), device, socket, end };
        if let Some(daemon) = &mut started.daemon {
            daemon.start(&mut Listener::from(listener)).map_err(failed)?;
        }
        let acknowledge = VhostUserProtocolFeatures::REPLY_ACK.bits().to_ne_bytes();
        for (request, body) in
            [(FrontendReq::GET_FEATURES, &[][..]), (FrontendReq::SET_PROTOCOL_FEATURES, &acknowledge[..])]
        {
            started.ask(request, &request_message(request, body.to_vec(), Vec::new())).map_err(io::Error::other)?;
        }
        Ok(started)
    }
}

/// A message of the backend's own to the daemon.
pub(super) fn request_message(request: FrontendReq, body: Vec<u8>, files: Vec<OwnedFd>) -> WireMessage {
    let header = MessageHeader { request: request as u32, flags: VERSION | NEED_REPLY, size: body.len() as u32 };
    WireMessage { header, body, files }
}

impl MessageHandler for PmemDaemon {
    fn ask(&mut self, request: FrontendReq, message: &WireMessage) -> Result<Vec<u8>, DaemonError> {
        let header = MessageHeader { flags: VERSION | NEED_REPLY, ..message.header };
        let files: Vec<_> = message.files.iter().map(AsFd::as_fd).collect();
        let wait = || match wait_writable(self.socket.as_fd(), PATIENCE) {
            Ok(true) => Ok(()),
            Ok(false) => Err(io::ErrorKind::TimedOut.into()),
            Err(error) => Err(error),
        };
        send(self.socket.as_fd(), header, &message.body, &files, wait)?;
        // This one waits for the flush that is under way.
        let limit = (request != FrontendReq::GET_VRING_BASE).then_some(PATIENCE);
        let mut reader = MessageReader::default();
        let reply = loop {
            match reader.read(self.socket.as_fd())? {
                WireRead::Message(reply) => break reply,
                WireRead::End => return Err(DaemonError::Refused(request)),
                WireRead::Part => {}
            }
            if wait_readable([self.socket.as_fd()], limit)? == [false] {
                return Err(DaemonError::Silent(request));
            }
        };
        check_reply(request, reply)
    }
}

/// The body of `reply`, if it is one to `request` and no refusal.
pub(super) fn check_reply(request: FrontendReq, reply: WireMessage) -> Result<Vec<u8>, DaemonError> {
    let fits = reply.header.request == request as u32 && reply.header.flags == VERSION | REPLY;
    if !fits || !reply.files.is_empty() {
        return Err(DaemonError::Unfit(request));
    }
    let refused = !has_reply(request) && reply.body.iter().any(|byte| *byte != 0);
    if refused { Err(DaemonError::Refused(request)) } else { Ok(reply.body) }
}

/// Whether `request` is replied to with more than an acknowledgement.
pub(super) fn has_reply(request: FrontendReq) -> bool {
    matches!(
        request,
        FrontendReq::GET_FEATURES
            | FrontendReq::GET_PROTOCOL_FEATURES
            | FrontendReq::GET_VRING_BASE
            | FrontendReq::GET_QUEUE_NUM
            | FrontendReq::GET_CONFIG
            | FrontendReq::GET_INFLIGHT_FD
            | FrontendReq::GET_MAX_MEM_SLOTS
            | FrontendReq::GET_STATUS
            | FrontendReq::GET_SHARED_OBJECT
            | FrontendReq::CHECK_DEVICE_STATE
            | FrontendReq::GET_SHMEM_CONFIG
    )
}

impl Drop for PmemDaemon {
    fn drop(&mut self) {
        self.device.end();
        let _closed_already = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
        if let Some(mut daemon) = self.daemon.take() {
            // It ends because its connection did.
            let _ended = daemon.wait();
            self.end.ring();
            // The crate joins the queue's thread.
            drop(daemon);
        }
    }
}

/// A connected socket, and the listener in whose queue the connection is the first.
fn private_connection() -> io::Result<(OwnedFd, UnixListener)> {
    let socket = || rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
    let listener = socket()?;
    // The kernel chooses a name that is in no file system.
    rustix::net::bind(&listener, &SocketAddrUnix::new_unnamed())?;
    // One connection waits at most, so a second is refused.
    rustix::net::listen(&listener, 0)?;
    let connection = socket()?;
    rustix::io::ioctl_fionbio(&connection, true)?;
    rustix::net::connect(&connection, &rustix::net::getsockname(&listener)?)?;
    Ok((connection, UnixListener::from(listener)))
}
