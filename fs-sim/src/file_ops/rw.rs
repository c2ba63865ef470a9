//! Read and write, through descriptors and through mappings.
//!
//! It owns the copying of bytes by system calls and simulated loads and stores. Invariants: bytes are copied under short-term
//! pins, or by a change into blocks nobody else can reach; an extending write publishes data and size at once; what was never
//! written reads as zeros. Kernel counterpart: `dax_iomap_rw`, `dax_iomap_fault`.

use emulator::sync::Arc;

use super::change::{Change, Patience, Plan, Ready};
use super::fallocate::{fill_holes, holes};
use super::plan::{marked, tail_block};
use crate::design::WriteBreak;
use crate::errno::Errno;
use crate::extent_map::{ExtentState, Layout, Piece};
use crate::gup::{Target, pieces_in};
use crate::inode::Inode;
use crate::process::description::Deferred;
use crate::process::fd_table::Fd;
use crate::process::task::Task;
use crate::range::BlockRange;
use crate::{BLOCK, FILE_MAX, Kernel};

/// A write that allocates or extends, or (under `conservative`) any write.
struct WriteChange<'a> {
    offset: u64,
    data: &'a [u8],
    /// Every write counts as a change.
    conservative: bool,
}

impl WriteChange<'_> {
    fn end(&self) -> u64 {
        self.offset + self.data.len() as u64
    }

    fn range(&self) -> BlockRange {
        BlockRange::of_bytes(self.offset, self.data.len() as u64)
    }
}

impl Change for WriteChange<'_> {
    fn plan(&self, layout: &Layout) -> Result<Option<Plan>, Errno> {
        let blocks = holes(layout, self.range());
        let grows = self.end() > layout.size();
        let changes = blocks > 0 || grows || self.conservative;
        if !changes && !marked(layout, self.range()) {
            return Ok(None);
        }
        let touches = match grows {
            true => BlockRange::from(self.range().start.min(layout.size() / BLOCK)),
            false => self.range(),
        };
        // What lies behind the old end in its block is zeroed, if the write begins behind that.
        let tail = if grows { tail_block(layout.size()) } else { BlockRange::NONE };
        let tail = tail.intersect(BlockRange::new(0, self.range().start));
        let writes = vec![tail, self.range()];
        let whole = (self.offset | self.data.len() as u64).is_multiple_of(BLOCK);
        let overwrites = whole.then_some(self.range());
        Ok(Some(Plan { touches: changes.then_some(touches).into(), blocks, writes, overwrites, ..Plan::default() }))
    }

    /// Blocks that were there stay the file's while the ticket is held; new ones are reached by nobody yet.
    fn apply(&self, kernel: &Kernel, layout: &Layout, ready: &Ready<'_>) -> Layout {
        if self.end() > layout.size() {
            kernel.zero_to_block_end(layout, layout.size());
        }
        // The blocks are the volume's own: the device has them.
        for pages in ready.fresh {
            let _in_range = kernel.device.zero(*pages);
        }
        let mut next = fill_holes(layout, self.range(), ready.fresh, ExtentState::Written);
        for piece in pieces_in(&next.clone(), self.range()) {
            let Piece::Mapped(extent) = piece else { continue };
            if extent.state == ExtentState::Unwritten {
                let _in_range = kernel.device.zero(crate::gup::pages_of(&extent));
                let blocks = BlockRange::new(extent.file_block, extent.file_block + u64::from(extent.len));
                next = next.with_state(blocks, ExtentState::Written);
            }
            let start = extent.file_block * BLOCK;
            let from = self.offset.max(start);
            let to = self.end().min(start + u64::from(extent.len) * BLOCK);
            let window = (from - self.offset) as usize..(to - self.offset) as usize;
            kernel.heal_for_write(crate::gup::pages_of(&extent), self.offset, self.data.len() as u64);
            let _in_range = kernel.device.write(extent.block * BLOCK + (from - start), &self.data[window]);
        }
        let size = next.size().max(self.end());
        next.with_size(size)
    }
}

/// Whether bytes can be written there in place.
pub(crate) fn is_writable(piece: &Piece) -> bool {
    matches!(piece, Piece::Mapped(extent) if extent.state == ExtentState::Written && !extent.shared)
}

impl Task {
    /// Reads at byte `offset` of the file open as `fd`; the number of bytes read, short at the end of the file.
    ///
    /// # Errors
    /// EBADF (not open for reading), EINVAL (not a file), EIO.
    pub fn read(&self, fd: Fd, offset: u64, into: &mut [u8]) -> Result<usize, Errno> {
        self.with_file(fd, |_, inode, access| {
            if !access.read {
                return Err(Errno::EBADF);
            }
            self.read_inode(inode, offset, into)
        })
    }

    fn read_inode(&self, inode: &Inode, offset: u64, into: &mut [u8]) -> Result<usize, Errno> {
        let kernel = self.kernel();
        kernel.device_there()?;
        let size = inode.layout(Layout::size);
        let len = (into.len() as u64).min(size.saturating_sub(offset));
        if len == 0 {
            return Ok(0);
        }
        let pins = kernel.pin_short(inode, BlockRange::of_bytes(offset, len), Some(self))?;
        let len = len.min(pins.size.saturating_sub(offset)) as usize;
        let read = kernel.read_short(inode, &pins, offset, &mut into[..len]);
        kernel.unpin_short(pins);
        read.map(|()| len)
    }

    /// Writes at byte `offset` of the file open as `fd`, all or nothing.
    ///
    /// # Errors
    /// EBADF (not open for writing), EINVAL (not a file), EFBIG, ENOSPC, EIO; where it is a layout change: ETXTBSY, EDEADLK,
    /// EINTR as the design says.
    pub fn write(&self, fd: Fd, offset: u64, from: &[u8]) -> Result<usize, Errno> {
        self.with_file(fd, |_, inode, access| {
            if !access.write {
                return Err(Errno::EBADF);
            }
            if from.is_empty() {
                return Ok(0);
            }
            if offset.checked_add(from.len() as u64).is_none_or(|end| end > FILE_MAX) {
                return Err(Errno::EFBIG);
            }
            self.write_inode(inode, offset, from)
        })
    }

    pub(crate) fn write_inode(&self, inode: &Arc<Inode>, offset: u64, data: &[u8]) -> Result<usize, Errno> {
        let conservative = self.kernel().options.write_break == WriteBreak::Conservative;
        loop {
            self.kernel().check_write(inode, offset, data.len() as u64)?;
            let change = WriteChange { offset, data, conservative };
            if self.change(inode, &change, Patience::Waits)? || self.overwrite(inode, offset, data)? {
                return Ok(data.len());
            }
        }
    }

    /// Writes into blocks that are there. False if some are not (any more).
    fn overwrite(&self, inode: &Arc<Inode>, offset: u64, data: &[u8]) -> Result<bool, Errno> {
        let kernel = self.kernel();
        let range = BlockRange::of_bytes(offset, data.len() as u64);
        kernel.clean_unwritten(inode, range);
        let pins = kernel.pin_short(inode, range, Some(self))?;
        let there = pins.pieces.iter().all(is_writable);
        let fits = offset + data.len() as u64 <= pins.size;
        if there && fits {
            for piece in &pins.pieces {
                let Piece::Mapped(extent) = piece else { continue };
                kernel.heal_for_write(crate::gup::pages_of(extent), offset, data.len() as u64);
            }
        }
        let written = match there && fits {
            true => kernel.write_short(inode, &pins, offset, data).map(|()| true),
            false => Ok(false),
        };
        kernel.unpin_short(pins);
        written
    }

    /// A load through a mapping.
    ///
    /// # Errors
    /// SIGSEGV (nothing mapped there), SIGBUS (beyond the end of the file, or a poisoned page).
    pub fn load(&self, va: u64, into: &mut [u8]) -> Result<(), Errno> {
        self.through_mapping(va, into.len(), false, |target| match target {
            Target::Anon { memory, offset } => memory.read(*offset, into),
            Target::File { description, offset } => {
                let (inode, _) = description.file().ok_or(Errno::SIGSEGV)?;
                let pins =
                    self.kernel().pin_short(inode, BlockRange::of_bytes(*offset, into.len() as u64), Some(self))?;
                // The page that holds the last byte is there as a whole.
                let reachable = pins.size.next_multiple_of(BLOCK);
                let loaded = match *offset + into.len() as u64 <= reachable {
                    true => self.kernel().read_short(inode, &pins, *offset, into),
                    false => Err(Errno::SIGBUS),
                };
                self.kernel().unpin_short(pins);
                loaded
            }
        })
    }

    /// A store through a mapping. Over a hole or a shared block it must allocate, and does so only where no lease stands
    /// against it.
    ///
    /// # Errors
    /// SIGSEGV (nothing mapped there, or read-only), SIGBUS (beyond the end of the file, the block can't be had, or it is
    /// poisoned).
    pub fn store(&self, va: u64, from: &[u8]) -> Result<(), Errno> {
        self.through_mapping(va, from.len(), true, |target| match target {
            Target::Anon { memory, offset } => memory.write(*offset, from),
            Target::File { description, offset } => {
                let (inode, _) = description.file().ok_or(Errno::SIGSEGV)?;
                let range = BlockRange::of_bytes(*offset, from.len() as u64);
                loop {
                    if range.end * BLOCK > inode.layout(Layout::size).next_multiple_of(BLOCK) {
                        return Err(Errno::SIGBUS);
                    }
                    self.fault_in(inode, range).map_err(|_| Errno::SIGBUS)?;
                    self.kernel().clean_unwritten(inode, range);
                    let pins = self.kernel().pin_short(inode, range, Some(self))?;
                    let there = pins.pieces.iter().all(is_writable);
                    // Looked at together with the pieces: a truncate may have come since the fault.
                    let inside = range.end * BLOCK <= pins.size.next_multiple_of(BLOCK);
                    let stored = match inside {
                        true => there.then(|| self.kernel().write_short(inode, &pins, *offset, from)),
                        false => Some(Err(Errno::SIGBUS)),
                    };
                    self.kernel().unpin_short(pins);
                    if let Some(stored) = stored {
                        return stored;
                    }
                }
            }
        })
    }

    fn through_mapping(
        &self,
        va: u64,
        len: usize,
        write: bool,
        access: impl FnOnce(&Target) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        self.syscall(|| {
            let target = self.process().target(va, len as u64, write).map_err(|_| Errno::SIGSEGV)?;
            let mut result = access(&target);
            if let Target::File { description, .. } = target {
                // What would be an error of a system call.
                let failed = result == Err(Errno::EIO) || self.kernel().device_there().is_err();
                result = if failed { Err(Errno::SIGBUS) } else { result };
                let mut deferred = Deferred::default();
                description.put(&mut deferred);
                self.kernel().run_deferred(deferred);
            }
            result
        })
    }
}
