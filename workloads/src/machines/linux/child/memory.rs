//! Mappings of a scenario's process.
//!
//! It owns the addresses. Invariants: every mapping lies between two inaccessible pages, and an
//! unmapped range stays inaccessible, so that an access beside a mapping never meets another
//! mapping. An access that faults ends only the probe process. Kernel counterpart: mmap(2),
//! process_vm_readv(2).

use std::os::fd::AsRawFd;
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::last_errno;
use super::wire::{ChildFailure, ChildValue};
use crate::ops::describe_bytes;

/// The most bytes that one access through a mapping, or one read, touches: the answer is built in
/// memory.
const ACCESS_MAX: u64 = 64 << 20;

fn page() -> u64 {
    rustix::param::page_size() as u64
}

/// `mmap` with these flags; returns the address.
fn mmap(at: u64, len: u64, protection: i32, flags: i32, fd: i32, offset: u64) -> Result<u64, Errno> {
    let len = usize::try_from(len).map_err(|_| Errno::INVAL)?;
    let offset = i64::try_from(offset).map_err(|_| Errno::INVAL)?;
    // SAFETY: `at` is null, or lies in a reservation of this module, which holds no Rust object.
    let mapped = unsafe { libc::mmap(at as *mut libc::c_void, len, protection, flags, fd, offset) };
    match mapped == libc::MAP_FAILED {
        true => Err(last_errno()),
        false => Ok(mapped as u64),
    }
}

/// Maps the range (offset, length) of a file, or anonymous memory; `sharing` is MAP_SHARED or
/// MAP_PRIVATE, or says more of it. The value is the address.
pub(super) fn map(
    fd: Option<i32>,
    (offset, len): (u64, u64),
    write: bool,
    sharing: i32,
) -> Result<ChildValue, ChildFailure> {
    let nothing = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let room = len.checked_next_multiple_of(page()).and_then(|len| len.checked_add(2 * page())).ok_or(Errno::NOMEM)?;
    let reserved = mmap(0, room, libc::PROT_NONE, nothing, -1, 0)?;
    let protection = libc::PROT_READ | if write { libc::PROT_WRITE } else { 0 };
    let kind = sharing | libc::MAP_FIXED | if fd.is_none() { libc::MAP_ANONYMOUS } else { 0 };
    match mmap(reserved + page(), len, protection, kind, fd.unwrap_or(-1), offset) {
        Ok(at) => Ok(ChildValue::Number(at as i64)),
        Err(errno) => {
            // SAFETY: the reservation was made above, and no other code knows its address.
            unsafe { libc::munmap(reserved as *mut libc::c_void, room as usize) };
            Err(errno.into())
        }
    }
}

/// Maps a part of a device-DAX device, and clears it.
pub(super) fn map_device_dax(path: PathBuf, offset: u64, len: u64) -> Result<ChildValue, ChildFailure> {
    let device = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let mapped = map(Some(device.as_raw_fd()), (offset, len), true, libc::MAP_SHARED)?;
    if let ChildValue::Number(at) = mapped {
        // SAFETY: the mapping was just made, so no other reference to it exists.
        unsafe { std::ptr::write_bytes(at as *mut u8, 0, len as usize) };
    }
    Ok(mapped)
}

/// Unmaps a range: a reservation replaces the mapping.
pub(super) fn unmap(at: u64, len: u64) -> Result<ChildValue, ChildFailure> {
    let nothing = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
    mmap(at, len, libc::PROT_NONE, nothing, -1, 0)?;
    Ok(ChildValue::Nothing)
}

/// Writes the bytes of a range back to its file.
pub(super) fn sync(at: u64, len: u64) -> Result<ChildValue, ChildFailure> {
    if meets_reservation(at, len)? {
        return Err(Errno::NOMEM.into());
    }
    let len = usize::try_from(len).map_err(|_| Errno::NOMEM)?;
    // SAFETY: `msync` with MS_SYNC changes no memory; the kernel checks the range.
    match unsafe { libc::msync(at as *mut libc::c_void, len, libc::MS_SYNC) } {
        0 => Ok(ChildValue::Nothing),
        _ => Err(last_errno().into()),
    }
}

/// Whether the range meets a reservation, which stands for an unmapped range: `msync` would take
/// it for mapped.
fn meets_reservation(at: u64, len: u64) -> Result<bool, ChildFailure> {
    let maps = std::fs::read_to_string("/proc/self/maps").map_err(|_| Errno::IO)?;
    let end = at.saturating_add(len);
    Ok(maps.lines().any(|line| {
        let (range, rights) = line.split_once(' ').unwrap_or_default();
        let (from, to) = range.split_once('-').unwrap_or_default();
        let number = |hex: &str| u64::from_str_radix(hex, 16).unwrap_or_default();
        rights.starts_with("---") && number(from) < end && at < number(to)
    }))
}

/// Reads `len` bytes at `at`.
pub(super) fn load(at: u64, len: u64) -> Result<ChildValue, ChildFailure> {
    let mut bytes = buffer(len, 0)?;
    transfer(at, &mut bytes, false)?;
    Ok(ChildValue::Bytes(describe_bytes(&bytes, bytes.len())))
}

/// Writes `byte` to each of the `len` bytes at `at`.
pub(super) fn store(at: u64, len: u64, byte: u8) -> Result<ChildValue, ChildFailure> {
    let mut bytes = buffer(len, byte)?;
    transfer(at, &mut bytes, true)?;
    Ok(ChildValue::Nothing)
}

/// A buffer, if this length is allowed.
pub(super) fn buffer(len: u64, byte: u8) -> Result<Vec<u8>, ChildFailure> {
    match len <= ACCESS_MAX {
        true => Ok(vec![byte; len as usize]),
        false => Err(Errno::NOMEM.into()),
    }
}

/// Copies between `bytes` and the mapping by a system call, which fails where an instruction would
/// fault. A probe then finds the signal.
fn transfer(at: u64, bytes: &mut [u8], write: bool) -> Result<(), ChildFailure> {
    let mut done = 0;
    while done < bytes.len() {
        let here = at + done as u64;
        let own = libc::iovec { iov_base: bytes[done..].as_mut_ptr().cast(), iov_len: bytes.len() - done };
        let mapped = libc::iovec { iov_base: here as *mut libc::c_void, iov_len: bytes.len() - done };
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        // SAFETY: `own` is the rest of `bytes`; the kernel checks the other address, which only
        // mappings of scenarios have.
        let moved = unsafe {
            match write {
                true => libc::process_vm_writev(pid, &own, 1, &mapped, 1, 0),
                false => libc::process_vm_readv(pid, &own, 1, &mapped, 1, 0),
            }
        };
        match usize::try_from(moved) {
            Ok(moved) if moved > 0 => done += moved,
            Ok(_) => return Err(probe(here, write)),
            Err(_) => match last_errno() {
                Errno::INTR => {}
                Errno::FAULT => return Err(probe(here, write)),
                errno => return Err(errno.into()),
            },
        }
    }
    Ok(())
}

/// The signal that an access at `at` raises. A forked process makes the access and dies of it.
fn probe(at: u64, write: bool) -> ChildFailure {
    // SAFETY: the process has one thread, so the copy's memory is consistent.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let cell = at as *mut u8;
        // SAFETY: the access is meant to fault. This forked process does nothing else, and its
        // memory is its own.
        unsafe {
            // A handler of the scenario would return to the access, again and again.
            libc::signal(libc::SIGBUS, libc::SIG_DFL);
            match write {
                true => cell.write_volatile(0),
                false => drop(cell.read_volatile()),
            }
            libc::_exit(0)
        }
    }
    let mut status = 0;
    // SAFETY: `status` lives across the call.
    while unsafe { libc::waitpid(pid, &mut status, 0) } < 0 {
        if last_errno() != Errno::INTR {
            return last_errno().into();
        }
    }
    match libc::WIFSIGNALED(status) {
        true => ChildFailure::Signal(libc::WTERMSIG(status)),
        // The access does not fault, although no other process runs that could have changed the
        // mapping.
        false => Errno::FAULT.into(),
    }
}
