//! A plain disk: a block device that holds no file system, and no page that a file could have.
//!
//! It owns the disk's bytes and its delay. Direct I/O from and to it holds the pages of its buffer.
//! Invariant: with a delay, I/O ends when its time comes, whatever becomes of its process; without,
//! a task ends it. Kernel counterpart: brd under dm-delay, or a suspended dm device.

use std::any::Any;
use std::time::Duration;

use emulator::sync::Arc;

use crate::base::errno::Errno;
use crate::base::numbers::Fd;
use crate::base::units::ANON_MAX;
use crate::vfs::anon::AnonMemory;
use crate::vfs::kernel::Kernel;
use crate::vfs::open_file::{Deferred, OpenObject, Passing, downcast};
use crate::vfs::task::Task;

/// See the module.
#[derive(Debug)]
pub struct RamDisk {
    pub(crate) memory: Arc<AnonMemory>,
    /// How long I/O takes. `None`: until a task ends it.
    pub(crate) delay: Option<Duration>,
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
    /// EINVAL (a length or a delay of 0), ENOMEM (more than [`crate::ANON_MAX`] bytes), EMFILE.
    pub fn ram_disk(&self, len: u64, delay: Option<Duration>) -> Result<(Fd, Arc<RamDisk>), Errno> {
        if len == 0 || delay.is_some_and(|delay| delay.is_zero()) {
            return Err(Errno::EINVAL);
        }
        if len > ANON_MAX {
            return Err(Errno::ENOMEM);
        }
        let disk = RamDisk { memory: Arc::new(AnonMemory::new(len as usize)), delay };
        let (fd, object) = self.install_object(|_| Arc::new(disk) as Arc<dyn OpenObject>)?;
        Ok((fd, downcast(object)?))
    }
}
