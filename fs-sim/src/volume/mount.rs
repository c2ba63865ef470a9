//! Whether the volume is there: unmounting it, and losing its device.
//!
//! It owns the state that every open and every registration looks at. Invariants: a volume is unmounted only if no file is open
//! and nothing is pinned, and an open that comes at the same time either makes it busy or fails; a device that is removed
//! goes once every holder's pins are dropped and every block-layout client's I/O has drained, and after it no access reaches
//! it. Kernel counterpart: `umount` (fs/namespace.c, `propagate_mount_busy`), and the `->notify_failure` of a dying pmem device
//! (fs/xfs/xfs_notify_failure.c, `MF_MEM_PRE_REMOVE`), which kills or revokes users first.

use emulator::sync::atomic::{AtomicU32, Ordering};
use emulator::sync::thread;

use crate::base::errno::Errno;

pub(crate) const MOUNTED: u32 = 0;

/// Somebody is looking whether it is busy.
const UNMOUNTING: u32 = 1;

pub(crate) const UNMOUNTED: u32 = 2;

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

    pub(crate) fn begin(&self) -> Result<(), Errno> {
        let begun = self.0.compare_exchange(MOUNTED, UNMOUNTING, Ordering::SeqCst, Ordering::SeqCst);
        begun.map(|_| ()).map_err(|state| if state == UNMOUNTING { Errno::EBUSY } else { Errno::ENODEV })
    }

    /// Ends what [`Mount::begin`] began, unless the device was lost meanwhile.
    pub(crate) fn end(&self, state: u32) {
        let _lost = self.0.compare_exchange(UNMOUNTING, state, Ordering::SeqCst, Ordering::SeqCst);
    }
}
