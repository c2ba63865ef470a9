//! Opening files that are not DAX.
//!
//! It owns that call. Such a file has no name; it ends with its last descriptor and its last
//! mapping, but for the pages that a device holds. Kernel counterpart: `memfd_create`; `open` with
//! `O_TMPFILE` in a file system without DAX.

use emulator::sync::Arc;

use crate::base::errno::Errno;
use crate::base::numbers::Fd;
use crate::vfs::memory_file::{MemoryFile, MemoryFileKind};
use crate::vfs::open_file::OpenObject;
use crate::vfs::task::Task;

impl Task {
    /// Makes a file of `size` zero bytes without a name and opens it for reading and writing. Calls
    /// on files take it (read, write, ftruncate, fallocate, mmap, direct I/O with a mapped buffer);
    /// leases and delegations do not **\[chosen\]**.
    ///
    /// # Errors
    /// EFBIG, EMFILE.
    pub fn memory_file(&self, kind: MemoryFileKind, size: u64) -> Result<Fd, Errno> {
        let file = MemoryFile::new(self.kernel(), kind, size)?;
        let (fd, _) = self.install_object(|_| Arc::new(file) as Arc<dyn OpenObject>)?;
        Ok(fd)
    }

    /// The file behind `fd`, if it is one that is not DAX.
    ///
    /// # Errors
    /// EBADF; EINVAL: something else is open there.
    pub fn opened_memory_file(&self, fd: Fd) -> Result<Arc<MemoryFile>, Errno> {
        self.with_open(fd, |description| MemoryFile::of(description).ok_or(Errno::EINVAL))
    }
}
