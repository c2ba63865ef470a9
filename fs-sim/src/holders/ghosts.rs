//! Evicted inodes whose blocks are still pinned.
//!
//! It owns their list, so that the removal of a device and questions about blockers find their
//! holders. Invariant: an inode is listed as long as it has holders; it may stay a little longer.
//! Kernel counterpart: the unlinked lists of XFS.

use emulator::sync::Arc;

use crate::holders::list::pin_holders;
use crate::vfs::inode::Inode;
use crate::vfs::kernel::Kernel;

/// Remembers an evicted inode until its holders have released their pins.
pub(crate) fn remember_holders_of(kernel: &Kernel, inode: &Arc<Inode>) {
    if pin_holders(inode).is_empty() {
        return;
    }
    for (ino, ghost) in kernel.ghosts.snapshot() {
        if pin_holders(&ghost).is_empty() {
            kernel.ghosts.remove(ino);
        }
    }
    kernel.ghosts.insert(inode.ino(), Arc::clone(inode));
}
