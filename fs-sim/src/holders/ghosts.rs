//! TODO

use emulator::sync::Arc;

use crate::holders::list::pin_holders;
use crate::vfs::inode::Inode;
use crate::vfs::kernel::Kernel;

/// An evicted inode with holders is remembered until they have let go.
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
