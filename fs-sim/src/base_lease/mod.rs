//! Ordinary fcntl leases: a process is told, and given time, before a file it has leased is opened in conflict.
//!
//! It owns the base mechanism of SEMANTICS section 2, which must equal Linux's. It stands beside the layout leases of
//! [`crate::lease`] and knows nothing of them: these are about who *opens* a file, those about who changes its layout. No
//! axis of a design reaches it; the one setting is `lease_break_time`. Invariants: a lease lives and dies with its open
//! description; an open is counted before it looks at the leases, a lease looks at the count and enters under one lock, so
//! that of two one always sees the other; what a break says is sent exactly once. Kernel counterpart: `F_SETLEASE`,
//! `F_GETLEASE`, `F_SETOWN`, `F_SETSIG` and `break_lease` (fs/locks.c, fs/fcntl.c), verified on Linux 6.18.

mod breaking;
mod calls;
pub(crate) mod table;

use emulator::runtime::clock::Nanos;

use crate::process::Pid;
use crate::process::description::DescriptionId;

/// What is leased.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Type {
    /// `F_RDLCK`: nobody writes.
    Read,
    /// `F_WRLCK`: nobody else has the file open.
    Write,
}

/// What `F_SETLEASE` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Request {
    /// A lease of this type, or the conversion of the one held.
    Take(Type),
    /// `F_UNLCK`: give it back.
    Unlock,
}

/// A base lease, as seen from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// The open file that holds it.
    pub description: DescriptionId,
    /// The process that set it.
    pub setter: Pid,
    /// The process that is signalled; none after `F_SETOWN` of nobody.
    pub owner: Option<Pid>,
    /// What is held, pending breaks aside.
    pub held: Type,
    /// Whether it is being broken.
    pub breaking: bool,
    /// What a pending break leaves, if anything: what `F_GETLEASE` reports. Without a break, what is held.
    pub left: Option<Type>,
    /// When the next pending break is carried out by force, in nanoseconds of the world's clock; none while nothing is
    /// pending, or if it never is.
    pub deadline: Option<Nanos>,
    /// The processes that could give it back: those with a descriptor for the open file, or one to receive.
    pub releasers: Vec<Pid>,
}
