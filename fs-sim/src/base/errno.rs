//! The errors that simulated system calls return.
//!
//! It owns the list of errno values (docs/semantics.md). Invariant: the names are Linux's, so a
//! table of outcomes can be compared with a real kernel's word for word. Kernel counterpart:
//! include/uapi/asm-generic/errno*.h.

use std::fmt;

/// Why a simulated system call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(clippy::upper_case_acronyms, reason = "the names of errno(3)")]
pub enum Errno {
    /// Operation not permitted: a gate that demands a lease, a context that may not be passed.
    EPERM,
    /// No such file.
    ENOENT,
    /// No such process.
    ESRCH,
    /// Interrupted by a signal.
    EINTR,
    /// The device failed: a poisoned page, an address the device does not have.
    EIO,
    /// Not an open descriptor, or not open for this.
    EBADF,
    /// Would block, or may not now: a break is pending, a change waits.
    EAGAIN,
    /// Out of memory, or a pin count at its bound.
    ENOMEM,
    /// Permission denied: the descriptor's access mode does not allow this lease, the file's mode
    /// not this open.
    EACCES,
    /// Bad address: nothing is mapped there, or a read-only pin meets a hole.
    EFAULT,
    /// Busy: pins live under the lease, windows are bound to the region.
    EBUSY,
    /// The name exists.
    EEXIST,
    /// The two files are of different file systems.
    EXDEV,
    /// The name or the descriptor is of the directory, and the call is for files.
    EISDIR,
    /// Invalid argument.
    EINVAL,
    /// Too many open descriptors.
    EMFILE,
    /// A layout change is refused because of another process's lease or pin. Linux: text file
    /// busy.
    ETXTBSY,
    /// Beyond the largest file.
    EFBIG,
    /// No space left on the device.
    ENOSPC,
    /// Too many sends wait for their acknowledgement.
    ENOBUFS,
    /// Waiting would close a cycle of waits.
    EDEADLK,
    /// The design or the holder does not support this.
    EOPNOTSUPP,
    /// The other side of the socket is gone.
    ECONNREFUSED,
    /// Nothing is registered there (any more): an AF_XDP socket without umem, a ring without
    /// buffers.
    ENXIO,
    /// The volume is not mounted, or its device is gone.
    ENODEV,
    /// An AF_XDP socket lost its umem: what `SO_ERROR` tells once.
    ENETDOWN,
    /// The I/O's buffers were taken away.
    ECANCELED,
    /// An access through a mapping beyond the end of its file, or to a block that can't be had. Not
    /// an errno: the process would get this signal instead of a value.
    SIGBUS,
    /// An access where nothing is mapped, or against the mapping's protection. Not an errno, see
    /// [`Errno::SIGBUS`].
    SIGSEGV,
    /// The calling process no longer exists. Not an errno: a real call would not return.
    Dead,
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Errno::Dead => f.write_str("(the caller is dead)"),
            other => write!(f, "{other:?}"),
        }
    }
}

impl std::error::Error for Errno {}
