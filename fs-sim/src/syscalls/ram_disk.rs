//! A plain disk: a block device that holds no file system, and no page that a file could have.
//!
//! It owns the disk's bytes and its delay. Direct I/O from and to it holds the pages of its buffer.
//! Invariant: with a delay, I/O ends when its time comes, whatever becomes of its process; without,
//! a task ends it. Kernel counterpart: brd under dm-delay, or a suspended dm device.

use std::any::Any;
use std::time::Duration;

use emulator::sync::Arc;
use emulator::sync::atomic::{AtomicU64, Ordering};

use crate::base::errno::Errno;
use crate::base::numbers::Fd;
use crate::vfs::anon::AnonMemory;
use crate::vfs::attachments::{Attachment, Slot};
use crate::vfs::kernel::Kernel;
use crate::vfs::open_file::{Deferred, OpenObject, Passing, downcast};
use crate::vfs::task::Task;

/// How many bytes the disks of one machine have at most: 256 MiB **\[chosen\]**.
pub const DISKS_MAX: u64 = 256 << 20;

/// See the module.
#[derive(Debug)]
pub struct RamDisk {
    pub(crate) memory: Arc<AnonMemory>,
    /// How long I/O takes. `None`: until a task ends it.
    pub(crate) delay: Option<Duration>,
    /// How many bytes all disks of the machine have.
    of_all: Arc<AtomicU64>,
}

impl Drop for RamDisk {
    fn drop(&mut self) {
        self.of_all.fetch_sub(self.memory.bytes(), Ordering::Relaxed);
    }
}

/// Of the kernel: how many bytes its disks have.
#[derive(Debug, Default)]
struct DiskBytes(Arc<AtomicU64>);

impl Attachment for DiskBytes {
    const SLOT: Slot = Slot::DiskBytes;
}

impl RamDisk {
    /// What refuses I/O here; how much a read transfers.
    pub(super) fn check(&self, task: &Task, (offset, len): (u64, u64), reads: bool) -> Result<u64, Errno> {
        task.check_direct_io(true, offset, len)?;
        let left = self.memory.bytes().saturating_sub(offset);
        match reads {
            true => Ok(len.min(left)),
            false if len > left => Err(Errno::ENOSPC),
            false => Ok(len),
        }
    }
}

impl OpenObject for RamDisk {
    fn release(&self, _kernel: &Arc<Kernel>, _deferred: &mut Deferred) {}

    fn may_pass(&self, _kernel: &Kernel, _pass: Passing) -> bool {
        true
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

impl Task {
    /// Makes a disk of `len` zero bytes and opens it.
    ///
    /// # Errors
    /// EINVAL (a length or a delay of 0), ENOMEM (the machine's disks would have more than
    /// [`DISKS_MAX`] bytes), EMFILE.
    pub fn ram_disk(&self, len: u64, delay: Option<Duration>) -> Result<(Fd, Arc<RamDisk>), Errno> {
        if len == 0 || delay.is_some_and(|delay| delay.is_zero()) {
            return Err(Errno::EINVAL);
        }
        if len > DISKS_MAX {
            return Err(Errno::ENOMEM);
        }
        let of_all = Arc::clone(&self.kernel().attached::<DiskBytes>().0);
        let len = len.next_multiple_of(8);
        let fits = |all: u64| all.checked_add(len).filter(|all| *all <= DISKS_MAX);
        of_all.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).map_err(|_| Errno::ENOMEM)?;
        let disk = RamDisk { memory: Arc::new(AnonMemory::new(len as usize)), delay, of_all };
        let (fd, object) = self.install_object(|_| Arc::new(disk) as Arc<dyn OpenObject>)?;
        Ok((fd, downcast(object)?))
    }
}
