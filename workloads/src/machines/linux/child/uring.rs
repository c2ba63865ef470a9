//! Fixed buffers of io_uring.
//!
//! It owns the rings: each has one buffer, and one request at a time. Invariant: when a request
//! returns, its ring is empty; a completion that a killed process has left there is passed over. A
//! ring is mapped for one request and unmapped again, so that a forked child can use it as well.
//! Kernel counterpart: `io_sqe_buffer_register` in io_uring/rsrc.c; io_uring(7).

use std::ffi::c_void;
use std::os::fd::{BorrowedFd, IntoRawFd, OwnedFd};

use emulator::sync::machine::{AtomicU32, AtomicU64, Ordering};
use rustix::io::Errno;
use rustix::io_uring::{
    IORING_OFF_CQ_RING, IORING_OFF_SQ_RING, IORING_OFF_SQES, IoringEnterFlags, IoringOp, IoringRegisterOp,
    io_uring_cqe, io_uring_enter, io_uring_params, io_uring_register, io_uring_setup, io_uring_sqe,
};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::calls::open_fd;
use super::wire::{ChildFailure, ChildValue};

/// How many requests a ring has room for.
const ENTRIES: u32 = 2;
/// The number of requests so far, by which their completions are told apart.
static REQUESTS: AtomicU64 = AtomicU64::new(0);

fn setup() -> Result<(OwnedFd, io_uring_params), ChildFailure> {
    let mut params = io_uring_params::default();
    // SAFETY: no flag makes the kernel use memory of this process.
    match unsafe { io_uring_setup(ENTRIES, &mut params) } {
        Ok(ring) => Ok((ring, params)),
        Err(errno @ (Errno::NOSYS | Errno::PERM)) => {
            Err(ChildFailure::Lacks(format!("no io_uring ({errno}; CONFIG_IO_URING, sysctl kernel.io_uring_disabled)")))
        }
        Err(errno) => Err(errno.into()),
    }
}

/// Makes a ring and registers the `len` bytes at `at` as its buffer.
pub(super) fn fixed_buffers(at: u64, len: u64) -> Result<ChildValue, ChildFailure> {
    let (ring, _) = setup()?;
    let buffer = libc::iovec { iov_base: at as *mut c_void, iov_len: len as usize };
    // SAFETY: the kernel reads the descriptor of one buffer. It pins the buffer's pages, which only
    // mappings of scenarios have.
    unsafe { io_uring_register(&ring, IoringRegisterOp::RegisterBuffers, (&raw const buffer).cast(), 1) }?;
    Ok(ChildValue::Number(ring.into_raw_fd().into()))
}

/// Reads `len` bytes at `offset` of the file `from` into the ring's buffer at address `at`.
pub(super) fn read(ring: i32, from: i32, offset: u64, at: u64, len: u64) -> Result<ChildValue, ChildFailure> {
    let len = u32::try_from(len).map_err(|_| Errno::INVAL)?;
    // The places of a ring's parts depend on the kernel and on what was asked for alone.
    let (_, params) = setup()?;
    let rings = RingMaps::of(open_fd(ring)?, &params)?;
    // ORDERING: the process has one thread.
    let number = REQUESTS.fetch_add(1, Ordering::Relaxed);
    let mut request = io_uring_sqe { opcode: IoringOp::ReadFixed, fd: from, ..io_uring_sqe::default() };
    request.off_or_addr2.off = offset;
    request.addr_or_splice_off_in.addr.ptr = at as *mut c_void;
    request.len.len = len;
    request.user_data = number.into();
    let done = rings.perform(request, number)?;
    match u32::try_from(done) {
        Ok(done) if done == len => Ok(ChildValue::Nothing),
        // The file ends within the range.
        Ok(_) => Err(Errno::IO.into()),
        Err(_) => Err(ChildFailure::Errno(-done)),
    }
}

/// A ring's memory.
struct RingMaps<'a> {
    ring: BorrowedFd<'a>,
    params: &'a io_uring_params,
    submissions: RingMap,
    requests: RingMap,
    completions: RingMap,
}

struct RingMap {
    at: *mut c_void,
    len: usize,
}

impl RingMap {
    fn of(ring: BorrowedFd<'_>, at: u64, len: usize) -> Result<RingMap, Errno> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses the address.
        let at = unsafe { mmap(std::ptr::null_mut(), len, protection, MapFlags::SHARED, ring, at) }?;
        Ok(RingMap { at, len })
    }

    /// The number at this offset, which the kernel accesses too.
    fn number(&self, offset: u32) -> &AtomicU32 {
        // SAFETY: io_uring_setup(2) gave the offset, which lies in the mapping and is aligned.
        unsafe { AtomicU32::from_ptr(self.at.byte_add(offset as usize).cast()) }
    }
}

impl Drop for RingMap {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own. It can't fail for a whole mapping.
        let _ = unsafe { munmap(self.at, self.len) };
    }
}

impl<'a> RingMaps<'a> {
    fn of(ring: BorrowedFd<'a>, params: &'a io_uring_params) -> Result<RingMaps<'a>, Errno> {
        let (submissions, completions) = (&params.sq_off, &params.cq_off);
        let submissions = submissions.array as usize + params.sq_entries as usize * size_of::<u32>();
        let completions = completions.cqes as usize + params.cq_entries as usize * size_of::<io_uring_cqe>();
        let requests = params.sq_entries as usize * size_of::<io_uring_sqe>();
        Ok(RingMaps {
            ring,
            params,
            submissions: RingMap::of(ring, IORING_OFF_SQ_RING, submissions)?,
            requests: RingMap::of(ring, IORING_OFF_SQES, requests)?,
            completions: RingMap::of(ring, IORING_OFF_CQ_RING, completions)?,
        })
    }

    /// Submits a request with this number, and waits for its completion; returns the result.
    fn perform(&self, request: io_uring_sqe, number: u64) -> Result<i32, Errno> {
        let places = &self.params.sq_off;
        // ORDERING: Relaxed: only this thread writes the tail. The kernel has taken all requests
        // before, as each call submits the one that it has.
        let tail = self.submissions.number(places.tail).load(Ordering::Relaxed);
        let slot = tail & self.submissions.number(places.ring_mask).load(Ordering::Relaxed);
        // SAFETY: the slot lies in the mapping, and the kernel does not read it before the tail is
        // past it.
        unsafe { self.requests.at.cast::<io_uring_sqe>().add(slot as usize).write(request) };
        self.submissions.number(places.array + slot * size_of::<u32>() as u32).store(slot, Ordering::Relaxed);
        // ORDERING: Release: the kernel, which reads the tail with acquire, sees the request.
        self.submissions.number(places.tail).store(tail.wrapping_add(1), Ordering::Release);
        let mut submit = 1;
        loop {
            // SAFETY: the ring was set up for no memory of this process but the buffer.
            match unsafe { io_uring_enter(self.ring, submit, 1, IoringEnterFlags::GETEVENTS) } {
                Ok(submitted) => submit -= submitted.min(submit),
                // A signal ends the wait and not the request.
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
            if let Some(result) = self.completion(number) {
                return Ok(result);
            }
        }
    }

    /// Takes completions until that of the request with this number.
    fn completion(&self, number: u64) -> Option<i32> {
        let places = &self.params.cq_off;
        let head = self.completions.number(places.head);
        // ORDERING: Acquire: the completion was written before the tail.
        while head.load(Ordering::Relaxed) != self.completions.number(places.tail).load(Ordering::Acquire) {
            let slot = head.load(Ordering::Relaxed) & self.completions.number(places.ring_mask).load(Ordering::Relaxed);
            // SAFETY: the slot lies in the mapping, and the kernel does not write it before the
            // head is past it.
            let (of, result) = unsafe {
                let first = self.completions.at.byte_add(places.cqes as usize).cast::<io_uring_cqe>();
                let completion = &*first.add(slot as usize);
                (completion.user_data.u64_(), completion.res)
            };
            // ORDERING: Release: the completion was read before the kernel may reuse the slot.
            head.store(head.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
            if of == number {
                return Some(result);
            }
        }
        None
    }
}
