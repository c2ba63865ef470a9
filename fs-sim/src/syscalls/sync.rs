//! `fsync` and `msync`.
//!
//! They own nothing; the [caches](crate::volume::caches) do. Invariant: what a CPU stored through a
//! mapping of the file before the call is durable when it returns; what a device stored into a
//! page that was clean and stayed pinned is not. Neither takes a turn or breaks a lease. Kernel
//! counterpart: `vfs_fsync_range`, `dax_writeback_mapping_range`, mm/msync.c.

use crate::base::errno::Errno;
use crate::base::numbers::Fd;
use crate::base::range::BlockRange;
use crate::base::units::BLOCK;
use crate::extent_map::lookup::{mapped, pages_of};
use crate::vfs::address_space::Backing;
use crate::vfs::inode::Inode;
use crate::vfs::kernel::Kernel;
use crate::vfs::memory_file::MemoryFile;
use crate::vfs::open_file::Deferred;
use crate::vfs::task::Task;

impl Task {
    /// Makes the stores of CPUs to the file open as `fd` durable, or its directory.
    ///
    /// # Errors
    /// EBADF (also an `O_PATH` descriptor), EINVAL (neither file nor directory), EIO (the device is
    /// gone).
    pub fn fsync(&self, fd: Fd) -> Result<(), Errno> {
        self.with_open(fd, |description| {
            if MemoryFile::of(description).is_some() {
                return Ok(());
            }
            let (inode, access) = description.inode().ok_or(Errno::EINVAL)?;
            if !access.is_open() {
                return Err(Errno::EBADF);
            }
            sync_range(self.kernel(), inode, BlockRange::ALL)
        })
    }

    /// As [`Task::fsync`], of what `len` bytes at `va` (page aligned) of this process's memory map;
    /// nothing for memory that is no shared mapping of a file. `msync` with `MS_SYNC`.
    ///
    /// # Errors
    /// EINVAL (alignment, device-DAX), ENOMEM (not mapped), EIO (the device is gone).
    pub fn msync(&self, va: u64, len: u64) -> Result<(), Errno> {
        self.syscall(|| {
            if !va.is_multiple_of(BLOCK) {
                return Err(Errno::EINVAL);
            }
            if len == 0 {
                return Ok(());
            }
            let target = self.process().target(va, len, false).map_err(|_| Errno::ENOMEM)?;
            let synced = match &target {
                Backing::File { description, offset } => match description.file() {
                    Some((inode, _)) => sync_range(self.kernel(), inode, BlockRange::of_bytes(*offset, len)),
                    None => Ok(()),
                },
                // The device file of device-DAX has no `fsync`.
                Backing::Device { .. } => Err(Errno::EINVAL),
                Backing::Anon { memory, .. } if memory.is_persistent() => Err(Errno::EINVAL),
                Backing::Private { .. } | Backing::Memory { .. } | Backing::Anon { .. } => Ok(()),
            };
            let mut deferred = Deferred::default();
            target.put(&mut deferred);
            self.run_deferred(deferred);
            synced
        })
    }
}

fn sync_range(kernel: &Kernel, inode: &Inode, range: BlockRange) -> Result<(), Errno> {
    kernel.device_there()?;
    let pages: Vec<_> = inode.layout(|layout| mapped(layout, range).map(|extent| pages_of(&extent)).collect());
    pages.into_iter().for_each(|pages| kernel.caches.clean(&kernel.device, pages));
    Ok(())
}
