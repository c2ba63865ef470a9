//! Poisoned blocks of files: making them, and the write that heals them.
//!
//! It owns no state; the device does. Invariants: a poisoned block is healed only by what overwrites the whole of it through
//! the driver: a `write` whose offset and length are multiples of 4 KiB, zeroing, or a copy into it. A store, a partial write
//! and a DMA heal nothing and fail (SIGBUS, EIO, EIO). What cannot be read is neither copied nor the same as anything: a
//! change that would have to copy it fails before anything is published. Kernel counterpart: `dax_recovery_write` and `pmem_recovery_write`
//! (drivers/nvdimm/pmem.c), which demand the alignment; `ndctl inject-error` and `ndctl clear-errors`.

use emulator::pin::PageRange;

use super::plan::mapped;
use crate::errno::Errno;
use crate::extent_map::Layout;
use crate::gup::pages_of;
use crate::inode::{Ino, Inode};
use crate::range::BlockRange;
use crate::{BLOCK, Kernel};

impl Kernel {
    fn page_of(&self, ino: Ino, file_block: u64) -> Result<PageRange, Errno> {
        let inode = self.inodes.get(ino).ok_or(Errno::ENOENT)?;
        let extent = inode.layout(|layout| layout.lookup(file_block)).ok_or(Errno::ENXIO)?;
        Ok(PageRange::new(extent.block + (file_block - extent.file_block), 1))
    }

    /// Poisons the device page that holds this block of a file: whoever touches it fails, whoever doesn't is unaffected.
    ///
    /// # Errors
    /// ENOENT (no such inode), ENXIO (a hole).
    pub fn poison(&self, ino: Ino, file_block: u64) -> Result<(), Errno> {
        let page = self.page_of(ino, file_block)?;
        self.device.poison().poison(page);
        self.trace("poisoned", 0, ino.0, Some(page));
        Ok(())
    }

    /// Heals it; it reads as zeros then, its contents being lost.
    ///
    /// # Errors
    /// ENOENT, ENXIO; EIO if the device is gone.
    pub fn clear_poison(&self, ino: Ino, file_block: u64) -> Result<(), Errno> {
        let page = self.page_of(ino, file_block)?;
        if self.device.poison().check(page).is_ok() {
            return Ok(());
        }
        self.device.zero(page).map_err(|_| Errno::EIO)
    }

    /// Whether every one of `pages` can be read.
    ///
    /// # Errors
    /// EIO.
    pub(super) fn check_sound(&self, pages: PageRange) -> Result<(), Errno> {
        self.device.poison().check(pages).map_err(|_| Errno::EIO)
    }

    /// Copies the blocks `from` into as many new ones from `to` on that nobody else can reach yet, healing those.
    ///
    /// # Errors
    /// EIO.
    pub(super) fn copy_blocks(&self, from: PageRange, to: u64) -> Result<(), Errno> {
        self.check_sound(from)?;
        self.device.poison().clear(PageRange::new(to, from.len()));
        self.device.copy_within(from.start() * BLOCK, to * BLOCK, from.len() * BLOCK).map_err(|_| Errno::EIO)
    }

    /// Whether a `write` of these bytes can be done: over poisoned blocks only as whole pages.
    ///
    /// # Errors
    /// EIO.
    pub(crate) fn check_write(&self, inode: &Inode, offset: u64, len: u64) -> Result<(), Errno> {
        let poison = self.device.poison();
        if poison.is_clean() || (offset | len).is_multiple_of(BLOCK) {
            return self.device_there();
        }
        let mapped = |layout: &Layout| {
            mapped(layout, BlockRange::of_bytes(offset, len)).map(|extent| pages_of(&extent)).collect()
        };
        let pages: Vec<PageRange> = inode.layout(mapped);
        if pages.iter().any(|pages| poison.check(*pages).is_err()) { Err(Errno::EIO) } else { Ok(()) }
    }

    /// Heals what a `write` is about to overwrite: `pages`, on which bytes `offset..offset+len` of the file lie.
    pub(crate) fn heal_for_write(&self, pages: PageRange, offset: u64, len: u64) {
        if (offset | len).is_multiple_of(BLOCK) {
            self.device.poison().clear(pages);
        }
    }
}
