//! Copying, zeroing and comparing a file's blocks, and the poison that such an access meets.
//!
//! It owns no state; the device does. Invariants: what the kernel stores here is durable when the
//! call returns ([`caches`](crate::volume::caches)); a poisoned block is healed only by an access
//! that overwrites all of it: a `write` whose offset and length are multiples of 4 KiB, zeroing,
//! or a copy into it. A store, a partial write and a DMA heal nothing and fail (SIGBUS, EIO, EIO).
//! A block that cannot be read is neither copied nor equal to anything: a change that would have
//! to copy it fails before anything is published. Kernel counterpart: `dax_recovery_write` and
//! `pmem_recovery_write` (drivers/nvdimm/pmem.c), which demand the alignment.

use emulator::pin::PageRange;

use crate::base::errno::Errno;
use crate::base::range::BlockRange;
use crate::base::units::BLOCK;
use crate::extent_map::lookup::{mapped, pages_of, replaced, replacements};
use crate::extent_map::{Extent, ExtentState, Layout};
use crate::layout_change::plan::FilePlace;
use crate::vfs::inode::Inode;
use crate::vfs::kernel::Kernel;

/// The layout with an extent's blocks replaced by new ones of the same contents.
///
/// # Errors
/// EIO: a block is poisoned, or the device is gone.
pub(crate) fn replaced_by_copy(
    kernel: &Kernel,
    layout: &Layout,
    extent: Extent,
    fresh: &[PageRange],
) -> Result<Layout, Errno> {
    for copy in replacements(extent, fresh) {
        let from = extent.block + (copy.file_block - extent.file_block);
        copy_blocks(kernel, PageRange::new(from, copy.len.into()), copy.block)?;
    }
    Ok(replaced(layout, extent, fresh))
}

/// Whether every one of `pages` can be read.
///
/// # Errors
/// EIO.
pub(crate) fn check_sound(kernel: &Kernel, pages: PageRange) -> Result<(), Errno> {
    kernel.device.poison().check(pages).map_err(|_| Errno::EIO)
}

/// Copies the blocks `from` into as many new ones, from `to` on, that no other task can reach yet;
/// heals the new ones.
///
/// # Errors
/// EIO.
fn copy_blocks(kernel: &Kernel, from: PageRange, to: u64) -> Result<(), Errno> {
    check_sound(kernel, from)?;
    kernel.device.poison().clear(PageRange::new(to, from.len()));
    let copied = kernel.device.copy_within(from.start() * BLOCK, to * BLOCK, from.len() * BLOCK);
    kernel.caches.write_back(&kernel.device, to * BLOCK, from.len() * BLOCK);
    copied.map_err(|_| Errno::EIO)
}

/// Zeroes blocks of the volume, and heals them.
pub(crate) fn zero_blocks(kernel: &Kernel, pages: PageRange) {
    // The blocks belong to the volume, so the device has them.
    let _in_range = kernel.device.zero(pages);
    kernel.caches.write_back_pages(&kernel.device, pages);
}

/// Writes back what processors stored to a range of a file through mappings, as `fsync` does, and
/// as a call does that reads, shares or moves the blocks.
pub(crate) fn clean_file(kernel: &Kernel, inode: &Inode, range: BlockRange) {
    if !kernel.caches.are_volatile() {
        return;
    }
    let pages: Vec<PageRange> = inode.layout(|layout| pages_of_range(layout, range).collect());
    pages.into_iter().for_each(|pages| kernel.caches.clean(&kernel.device, pages));
}

fn pages_of_range(layout: &Layout, range: BlockRange) -> impl Iterator<Item = PageRange> + '_ {
    mapped(layout, range).map(|extent| pages_of(&extent))
}

/// Stores `bytes` at byte `offset` of the device, in blocks of the volume.
pub(crate) fn store_bytes(kernel: &Kernel, offset: u64, bytes: &[u8]) {
    let _in_range = kernel.device.write(offset, bytes);
    kernel.caches.write_back(&kernel.device, offset, bytes.len() as u64);
}

/// Whether a `write` of these bytes is possible: over poisoned blocks only as whole pages.
///
/// # Errors
/// EIO.
pub(crate) fn check_write(kernel: &Kernel, inode: &Inode, offset: u64, len: u64) -> Result<(), Errno> {
    let poison = kernel.device.poison();
    if poison.is_clean() || (offset | len).is_multiple_of(BLOCK) {
        return kernel.device_there();
    }
    let mapped =
        |layout: &Layout| mapped(layout, BlockRange::of_bytes(offset, len)).map(|extent| pages_of(&extent)).collect();
    let pages: Vec<PageRange> = inode.layout(mapped);
    if pages.iter().any(|pages| poison.check(*pages).is_err()) { Err(Errno::EIO) } else { Ok(()) }
}

/// Heals what a `write` is about to overwrite: `pages`, which hold bytes `offset..offset+len` of
/// the file.
pub(crate) fn heal_for_write(kernel: &Kernel, pages: PageRange, offset: u64, len: u64) {
    if (offset | len).is_multiple_of(BLOCK) {
        kernel.device.poison().clear(pages);
    }
}

/// Whether two places hold the same bytes. Exact while no task can write them.
///
/// # Errors
/// EIO: one of them can't be read.
pub(crate) fn same_bytes(
    kernel: &Kernel,
    a: (&Layout, FilePlace),
    b: (&Layout, FilePlace),
    len: u64,
) -> Result<bool, Errno> {
    for (layout, place) in [a, b] {
        let pages = pages_of_range(layout, place.blocks(len));
        pages.for_each(|pages| kernel.caches.clean(&kernel.device, pages));
    }
    let mut found = [[0u8; BLOCK as usize]; 2];
    for nth in 0..len.div_ceil(BLOCK) {
        let part = (len - nth * BLOCK).min(BLOCK) as usize;
        let written = [a, b].map(|(layout, place)| {
            let block = place.offset / BLOCK + nth;
            let extent = layout.lookup(block).filter(|extent| extent.state == ExtentState::Written)?;
            Some((extent.block + (block - extent.file_block)) * BLOCK)
        });
        if written == [None, None] {
            continue;
        }
        for (at, bytes) in written.into_iter().zip(&mut found) {
            match at {
                Some(at) => kernel.device.read(at, bytes).map_err(|_| Errno::EIO)?,
                None => bytes.fill(0),
            }
        }
        if found[0][..part] != found[1][..part] {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Zeroes from byte `offset` of a file to the end of the block it lies in, if that block is mapped
/// and written.
pub(crate) fn zero_to_block_end(kernel: &Kernel, layout: &Layout, offset: u64) {
    if !offset.is_multiple_of(BLOCK) {
        zero_within_block(kernel, layout, offset, BLOCK - offset % BLOCK);
    }
}

/// Zeroes `len` bytes at byte `offset`, which lie in one block, if that block is mapped and
/// written.
pub(crate) fn zero_within_block(kernel: &Kernel, layout: &Layout, offset: u64, len: u64) {
    if let Some(extent) = layout.lookup(offset / BLOCK)
        && extent.state == ExtentState::Written
    {
        let block = extent.block + (offset / BLOCK - extent.file_block);
        let zeros = [0u8; BLOCK as usize];
        store_bytes(kernel, block * BLOCK + offset % BLOCK, &zeros[..len as usize]);
    }
}
