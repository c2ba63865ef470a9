//! Cache lines written back by name: of a file, a mapping, a registration.
//!
//! It owns the way from each of them to the device's bytes. Invariant: exactly the lines that hold
//! the bytes named are written back, whether or not their pages are dirty. Counterpart: CLWB and
//! SFENCE of the program (`pmem_persist` of libpmem), which need no call of the kernel.

use emulator::sync::Arc;

use crate::base::errno::Errno;
use crate::base::numbers::Ino;
use crate::base::range::BlockRange;
use crate::base::units::BLOCK;
use crate::extent_map::lookup::{pages_of, pieces_in};
use crate::extent_map::{Extent, ExtentState, Piece};
use crate::kernel::media_errors::region_bytes;
use crate::pinning::dma::write_back_short;
use crate::pinning::gup::{pin_short, unpin_short};
use crate::vfs::address_space::Backing;
use crate::vfs::inode::Inode;
use crate::vfs::kernel::Kernel;
use crate::vfs::open_file::{Deferred, Description};
use crate::vfs::private_pages::PrivatePages;
use crate::vfs::task::Task;

impl Kernel {
    /// Writes back the lines of bytes `offset..offset+len` of a file. Holes are left out.
    ///
    /// # Errors
    /// ENOENT (no such inode), EINVAL (an empty range, or one beyond the last byte that can be
    /// named), ENXIO (no block there), EIO (the device is gone).
    pub fn persist_range(&self, ino: Ino, offset: u64, len: u64) -> Result<(), Errno> {
        let inode = self.inodes.get(ino).ok_or(Errno::ENOENT)?;
        let end = offset.checked_add(len).filter(|_| len > 0).ok_or(Errno::EINVAL)?;
        self.device_there()?;
        let pieces = inode.layout(|layout| pieces_in(layout, BlockRange::of_bytes(offset, len)));
        let mut found = false;
        for piece in &pieces {
            let Piece::Mapped(extent) = piece else { continue };
            found = true;
            let start = extent.file_block * BLOCK;
            let (from, to) = (offset.max(start), end.min(extent.end() * BLOCK));
            self.caches.write_back(&self.device, pages_of(extent).start() * BLOCK + (from - start), to - from);
        }
        if found { Ok(()) } else { Err(Errno::ENXIO) }
    }

    /// Writes back the lines of bytes `offset..offset+len` of the region with this key, whether or
    /// not their pages are still the file's. `start` is the region's address.
    ///
    /// # Errors
    /// EINVAL (an empty range, or outside of the region); ENXIO (the region pins no page of a
    /// file); EIO (the device is gone).
    pub fn persist_region(&self, key: u32, start: u64, offset: u64, len: u64) -> Result<(), Errno> {
        let (_, runs) = region_bytes(self, key, start, (offset, len))?;
        self.device_there()?;
        for bytes in runs {
            self.caches.write_back(&self.device, bytes.start, bytes.end - bytes.start);
        }
        Ok(())
    }

    /// How many 64-byte lines of a file's written blocks a power cut would take back now: stored
    /// to, and not written back since. An unwritten block reads as zeros whatever it holds.
    pub fn unflushed_lines(&self, inode: &Inode) -> u64 {
        let written = |extent: &Extent| extent.state == ExtentState::Written;
        let pages: Vec<_> =
            inode.layout(|layout| layout.extents().filter(written).map(|extent| pages_of(&extent)).collect());
        pages.into_iter().map(|pages| self.caches.unflushed(&self.device, pages)).sum()
    }
}

impl Task {
    /// Writes back the lines of `len` bytes at `va` of this process's memory: CLWB of each, then
    /// SFENCE. Ordinary memory is left alone.
    ///
    /// # Errors
    /// SIGSEGV (not mapped), SIGBUS (beyond the end of the file, or the device is gone); EINTR and
    /// EDEADLK while a layout change has the pages closed.
    pub fn persist_mapped(&self, va: u64, len: u64) -> Result<(), Errno> {
        self.syscall(|| {
            if len == 0 {
                return Ok(());
            }
            let target = self.process().target(va, len, false).map_err(|_| Errno::SIGSEGV)?;
            let done = match &target {
                Backing::File { description, offset } => match description.file() {
                    Some((inode, _)) => persist_file(self, inode, *offset, len),
                    None => Err(Errno::SIGSEGV),
                },
                Backing::Device { offset } => {
                    self.kernel().caches.write_back(&self.kernel().device, *offset, len);
                    self.kernel().device_there()
                }
                Backing::Private { description, pages, offset } => {
                    persist_uncopied(self, description, pages, (*offset, len))
                }
                Backing::Memory { .. } | Backing::Anon { .. } => Ok(()),
            };
            let mut deferred = Deferred::default();
            target.put(&mut deferred);
            self.run_deferred(deferred);
            if done == Err(Errno::EIO) { Err(Errno::SIGBUS) } else { done }
        })
    }
}

fn persist_file(task: &Task, inode: &Arc<Inode>, offset: u64, len: u64) -> Result<(), Errno> {
    let kernel = task.kernel();
    kernel.device_there()?;
    let pins = pin_short(kernel, inode, BlockRange::of_bytes(offset, len), Some(task))?;
    let inside = offset + len <= pins.size.next_multiple_of(BLOCK);
    if inside {
        write_back_short(kernel, &pins, offset, len);
    }
    unpin_short(kernel, pins);
    if inside { Ok(()) } else { Err(Errno::SIGBUS) }
}

/// A private mapping shows the file's own lines where it has no copy. `offset` counts in the
/// mapping.
fn persist_uncopied(
    task: &Task,
    description: &Description,
    pages: &PrivatePages,
    (offset, len): (u64, u64),
) -> Result<(), Errno> {
    let Some((inode, _)) = description.file() else { return Ok(()) };
    let (mut at, end) = (offset, offset + len);
    while at < end {
        let next = end.min((at / BLOCK + 1) * BLOCK);
        if !pages.is_copied(at) {
            persist_file(task, inode, pages.in_file(at), next - at)?;
        }
        at = next;
    }
    Ok(())
}
