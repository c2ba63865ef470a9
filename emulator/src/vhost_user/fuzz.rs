//! What the fuzzers run: any bytes as a guest's rings, any bytes as a frontend's messages.
//!
//! It owns the two ways to read an input, and the properties that must hold for every one: it ends,
//! it does not panic, `gone` is called exactly once per connection, and nothing is flushed without
//! a request. The folder `fuzz` holds the fuzzers and their corpus, which the tests replay.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::event::EventfdFlags;
use rustix::fs::MemfdFlags;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::queue::{RequestQueue, RingAddresses};
use super::server::serve_one;
use super::stats::VhostCounters;
use super::{FlushError, Medium, Peer, PmemPiece};
use crate::device::FOLIO;
use crate::runtime::sync::atomic::{AtomicU64, Ordering};
use crate::runtime::sync::{Arc, Mutex, thread};

/// Bytes of the guest's memory; addresses in an input are 16 bits wide.
const MEMORY: usize = 1 << 16;
/// What an input is cut off at.
const INPUT_MAX: usize = 1 << 16;
/// How often the queue is looked at: rings that overlap can go on for ever.
const ROUNDS_MAX: usize = 64;

#[derive(Debug)]
struct FuzzMedium {
    file: File,
    memory: GuestMemoryMmap,
    /// What the guest writes where during each flush.
    stores: Mutex<VecDeque<(u16, u16)>>,
    flushes: AtomicU64,
    present: AtomicU64,
    gone: AtomicU64,
}

impl FuzzMedium {
    fn new(memory: GuestMemoryMmap, stores: VecDeque<(u16, u16)>) -> std::io::Result<FuzzMedium> {
        let count = || AtomicU64::new(0);
        Ok(FuzzMedium {
            file: memfd(FOLIO)?.into(),
            memory,
            stores: Mutex::new(stores),
            flushes: count(),
            present: count(),
            gone: count(),
        })
    }
}

impl Medium for FuzzMedium {
    fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn connect(&self, _peer: Peer) -> Result<u64, String> {
        // ORDERING: SeqCst throughout; read when every thread is gone.
        self.present.fetch_add(1, Ordering::SeqCst);
        Ok(FOLIO)
    }

    fn attach(&self) -> Vec<PmemPiece> {
        let half = FOLIO / 2;
        [0, half].map(|at| PmemPiece { guest_offset: at, device_offset: half - at, len: half }).to_vec()
    }

    fn flush(&self) -> Result<(), FlushError> {
        let stored = self.stores.lock().pop_front();
        if let Some((at, value)) = stored {
            let _outside = self.memory.write_obj(value, GuestAddress(at.into()));
        }
        if self.flushes.fetch_add(1, Ordering::SeqCst) % 3 == 2 { Err(FlushError::Told) } else { Ok(()) }
    }

    fn gone(&self) {
        self.gone.fetch_add(1, Ordering::SeqCst);
    }
}

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

/// An input as a guest's memory with a queue in it: size (as a power of two), flags (bit 0:
/// event-idx), the first request, the three rings' addresses (divided by 16), the number of stores
/// during flushes, each as address and value; the rest is the memory from address 0 on.
///
/// # Panics
/// When a property does not hold.
pub fn request_queue(data: &[u8]) {
    let mut input = FuzzInput(&data[..data.len().min(INPUT_MAX)]);
    let (size, flags, base) = (1_u32 << (input.byte() % 11), input.byte(), input.word());
    let [table, avail, used] = [(); 3].map(|()| u64::from(input.word()) << 4);
    let stores = (0..input.byte() % 32).map(|_| (input.word(), input.word())).collect();
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("64 KiB of memory");
    memory.write_slice(input.0, GuestAddress(0)).expect("an input fits into the memory");
    let medium = FuzzMedium::new(memory.clone(), stores).expect("a memory file");
    let queue = RequestQueue::new().expect("an eventfd");
    let counters = VhostCounters::default();
    queue.set_memory(memory);
    queue.set_enabled(true);
    queue.set_event_idx(flags & 1 != 0);
    let set_up = queue.set_size(size).and_then(|()| queue.set_rings(Some(RingAddresses { table, avail, used })));
    if set_up.and_then(|()| queue.set_base(base.into())).is_err() {
        return;
    }
    queue.start(rustix::event::eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd"));
    let mut batch = Vec::new();
    for _ in 0..ROUNDS_MAX {
        if !queue.round(&|| medium.flush(), &counters, &mut batch) {
            break;
        }
        assert!(batch.len() <= size as usize, "more requests than descriptors");
    }
    let stats = counters.snapshot();
    assert_eq!(stats.flushes, medium.flushes.load(Ordering::SeqCst));
    assert_eq!(stats.flushes + stats.coalesced, stats.requests, "each flush was asked for, each request flushed for");
}

/// An input as what a frontend sends: records of kind, length (16 bits) and as many bytes. Bits 0
/// to 2 of the kind choose the descriptors that go along; with bit 3 the first byte is a request's
/// number, and the rest is sent with a header in front.
///
/// # Panics
/// When a property does not hold.
pub fn messages(data: &[u8]) {
    let mut input = FuzzInput(&data[..data.len().min(INPUT_MAX)]);
    let none = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4096)]).expect("a page of memory");
    let medium = Arc::new(FuzzMedium::new(none, VecDeque::new()).expect("a memory file"));
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    let mut answers = theirs.try_clone().expect("a descriptor");
    // A frontend that reads no answers blocks only itself; here both ends are one thread.
    let reader = thread::spawn(move || {
        let mut sink = [0; 4096];
        while answers.read(&mut sink).is_ok_and(|read| read > 0) {}
    });
    let served = {
        let medium: Arc<dyn Medium> = Arc::clone(&medium) as Arc<dyn Medium>;
        thread::spawn(move || serve_one(ours, &medium))
    };
    let mut kept = Vec::new();
    while !input.0.is_empty() {
        let (kind, len) = (input.byte(), input.word());
        let bytes = input.bytes(len.into());
        if bytes.is_empty() || !send(&theirs, kind, bytes, &medium.file, &mut kept) {
            break;
        }
    }
    let _gone_already = theirs.shutdown(std::net::Shutdown::Write);
    let stats = served.join().expect("a connection's panic ends the connection only").expect("descriptors");
    let _gone_already = theirs.shutdown(std::net::Shutdown::Both);
    let _ended = reader.join();
    let (present, gone) = (medium.present.load(Ordering::SeqCst), medium.gone.load(Ordering::SeqCst));
    assert_eq!((present, gone), (1, 1), "`gone` is called once");
    // Without a mapped piece the request fails without a flush.
    assert!(stats.flushes >= medium.flushes.load(Ordering::SeqCst));
    assert!(!stats.problem.as_deref().is_some_and(|problem| problem.contains("panic")), "{stats:?}");
}

/// Sends a record; false if the other end is closed.
fn send(socket: &UnixStream, kind: u8, bytes: &[u8], own: &File, kept: &mut Vec<OwnedFd>) -> bool {
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
    rustix::net::sendmsg(socket, &[IoSlice::new(&message)], &mut control, SendFlags::NOSIGNAL).is_ok()
}

fn files(choice: u8, own: &File, kept: &mut Vec<OwnedFd>) -> std::io::Result<Vec<OwnedFd>> {
    let eventfd = |count| rustix::event::eventfd(count, EventfdFlags::CLOEXEC);
    Ok(match choice {
        1 => vec![eventfd(0)?],
        2 => vec![guest_memory()?],
        3 => vec![UnixStream::pair()?.0.into()],
        4 => {
            // A channel with the answers to the next requests in it already.
            let (device, frontend) = UnixStream::pair()?;
            for code in [9_u32, 9, 10, 10] {
                let answer = [code, 5, 8, 0, 0].map(u32::to_ne_bytes).concat();
                rustix::net::send(&frontend, &answer, SendFlags::empty())?;
            }
            kept.push(frontend.into());
            vec![device.into()]
        }
        5 => vec![own.try_clone()?.into()],
        6 => vec![guest_memory()?, own.try_clone()?.into()],
        7 => vec![eventfd(1)?],
        _ => Vec::new(),
    })
}

/// 64 KiB with a queue of 4 in it: table at 0, available ring at 0x100, used ring at 0x200; one
/// FLUSH waits.
fn guest_memory() -> std::io::Result<OwnedFd> {
    let fd = memfd(MEMORY as u64)?;
    let request = [0x1000_u64.to_le_bytes().to_vec(), vec![4, 0, 0, 0, 1, 0, 1, 0]].concat();
    let response = [0x1008_u64.to_le_bytes().to_vec(), vec![4, 0, 0, 0, 2, 0, 0, 0]].concat();
    rustix::io::pwrite(&fd, &[request, response].concat(), 0)?;
    rustix::io::pwrite(&fd, &[0, 0, 1, 0, 0, 0], 0x100)?;
    Ok(fd)
}
