//! Calls on two open files: reflink, dedupe, exchange-range.
//!
//! It owns the frame of a call with two descriptors. Kernel counterpart: fs/remap_range.c,
//! `xfs_ioc_exchange_range`.

use emulator::sync::Arc;

use crate::base::errno::Errno;
use crate::base::numbers::Fd;
use crate::base::units::BLOCK;
use crate::layout_change::changes::remap::{Exchange, change_both, remap};
use crate::layout_change::plan::FilePlace;
use crate::vfs::inode::Inode;
use crate::vfs::memory_file::MemoryFile;
use crate::vfs::open_file::{AccessMode, Deferred, Description};
use crate::vfs::task::Task;

/// The frame of a system call on two open files.
fn with_two_files<R>(
    task: &Task,
    a: Fd,
    b: Fd,
    body: impl FnOnce((&Arc<Inode>, AccessMode), (&Arc<Inode>, AccessMode)) -> Result<R, Errno>,
) -> Result<R, Errno> {
    task.syscall(|| {
        let descriptions = {
            let fds = task.process().fds.lock();
            // Both are looked up before a reference is taken on either.
            let (a, b) = (fds.get(a)?, fds.get(b)?);
            [a.get(), b.get()]
        };
        let result = match (descriptions[0].file(), descriptions[1].file()) {
            (Some((_, a)), Some((_, b))) if !a.is_open() || !b.is_open() => Err(Errno::EBADF),
            (Some(a), Some(b)) => body(a, b),
            _ => Err(refusal(&descriptions)),
        };
        let mut deferred = Deferred::default();
        for description in descriptions {
            description.put(&mut deferred);
        }
        task.run_deferred(deferred);
        result
    })
}

/// Why a call on two open files that are not both DAX files is refused. Kernel:
/// `vfs_clone_file_range`.
fn refusal(descriptions: &[Arc<Description>; 2]) -> Errno {
    let memory_files = descriptions.iter().filter(|description| MemoryFile::of(description).is_some()).count();
    let dax_files = descriptions.iter().filter(|description| description.file().is_some()).count();
    match (memory_files, dax_files) {
        (2, _) => Errno::EOPNOTSUPP,
        (1, 1) => Errno::EXDEV,
        _ => Errno::EINVAL,
    }
}

impl Task {
    /// Maps `len` bytes at `src_off` of one file at `dst_off` of another (or of the same) too, in
    /// the place of what was there; `len` 0 means to the end of the source. A later write to
    /// either file copies the block first. `FICLONERANGE`, ioctl_ficlonerange(2).
    ///
    /// # Errors
    /// EBADF (source not open for reading, target not for writing), EINVAL (not block aligned
    /// except at the end of both files, beyond the source's end, overlapping in one file, not a
    /// file), EFBIG, ENOSPC; ETXTBSY, EDEADLK, EINTR as the design says.
    pub fn reflink(&self, src: Fd, src_off: u64, dst: Fd, dst_off: u64, len: u64) -> Result<(), Errno> {
        with_two_files(self, src, dst, |(from, may), (to, may_too)| {
            if !may.read || !may_too.write {
                return Err(Errno::EBADF);
            }
            remap(self, (from, src_off), (to, dst_off), len, false).map(|_| ())
        })
    }

    /// Shares the blocks of `len` bytes of two files if they hold the same bytes. Returns how many
    /// bytes that was, or `None` if they differ. A length that ends neither at a block nor at the
    /// end of both files is rounded down, and at most 16 MiB are compared **\[chosen\]**: "This
    /// limit will be enforced silently by the filesystem". `FIDEDUPERANGE` and its
    /// `bytes_deduped`, ioctl_fideduperange(2).
    ///
    /// # Errors
    /// EBADF (source not open for reading), EINVAL (not block aligned, beyond the end of a file,
    /// overlapping in one file, not a file), EIO (a block of either is poisoned), ENOSPC; ETXTBSY,
    /// EDEADLK, EINTR as the design says.
    pub fn dedupe(&self, src: Fd, src_off: u64, dst: Fd, dst_off: u64, len: u64) -> Result<Option<u64>, Errno> {
        with_two_files(self, src, dst, |(from, may), (to, _)| {
            // Every process owns every file here: the target may be deduplicated whatever its open
            // mode.
            if !may.read {
                return Err(Errno::EBADF);
            }
            remap(self, (from, src_off), (to, dst_off), len, true)
        })
    }

    /// Swaps the blocks of `len` bytes of two files, or of two places in one.
    /// `XFS_IOC_EXCHANGE_RANGE`.
    ///
    /// # Errors
    /// EBADF (not both open for reading and writing), EINVAL (not block aligned except at the end
    /// of both files, beyond the end of a file, overlapping in one file, not a file), ENOSPC;
    /// ETXTBSY, EDEADLK, EINTR as the design says.
    pub fn exchange_range(&self, a: Fd, a_off: u64, b: Fd, b_off: u64, len: u64) -> Result<(), Errno> {
        with_two_files(self, a, b, |(a, may), (b, may_too)| {
            if [may, may_too].iter().any(|access| !access.read || !access.write) {
                return Err(Errno::EBADF);
            }
            if !a_off.is_multiple_of(BLOCK) || !b_off.is_multiple_of(BLOCK) {
                return Err(Errno::EINVAL);
            }
            change_both(self, a, b, |one, other| Exchange {
                a: FilePlace { side: one, offset: a_off },
                b: FilePlace { side: other, offset: b_off },
                len,
            })
            .map(|_| ())
        })
    }
}
