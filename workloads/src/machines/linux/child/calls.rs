//! The system calls that a scenario's process makes.
//!
//! It owns the way from a [`ChildRequest`] to the kernel, without a retry after a signal and
//! without a check that the kernel makes itself. Invariant: a descriptor's number is the kernel's
//! own, and a received descriptor stays open until a request closes it. Kernel counterpart: the
//! system call table.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd, OwnedFd};

use emulator::sync::machine::{AtomicU64, Ordering};
use rustix::fs::{MemfdFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::process::Uid;
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_thread_res_uid};

use super::super::soft_roce;
use super::wire::{self, ChildFailure, ChildRequest, ChildValue};
use super::{delegation, direct_io, inbox, last_errno, memory, names, pipes, remaps, signals, uring, xdp};
use crate::ops::describe_bytes;

/// The size of the pieces in which data is written.
const PIECE: u64 = 1 << 20;
/// The strictest alignment that direct I/O needs.
const DIRECT: u64 = 4096;
/// The number of reads and writes so far.
static TURN: AtomicU64 = AtomicU64::new(0);

type CallResult = Result<ChildValue, ChildFailure>;

/// Performs a request; `fds` came with it.
pub(super) fn perform(request: ChildRequest, fds: Vec<OwnedFd>) -> CallResult {
    use libc::{SYS_close, SYS_dup, SYS_fallocate, SYS_fcntl, SYS_ftruncate, SYS_kill};
    match request {
        ChildRequest::Spawn | ChildRequest::Fork | ChildRequest::Exit => Err(Errno::INVAL.into()),
        ChildRequest::Handled => Ok(ChildValue::Nothing),
        ChildRequest::Kill { pid, signal } => done(call(SYS_kill, [pid.into(), signal.into(), 0, 0])),
        ChildRequest::Signal { signal, disposition } => done(signals::set(signal, disposition)),
        ChildRequest::Credentials { uid, cap_lease } => done(credentials(uid, cap_lease)),
        ChildRequest::Dup { fd } => number(call(SYS_dup, [fd.into(), 0, 0, 0])),
        ChildRequest::Dup2 { from, to } => {
            if from != to {
                soft_roce::forget(to);
            }
            done(dup2(from, to))
        }
        ChildRequest::Close { fd } => {
            soft_roce::forget(fd);
            done(call(SYS_close, [fd.into(), 0, 0, 0]))
        }
        ChildRequest::Send { fd } => done(send(fd, &fds)),
        ChildRequest::Receive => receive(),
        ChildRequest::Open { path, flags } => open(&path, flags),
        ChildRequest::Memfd { size } => unnamed(rustix::fs::memfd_create("scenario", MemfdFlags::CLOEXEC), size),
        ChildRequest::Tmpfile { folder, size } => {
            let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
            unnamed(rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR), size)
        }
        ChildRequest::Read { fd, offset, len } => read(fd, offset, len),
        ChildRequest::Write { fd, offset, len, byte } => write(fd, offset, len, byte),
        ChildRequest::Truncate { path, size } => truncate(path, size),
        ChildRequest::Ftruncate { fd, size } => done(call(SYS_ftruncate, [fd.into(), size, 0, 0])),
        ChildRequest::Fallocate { fd, mode, offset, len } => {
            done(call(SYS_fallocate, [fd.into(), mode.into(), offset, len]))
        }
        ChildRequest::Unlink { path } => done(names::unlink(path)),
        ChildRequest::Rename { from, to } => done(names::rename(from, to)),
        ChildRequest::Link { path, name } => done(names::link(path, name)),
        ChildRequest::Chmod { path } => done(names::chmod(path)),
        ChildRequest::Utime { path } => done(names::utime(path)),
        ChildRequest::Stat { path } => number(rustix::fs::stat(path).map(|stat| stat.st_size)),
        ChildRequest::Fstat { fd } => number(open_fd(fd).and_then(rustix::fs::fstat).map(|stat| stat.st_size)),
        ChildRequest::Fcntl { fd, command, argument } => {
            number(call(SYS_fcntl, [fd.into(), command.into(), argument.into(), 0]))
        }
        ChildRequest::SetDelegation { fd, kind } => delegation::set(fd, kind),
        ChildRequest::GetDelegation { fd } => delegation::get(fd),
        ChildRequest::Exec { path } => exec(path),
        ChildRequest::Map { fd, offset, len, write, sharing } => memory::map(fd, (offset, len), write, sharing),
        ChildRequest::MapDeviceDax { path, offset, len } => memory::map_device_dax(path, offset, len),
        ChildRequest::Fsync { fd } => done(open_fd(fd).and_then(rustix::fs::fsync)),
        ChildRequest::Msync { at, len } => memory::sync(at, len),
        ChildRequest::Unmap { at, len } => memory::unmap(at, len),
        ChildRequest::Load { at, len } => memory::load(at, len),
        ChildRequest::Store { at, len, byte } => memory::store(at, len, byte),
        ChildRequest::Vmsplice { at, len } => pipes::vmsplice(at, len),
        ChildRequest::Drain { fd } => pipes::drain(fd),
        ChildRequest::Umem { at, len } => xdp::umem(at, len),
        ChildRequest::FixedBuffers { at, len } => uring::fixed_buffers(at, len),
        ChildRequest::RingRead { ring, from, offset, at, len } => uring::read(ring, from, offset, at, len),
        ChildRequest::Remap { kind, from, to, len } => remaps::remap(kind, from, to, len),
        ChildRequest::SubmitIo(io) => direct_io::submit(io),
        ChildRequest::CompleteIo { number } => direct_io::complete(number),
        ChildRequest::Verbs(request) => match soft_roce::perform(request) {
            Ok(answer) => Ok(answer.map_or(ChildValue::Nothing, ChildValue::Verbs)),
            Err(failure) => Err(ChildFailure::Verbs(failure)),
        },
    }
}

fn done<T>(result: Result<T, Errno>) -> CallResult {
    result.map(|_| ChildValue::Nothing).map_err(Into::into)
}

fn number(result: Result<i64, Errno>) -> CallResult {
    result.map(ChildValue::Number).map_err(Into::into)
}

/// A system call whose arguments are numbers: never an address.
fn call(which: libc::c_long, args: [i64; 4]) -> Result<i64, Errno> {
    // SAFETY: the calls above take no pointer, so memory is not touched; descriptors given by
    // number belong to the scenario.
    match unsafe { libc::syscall(which, args[0], args[1], args[2], args[3]) } {
        -1 => Err(last_errno()),
        value => Ok(value),
    }
}

pub(super) fn open_fd(fd: i32) -> Result<BorrowedFd<'static>, Errno> {
    match fd {
        ..0 => Err(Errno::BADF),
        // SAFETY: the number came from the kernel, and the driver forgets each number that it has
        // closed.
        fd => Ok(unsafe { BorrowedFd::borrow_raw(fd) }),
    }
}

fn dup2(from: i32, to: i32) -> Result<(), Errno> {
    // SAFETY: plain numbers, both of the scenario's descriptors.
    match unsafe { libc::dup2(from, to) } {
        -1 => Err(last_errno()),
        _ => Ok(()),
    }
}

/// Gives a file that was just made its size.
fn unnamed(made: Result<OwnedFd, Errno>, size: i64) -> CallResult {
    let size = u64::try_from(size).map_err(|_| Errno::INVAL)?;
    let fd = made.and_then(|fd| rustix::fs::ftruncate(&fd, size).map(|()| fd))?;
    Ok(ChildValue::Number(fd.into_raw_fd().into()))
}

fn open(path: &str, flags: i32) -> CallResult {
    let path = CString::new(path).map_err(|_| Errno::INVAL)?;
    // SAFETY: `path` lives across the call.
    match unsafe { libc::openat(libc::AT_FDCWD, path.as_ptr(), flags, 0o666) } {
        -1 => Err(last_errno().into()),
        fd => Ok(ChildValue::Number(fd.into())),
    }
}

fn truncate(path: String, size: i64) -> CallResult {
    let path = CString::new(path).map_err(|_| Errno::INVAL)?;
    // SAFETY: `path` lives across the call.
    match unsafe { libc::truncate(path.as_ptr(), size) } {
        0 => Ok(ChildValue::Nothing),
        _ => Err(last_errno().into()),
    }
}

fn read(fd: i32, offset: i64, len: u64) -> CallResult {
    let mut bytes = AlignedBuffer::new(len, 0)?;
    let direct = DirectIoFlag::begin(fd, offset, len);
    let mut got = 0;
    loop {
        let rest = &mut bytes.bytes()[got..];
        // SAFETY: `rest` lives across the call and is as long as said.
        let read = unsafe { libc::pread(fd, rest.as_mut_ptr().cast(), rest.len(), offset + got as i64) };
        match usize::try_from(read) {
            Err(_) => return Err(last_errno().into()),
            Ok(0) => break,
            Ok(more) => got += more,
        }
        // A short read ends at the end of the file, where direct I/O can't start.
        if direct.is_some() && got < len as usize {
            break;
        }
    }
    Ok(ChildValue::Bytes(describe_bytes(&bytes.bytes()[..got], len as usize)))
}

fn write(fd: i32, offset: i64, len: u64, byte: u8) -> CallResult {
    let mut piece = AlignedBuffer::new(len.min(PIECE), byte)?;
    let _direct = DirectIoFlag::begin(fd, offset, len);
    let mut written = 0;
    loop {
        let now = &piece.bytes()[..(len - written).min(PIECE) as usize];
        // SAFETY: `now` lives across the call and is as long as said.
        let done = unsafe { libc::pwrite(fd, now.as_ptr().cast(), now.len(), offset + written as i64) };
        match u64::try_from(done) {
            Err(_) => return Err(last_errno().into()),
            Ok(done) => written += done,
        }
        if written >= len {
            return Ok(ChildValue::Nothing);
        }
    }
}

/// A buffer aligned for direct I/O.
struct AlignedBuffer {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuffer {
    fn new(len: u64, byte: u8) -> Result<AlignedBuffer, ChildFailure> {
        let bytes = memory::buffer(len.saturating_add(DIRECT), byte)?;
        let len = len as usize;
        let start = bytes.as_ptr().align_offset(DIRECT as usize).min(DIRECT as usize);
        Ok(AlignedBuffer { bytes, start, len })
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

/// An open file while O_DIRECT is set. Every second read or write of whole blocks bypasses the page
/// cache where the file system supports that; the outcome must not depend on it.
struct DirectIoFlag {
    fd: i32,
    flags: i64,
}

impl DirectIoFlag {
    fn begin(fd: i32, offset: i64, len: u64) -> Option<DirectIoFlag> {
        // ORDERING: the process has one thread.
        let turn = TURN.fetch_add(1, Ordering::Relaxed);
        let whole = offset.unsigned_abs().is_multiple_of(DIRECT) && len.is_multiple_of(DIRECT) && len > 0;
        if !whole || turn.is_multiple_of(2) {
            return None;
        }
        let flags = call(libc::SYS_fcntl, [fd.into(), libc::F_GETFL.into(), 0, 0]).ok()?;
        let with = flags | i64::from(libc::O_DIRECT);
        call(libc::SYS_fcntl, [fd.into(), libc::F_SETFL.into(), with, 0]).ok()?;
        Some(DirectIoFlag { fd, flags })
    }
}

impl Drop for DirectIoFlag {
    fn drop(&mut self) {
        // The descriptor accepted other flags just before.
        let _ = call(libc::SYS_fcntl, [self.fd.into(), libc::F_SETFL.into(), self.flags, 0]);
    }
}

fn send(fd: i32, fds: &[OwnedFd]) -> Result<(), Errno> {
    let to = fds.first().ok_or(Errno::INVAL)?;
    wire::send_bytes(to.as_fd(), b"fd", &[open_fd(fd)?])
}

/// Does not wait. Without a message the outcome is EAGAIN, as on the simulated machine.
fn receive() -> CallResult {
    let (_, fds) = wire::receive_bytes(inbox(), &mut [0; 8], RecvFlags::DONTWAIT)?;
    match fds.into_iter().next() {
        Some(fd) => Ok(ChildValue::Number(fd.into_raw_fd().into())),
        None => Err(Errno::BADMSG.into()),
    }
}

/// Makes `uid` the real and effective user. The saved user stays 0, so that a later change is
/// possible.
fn credentials(uid: u32, cap_lease: bool) -> Result<(), Errno> {
    let zygote = rustix::process::getppid().ok_or(Errno::SRCH)?;
    let permitted = capabilities(None)?.permitted;
    let with = |effective: CapabilitySet| CapabilitySets { effective, permitted, inheritable: CapabilitySet::empty() };
    set_capabilities(None, with(permitted))?;
    set_thread_res_uid(Uid::from_raw(uid), Uid::from_raw(uid), Uid::ROOT)?;
    let others = if uid == 0 { permitted } else { CapabilitySet::empty() };
    let lease = if cap_lease { permitted & CapabilitySet::LEASE } else { CapabilitySet::empty() };
    set_capabilities(None, with((others - CapabilitySet::LEASE) | lease))?;
    super::die_with_zygote(zygote)
}

fn exec(path: String) -> CallResult {
    let path = CString::new(path).map_err(|_| Errno::INVAL)?;
    let arguments = [path.as_ptr(), std::ptr::null()];
    let environment = [std::ptr::null()];
    // SAFETY: the strings and the arrays, which end with null, live across the call.
    unsafe { libc::execve(path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    Err(last_errno().into())
}
