//! The queues that a process shares with rdma_rxe.
//!
//! It owns their mappings and indices. Invariant: an element is written before the producer's index
//! passes it, and read before the consumer's does. Kernel counterpart: `struct rxe_queue_buf`
//! (include/uapi/rdma/rdma_user_rxe.h), drivers/infiniband/sw/rxe/rxe_queue.h.

use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use emulator::sync::machine::{AtomicU32, Ordering};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::uapi::{QueuePlace, Uapi};

/// Where the indices and the elements are.
const LOG2_ELEMENT: usize = 0;
const MASK: usize = 4;
const PRODUCER: usize = 128;
const CONSUMER: usize = 256;
const ELEMENTS: usize = 384;

/// A mapped queue.
#[derive(Debug)]
pub(super) struct SharedQueue {
    at: NonNull<u8>,
    len: usize,
    element: usize,
    mask: u32,
}

impl SharedQueue {
    /// Maps a queue whose elements have room for a `T`.
    pub(super) fn map<T: Uapi>(context: BorrowedFd<'_>, place: QueuePlace) -> Result<SharedQueue, Errno> {
        let len = place.size as usize;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at = unsafe {
            mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                context,
                place.offset,
            )?
        };
        let at = NonNull::new(at.cast()).ok_or(Errno::FAULT)?;
        let mut queue = SharedQueue { at, len, element: 0, mask: 0 };
        if len < ELEMENTS {
            return Err(Errno::PROTO);
        }
        // ORDERING: Relaxed: the kernel wrote both before it told of the queue.
        queue.mask = queue.word(MASK).load(Ordering::Relaxed);
        let log2 = queue.word(LOG2_ELEMENT).load(Ordering::Relaxed);
        queue.element = 1_usize.checked_shl(log2).unwrap_or_default();
        let fits = queue.element.checked_mul(queue.mask as usize + 1).is_some_and(|all| all <= len - ELEMENTS);
        match fits && queue.element >= size_of::<T>() {
            true => Ok(queue),
            false => Err(Errno::PROTO),
        }
    }

    fn word(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: inside the mapping, which lives as long as `self`, and aligned, as the mapping
        // is to a page. The kernel too accesses it as one word.
        unsafe { self.at.add(offset).cast().as_ref() }
    }

    fn element(&self, index: u32) -> NonNull<u8> {
        let index = (index & self.mask) as usize;
        // SAFETY: `map` found that all elements are inside the mapping.
        unsafe { self.at.add(ELEMENTS + index * self.element) }
    }

    /// Appends an element, if there are fewer than `most`: rdma_rxe makes larger queues than it is
    /// asked for.
    ///
    /// # Errors
    /// ENOMEM: the queue is full.
    pub(super) fn push<T: Uapi>(&self, element: &T, most: u32) -> Result<(), Errno> {
        // ORDERING: Relaxed: only this process moves the producer's index of a queue that it fills.
        let at = self.word(PRODUCER).load(Ordering::Relaxed);
        let next = at.wrapping_add(1) & self.mask;
        // ORDERING: Acquire: what the kernel read of the element came before its index passed it.
        let consumed = self.word(CONSUMER).load(Ordering::Acquire);
        if next == consumed || next.wrapping_sub(consumed) & self.mask > most {
            return Err(Errno::NOMEM);
        }
        // SAFETY: `map` found room for a `T`; the kernel does not access the element before the
        // index has passed it.
        unsafe { self.element(at).cast::<T>().write_unaligned(*element) };
        // ORDERING: Release: the kernel sees the index after the element.
        self.word(PRODUCER).store(next, Ordering::Release);
        Ok(())
    }

    /// Takes the oldest element.
    pub(super) fn pop<T: Uapi>(&self) -> Option<T> {
        // ORDERING: Relaxed: only this process moves the consumer's index of a queue that it
        // empties.
        let at = self.word(CONSUMER).load(Ordering::Relaxed);
        // ORDERING: Acquire: the kernel wrote the element before its index passed it.
        if at == self.word(PRODUCER).load(Ordering::Acquire) {
            return None;
        }
        // SAFETY: `map` found room for a `T`; the kernel does not access the element before the
        // index has passed it.
        let element = unsafe { self.element(at).cast::<T>().read_unaligned() };
        // ORDERING: Release: the kernel may write the element again after this.
        self.word(CONSUMER).store(at.wrapping_add(1) & self.mask, Ordering::Release);
        Some(element)
    }
}

impl Drop for SharedQueue {
    fn drop(&mut self) {
        // SAFETY: nothing refers to the mapping any more. It fails for no mapping that was made.
        let _ = unsafe { munmap(self.at.as_ptr().cast(), self.len) };
    }
}
