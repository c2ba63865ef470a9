//! Kinds of layout lease.
//!
//! It owns the words: read or write, breakable or unbreakable, and which kind is the exclusive one
//! under a design's rules. Kernel counterpart: `F_RDLCK`, `F_WRLCK` with `F_LAYOUT` and
//! `F_UNBREAK` of the proposals of 2019.

use crate::design::LeaseRules;

/// What a lease holder may rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LeaseMode {
    /// The layout stays as it is.
    Read,
    /// Only the holder changes the layout.
    Write,
}

/// A lease's kind: its mode, and whether it is unbreakable (+U, `F_UNBREAK`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseKind {
    /// Read or write.
    pub mode: LeaseMode,
    /// +U.
    pub unbreakable: bool,
}

impl LeaseKind {
    /// A breakable read lease.
    pub const READ: LeaseKind = LeaseKind { mode: LeaseMode::Read, unbreakable: false };

    /// An unbreakable read lease.
    pub const READ_U: LeaseKind = LeaseKind { mode: LeaseMode::Read, unbreakable: true };

    /// A breakable write lease.
    pub const WRITE: LeaseKind = LeaseKind { mode: LeaseMode::Write, unbreakable: false };

    /// An unbreakable write lease.
    pub const WRITE_U: LeaseKind = LeaseKind { mode: LeaseMode::Write, unbreakable: true };

    /// Whether this kind is the exclusive one under `rules`.
    pub fn is_exclusive(self, rules: LeaseRules) -> bool {
        match rules {
            LeaseRules::None => false,
            LeaseRules::ManPage => self.unbreakable,
            LeaseRules::Chinner => self.mode == LeaseMode::Write,
        }
    }
}

impl std::fmt::Display for LeaseKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.mode {
            LeaseMode::Read => "read",
            LeaseMode::Write => "write",
        })?;
        f.write_str(if self.unbreakable { "+U" } else { "" })
    }
}
