//! Credentials: the user and the capabilities of a process.
//!
//! It owns no check; inodes and leases check. Invariant: user 0 passes every check of a file's
//! mode. Kernel counterpart: `struct cred`.

/// The user that a process acts for, and its capabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// The user (real, effective and saved alike); 0, root, passes every check of a file's mode.
    pub uid: u32,
    /// CAP_LEASE: ordinary leases on files of other users.
    pub cap_lease: bool,
}

impl Credentials {
    /// Root with all it may do: what a process starts with.
    pub const ROOT: Credentials = Credentials { uid: 0, cap_lease: true };

    /// A user without privileges.
    pub const fn user(uid: u32) -> Credentials {
        Credentials { uid, cap_lease: false }
    }
}
