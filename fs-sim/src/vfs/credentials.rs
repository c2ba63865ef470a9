//! TODO

/// On whose behalf a process acts, and what it may do that its user may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// The user (real, effective and saved alike); 0, root, passes every check of a file's mode.
    pub uid: u32,
    /// CAP_LEASE: base leases on files of other users.
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
