//! The vhost-user-backend crate's queue, with the exceptions that its frontends force.
//!
//! It owns the crate's queue state, the descriptor that tells the frontend of a broken queue, and
//! whether the queue is broken. Invariants: no call blocks, whatever a frontend does with the
//! descriptors that it shares; a queue that was started anew is not broken. Counterparts:
//! `VringMutex` of the crate, `vu_queue_notify` in libvhost-user.
//!
//! # What differs from the crate's queue
//! - A kick is read without waiting. The crate ends the queue's thread when a read fails, also with
//!   `EAGAIN`, and would block in a read of a descriptor that the frontend has emptied itself.
//! - A call that is full is left alone: the guest has not read it, and is interrupted already.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::{Errno, ReadWriteFlags};
use vhost_user_backend::{VringMutex, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::Error;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

use super::wake::wait_writable;
use crate::runtime::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::runtime::sync::{Arc, Mutex};

/// The guest's memory, as the daemon replaces it.
pub(super) type SharedMemory = GuestMemoryAtomic<GuestMemoryMmap>;

type CrateVring = VringMutex<SharedMemory>;

#[derive(Debug, Default)]
struct VringExtras {
    err: Mutex<Option<OwnedFd>>,
    /// It contradicted itself, and was not started since.
    broken: AtomicBool,
    kicks: AtomicU64,
}

/// See the module.
#[derive(Clone)]
pub(super) struct PmemVring {
    vring: CrateVring,
    extras: Arc<VringExtras>,
}

impl PmemVring {
    pub(super) fn is_broken(&self) -> bool {
        // ORDERING: SeqCst here and below: never on a hot path alone, and read beside the lock.
        self.extras.broken.load(Ordering::SeqCst)
    }

    /// Nothing more is taken from it until it is started again; the frontend is told.
    pub(super) fn break_down(&self) {
        self.extras.broken.store(true, Ordering::SeqCst);
        if let Some(err) = &*self.extras.err.lock() {
            ring_bell(err.as_fd());
        }
    }

    /// Interrupts the guest.
    pub(super) fn interrupt(&self) {
        if let Some(call) = self.vring.get_ref().get_call() {
            // SAFETY: `call` owns its descriptor, and is borrowed for longer than the call takes.
            ring_bell(unsafe { BorrowedFd::borrow_raw(call.as_raw_fd()) });
        }
    }

    /// How many kicks were read since the last call.
    pub(super) fn take_kicks(&self) -> u64 {
        self.extras.kicks.swap(0, Ordering::SeqCst)
    }
}

impl<'a> VringStateGuard<'a, SharedMemory> for PmemVring {
    type G = <CrateVring as VringStateGuard<'a, SharedMemory>>::G;
}

impl<'a> VringStateMutGuard<'a, SharedMemory> for PmemVring {
    type G = <CrateVring as VringStateMutGuard<'a, SharedMemory>>::G;
}

impl VringT<SharedMemory> for PmemVring {
    fn new(memory: SharedMemory, max_queue_size: u16) -> Result<Self, Error> {
        Ok(PmemVring { vring: VringT::new(memory, max_queue_size)?, extras: Arc::default() })
    }

    fn get_ref(&self) -> <Self as VringStateGuard<'_, SharedMemory>>::G {
        self.vring.get_ref()
    }

    fn get_mut(&self) -> <Self as VringStateMutGuard<'_, SharedMemory>>::G {
        self.vring.get_mut()
    }

    fn add_used(&self, head: u16, len: u32) -> Result<(), Error> {
        self.vring.add_used(head, len)
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        self.interrupt();
        Ok(())
    }

    fn enable_notification(&self) -> Result<bool, Error> {
        self.vring.enable_notification()
    }

    fn disable_notification(&self) -> Result<(), Error> {
        self.vring.disable_notification()
    }

    fn needs_notification(&self) -> Result<bool, Error> {
        self.vring.needs_notification()
    }

    fn set_enabled(&self, enabled: bool) {
        self.vring.set_enabled(enabled);
    }

    fn set_queue_info(&self, table: u64, avail: u64, used: u64) -> Result<(), Error> {
        self.vring.set_queue_info(table, avail, used)
    }

    fn queue_next_avail(&self) -> u16 {
        self.vring.queue_next_avail()
    }

    fn set_queue_next_avail(&self, base: u16) {
        self.vring.set_queue_next_avail(base);
    }

    fn set_queue_next_used(&self, next: u16) {
        self.vring.set_queue_next_used(next);
    }

    fn queue_used_idx(&self) -> Result<u16, Error> {
        self.vring.queue_used_idx()
    }

    fn set_queue_size(&self, size: u16) {
        self.vring.set_queue_size(size);
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.vring.set_queue_event_idx(enabled);
    }

    fn set_queue_ready(&self, ready: bool) {
        if ready {
            self.extras.broken.store(false, Ordering::SeqCst);
        }
        self.vring.set_queue_ready(ready);
    }

    fn set_kick(&self, file: Option<File>) {
        self.vring.set_kick(file);
    }

    fn read_kick(&self) -> io::Result<bool> {
        let state = self.vring.get_ref();
        if let Some(kick) = state.get_kick() {
            // SAFETY: `kick` owns its descriptor, and is borrowed for longer than the call takes.
            let kick = unsafe { BorrowedFd::borrow_raw(kick.as_raw_fd()) };
            // One that can't be read was read by the frontend: the queue is looked at all the same.
            if matches!(read_event(kick), Ok(true)) {
                self.extras.kicks.fetch_add(1, Ordering::SeqCst);
            }
        }
        Ok(state.is_enabled())
    }

    fn set_call(&self, file: Option<File>) {
        self.vring.set_call(file);
    }

    fn set_err(&self, file: Option<File>) {
        let old = std::mem::replace(&mut *self.extras.err.lock(), file.map(OwnedFd::from));
        drop(old);
    }
}

/// Reads an eventfd without waiting, whether or not it is non-blocking; false if it is 0.
fn read_event(fd: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    let mut count = [0; 8];
    match rustix::io::preadv2(fd, &mut [IoSliceMut::new(&mut count)], u64::MAX, ReadWriteFlags::NOWAIT) {
        Ok(8) => Ok(true),
        Ok(_) => Err(Errno::INVAL),
        Err(Errno::AGAIN) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether `fd` can serve as a kick: an eventfd, or what reads like one. Anything else could be
/// ready for ever and keep the queue's thread busy. What it counted so far is lost, so it is to be
/// asked before the queue starts: a queue that starts is looked at.
pub(super) fn is_kick(fd: BorrowedFd<'_>) -> bool {
    is_event(fd) && read_event(fd).is_ok()
}

/// Whether `fd` can be rung: an eventfd, or what reads like one. A write to a pipe or a socket
/// whose other end is closed raises SIGPIPE.
pub(super) fn is_event(fd: BorrowedFd<'_>) -> bool {
    // An eventfd refuses to be read in pieces; a pipe, a socket or a file does not.
    let piece = rustix::io::preadv2(fd, &mut [IoSliceMut::new(&mut [0; 4])], u64::MAX, ReadWriteFlags::NOWAIT);
    piece == Err(Errno::INVAL)
}

/// Rings an eventfd of the frontend, unless that would block: then it was rung already.
pub(super) fn ring_bell(bell: BorrowedFd<'_>) {
    if wait_writable(bell, Duration::ZERO).unwrap_or(false) {
        let _broken_is_the_frontends_loss = rustix::io::write(bell, &1_u64.to_ne_bytes());
    }
}
