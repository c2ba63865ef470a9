//! Ordinary fcntl leases and delegations: what is asked for, and what is reported.
//!
//! It owns the words of the base mechanism of docs/semantics.md, section 2, which must equal
//! Linux's. No axis of a design changes it; the one setting is `lease_break_time`. Invariants: a
//! lease lives and dies with its open file; an open is counted before it checks the leases, and a
//! lease is checked against the counts and listed under one lock, so of an open and a lease at the
//! same time one always sees the other; a break is signalled exactly once. Kernel counterpart:
//! `F_SETLEASE`, `F_GETLEASE`, `F_SETDELEG`, `F_GETDELEG`, `F_SETOWN`, `F_SETSIG`, `break_lease`
//! and `break_deleg` (fs/locks.c, fs/fcntl.c), leases verified on Linux 6.18.

use emulator::runtime::clock::Nanos;

use crate::base::numbers::{DescriptionId, Pid};

/// A type of ordinary lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PosixLeaseType {
    /// `F_RDLCK`: no process has the file open for writing.
    Read,
    /// `F_WRLCK`: no other open file refers to the inode.
    Write,
}

/// What can break a base lease. Kernel: `FL_LEASE`, `FL_DELEG`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PosixLeaseFlavor {
    /// `F_SETLEASE`: opens and path truncates break it.
    Lease,
    /// `F_SETDELEG`: changes of the file's attributes and names break it too. On a directory:
    /// changes of the names in it.
    Delegation,
}

/// What `F_SETLEASE` and `F_SETDELEG` ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PosixLeaseRequest {
    /// A lease of this type, or the conversion of the one held.
    Take(PosixLeaseType),
    /// `F_UNLCK`: release it.
    Unlock,
}

/// An ordinary lease as reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PosixLeaseInfo {
    /// The open file that holds it.
    pub description: DescriptionId,
    /// The process that set it.
    pub setter: Pid,
    /// The process that is signalled; `None` after `F_SETOWN` with pid 0.
    pub owner: Option<Pid>,
    /// Whether it is a lease or a delegation.
    pub flavor: PosixLeaseFlavor,
    /// What is held, regardless of a pending break.
    pub held: PosixLeaseType,
    /// Whether it is being broken.
    pub breaking: bool,
    /// What a pending break leaves, if anything: what `F_GETLEASE` or `F_GETDELEG` reports. Without
    /// a break, what is held.
    pub left: Option<PosixLeaseType>,
    /// When the kernel carries out the next pending break, in nanoseconds of the world's clock;
    /// `None` while no break is pending, or if it never times out.
    pub deadline: Option<Nanos>,
    /// The processes that could release it: those with a descriptor of the open file, or one
    /// unread in their inbox.
    pub releasers: Vec<Pid>,
}
