//! What the fuzzers run: any bytes as a guest's rings, any bytes as a frontend's messages.
//!
//! It owns the two ways to read an input, and the properties that must hold for every one: it ends,
//! it does not panic, nothing is flushed without a request, and the daemon takes every message that
//! the relay hands on. The folder `fuzz` of the workspace holds the fuzzers and their corpus, which
//! the tests replay.

mod handler;

use std::collections::VecDeque;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::event::EventfdFlags;
use rustix::fs::MemfdFlags;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use vhost_user_backend::VringT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use self::handler::ParsingHandler;
use super::channel::Channel;
use super::queue::{RequestQueue, SIZE_MAX};
use super::relay::{MessageRelay, RelayEffects};
use super::stats::VhostCounters;
use super::table::FileId;
use super::trace::MessageTracer;
use super::vring::{PmemVring, SharedMemory};
use super::wire::{BODY_MAX, MessageReader, WireRead};
use super::{FlushError, PmemPiece};
use crate::device::FOLIO;
use crate::runtime::clock::Nanos;
use crate::runtime::sync::{Arc, Mutex};
use crate::runtime::world::World;

/// Bytes of the guest's memory; addresses in an input are 16 bits wide.
const MEMORY: usize = 1 << 16;
/// What an input is cut off at.
const INPUT_MAX: usize = 1 << 16;
/// How often the queue is looked at: rings that overlap can go on for ever.
const ROUNDS_MAX: usize = 64;

fn memfd(bytes: u64) -> std::io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create("fuzz", MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&fd, bytes)?;
    Ok(fd)
}

/// Takes bytes off the front of an input; zeros where it has ended.
struct FuzzInput<'a>(&'a [u8]);

impl<'a> FuzzInput<'a> {
    fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn byte(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or(0)
    }

    fn word(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }
}

/// The medium of [`request_queue`]: what the guest writes where during each flush.
struct FuzzFlushes {
    memory: GuestMemoryMmap,
    stores: VecDeque<(u16, u16)>,
    count: u64,
}

impl FuzzFlushes {
    fn flush(&mut self) -> Result<(), FlushError> {
        if let Some((at, value)) = self.stores.pop_front() {
            let _outside = self.memory.write_obj(value, GuestAddress(at.into()));
        }
        self.count += 1;
        if self.count.is_multiple_of(3) { Err(FlushError::Told) } else { Ok(()) }
    }
}

/// An input as a guest's memory with a queue in it: size (as a power of two), flags (bit 0:
/// event-idx), the first request, the three rings' addresses (divided by 16), the number of stores
/// during flushes, each as address and value; the rest is the memory from address 0 on.
///
/// # Panics
/// When a property does not hold.
pub fn request_queue(data: &[u8]) {
    let mut input = FuzzInput(&data[..data.len().min(INPUT_MAX)]);
    let (size, flags, base) = (1_u16 << (input.byte() % 11), input.byte(), input.word());
    let [table, avail, used] = [(); 3].map(|()| u64::from(input.word()) << 4);
    let stores = (0..input.byte() % 32).map(|_| (input.word(), input.word())).collect();
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("64 KiB of memory");
    memory.write_slice(input.0, GuestAddress(0)).expect("an input fits into the memory");
    let medium = Mutex::new(FuzzFlushes { memory: memory.clone(), stores, count: 0 });
    let shared = SharedMemory::new(memory);
    let vring = PmemVring::new(shared.clone(), SIZE_MAX).expect("a queue");
    vring.set_queue_size(size);
    vring.set_queue_event_idx(flags & 1 != 0);
    vring.set_queue_info(table, avail, used).expect("aligned addresses");
    // The relay lets no queue start whose used ring's index is not in memory.
    let Ok(next) = vring.queue_used_idx() else { return };
    vring.set_queue_next_used(next);
    vring.set_queue_next_avail(base);
    vring.set_enabled(true);
    vring.set_queue_ready(true);
    let counters = Arc::new(VhostCounters::default());
    let queue = RequestQueue::new(shared, Arc::clone(&counters));
    let mut batch = Vec::new();
    for _ in 0..ROUNDS_MAX {
        if !queue.round(&vring, &|| medium.lock().flush(), &mut batch) {
            break;
        }
        assert!(batch.len() <= size.into(), "more requests than descriptors");
    }
    let stats = counters.snapshot(Nanos(0));
    assert_eq!(stats.flushes, medium.lock().count);
    assert_eq!(stats.flushes + stats.coalesced, stats.requests, "each flush was asked for, each request flushed for");
}

/// What a relay does beside the daemon: nothing, with one piece of the device mapped.
#[derive(Default)]
struct FuzzEffects {
    start: u64,
}

impl RelayEffects for FuzzEffects {
    fn channel(&mut self, _channel: Result<Channel, String>) {}

    fn driver(&mut self) {}

    fn mapped(&self) -> Vec<PmemPiece> {
        vec![PmemPiece { guest_offset: 0, device_offset: 0, len: FOLIO }]
    }

    fn told_table(&mut self, _own_parts: Vec<(u64, u64)>) {}

    fn located(&mut self, start: u64) {
        self.start = start;
    }

    fn now(&self) -> Nanos {
        Nanos(0)
    }
}

/// An input as what a frontend sends: records of kind, length (16 bits) and as many bytes. Bits 0
/// to 2 of the kind choose the descriptors that go along; with bit 3 the first byte is a request's
/// number, and the rest is sent with a header in front.
///
/// # Panics
/// When a property does not hold.
pub fn messages(data: &[u8]) {
    let mut input = FuzzInput(&data[..data.len().min(INPUT_MAX)]);
    let own = memfd(FOLIO).expect("a memory file");
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    let id = FileId::of(&own).expect("a file");
    let daemon = ParsingHandler::new(id).expect("a pair of sockets");
    let tracer = MessageTracer::new(None, Arc::new(World::manual(0)), 0);
    let counters = Arc::new(VhostCounters::default());
    let mut relay =
        MessageRelay::new(id, daemon, FuzzEffects::default(), Arc::clone(&counters), tracer, Some(Arc::new(|_| {})));
    let mut reader = MessageReader::default();
    let mut kept = Vec::new();
    while !input.0.is_empty() {
        let (kind, len) = (input.byte(), input.word());
        let bytes = input.bytes(len.into());
        if bytes.is_empty() || !send(&theirs, kind, bytes, &own, &mut kept) {
            break;
        }
        loop {
            match reader.read(ours.as_fd()) {
                Ok(WireRead::Message(message)) => {
                    let relayed = relay.handle(message);
                    assert!(relayed.reply.is_none_or(|reply| reply.len() <= BODY_MAX), "a reply that is too long");
                }
                Ok(WireRead::Part) => break,
                Ok(WireRead::End) | Err(_) => return,
            }
        }
    }
}

/// Sends a record; false if it can't be.
fn send(socket: &UnixStream, kind: u8, bytes: &[u8], own: &OwnedFd, kept: &mut Vec<OwnedFd>) -> bool {
    let files = files(kind & 7, own, kept).expect("descriptors");
    let borrowed: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(&borrowed)));
    }
    let mut message = Vec::new();
    if kind & 8 != 0 {
        let header = [u32::from(bytes[0]), 9, bytes.len() as u32 - 1];
        message.extend(header.map(u32::to_ne_bytes).concat());
        message.extend(&bytes[1..]);
    } else {
        message.extend(bytes);
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    rustix::net::sendmsg(socket, &[IoSlice::new(&message)], &mut control, flags) == Ok(message.len())
}

fn files(choice: u8, own: &OwnedFd, kept: &mut Vec<OwnedFd>) -> std::io::Result<Vec<OwnedFd>> {
    let eventfd = |count| rustix::event::eventfd(count, EventfdFlags::CLOEXEC);
    Ok(match choice {
        1 => vec![eventfd(0)?],
        2 => vec![guest_memory()?],
        3 => vec![UnixStream::pair()?.0.into()],
        4 => {
            let (device, frontend) = UnixStream::pair()?;
            kept.push(frontend.into());
            vec![device.into()]
        }
        5 => vec![own.try_clone()?],
        6 => vec![guest_memory()?, own.try_clone()?],
        7 => vec![eventfd(1)?],
        _ => Vec::new(),
    })
}

/// 64 KiB of memory.
fn guest_memory() -> std::io::Result<OwnedFd> {
    memfd(MEMORY as u64)
}
