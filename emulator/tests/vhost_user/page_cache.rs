//! What of a file is in the page cache and not on the disk yet.
#![allow(unreachable_pub, dead_code, reason = "each test file uses its part")]

use std::os::fd::{AsRawFd, BorrowedFd};

/// `struct cachestat` (include/uapi/linux/mman.h), in pages.
#[repr(C)]
#[derive(Debug, Default)]
pub struct CacheStat {
    pub cached: u64,
    pub dirty: u64,
    pub writeback: u64,
    pub evicted: u64,
    pub recently_evicted: u64,
}

/// What of `len` bytes from `offset` of the file is in the page cache; none before Linux 6.5.
pub fn cachestat(fd: BorrowedFd<'_>, offset: u64, len: u64) -> Option<CacheStat> {
    const CACHESTAT: libc::c_long = 451; // The same on every architecture.
    let (range, mut found) = ([offset, len], CacheStat::default());
    // SAFETY: both pointers are to live memory of the layout that cachestat(2) asks for; it writes
    // to the second only.
    let done = unsafe { libc::syscall(CACHESTAT, fd.as_raw_fd(), range.as_ptr(), &raw mut found, 0) };
    match done {
        0 => Some(found),
        _ => {
            let error = std::io::Error::last_os_error();
            assert_eq!(error.raw_os_error(), Some(libc::ENOSYS), "cachestat: {error}");
            None
        }
    }
}
