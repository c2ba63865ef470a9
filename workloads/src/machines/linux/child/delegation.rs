//! The fcntl calls on delegations.
//!
//! It owns the form of their argument, which the C library does not have yet. Invariant: EINVAL is
//! told apart: for a kernel or a file system without delegations it becomes
//! [`ChildFailure::NoDelegations`]. Kernel counterpart: `struct delegation`, `F_SETDELEG`,
//! `F_GETDELEG` (include/uapi/linux/fcntl.h), since 6.19.

use rustix::io::Errno;

use super::last_errno;
use super::wire::{ChildFailure, ChildValue};

const F_LINUX_SPECIFIC_BASE: libc::c_int = 1024;
const F_GETDELEG: libc::c_int = F_LINUX_SPECIFIC_BASE + 15;
const F_SETDELEG: libc::c_int = F_LINUX_SPECIFIC_BASE + 16;

/// The kernel's `struct delegation`.
#[repr(C)]
struct FcntlDelegation {
    flags: u32,
    kind: u16,
    padding: u16,
}

fn fcntl(fd: i32, command: libc::c_int, kind: u16) -> Result<u16, Errno> {
    let mut delegation = FcntlDelegation { flags: 0, kind, padding: 0 };
    // SAFETY: `delegation` lives across the call, and has the kernel's layout.
    match unsafe { libc::fcntl(fd, command, &raw mut delegation) } {
        -1 => Err(last_errno()),
        _ => Ok(delegation.kind),
    }
}

/// `F_SETDELEG`.
pub(super) fn set(fd: i32, kind: u16) -> Result<ChildValue, ChildFailure> {
    match fcntl(fd, F_SETDELEG, kind) {
        Ok(_) => Ok(ChildValue::Nothing),
        // A directory has no write delegation, also where there are others.
        Err(Errno::INVAL) if i32::from(kind) == libc::F_WRLCK && fcntl(fd, F_GETDELEG, 0).is_ok() => {
            Err(Errno::INVAL.into())
        }
        Err(Errno::INVAL) => Err(ChildFailure::NoDelegations),
        Err(errno) => Err(errno.into()),
    }
}

/// `F_GETDELEG`.
pub(super) fn get(fd: i32) -> Result<ChildValue, ChildFailure> {
    match fcntl(fd, F_GETDELEG, 0) {
        Ok(kind) => Ok(ChildValue::Number(kind.into())),
        Err(Errno::INVAL) => Err(ChildFailure::NoDelegations),
        Err(errno) => Err(errno.into()),
    }
}
