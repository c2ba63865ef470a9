//! Evicted inodes whose blocks are still pinned.
//!
//! It owns their list, so that the removal of a device and questions about blockers find their
//! holders. Invariant: an inode is listed as long as it has holders; it may stay a little longer.
//! Kernel counterpart: the unlinked lists of XFS.

use emulator::sync::Arc;

use crate::base::range::BlockRange;
use crate::design::EvictRule;
use crate::holders::list::pin_holders;
use crate::vfs::inode::Inode;
use crate::vfs::kernel::Kernel;
use emulator::pin::PageRange;

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

/// Whether a holder of an evicted file still pins some of `pages`, which were freed all the same
/// (`evict_while_pinned = proceed`). No rule judges such a pin, and no change waits for it.
pub(crate) fn pinned_by_evicted(kernel: &Kernel, pages: PageRange) -> bool {
    let pins = |ghost: &Arc<Inode>| !pin_holders(ghost).holding(BlockRange::ALL, &[pages]).is_empty();
    let frees = kernel.axes.evict_while_pinned == EvictRule::Proceed;
    frees && kernel.ghosts.snapshot().iter().any(|(_, ghost)| pins(ghost))
}
