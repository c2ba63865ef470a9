//! Whether the volume is there: unmounting it, and losing its device.
//!
//! It owns the state that every open and every registration looks at. Invariants: a volume is unmounted only if no file is open
//! and nothing is pinned, and an open that comes at the same time either makes it busy or fails; a device that is removed
//! goes once every holder's pins are dropped and every block-layout client's I/O has drained, and after it no access reaches
//! it. Kernel counterpart: `umount` (fs/namespace.c, `propagate_mount_busy`), and the `->notify_failure` of a dying pmem device
//! (fs/xfs/xfs_notify_failure.c, `MF_MEM_PRE_REMOVE`), which kills or revokes users first.

use emulator::sync::Arc;
use emulator::sync::atomic::{AtomicU32, Ordering};
use emulator::sync::thread;
use emulator::wait::{WaitFor, WaitQueue};

use crate::Kernel;
use crate::errno::Errno;
use crate::inode::Inode;

const MOUNTED: u32 = 0;
/// Somebody is looking whether it is busy.
const UNMOUNTING: u32 = 1;
const UNMOUNTED: u32 = 2;
/// The device was removed, or the power cut.
const LOST: u32 = 3;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Mount(AtomicU32);

impl Mount {
    /// Whether files can be opened and memory be registered.
    ///
    /// # Errors
    /// ENODEV.
    pub(crate) fn check(&self) -> Result<(), Errno> {
        loop {
            // ORDERING: SeqCst, with the counts of open files: whoever has counted itself and finds the volume mounted is seen
            // by an unmount that begins later.
            match self.0.load(Ordering::SeqCst) {
                MOUNTED => return Ok(()),
                // A look at all inodes, which waits for nobody.
                UNMOUNTING => thread::yield_now(),
                _ => return Err(Errno::ENODEV),
            }
        }
    }

    /// Whether it is mounted, and nobody is looking to change that.
    pub(crate) fn is_mounted(&self) -> bool {
        self.0.load(Ordering::SeqCst) == MOUNTED
    }

    /// Whether the device was removed, or is being removed, or the power was cut.
    pub(crate) fn is_lost(&self) -> bool {
        self.0.load(Ordering::SeqCst) == LOST
    }

    pub(crate) fn lose(&self) {
        self.0.store(LOST, Ordering::SeqCst);
    }

    fn begin(&self) -> Result<(), Errno> {
        let begun = self.0.compare_exchange(MOUNTED, UNMOUNTING, Ordering::SeqCst, Ordering::SeqCst);
        begun.map(|_| ()).map_err(|state| if state == UNMOUNTING { Errno::EBUSY } else { Errno::ENODEV })
    }

    /// Ends what [`Mount::begin`] began, unless the device was lost meanwhile.
    fn end(&self, state: u32) {
        let _lost = self.0.compare_exchange(UNMOUNTING, state, Ordering::SeqCst, Ordering::SeqCst);
    }
}

impl Kernel {
    /// Unmounts the volume. Afterwards names lead nowhere: opens are ENODEV **\[chosen\]** (Linux would find the folder below
    /// the mount point).
    ///
    /// # Errors
    /// EBUSY while a file is open or anything is pinned (S51), or another unmount looks; ENODEV if it is not mounted.
    pub fn unmount(&self) -> Result<(), Errno> {
        self.mount.begin()?;
        let named: Vec<Arc<Inode>> = self.names.lock().values().cloned().collect();
        let others = self.inodes.snapshot().into_iter().map(|(_, inode)| inode);
        let open = named.into_iter().chain(others).any(|inode| inode.life.lock().opens > 0);
        let busy = open || !self.pins.busy_words(1).is_empty();
        self.mount.end(if busy { MOUNTED } else { UNMOUNTED });
        if busy { Err(Errno::EBUSY) } else { Ok(()) }
    }

    /// Removes the device under the volume (S52): no file is opened, nothing is registered, no layout is granted and no file is
    /// changed any more; every long-term pin is revoked, every guest unmapped and every block-layout client fenced as by a change under `revoke`,
    /// whatever the design says; when their accesses in flight have drained, the device is gone: reads and writes are EIO, loads and stores SIGBUS. Always
    /// completes; must not be called by a thread that an access in flight, or the unmapping of a guest, waits for.
    pub fn remove_device(self: &Arc<Self>) {
        self.mount.lose();
        self.trace("device is being removed", 0, 0, None);
        let inodes = self.all_inodes();
        for inode in &inodes {
            for holder in inode.holders.all().into_iter().chain(inode.mapped.all()) {
                self.revoke(&holder);
            }
            for layout in inode.block_layouts.all() {
                self.fence(&layout);
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
            wait(&inode.holders.changed, &|| inode.holders.is_empty());
            wait(&inode.mapped.changed, &|| inode.mapped.is_empty());
            wait(&inode.block_layouts.changed, &|| inode.block_layouts.all().is_empty());
        }
        self.device.poison().lose_device();
        self.trace("device removed", 0, 0, None);
    }

    /// Every inode that exists, and those that are gone but for the pins on what were their blocks.
    pub(crate) fn all_inodes(&self) -> Vec<Arc<Inode>> {
        let all = self.inodes.snapshot().into_iter().chain(self.ghosts.snapshot());
        all.map(|(_, inode)| inode).collect()
    }

    /// An evicted inode with holders is remembered until they have let go.
    pub(crate) fn remember_holders_of(&self, inode: &Arc<Inode>) {
        if inode.holders.is_empty() {
            return;
        }
        for (ino, ghost) in self.ghosts.snapshot() {
            if ghost.holders.is_empty() {
                self.ghosts.remove(ino);
            }
        }
        self.ghosts.insert(inode.ino(), Arc::clone(inode));
    }

    /// Whether what a change would do can last: no longer once the device is being removed, however long accesses in flight
    /// keep it, so that what a change that waits meets does not depend on which of its pins goes last.
    ///
    /// # Errors
    /// EIO.
    pub(crate) fn device_stays(&self) -> Result<(), Errno> {
        if self.mount.is_lost() { Err(Errno::EIO) } else { self.device_there() }
    }

    /// Whether the device is there.
    ///
    /// # Errors
    /// EIO.
    pub(crate) fn device_there(&self) -> Result<(), Errno> {
        if self.device.poison().is_gone() { Err(Errno::EIO) } else { Ok(()) }
    }
}
