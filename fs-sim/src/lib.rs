//! The simulated kernel: processes, files, extents, layout leases, and the designs that decide between them.
//!
//! It owns the meaning of the emulator's pages: which file they belong to, who may pin them, what a truncate has to wait for.
//! It knows no RDMA: what holds a long-term pin answers through [`holders::PinHolder`], what lives in a descriptor table
//! through [`process::description::OpenObject`]. Start reading at [`gup`] (how a file range is pinned) and
//! [`file_ops::change`] (how a layout changes).

pub mod anon;
pub mod base_lease;
pub mod counters;
pub mod design;
pub mod dma;
pub mod errno;
pub mod extent_map;
pub mod file_ops;
pub mod gup;
pub mod holders;
pub mod inode;
pub mod inspect;
mod kernel;
pub mod lease;
pub mod process;
pub mod range;
pub mod volume;
pub mod waits;

pub use errno::Errno;
pub use kernel::{Config, Kernel, Sabotage};
pub use process::task::Task;

/// The size of a file block and of a page, in bytes.
pub const BLOCK: u64 = 4096;

/// The largest file, in bytes: 1 EiB, far from any arithmetic's edge.
pub const FILE_MAX: u64 = 1 << 60;

/// The most anonymous memory that a process may have mapped, in bytes.
pub const ANON_MAX: u64 = 1 << 30;

/// `bytes` rounded up to whole blocks; none if that overflows.
pub fn round_up(bytes: u64) -> Option<u64> {
    bytes.checked_next_multiple_of(BLOCK)
}
