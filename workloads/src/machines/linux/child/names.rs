//! The system calls that change names and attributes.
//!
//! It owns their form: each is made by the number that the driver watches for, whichever call of
//! the C library would do the same. Kernel counterpart: fs/namei.c, fs/attr.c, fs/utimes.c.

use std::ffi::CString;

use libc::{AT_FDCWD, SYS_fchmodat, SYS_linkat, SYS_renameat2, SYS_unlinkat, SYS_utimensat};
use rustix::io::Errno;

use super::last_errno;

const HERE: libc::c_long = AT_FDCWD as libc::c_long;
/// A null pointer or no flags.
const NONE: libc::c_long = 0;

fn text(path: String) -> Result<CString, Errno> {
    CString::new(path).map_err(|_| Errno::INVAL)
}

/// A call with paths among its arguments.
///
/// # Safety
/// Every argument that is an address is that of a string, ended by a zero, which lives across the
/// call.
unsafe fn call(which: libc::c_long, args: [libc::c_long; 5]) -> Result<(), Errno> {
    // SAFETY: the caller promises what the kernel reads; none of these calls writes to memory.
    match unsafe { libc::syscall(which, args[0], args[1], args[2], args[3], args[4]) } {
        -1 => Err(last_errno()),
        _ => Ok(()),
    }
}

pub(super) fn unlink(path: String) -> Result<(), Errno> {
    let path = text(path)?;
    // SAFETY: `path` lives across the call.
    unsafe { call(SYS_unlinkat, [HERE, path.as_ptr() as libc::c_long, NONE, NONE, NONE]) }
}

pub(super) fn rename(from: String, to: String) -> Result<(), Errno> {
    let (from, to) = (text(from)?, text(to)?);
    // SAFETY: both live across the call.
    unsafe { call(SYS_renameat2, [HERE, from.as_ptr() as libc::c_long, HERE, to.as_ptr() as libc::c_long, NONE]) }
}

pub(super) fn link(path: String, name: String) -> Result<(), Errno> {
    let (path, name) = (text(path)?, text(name)?);
    // SAFETY: both live across the call.
    unsafe { call(SYS_linkat, [HERE, path.as_ptr() as libc::c_long, HERE, name.as_ptr() as libc::c_long, NONE]) }
}

/// Sets the mode that it has.
pub(super) fn chmod(path: String) -> Result<(), Errno> {
    let mode = rustix::fs::stat(path.as_str())?.st_mode & 0o7777;
    let path = text(path)?;
    // SAFETY: `path` lives across the call.
    unsafe { call(SYS_fchmodat, [HERE, path.as_ptr() as libc::c_long, mode.into(), NONE, NONE]) }
}

/// Sets both times to now.
pub(super) fn utime(path: String) -> Result<(), Errno> {
    let path = text(path)?;
    // SAFETY: `path` lives across the call; a null pointer stands for the present time.
    unsafe { call(SYS_utimensat, [HERE, path.as_ptr() as libc::c_long, NONE, NONE, NONE]) }
}
