//! What a frontend may send, when, and what becomes of it.
//!
//! It owns what was negotiated, the memory table, and whether the queue's size and rings are ones
//! that a queue can have. It does nothing itself. Invariants: a message that is to be handed to the
//! daemon is one that the daemon takes; nothing changes for a message that is wrong or declined,
//! but that a queue with such a size or rings does not run. Counterparts: QEMU's
//! docs/interop/vhost-user.rst, libvhost-user; on the frontend's side hw/virtio/vhost-user.c.
//!
//! # Wrong, declined, tolerated
//! A *wrong* message ends the connection: the frontend and this backend no longer mean the same
//! (there is no other way to tell a frontend that did not ask for an answer). A *declined* one is
//! answered with a failure, and the connection goes on: a guest chooses the size and the addresses
//! of its queue, QEMU passes them on, and the guest would still have its device mapped after a
//! hang-up. What is against the specification and does no harm is *tolerated*, and reported by
//! `serve --strict`.

use std::os::fd::{AsFd, OwnedFd};

use vhost::vhost_user::message::{
    FrontendReq, VhostUserConfigFlags, VhostUserProtocolFeatures, VhostUserVirtioFeatures, VhostUserVringAddrFlags,
};

use super::MACHINE_REGIONS_MAX;
use super::device::{features, protocol_features};
use super::queue::SIZE_MAX;
use super::table::{FileId, MemoryError, MemoryTable, REGION_BYTES, RegionInfo, TABLE_HEAD};
use super::vring::{is_event, is_kick};
use super::wire::{NEED_REPLY, VERSION, WireMessage};

/// The bit in a queue descriptor's message that says that there is none.
const NO_DESCRIPTOR: u64 = 1 << 8;
/// The bits in it that say which queue.
const QUEUE_BITS: u64 = 0xff;
/// The end of a device's configuration space, as in the vhost crate.
const CONFIG_END: u32 = 0x1000;
/// le32 offset, le32 size, le32 flags.
const CONFIG_HEAD: usize = 12;

/// Bytes of an available or used ring's head: flags and index, each le16.
const RING_HEAD: u64 = 4;

/// How a frontend is wrong.
#[derive(Debug, thiserror::Error)]
pub(super) enum FrontendError {
    #[error("flags {0:#x}: version 1, and no other bit than NEED_REPLY, were expected")]
    Flags(u32),
    #[error("request {0} is not known")]
    Unknown(u32),
    #[error("{0:?} was not offered")]
    NotOffered(FrontendReq),
    #[error("{request:?} needs {feature:?}, which was not negotiated")]
    NotNegotiated { request: FrontendReq, feature: VhostUserProtocolFeatures },
    #[error("{request:?} with a body of {found} bytes: {expected} were expected")]
    Size { request: FrontendReq, found: usize, expected: usize },
    #[error("{request:?} with {found} descriptors: {expected} were expected")]
    Descriptors { request: FrontendReq, found: usize, expected: usize },
    #[error("{request:?} takes features {0:#x} that were not offered", .excess)]
    Features { request: FrontendReq, excess: u64 },
    #[error("{0:?} for queue {1}: there is one queue, number 0")]
    Queue(FrontendReq, u64),
    #[error("{0:?} with the value {1:#x}, which it can't have")]
    Value(FrontendReq, u64),
    #[error("SET_VRING_ENABLE needs the feature PROTOCOL_FEATURES, which was not taken")]
    NoRingStates,
    #[error("SET_OWNER twice")]
    Owned,
    #[error("{0:?} with a descriptor that is no eventfd")]
    NoEvent(FrontendReq),
    #[error("SET_BACKEND_REQ_FD with a descriptor that is no Unix stream socket")]
    NoSocket,
    #[error("SET_MEM_TABLE: {0}")]
    Memory(#[from] MemoryError),
}

/// Why a message was declined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum DeclineReason {
    #[error("a queue of {0} descriptors: it must be a power of two, at most {SIZE_MAX}")]
    Size(u32),
    #[error("the queue's rings at guest addresses {0:#x}, {1:#x}, {2:#x}: not aligned to 16, 2 and 4 bytes")]
    Alignment(u64, u64, u64),
    #[error("the queue's rings lie outside the guest's memory")]
    Nowhere,
    #[error("the queue's used ring at guest address {0:#x}: outside the guest's memory")]
    Outside(u64),
    #[error("no kick descriptor: the queue is not polled")]
    Polling,
}

/// What is against the specification, and tolerated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Tolerated {
    #[error("{0:?} asks for a reply, and REPLY_ACK was not negotiated")]
    ReplyNotNegotiated(FrontendReq),
    #[error("{0:?} before SET_OWNER")]
    NotOwned(FrontendReq),
    #[error("{0:?} before the features that are offered were asked for")]
    NotAsked(FrontendReq),
    #[error("{0:?} before SET_FEATURES")]
    NoFeatures(FrontendReq),
    #[error("RESET_OWNER, which the specification withdrew")]
    Withdrawn,
    #[error("{0} memory regions without CONFIGURE_MEM_SLOTS: at most {MACHINE_REGIONS_MAX} may be told")]
    ManyRegions(usize),
    #[error("{0:?} sets reserved bits: {1:#x}")]
    Reserved(FrontendReq, u64),
    #[error("GET_SHMEM_CONFIG or mapping without BACKEND_SEND_FD: no descriptor can be sent")]
    NoSendFd,
}

/// What becomes of a message.
#[derive(Debug)]
pub(super) enum Verdict {
    /// It goes to the daemon, perhaps changed; the daemon's reply goes back.
    Forward,
    /// It is answered here: nothing is to be done in the daemon.
    Done,
    Declined(DeclineReason),
}

/// See the module.
#[derive(Debug)]
pub(super) struct FrontendRules {
    owned: bool,
    /// The daemon was told of an owner; it takes only one.
    daemon_owned: bool,
    asked_features: bool,
    asked_protocol: bool,
    /// None until a driver took the device.
    features: Option<u64>,
    protocol: VhostUserProtocolFeatures,
    table: MemoryTable,
    /// The queue's size is one that a queue can have.
    sized: bool,
    /// Its rings are somewhere.
    placed: bool,
}

fn word(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |word| u64::from_ne_bytes(*word))
}

fn half_word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |word| u32::from_ne_bytes(*word))
}

/// The size of a request's body, if it is offered at all and always the same.
fn body_size(request: FrontendReq) -> Option<usize> {
    Some(match request {
        FrontendReq::GET_FEATURES
        | FrontendReq::SET_OWNER
        | FrontendReq::RESET_OWNER
        | FrontendReq::GET_PROTOCOL_FEATURES
        | FrontendReq::GET_QUEUE_NUM
        | FrontendReq::SET_BACKEND_REQ_FD
        | FrontendReq::GET_SHMEM_CONFIG => 0,
        FrontendReq::SET_FEATURES
        | FrontendReq::SET_PROTOCOL_FEATURES
        | FrontendReq::SET_VRING_NUM
        | FrontendReq::SET_VRING_BASE
        | FrontendReq::GET_VRING_BASE
        | FrontendReq::SET_VRING_KICK
        | FrontendReq::SET_VRING_CALL
        | FrontendReq::SET_VRING_ERR
        | FrontendReq::SET_VRING_ENABLE => 8,
        FrontendReq::SET_VRING_ADDR => 40,
        _ => return None,
    })
}

/// The protocol feature that a request needs.
fn needed(request: FrontendReq) -> VhostUserProtocolFeatures {
    match request {
        FrontendReq::GET_QUEUE_NUM => VhostUserProtocolFeatures::MQ,
        FrontendReq::GET_CONFIG | FrontendReq::SET_CONFIG => VhostUserProtocolFeatures::CONFIG,
        FrontendReq::SET_BACKEND_REQ_FD => VhostUserProtocolFeatures::BACKEND_REQ,
        FrontendReq::GET_SHMEM_CONFIG => VhostUserProtocolFeatures::SHMEM,
        _ => VhostUserProtocolFeatures::empty(),
    }
}

impl FrontendRules {
    /// For a device whose bytes lie in `own`.
    pub(super) fn new(own: FileId) -> FrontendRules {
        FrontendRules {
            owned: false,
            daemon_owned: false,
            asked_features: false,
            asked_protocol: false,
            features: None,
            protocol: VhostUserProtocolFeatures::empty(),
            table: MemoryTable::new(own),
            sized: true,
            placed: false,
        }
    }

    /// The memory that the frontend told of last.
    pub(super) fn table(&self) -> &MemoryTable {
        &self.table
    }

    /// Whether the queue may run.
    pub(super) fn is_queue_set_up(&self) -> bool {
        self.sized && self.placed
    }

    /// Whether the frontend enables the queue by message.
    pub(super) fn has_ring_states(&self) -> bool {
        self.features.is_some_and(|taken| taken & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() != 0)
    }

    /// Whether `CONFIG` was negotiated.
    pub(super) fn has_config(&self) -> bool {
        self.protocol.contains(VhostUserProtocolFeatures::CONFIG)
    }

    /// Whether a message with these flags is acknowledged.
    pub(super) fn is_acknowledged(&self, flags: u32) -> bool {
        flags & NEED_REPLY != 0 && self.protocol.contains(VhostUserProtocolFeatures::REPLY_ACK)
    }

    /// Why nothing can be mapped for this frontend, if so: without acknowledgements the backend
    /// cannot know that a piece is unmapped, and without descriptors there is nothing to map.
    pub(super) fn unable_to_map(&self) -> Option<String> {
        let needed = VhostUserProtocolFeatures::SHMEM
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::BACKEND_SEND_FD
            | VhostUserProtocolFeatures::REPLY_ACK;
        let missing = needed - self.protocol;
        let names: Vec<&str> = missing.iter_names().map(|(name, _)| name).collect();
        (!names.is_empty()).then(|| format!("the frontend did not negotiate {}", names.join(", ")))
    }

    /// Looks at a message, and at its flags first. What is tolerated is given to `tolerated`.
    pub(super) fn judge(
        &mut self,
        message: &mut WireMessage,
        tolerated: &mut Vec<Tolerated>,
    ) -> Result<(FrontendReq, Verdict), FrontendError> {
        let header = message.header;
        if header.flags & !(NEED_REPLY) != VERSION {
            return Err(FrontendError::Flags(header.flags));
        }
        let request = FrontendReq::try_from(header.request).map_err(|_| FrontendError::Unknown(header.request))?;
        self.check_shape(request, message)?;
        self.look_for_tolerated(request, message, tolerated);
        Ok((request, self.judge_content(request, message)?))
    }

    /// Checks the size, the number of descriptors, and what must have been negotiated.
    fn check_shape(&self, request: FrontendReq, message: &WireMessage) -> Result<(), FrontendError> {
        let found = message.body.len();
        let size = |expected| FrontendError::Size { request, found, expected };
        match (body_size(request), request) {
            (Some(expected), _) if found != expected => return Err(size(expected)),
            (Some(_), _) => {}
            (None, FrontendReq::SET_MEM_TABLE) => {
                let regions = half_word(&message.body, 0) as usize;
                let expected = regions.saturating_mul(REGION_BYTES).saturating_add(TABLE_HEAD);
                if found != expected {
                    return Err(size(expected));
                }
            }
            (None, FrontendReq::GET_CONFIG | FrontendReq::SET_CONFIG) => {
                let expected = (half_word(&message.body, 4) as usize).saturating_add(CONFIG_HEAD);
                if found != expected {
                    return Err(size(expected));
                }
            }
            (None, _) => return Err(FrontendError::NotOffered(request)),
        }
        let expected = match request {
            FrontendReq::SET_MEM_TABLE => half_word(&message.body, 0) as usize,
            FrontendReq::SET_BACKEND_REQ_FD => 1,
            FrontendReq::SET_VRING_KICK | FrontendReq::SET_VRING_CALL | FrontendReq::SET_VRING_ERR => {
                usize::from(word(&message.body, 0) & NO_DESCRIPTOR == 0)
            }
            _ => 0,
        };
        if message.files.len() != expected {
            return Err(FrontendError::Descriptors { request, found: message.files.len(), expected });
        }
        let feature = needed(request);
        if self.protocol.contains(feature) { Ok(()) } else { Err(FrontendError::NotNegotiated { request, feature }) }
    }

    fn look_for_tolerated(&self, request: FrontendReq, message: &WireMessage, tolerated: &mut Vec<Tolerated>) {
        let asks = message.header.flags & NEED_REPLY != 0 && !super::daemon::has_reply(request);
        // This message may be the one that negotiates it.
        if asks && request != FrontendReq::SET_PROTOCOL_FEATURES && !self.is_acknowledged(message.header.flags) {
            tolerated.push(Tolerated::ReplyNotNegotiated(request));
        }
        let is_ring = matches!(
            request,
            FrontendReq::SET_VRING_NUM
                | FrontendReq::SET_VRING_ADDR
                | FrontendReq::SET_VRING_BASE
                | FrontendReq::SET_VRING_KICK
                | FrontendReq::SET_VRING_CALL
                | FrontendReq::SET_VRING_ERR
        );
        if (is_ring || request == FrontendReq::SET_FEATURES) && !self.owned {
            tolerated.push(Tolerated::NotOwned(request));
        }
        if is_ring && request != FrontendReq::SET_VRING_CALL && self.features.is_none() {
            tolerated.push(Tolerated::NoFeatures(request));
        }
        let asked = match request {
            FrontendReq::SET_FEATURES => self.asked_features,
            FrontendReq::SET_PROTOCOL_FEATURES => self.asked_protocol,
            _ => true,
        };
        if !asked {
            tolerated.push(Tolerated::NotAsked(request));
        }
        match request {
            FrontendReq::RESET_OWNER => tolerated.push(Tolerated::Withdrawn),
            FrontendReq::SET_MEM_TABLE if message.files.len() > MACHINE_REGIONS_MAX => {
                tolerated.push(Tolerated::ManyRegions(message.files.len()));
            }
            FrontendReq::SET_VRING_KICK | FrontendReq::SET_VRING_CALL | FrontendReq::SET_VRING_ERR => {
                let reserved = word(&message.body, 0) & !(QUEUE_BITS | NO_DESCRIPTOR);
                if reserved != 0 {
                    tolerated.push(Tolerated::Reserved(request, reserved));
                }
            }
            FrontendReq::SET_BACKEND_REQ_FD
                if self.protocol.contains(VhostUserProtocolFeatures::SHMEM)
                    && !self.protocol.contains(VhostUserProtocolFeatures::BACKEND_SEND_FD) =>
            {
                tolerated.push(Tolerated::NoSendFd);
            }
            _ => {}
        }
    }

    fn judge_content(&mut self, request: FrontendReq, message: &mut WireMessage) -> Result<Verdict, FrontendError> {
        let body = &message.body;
        match request {
            FrontendReq::GET_FEATURES => self.asked_features = true,
            FrontendReq::GET_PROTOCOL_FEATURES => self.asked_protocol = true,
            FrontendReq::SET_OWNER => return self.own(),
            FrontendReq::RESET_OWNER => {
                self.owned = false;
                return Ok(Verdict::Done);
            }
            FrontendReq::SET_FEATURES => {
                let taken = word(body, 0);
                check_features(request, taken, features())?;
                self.features = Some(taken);
            }
            FrontendReq::SET_PROTOCOL_FEATURES => {
                let taken = word(body, 0);
                check_features(request, taken, protocol_features().bits())?;
                self.protocol = VhostUserProtocolFeatures::from_bits_truncate(taken);
                // The daemon acknowledges everything, so that one answer follows each message.
                let always = VhostUserProtocolFeatures::REPLY_ACK.bits();
                message.body = (taken | always).to_ne_bytes().to_vec();
            }
            FrontendReq::SET_BACKEND_REQ_FD => {
                let is_socket = |file: &OwnedFd| {
                    rustix::net::sockopt::socket_domain(file) == Ok(rustix::net::AddressFamily::UNIX)
                        && rustix::net::sockopt::socket_type(file) == Ok(rustix::net::SocketType::STREAM)
                };
                // The daemon has no use for it.
                return if message.files.iter().all(is_socket) {
                    Ok(Verdict::Done)
                } else {
                    Err(FrontendError::NoSocket)
                };
            }
            FrontendReq::SET_MEM_TABLE => self.take_table(message)?,
            FrontendReq::GET_CONFIG | FrontendReq::SET_CONFIG => check_config(request, body)?,
            _ => return self.judge_queue(request, message),
        }
        Ok(Verdict::Forward)
    }

    fn own(&mut self) -> Result<Verdict, FrontendError> {
        if std::mem::replace(&mut self.owned, true) {
            return Err(FrontendError::Owned);
        }
        let told = std::mem::replace(&mut self.daemon_owned, true);
        Ok(if told { Verdict::Done } else { Verdict::Forward })
    }

    /// Takes a memory table, and removes the pieces of the device from the message.
    fn take_table(&mut self, message: &mut WireMessage) -> Result<(), FrontendError> {
        let (infos, _) = message.body[TABLE_HEAD..].as_chunks();
        let infos = infos.iter().map(RegionInfo::parse);
        let regions: Vec<_> = infos.zip(std::mem::take(&mut message.files)).collect();
        let table = self.table.replaced(&regions)?;
        let memory: Vec<usize> = (0..regions.len()).filter(|at| !table.is_piece(*at)).collect();
        let mut body = [(memory.len() as u32).to_ne_bytes(), [0; 4]].concat();
        for at in &memory {
            let from = TABLE_HEAD + at * REGION_BYTES;
            body.extend_from_slice(&message.body[from..from + REGION_BYTES]);
        }
        message.body = body;
        message.header.size = message.body.len() as u32;
        message.files =
            regions.into_iter().enumerate().filter(|(at, _)| memory.contains(at)).map(|(_, (_, file))| file).collect();
        self.table = table;
        Ok(())
    }

    fn judge_queue(&mut self, request: FrontendReq, message: &WireMessage) -> Result<Verdict, FrontendError> {
        let body = &message.body;
        let (queue, value) = match request {
            FrontendReq::SET_VRING_KICK | FrontendReq::SET_VRING_CALL | FrontendReq::SET_VRING_ERR => {
                (word(body, 0) & QUEUE_BITS, 0)
            }
            FrontendReq::GET_QUEUE_NUM | FrontendReq::GET_SHMEM_CONFIG => (0, 0),
            _ => (half_word(body, 0).into(), half_word(body, 4)),
        };
        if queue != 0 {
            return Err(FrontendError::Queue(request, queue));
        }
        let wrong = Err(FrontendError::Value(request, value.into()));
        match request {
            FrontendReq::SET_VRING_NUM => {
                let size = u16::try_from(value).ok().filter(|size| size.is_power_of_two() && *size <= SIZE_MAX);
                self.sized = size.is_some();
                if size.is_none() {
                    return Ok(Verdict::Declined(DeclineReason::Size(value)));
                }
            }
            FrontendReq::SET_VRING_ADDR => {
                if VhostUserVringAddrFlags::from_bits(value).is_none() {
                    return wrong;
                }
                let placed = self.place(body);
                self.placed = placed.is_ok();
                if let Err(why) = placed {
                    return Ok(Verdict::Declined(why));
                }
            }
            FrontendReq::SET_VRING_BASE if value > u16::MAX.into() => return wrong,
            FrontendReq::SET_VRING_ENABLE if !self.has_ring_states() => return Err(FrontendError::NoRingStates),
            FrontendReq::SET_VRING_ENABLE if value > 1 => return wrong,
            FrontendReq::SET_VRING_KICK => match message.files.first() {
                None => return Ok(Verdict::Declined(DeclineReason::Polling)),
                Some(kick) if !is_kick(kick.as_fd()) => return Err(FrontendError::NoEvent(request)),
                // It is handed on when the queue can run.
                Some(_) => return Ok(Verdict::Done),
            },
            FrontendReq::SET_VRING_CALL | FrontendReq::SET_VRING_ERR
                if message.files.iter().any(|bell| !is_event(bell.as_fd())) =>
            {
                return Err(FrontendError::NoEvent(request));
            }
            _ => {}
        }
        Ok(Verdict::Forward)
    }

    /// Whether the rings of a SET_VRING_ADDR lie where rings can lie. The daemon looks at the used
    /// ring's index when it is told of them, and at all the rest when the queue runs.
    fn place(&self, body: &[u8]) -> Result<(), DeclineReason> {
        let [table, used, avail] = [8, 16, 24].map(|at| word(body, at));
        let guest = [table, avail, used].map(|address| self.table.guest_address(address));
        let [Some((guest_table, _)), Some((guest_avail, _)), Some((guest_used, used_room))] = guest else {
            return Err(DeclineReason::Nowhere);
        };
        // The daemon checks the frontend's addresses and the guest's.
        let aligned = |table: u64, avail: u64, used: u64| {
            table.is_multiple_of(16) && avail.is_multiple_of(2) && used.is_multiple_of(4)
        };
        if !aligned(table, avail, used) || !aligned(guest_table, guest_avail, guest_used) {
            return Err(DeclineReason::Alignment(guest_table, guest_avail, guest_used));
        }
        if used_room < RING_HEAD { Err(DeclineReason::Outside(guest_used)) } else { Ok(()) }
    }
}

fn check_features(request: FrontendReq, taken: u64, offered: u64) -> Result<(), FrontendError> {
    match taken & !offered {
        0 => Ok(()),
        excess => Err(FrontendError::Features { request, excess }),
    }
}

fn check_config(request: FrontendReq, body: &[u8]) -> Result<(), FrontendError> {
    let [offset, size, flags] = [0, 4, 8].map(|at| half_word(body, at));
    if VhostUserConfigFlags::from_bits(flags).is_none() {
        return Err(FrontendError::Value(request, flags.into()));
    }
    let within = size > 0 && offset.checked_add(size).is_some_and(|end| end <= CONFIG_END);
    if within { Ok(()) } else { Err(FrontendError::Value(request, offset.into())) }
}
