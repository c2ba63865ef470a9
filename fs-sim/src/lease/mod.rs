//! Layout leases: kinds, the table of each inode, requests, breaks, and the settling of a layout change with all of them.
//!
//! It owns who may rely on a file's layout, and who must be told before it changes. Invariants: leases live and die with
//! their open description; a lease's gate counts the pins taken under it, so unlock, zombie and break have no window in
//! which a pin slips through; nobody sleeps with a table's lock held. Kernel counterpart: the `F_LAYOUT` leases of RFC v2
//! (2019-08-09) and of the man-page proposal (2019-09-23), built on fs/locks.c.

pub mod acquire;
pub(crate) mod breaking;
pub(crate) mod close;
pub(crate) mod settle;
pub mod table;
pub mod unlock;

use emulator::pin::gate::Gate;

use crate::design::LeaseRules;

/// A lease's number. Never reused within a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub u64);

/// What a lease's holder may rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// The layout stays as it is.
    Read,
    /// Only the holder changes the layout.
    Write,
}

/// A lease's kind: mode, and whether it is unbreakable (+U, `F_UNBREAK`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kind {
    /// Read or write.
    pub mode: Mode,
    /// +U.
    pub unbreakable: bool,
}

impl Kind {
    /// A breakable read lease.
    pub const READ: Kind = Kind { mode: Mode::Read, unbreakable: false };
    /// An unbreakable read lease.
    pub const READ_U: Kind = Kind { mode: Mode::Read, unbreakable: true };
    /// A breakable write lease.
    pub const WRITE: Kind = Kind { mode: Mode::Write, unbreakable: false };
    /// An unbreakable write lease.
    pub const WRITE_U: Kind = Kind { mode: Mode::Write, unbreakable: true };

    /// Whether this kind is the exclusive one under `rules`.
    pub fn is_exclusive(self, rules: LeaseRules) -> bool {
        match rules {
            LeaseRules::None => false,
            LeaseRules::ManPage => self.unbreakable,
            LeaseRules::Chinner => self.mode == Mode::Write,
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.mode {
            Mode::Read => "read",
            Mode::Write => "write",
        })?;
        f.write_str(if self.unbreakable { "+U" } else { "" })
    }
}

/// A lease's identity: what pins refer to. Its kind and range stand in the table.
#[derive(Debug)]
pub struct Lease {
    /// Its number.
    pub id: LeaseId,
    /// Counts the pins let through under it; shut once the lease can let no more through.
    pub(crate) gate: Gate,
}
