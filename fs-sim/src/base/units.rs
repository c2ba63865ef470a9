//! The units of the simulated kernel: block, page, and the largest sizes.
//!
//! It owns the constants that every layer shares. Invariant: a file block and a page have the same
//! size, so a block number times [`BLOCK`] is a byte offset. Kernel counterpart: `PAGE_SIZE`,
//! `MAX_LFS_FILESIZE`.

/// The size of a file block and of a page, in bytes.
pub const BLOCK: u64 = 4096;

/// The largest file, in bytes: 1 EiB. Offsets below it can be added without overflow.
pub const FILE_MAX: u64 = 1 << 60;

/// The most anonymous memory that a process may have mapped, in bytes.
pub const ANON_MAX: u64 = 1 << 30;

/// `bytes` rounded up to whole blocks; `None` if that overflows.
pub fn round_up(bytes: u64) -> Option<u64> {
    bytes.checked_next_multiple_of(BLOCK)
}
