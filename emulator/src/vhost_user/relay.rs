//! The relay: every message of a frontend passes it on the way to the daemon.
//!
//! It owns the queue's descriptors as the frontend gave them, and which of them the daemon has.
//! Invariants: one message is under way at a time, and is answered before the next is looked at;
//! the daemon sees no message that it would refuse, no piece of the device as memory, and no queue
//! that can't run; the frontend gets an acknowledgement only if it asked for one. Counterpart:
//! none; the daemon alone would end a guest's connection because of what the guest chose.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::OFlags;
use vhost::vhost_user::message::FrontendReq;

use super::PmemPiece;
use super::channel::Channel;
use super::daemon::{DaemonError, MessageHandler, has_reply, request_message};
use super::rules::{DeclineReason, FrontendError, FrontendRules, Tolerated, Verdict};
use super::stats::VhostCounters;
use super::table::FileId;
use super::trace::MessageTracer;
use super::vring::ring_bell;
use super::wire::{MessageHeader, WireMessage};
use crate::runtime::clock::Nanos;
use crate::runtime::sync::Arc;

/// Bytes of a GET_CONFIG's head, which a refusal repeats: le32 offset, le32 size, le32 flags.
const CONFIG_HEAD: usize = 12;

/// Takes, as text, what a frontend did against the specification.
pub type ViolationReport = Arc<dyn Fn(&str) + Send + Sync>;

/// The most violations of one connection that are reported. The others are counted.
pub const VIOLATIONS_MAX: u32 = 100;

/// What the relay does beside the daemon.
pub(super) trait RelayEffects {
    /// The pieces of the device are to be asked for here, or can't be, and why.
    fn channel(&mut self, channel: Result<Channel, String>);
    /// A driver took the device. Returns when it may be let go.
    fn driver(&mut self);
    /// What the guest has mapped.
    fn mapped(&self) -> Vec<PmemPiece>;
    /// The frontend told of the machine's memory, among it these parts of the device's file:
    /// offset and length.
    fn told_table(&mut self, own_parts: Vec<(u64, u64)>);
    /// The guest has the device at this address.
    fn located(&mut self, start: u64);
    /// The time, for the counters.
    fn now(&self) -> Nanos;
}

/// Why the connection must end.
#[derive(Debug, thiserror::Error)]
pub(super) enum RelayError {
    #[error("{0}")]
    Frontend(#[from] FrontendError),
    #[error("{0}")]
    Daemon(#[from] DaemonError),
    #[error("{0:?}: {1}")]
    Os(FrontendReq, std::io::Error),
}

/// What was done about a message.
#[derive(Debug)]
pub(super) struct Relayed {
    /// The body of the reply, if there is to be one.
    pub(super) reply: Option<Vec<u8>>,
    pub(super) outcome: Result<(), RelayError>,
}

/// The queue, as far as the frontend has set it up.
#[derive(Debug, Default)]
struct RelayedRing {
    kick: Option<OwnedFd>,
    call: Option<OwnedFd>,
    /// The daemon has the kick.
    started: bool,
}

/// See the module.
pub(super) struct MessageRelay<D, E> {
    rules: FrontendRules,
    ring: RelayedRing,
    daemon: D,
    /// The daemon has failed: nothing more is handed to it.
    failed: bool,
    /// A driver took the device.
    driven: bool,
    /// The frontend gave a backend channel.
    has_channel: bool,
    effects: E,
    counters: Arc<VhostCounters>,
    tracer: MessageTracer,
    violations: Option<ViolationReport>,
    /// How many were reported.
    reported: u32,
    /// Scratch.
    tolerated: Vec<Tolerated>,
}

impl<D: MessageHandler, E: RelayEffects> MessageRelay<D, E> {
    /// Between a frontend and `daemon`, for a device whose bytes lie in `own`.
    pub(super) fn new(
        own: FileId,
        daemon: D,
        effects: E,
        counters: Arc<VhostCounters>,
        tracer: MessageTracer,
        violations: Option<ViolationReport>,
    ) -> MessageRelay<D, E> {
        let (rules, ring, tolerated) = (FrontendRules::new(own), RelayedRing::default(), Vec::new());
        MessageRelay {
            rules,
            ring,
            daemon,
            failed: false,
            driven: false,
            has_channel: false,
            effects,
            counters,
            tracer,
            violations,
            reported: 0,
            tolerated,
        }
    }

    /// Handles a message that arrived whole.
    pub(super) fn handle(&mut self, mut message: WireMessage) -> Relayed {
        let (header, files) = (message.header, message.files.len());
        let mut tolerated = std::mem::take(&mut self.tolerated);
        let judged = self.rules.judge(&mut message, &mut tolerated);
        for violation in tolerated.drain(..) {
            self.violated(&violation);
        }
        self.tolerated = tolerated;
        let relayed = match judged {
            Err(why) => {
                self.tracer.received(header, files, format_args!("wrong: {why}"));
                self.violated(&why);
                Relayed { reply: self.refusal(header, &message.body), outcome: Err(why.into()) }
            }
            Ok((_, Verdict::Declined(why))) => {
                self.tracer.received(header, files, format_args!("declined: {why}"));
                self.counters.declined.add(1);
                self.counters.problem(format!("the guest has no request queue: {why}"));
                let stopped = if why == DeclineReason::Polling { Ok(()) } else { self.stop_queue() };
                Relayed { reply: self.refusal(header, &message.body), outcome: stopped.map_err(RelayError::from) }
            }
            Ok((request, verdict)) => {
                let done = matches!(verdict, Verdict::Done);
                self.tracer.received(header, files, if done { "done" } else { "forwarded" });
                self.carry_out(request, message, done)
            }
        };
        if let Some(reply) = &relayed.reply {
            self.tracer.replied(header.request, reply);
        }
        relayed
    }

    /// The frontend did this against the specification.
    pub(super) fn violated(&mut self, what: &dyn std::fmt::Display) {
        self.counters.violations.add(1);
        if let Some(report) = self.violations.as_ref().filter(|_| self.reported < VIOLATIONS_MAX) {
            self.reported += 1;
            self.tracer.note(format_args!("violation: {what}"));
            report(&what.to_string());
        }
    }

    /// The reply that says no, if one is waited for.
    fn refusal(&self, header: MessageHeader, body: &[u8]) -> Option<Vec<u8>> {
        let request = FrontendReq::try_from(header.request);
        match request {
            // An empty configuration is an error to the frontend.
            Ok(FrontendReq::GET_CONFIG) => {
                let mut head = body.first_chunk::<CONFIG_HEAD>().copied().unwrap_or_default();
                head[4..8].fill(0);
                Some(head.to_vec())
            }
            Ok(request) if has_reply(request) => Some(0_u64.to_ne_bytes().to_vec()),
            _ => self.rules.is_acknowledged(header.flags).then(|| 1_u64.to_ne_bytes().to_vec()),
        }
    }

    /// Does what a message that is right asks for.
    fn carry_out(&mut self, request: FrontendReq, message: WireMessage, done: bool) -> Relayed {
        let header = message.header;
        let head = message.body.get(..CONFIG_HEAD.min(message.body.len())).unwrap_or_default().to_vec();
        match self.perform(request, message, done) {
            Ok(reply) if has_reply(request) => Relayed { reply: Some(reply), outcome: Ok(()) },
            Ok(_) => {
                let acknowledged = self.rules.is_acknowledged(header.flags);
                Relayed { reply: acknowledged.then(|| 0_u64.to_ne_bytes().to_vec()), outcome: Ok(()) }
            }
            Err(why) => Relayed { reply: self.refusal(header, &head), outcome: Err(why) },
        }
    }

    fn perform(&mut self, request: FrontendReq, mut message: WireMessage, done: bool) -> Result<Vec<u8>, RelayError> {
        match request {
            FrontendReq::SET_BACKEND_REQ_FD => {
                let file = message.files.pop();
                self.take_channel(file);
            }
            FrontendReq::SET_PROTOCOL_FEATURES => {
                self.forward(request, &message)?;
                // The channel was made for what was negotiated then.
                if self.has_channel {
                    self.effects
                        .channel(Err("the frontend negotiated anew after it gave a backend channel".to_owned()));
                }
            }
            FrontendReq::SET_VRING_KICK => {
                self.stop_queue()?;
                self.ring.kick = message.files.pop();
                self.start_queue()?;
            }
            FrontendReq::SET_VRING_CALL => self.take_call(&mut message)?,
            FrontendReq::RESET_OWNER => self.disable()?,
            _ if done => {}
            FrontendReq::SET_FEATURES => {
                self.counters.resets.add(u64::from(std::mem::replace(&mut self.driven, true)));
                self.forward(request, &message)?;
                self.effects.driver();
                // After the driver was held: the frontend could not go on before.
                let now = self.effects.now();
                self.counters.starting(Some(now));
            }
            FrontendReq::SET_MEM_TABLE => {
                self.forward(request, &message)?;
                self.told_memory();
            }
            FrontendReq::GET_VRING_BASE => {
                let reply = self.forward(request, &message)?;
                self.ring = RelayedRing::default();
                return Ok(reply);
            }
            FrontendReq::SET_VRING_NUM | FrontendReq::SET_VRING_ADDR => {
                self.forward(request, &message)?;
                self.start_queue()?;
            }
            FrontendReq::SET_VRING_ERR => {
                message.files.iter().try_for_each(make_nonblocking).map_err(|error| RelayError::Os(request, error))?;
                self.forward(request, &message)?;
            }
            _ => return Ok(self.forward(request, &message)?),
        }
        Ok(Vec::new())
    }

    fn forward(&mut self, request: FrontendReq, message: &WireMessage) -> Result<Vec<u8>, DaemonError> {
        if self.failed {
            return Err(DaemonError::Silent(request));
        }
        let asked = self.daemon.ask(request, message);
        // Its thread has ended, or answers out of turn.
        self.failed |= asked.is_err();
        asked
    }

    fn take_channel(&mut self, file: Option<OwnedFd>) {
        let channel = match (self.rules.unable_to_map(), file) {
            (Some(why), _) => Err(why),
            (None, Some(file)) => Ok(Channel::new(file, self.rules.has_config(), self.tracer.clone())),
            (None, None) => return,
        };
        self.has_channel = true;
        self.effects.channel(channel);
    }

    /// The frontend told of its memory.
    fn told_memory(&mut self) {
        self.counters.starting(None);
        let table = self.rules.table();
        self.effects.told_table(table.own_parts());
        let census = table.census();
        self.counters.ram_regions.set(census.ram as u64);
        self.counters.own_regions.set(census.own as u64);
        self.counters.other_regions.set(census.other as u64);
        if let Some(start) = table.device_start(&self.effects.mapped()) {
            self.effects.located(start);
        }
    }

    /// Takes the eventfd that signals answers to the guest, or none. It is made non-blocking, so
    /// that a full one does not block the queue. It is rung at once: a machine that continues after
    /// a stop starts its queue before it sets the call descriptor, and nothing else would signal
    /// the answers in between. (A guest must accept a spurious interrupt;
    /// `vu_set_vring_call_exec` in libvhost-user does the same.)
    fn take_call(&mut self, message: &mut WireMessage) -> Result<(), RelayError> {
        let os = |error| RelayError::Os(FrontendReq::SET_VRING_CALL, error);
        message.files.iter().try_for_each(make_nonblocking).map_err(os)?;
        self.forward(FrontendReq::SET_VRING_CALL, message)?;
        self.ring.call = message.files.pop();
        if let Some(call) = &self.ring.call {
            ring_bell(call.as_fd());
        }
        Ok(())
    }

    /// Holds requests back where they are.
    fn disable(&mut self) -> Result<(), DaemonError> {
        if !self.rules.has_ring_states() {
            return Ok(());
        }
        let message = request_message(FrontendReq::SET_VRING_ENABLE, vec![0; 8], Vec::new());
        self.forward(FrontendReq::SET_VRING_ENABLE, &message).map(|_| ())
    }

    /// Takes the kick from the daemon, after the requests under way were answered. The daemon keeps
    /// no call descriptor for a queue that is stopped.
    fn stop_queue(&mut self) -> Result<(), DaemonError> {
        if std::mem::take(&mut self.ring.started) {
            let message = request_message(FrontendReq::GET_VRING_BASE, vec![0; 8], Vec::new());
            self.forward(FrontendReq::GET_VRING_BASE, &message)?;
        }
        Ok(())
    }

    /// Gives the daemon the kick, if the queue may run.
    fn start_queue(&mut self) -> Result<(), RelayError> {
        let (false, true, Some(kick)) = (self.ring.started, self.rules.is_queue_set_up(), &self.ring.kick) else {
            return Ok(());
        };
        let os = |error| RelayError::Os(FrontendReq::SET_VRING_KICK, error);
        let mut messages = Vec::with_capacity(2);
        for (request, file) in
            [(FrontendReq::SET_VRING_CALL, self.ring.call.as_ref()), (FrontendReq::SET_VRING_KICK, Some(kick))]
        {
            if let Some(file) = file {
                let file = file.try_clone().map_err(os)?;
                messages.push((request, request_message(request, vec![0; 8], vec![file])));
            }
        }
        for (request, message) in messages {
            self.forward(request, &message)?;
        }
        self.ring.started = true;
        Ok(())
    }
}

fn make_nonblocking(fd: &OwnedFd) -> std::io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    Ok(rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK)?)
}
