//! The last close of an open file ends its ordinary lease.
//!
//! It owns that step. Invariant: afterwards the inode's books hold nothing of the open file.
//! Kernel counterpart: `locks_remove_lease`, `put_file_access`.

use crate::base::numbers::DescriptionId;
use crate::leases::posix::table::PosixLeases;
use crate::vfs::inode::Inode;
use crate::vfs::open_file::AccessMode;

/// The last reference to an open file is gone, and its ordinary lease with it. Kernel:
/// `locks_remove_lease`, `put_file_access`.
pub(crate) fn release_posix_lease(inode: &Inode, file: DescriptionId, access: AccessMode) {
    PosixLeases::of(inode).lock().release(file, access);
    PosixLeases::of(inode).changed.wake_all();
}
