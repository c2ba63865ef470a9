//! Pages of a mapping in a pipe.
//!
//! It owns the pipe's making and its draining. Invariant: the writing end is closed when the call
//! returns, so that a pipe that was read empty is at its end. Kernel counterpart:
//! `vmsplice_to_pipe` in fs/splice.c, whose pages stay referenced until the pipe is read or closed.

use std::os::fd::{AsRawFd, IntoRawFd};

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

use super::calls::open_fd;
use super::last_errno;
use super::memory::buffer;
use super::wire::{ChildFailure, ChildValue};
use crate::ops::describe_bytes;

/// The most bytes that a pipe takes, as in the simulation: what Linux lets a user ask for
/// (/proc/sys/fs/pipe-max-size).
const PIPE_MAX: u64 = 1 << 20;

/// Puts the pages of the `len` bytes at `at` into a new pipe.
pub(super) fn vmsplice(at: u64, len: u64) -> Result<ChildValue, ChildFailure> {
    if len > PIPE_MAX {
        return Err(Errno::INVAL.into());
    }
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    fcntl_setpipe_size(&writer, usize::try_from(len).unwrap_or(usize::MAX).max(4096))?;
    let part = libc::iovec { iov_base: at as *mut libc::c_void, iov_len: len as usize };
    // SAFETY: the kernel checks the address, which only mappings of scenarios have, and reads the
    // descriptor of one part.
    let moved = unsafe { libc::vmsplice(writer.as_raw_fd(), &part, 1, 0) };
    match u64::try_from(moved) {
        Ok(moved) if moved == len => Ok(ChildValue::Number(reader.into_raw_fd().into())),
        // The rest lies beyond the end of the file. What was taken goes with the pipe.
        Ok(_) => Err(Errno::FAULT.into()),
        Err(_) => Err(last_errno().into()),
    }
}

/// Reads a pipe to its end.
pub(super) fn drain(fd: i32) -> Result<ChildValue, ChildFailure> {
    let pipe = open_fd(fd)?;
    if rustix::fs::fcntl_getfl(pipe)?.contains(OFlags::WRONLY) {
        return Err(Errno::BADF.into());
    }
    let mut bytes = buffer(PIPE_MAX, 0)?;
    let mut got = 0;
    loop {
        match rustix::io::read(pipe, &mut bytes[got..]) {
            Ok(0) => break,
            Ok(more) => got += more,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(ChildValue::Bytes(describe_bytes(&bytes[..got], got)))
}
