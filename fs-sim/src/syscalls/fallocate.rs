//! `fallocate`: allocate, punch hole, zero range, collapse, insert, unshare.
//!
//! It owns the checks of the arguments, and zeroing in place at the edges of a range. Kernel
//! counterpart: `vfs_fallocate`, `xfs_file_fallocate`.

use emulator::sync::Arc;

use crate::base::errno::Errno;
use crate::base::numbers::Fd;
use crate::base::range::BlockRange;
use crate::base::units::FILE_MAX;
use crate::extent_map::lookup::is_writable;
use crate::extent_map::{ExtentState, Piece};
use crate::layout_change::changes::allocate::Allocate;
use crate::layout_change::changes::moves::{collapse, insert_range};
use crate::layout_change::changes::zero::{Punch, Zero, edges};
use crate::layout_change::copy::clean_file;
use crate::layout_change::driver::change_layout;
use crate::layout_change::plan::{Change, Patience};
use crate::pinning::dma::write_short_through;
use crate::pinning::gup::{pin_short, unpin_short};
use crate::vfs::inode::Inode;
use crate::vfs::memory_file::MemoryFile;
use crate::vfs::task::Task;

/// What `fallocate` does with the range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FallocateMode {
    /// Allocate what is missing.
    Allocate {
        /// `FALLOC_FL_KEEP_SIZE`: the size stays.
        keep_size: bool,
    },
    /// `FALLOC_FL_PUNCH_HOLE` (which keeps the size).
    PunchHole,
    /// `FALLOC_FL_ZERO_RANGE`: allocate what is missing, and let all of it read as zeros.
    ZeroRange {
        /// `FALLOC_FL_KEEP_SIZE`: the size stays.
        keep_size: bool,
    },
    /// `FALLOC_FL_COLLAPSE_RANGE`: removes the range and moves what is behind it forward.
    CollapseRange,
    /// `FALLOC_FL_INSERT_RANGE`: moves what is at the offset and behind it back, and leaves a
    /// hole.
    InsertRange,
    /// `FALLOC_FL_UNSHARE_RANGE`: allocate what is missing, and copy what is shared.
    UnshareRange {
        /// `FALLOC_FL_KEEP_SIZE`: the size stays.
        keep_size: bool,
    },
}

impl Task {
    /// Changes the allocation of `len` bytes at `offset` of the file open as `fd`.
    ///
    /// # Errors
    /// EBADF (not open for writing), EINVAL (length 0, not a file; collapse and insert: not block
    /// aligned, a range that reaches the end of the file, or an offset behind it), EFBIG, ENOSPC
    /// (nothing changed); ETXTBSY, EDEADLK, EINTR as the design says. Of a file that is not DAX
    /// EOPNOTSUPP for all but allocating and punching.
    pub fn fallocate(&self, fd: Fd, mode: FallocateMode, offset: u64, len: u64) -> Result<(), Errno> {
        self.with_open(fd, |description| {
            let memory_file = MemoryFile::of(description);
            let file = match memory_file.is_some() {
                true => None,
                false => Some(description.opened_file()?),
            };
            if file.is_some_and(|(_, access)| !access.write) {
                return Err(Errno::EBADF);
            }
            if len == 0 {
                return Err(Errno::EINVAL);
            }
            let end = offset.checked_add(len).filter(|end| *end <= FILE_MAX).ok_or(Errno::EFBIG)?;
            let inode = match (file, memory_file) {
                (Some((inode, _)), _) => inode,
                (None, Some(file)) => return allocate_in_memory(&file, mode, offset, end),
                (None, None) => return Err(Errno::EINVAL),
            };
            match mode {
                FallocateMode::Allocate { keep_size } | FallocateMode::UnshareRange { keep_size } => {
                    let size_min = if keep_size { 0 } else { end };
                    let range = BlockRange::of_bytes(offset, len);
                    let unshare = matches!(mode, FallocateMode::UnshareRange { .. });
                    let change =
                        Allocate { range, size_min, state: ExtentState::Unwritten, unshare, by_fallocate: true };
                    change_layout(self, inode, &change, Patience::Waits).map(|_| ())
                }
                FallocateMode::PunchHole => change_and_zero(self, inode, &Punch { offset, end }, offset, end),
                FallocateMode::ZeroRange { keep_size } => {
                    let size_min = if keep_size { 0 } else { end };
                    change_and_zero(self, inode, &Zero { offset, end, size_min }, offset, end)
                }
                FallocateMode::CollapseRange => collapse(self, inode, offset, len),
                FallocateMode::InsertRange => insert_range(self, inode, offset, len),
            }
        })
    }
}

/// `fallocate` of a file that is not DAX, as far as tmpfs has it.
fn allocate_in_memory(file: &MemoryFile, mode: FallocateMode, offset: u64, end: u64) -> Result<(), Errno> {
    match mode {
        FallocateMode::Allocate { keep_size } => file.allocate(offset, end - offset, keep_size),
        FallocateMode::PunchHole => file.punch(offset, end),
        _ => Err(Errno::EOPNOTSUPP),
    }
}

/// Runs a change that also zeroes the parts of blocks at the edges of a byte range. Where it is no
/// change, the edges are overwritten in place.
fn change_and_zero(task: &Task, inode: &Arc<Inode>, change: &dyn Change, offset: u64, end: u64) -> Result<(), Errno> {
    while !change_layout(task, inode, change, Patience::Waits)? {
        let mut done = true;
        for (from, to) in edges(offset, end) {
            done &= zero_part(task, inode, from, to)?;
        }
        if done {
            break;
        }
    }
    Ok(())
}

/// Zeroes a part of a block in place. False if the block is shared.
fn zero_part(task: &Task, inode: &Inode, from: u64, to: u64) -> Result<bool, Errno> {
    let kernel = task.kernel();
    let pins = pin_short(kernel, inode, BlockRange::of_bytes(from, to - from), Some(task))?;
    let shared = pins.pieces.iter().any(|piece| matches!(piece, Piece::Mapped(extent) if extent.shared));
    // As `xfs_flush_unmap_range`: the whole page is written back first.
    clean_file(kernel, inode, BlockRange::of_bytes(from, to - from));
    // A hole or an unwritten block reads as zeros already.
    let zeroed = match pins.pieces.iter().all(is_writable) {
        true => write_short_through(kernel, inode, &pins, from, &vec![0; (to - from) as usize]),
        false => Ok(()),
    };
    unpin_short(kernel, pins);
    zeroed.map(|()| !shared)
}
