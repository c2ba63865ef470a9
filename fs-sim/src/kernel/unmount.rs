//! Unmounting the volume, and removing its device.
//!
//! It owns both ends of a volume. Invariants: a volume is unmounted only if no file is open and
//! nothing is pinned; a device goes only after every long-term pin is dropped and every
//! block-layout client's I/O has drained. Kernel counterpart: `umount` (fs/namespace.c),
//! `->notify_failure` of a dying pmem device (fs/xfs/xfs_notify_failure.c, `MF_MEM_PRE_REMOVE`).

use emulator::sync::Arc;
use emulator::wait::{WaitFor, WaitQueue};

use crate::base::errno::Errno;
use crate::base::range::BlockRange;
use crate::holders::block_layout::{BlockLayouts, fence};
use crate::holders::holder::{RevokeReason, revoke_holder};
use crate::holders::list::{notify_only, pin_holders};
use crate::layout_change::copy::clean_file;
use crate::vfs::inode::Inode;
use crate::vfs::kernel::Kernel;
use crate::volume::mount::{MOUNTED, UNMOUNTED};

impl Kernel {
    /// Unmounts the volume. Afterwards opens are ENODEV **\[chosen\]** (Linux would find the
    /// folder below the mount point).
    ///
    /// # Errors
    /// EBUSY while a file is open or anything is pinned (S51), or while another unmount is in
    /// progress; ENODEV if it is not mounted.
    pub fn unmount(&self) -> Result<(), Errno> {
        self.mount.begin()?;
        let named: Vec<Arc<Inode>> = self.names.lock().values().cloned().collect();
        let others = self.inodes.snapshot().into_iter().map(|(_, inode)| inode);
        let directory = Arc::clone(&self.directory);
        let open = named.into_iter().chain(others).chain([directory]).any(|inode| inode.life.lock().opens > 0);
        let busy = open || !self.pins.busy_words(1).is_empty();
        if !busy {
            // `sync_filesystem`: no file is mapped any more, so no further page gets dirty.
            self.inodes.snapshot().into_iter().for_each(|(_, inode)| clean_file(self, &inode, BlockRange::ALL));
        }
        self.mount.end(if busy { MOUNTED } else { UNMOUNTED });
        if busy { Err(Errno::EBUSY) } else { Ok(()) }
    }

    /// Removes the device under the volume (S52). From the start no file is opened or changed,
    /// nothing is registered and no layout is granted; every long-term pin is revoked, every guest
    /// unmapped and every block-layout client fenced, whatever the design says. When their
    /// accesses in flight have drained the device is gone: reads and writes are EIO, loads and
    /// stores SIGBUS. Always completes; must not be called by a thread for which an access in
    /// flight, or the unmapping of a guest, waits.
    pub fn remove_device(self: &Arc<Self>) {
        self.mount.lose();
        self.trace("device is being removed", 0, 0, None);
        let inodes = self.all_inodes();
        for inode in &inodes {
            for holder in pin_holders(inode).all().into_iter().chain(notify_only(inode).all()) {
                revoke_holder(self, &holder, RevokeReason::DeviceRemoved);
            }
            for layout in BlockLayouts::of(inode).all() {
                fence(self, &layout);
            }
        }
        let waiter = self.new_waiter();
        let wait = |queue: &WaitQueue, none_left: &dyn Fn() -> bool| {
            let how = WaitFor::uninterruptible("device removal");
            // Uninterruptible and without a deadline: it can only end by its condition.
            let _ended = queue.wait(&self.world, &waiter, how, || match none_left() {
                true => std::task::Poll::Ready(()),
                false => std::task::Poll::Pending,
            });
        };
        for inode in &inodes {
            wait(&pin_holders(inode).changed, &|| pin_holders(inode).is_empty());
            wait(&notify_only(inode).changed, &|| notify_only(inode).is_empty());
            wait(&BlockLayouts::of(inode).changed, &|| BlockLayouts::of(inode).all().is_empty());
        }
        self.device.poison().lose_device();
        self.trace("device removed", 0, 0, None);
    }
}
