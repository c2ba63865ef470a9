//! Whether the volume is mounted, and whether its device is there.
//!
//! It owns the state that every open and every registration checks. Invariant: an open that comes
//! at the same time as an unmount makes the volume busy, or fails. Kernel counterpart:
//! `propagate_mount_busy` (fs/namespace.c), `SB_DYING`.

use emulator::sync::atomic::{AtomicU32, Ordering};
use emulator::sync::thread;

use crate::base::errno::Errno;

pub(crate) const MOUNTED: u32 = 0;

/// An unmount is checking whether the volume is busy.
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
            // ORDERING: SeqCst, with the counts of open files: an unmount that begins later sees
            // the count of an opener that has counted itself and then found the volume mounted.
            match self.0.load(Ordering::SeqCst) {
                MOUNTED => return Ok(()),
                // The unmount checks all inodes; it waits for no task.
                UNMOUNTING => thread::yield_now(),
                _ => return Err(Errno::ENODEV),
            }
        }
    }

    /// Whether it is mounted and no unmount is in progress.
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
