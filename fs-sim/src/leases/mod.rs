//! Leases: layout leases of the proposals ([`layout`]) and ordinary fcntl leases ([`posix`]).
//!
//! It owns both tables of an inode. Invariant: the two kinds know nothing of each other: an
//! ordinary lease is about who *opens* a file, a layout lease about who changes its layout. Kernel
//! counterpart: fs/locks.c.

pub mod layout;
pub mod posix;
