//! Direct I/O between a mapping and a disk.
//!
//! It owns the requests in flight of its process, by the driver's numbers. Invariant: every request
//! has a context of its own, so that to wait for it is to wait for no other. Kernel counterpart:
//! io_submit(2), fs/aio.c; the C library has no functions for it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::last_errno;
use super::wire::{ChildFailure, ChildValue, MappedIo};

const IOCB_CMD_PREAD: u16 = 0;
const IOCB_CMD_PWRITE: u16 = 1;

/// The kernel's `struct iocb`, on a little-endian machine.
#[repr(C)]
#[derive(Default)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: i32,
    opcode: u16,
    priority: i16,
    fd: u32,
    buffer: u64,
    len: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    result_fd: u32,
}

/// The kernel's `struct io_event`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct IoEvent {
    data: u64,
    request: u64,
    result: i64,
    result2: i64,
}

/// A request in flight; its disk stays open with it.
struct InFlight {
    context: u64,
    /// In bytes.
    len: u64,
    _disk: OwnedFd,
}

thread_local! {
    /// The process has one thread.
    static IN_FLIGHT: RefCell<BTreeMap<u32, InFlight>> = const { RefCell::new(BTreeMap::new()) };
}

/// Starts I/O that stays in flight while its disk is suspended.
pub(super) fn submit(io: MappedIo) -> Result<ChildValue, ChildFailure> {
    let access = if io.write { OFlags::WRONLY } else { OFlags::RDONLY };
    let disk = rustix::fs::open(&io.disk, access | OFlags::DIRECT | OFlags::CLOEXEC, Mode::empty())?;
    let mut context = 0_u64;
    // SAFETY: `context` lives across the call, which writes one word to it.
    if unsafe { libc::syscall(libc::SYS_io_setup, 1, &raw mut context) } < 0 {
        return Err(last_errno().into());
    }
    let fd = disk.as_raw_fd().unsigned_abs();
    let opcode = if io.write { IOCB_CMD_PWRITE } else { IOCB_CMD_PREAD };
    let mut request = Iocb { opcode, fd, buffer: io.at, len: io.len, offset: io.offset, ..Iocb::default() };
    let mut requests = [&raw mut request];
    // SAFETY: the array and the request live across the call, which copies them; the kernel checks
    // the address of the buffer, which only mappings of scenarios have.
    if unsafe { libc::syscall(libc::SYS_io_submit, context, 1, requests.as_mut_ptr()) } < 0 {
        let errno = last_errno();
        destroy(context);
        return Err(errno.into());
    }
    // What is refused has ended already.
    match event(context, 0) {
        Ok(Some(event)) if event.result < 0 => {
            destroy(context);
            Err(failure(event.result))
        }
        Ok(Some(_)) => {
            destroy(context);
            Err(ChildFailure::NotHeld)
        }
        Ok(None) => {
            IN_FLIGHT.with_borrow_mut(|all| all.insert(io.number, InFlight { context, len: io.len, _disk: disk }));
            Ok(ChildValue::Number(io.number.into()))
        }
        Err(errno) => {
            destroy(context);
            Err(errno.into())
        }
    }
}

/// Waits for the end of I/O that this process has submitted.
pub(super) fn complete(number: u32) -> Result<ChildValue, ChildFailure> {
    let request = IN_FLIGHT.with_borrow(|all| all.get(&number).map(|request| (request.context, request.len)));
    let (context, len) = request.ok_or(Errno::INVAL)?;
    let ended = event(context, 1)?;
    destroy(context);
    IN_FLIGHT.with_borrow_mut(|all| all.remove(&number));
    match ended {
        Some(event) if event.result < 0 => Err(failure(event.result)),
        // A part of it was not transferred.
        Some(event) if event.result.unsigned_abs() != len => Err(Errno::IO.into()),
        _ => Ok(ChildValue::Nothing),
    }
}

/// The event of a context; with `least` 1 it waits for it.
fn event(context: u64, least: i64) -> Result<Option<IoEvent>, Errno> {
    let mut event = IoEvent::default();
    let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let patience = if least == 0 { &raw const at_once } else { std::ptr::null() };
    // SAFETY: `event` and `at_once` live across the call, which writes one event at most.
    match unsafe { libc::syscall(libc::SYS_io_getevents, context, least, 1_i64, &raw mut event, patience) } {
        -1 => Err(last_errno()),
        0 => Ok(None),
        _ => Ok(Some(event)),
    }
}

/// Ends a context without a request in flight. It fails for none that is there.
fn destroy(context: u64) {
    // SAFETY: a plain number.
    let _ = unsafe { libc::syscall(libc::SYS_io_destroy, context) };
}

fn failure(result: i64) -> ChildFailure {
    ChildFailure::Errno(i32::try_from(-result).unwrap_or(libc::EIO))
}
