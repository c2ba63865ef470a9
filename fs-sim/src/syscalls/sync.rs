//! `fsync` and `msync`.
//!
//! They own nothing; the [caches](crate::volume::caches) do. Invariant: what a CPU stored through a
//! mapping of the file before the call is durable when it returns; what a device stored into a
//! page that was clean and stayed pinned is not. Neither takes a turn or breaks a lease. Kernel
//! counterpart: `vfs_fsync_range`, `dax_writeback_mapping_range`, mm/msync.c.

use crate::base::errno::Errno;
use crate::base::numbers::Fd;
use crate::base::range::BlockRange;
use crate::base::units::{BLOCK, round_up};
use crate::layout_change::copy::clean_file;
use crate::vfs::address_space::Backing;
use crate::vfs::inode::Inode;
use crate::vfs::kernel::Kernel;
use crate::vfs::memory_file::MemoryFile;
use crate::vfs::open_file::Deferred;
use crate::vfs::task::Task;

impl Task {
    /// Makes the stores of CPUs to the file open as `fd` durable. Names are durable already, so a
    /// directory needs nothing.
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
    /// EINVAL (alignment, device-DAX), EIO (the device is gone): what follows is not synced. ENOMEM
    /// (a part is not mapped, or the range wraps around): the rest is synced.
    pub fn msync(&self, va: u64, len: u64) -> Result<(), Errno> {
        self.syscall(|| {
            if !va.is_multiple_of(BLOCK) {
                return Err(Errno::EINVAL);
            }
            // Linux rounds first: a length just below 2^64 becomes 0.
            let end = va.checked_add(round_up(len).unwrap_or(0)).ok_or(Errno::ENOMEM)?;
            let mut deferred = Deferred::default();
            let (mut at, mut synced) = (va, Ok(()));
            while at < end {
                let Some((start, len, target)) = self.process().mm.lock().next_part(at, end) else {
                    synced = Err(Errno::ENOMEM);
                    break;
                };
                let gap = start > at;
                let done = sync_mapping(self.kernel(), &target, len);
                target.put(&mut deferred);
                at = start + len;
                match done {
                    Err(errno) => {
                        synced = Err(errno);
                        break;
                    }
                    Ok(()) if gap => synced = Err(Errno::ENOMEM),
                    Ok(()) => {}
                }
            }
            self.run_deferred(deferred);
            synced
        })
    }
}

/// Syncs the first `len` bytes of what is mapped.
fn sync_mapping(kernel: &Kernel, target: &Backing, len: u64) -> Result<(), Errno> {
    match target {
        Backing::File { description, offset } => match description.file() {
            Some((inode, _)) => sync_range(kernel, inode, BlockRange::of_bytes(*offset, len)),
            None => Ok(()),
        },
        // The device file of device-DAX has no `fsync`.
        Backing::Device { .. } => Err(Errno::EINVAL),
        Backing::Anon { memory, .. } if memory.is_persistent() => Err(Errno::EINVAL),
        Backing::Private { .. } | Backing::Memory { .. } | Backing::Anon { .. } => Ok(()),
    }
}

fn sync_range(kernel: &Kernel, inode: &Inode, range: BlockRange) -> Result<(), Errno> {
    kernel.device_there()?;
    clean_file(kernel, inode, range);
    Ok(())
}
