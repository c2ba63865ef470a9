//! Read and write through descriptors.
//!
//! It owns the copying of bytes by these calls. Invariants: bytes are copied under short-term
//! pins, or by a change into blocks that no other task can reach; a block that was never written
//! reads as zeros. Kernel counterpart: `dax_iomap_rw`.

use emulator::sync::Arc;

use crate::base::errno::Errno;
use crate::base::numbers::Fd;
use crate::base::range::BlockRange;
use crate::base::units::FILE_MAX;
use crate::design::WriteBreak;
use crate::extent_map::lookup::{is_writable, pages_of};
use crate::extent_map::{Layout, Piece};
use crate::layout_change::changes::allocate::clean_unwritten;
use crate::layout_change::changes::write::WriteChange;
use crate::layout_change::copy::{check_write, heal_for_write};
use crate::layout_change::driver::change_layout;
use crate::layout_change::plan::Patience;
use crate::pinning::dma::{read_short, write_short_through};
use crate::pinning::gup::{pin_short, unpin_short};
use crate::vfs::inode::Inode;
use crate::vfs::memory_file::MemoryFile;
use crate::vfs::task::Task;

impl Task {
    /// Reads at byte `offset` of the file open as `fd`; the number of bytes read, short at the end
    /// of the file.
    ///
    /// # Errors
    /// EBADF (not open for reading), EINVAL (not a file), EIO.
    pub fn read(&self, fd: Fd, offset: u64, into: &mut [u8]) -> Result<usize, Errno> {
        self.with_open(fd, |description| {
            if let Some(file) = MemoryFile::of(description) {
                return file.read(offset, into);
            }
            let (inode, access) = description.opened_file()?;
            if !access.read {
                return Err(Errno::EBADF);
            }
            read_inode(self, inode, offset, into)
        })
    }

    /// Writes at byte `offset` of the file open as `fd`, all or nothing.
    ///
    /// # Errors
    /// EBADF (not open for writing), EINVAL (not a file), EFBIG, ENOSPC, EIO; where it is a layout
    /// change: ETXTBSY, EDEADLK, EINTR as the design says.
    pub fn write(&self, fd: Fd, offset: u64, from: &[u8]) -> Result<usize, Errno> {
        self.with_open(fd, |description| {
            if let Some(file) = MemoryFile::of(description) {
                return file.write(offset, from);
            }
            let (inode, access) = description.opened_file()?;
            if !access.write {
                return Err(Errno::EBADF);
            }
            if from.is_empty() {
                return Ok(0);
            }
            if offset.checked_add(from.len() as u64).is_none_or(|end| end > FILE_MAX) {
                return Err(Errno::EFBIG);
            }
            write_inode(self, inode, offset, from)
        })
    }
}

fn read_inode(task: &Task, inode: &Inode, offset: u64, into: &mut [u8]) -> Result<usize, Errno> {
    let kernel = task.kernel();
    kernel.device_there()?;
    inode.turn.wait_until_unheld(task);
    let size = inode.layout(Layout::size);
    let len = (into.len() as u64).min(size.saturating_sub(offset));
    if len == 0 {
        return Ok(0);
    }
    let pins = pin_short(kernel, inode, BlockRange::of_bytes(offset, len), Some(task))?;
    let len = len.min(pins.size.saturating_sub(offset)) as usize;
    let read = read_short(kernel, inode, &pins, offset, &mut into[..len]);
    unpin_short(kernel, pins);
    read.map(|()| len)
}

pub(crate) fn write_inode(task: &Task, inode: &Arc<Inode>, offset: u64, data: &[u8]) -> Result<usize, Errno> {
    let conservative = task.kernel().options.write_break == WriteBreak::Conservative;
    loop {
        check_write(task.kernel(), inode, offset, data.len() as u64)?;
        let change = WriteChange { offset, data, conservative };
        if change_layout(task, inode, &change, Patience::Waits)? || overwrite(task, inode, offset, data)? {
            return Ok(data.len());
        }
    }
}

/// Writes into blocks that are there. False if some are not.
fn overwrite(task: &Task, inode: &Arc<Inode>, offset: u64, data: &[u8]) -> Result<bool, Errno> {
    let kernel = task.kernel();
    let range = BlockRange::of_bytes(offset, data.len() as u64);
    clean_unwritten(kernel, inode, range);
    let pins = pin_short(kernel, inode, range, Some(task))?;
    let there = pins.pieces.iter().all(is_writable);
    let fits = offset + data.len() as u64 <= pins.size;
    if there && fits {
        for piece in &pins.pieces {
            let Piece::Mapped(extent) = piece else { continue };
            heal_for_write(kernel, pages_of(extent), offset, data.len() as u64);
        }
    }
    let written = match there && fits {
        true => write_short_through(kernel, inode, &pins, offset, data).map(|()| true),
        false => Ok(false),
    };
    unpin_short(kernel, pins);
    written
}
