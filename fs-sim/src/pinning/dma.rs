//! Copies to and from a file's blocks, checked against the ledger.
//!
//! It owns the detection of stale accesses: every copy, by a device through a region's own page
//! list or by a system call through short-term pins, is checked against the ledger before and
//! after. Invariant: an access that overlaps the moment a page leaves the file (or the offset) it
//! was pinned for is detected. Kernel counterpart: none; on real hardware this is silent
//! corruption.

use emulator::ledger::{OwnershipCheck, Stamp};
use emulator::pin::PageRange;
use emulator::race_point;
use emulator::runtime::trace::TraceEvent;

use crate::base::atomic_op::AtomicOp;
use crate::base::errno::Errno;
use crate::base::numbers::Ino;
use crate::base::units::BLOCK;
use crate::extent_map::lookup::pages_of;
use crate::extent_map::{Extent, Piece};
use crate::holders::holder::HolderInfo;
use crate::holders::short_pins::ShortPins;
use crate::pinning::registration::Pinned;
use crate::vfs::attachments::{Attachment, Slot};
use crate::vfs::inode::Inode;
use crate::vfs::kernel::Kernel;
use crate::volume::caches::StoreUnderWay;
use emulator::sync::Mutex;

/// A stale access: what was found, and the events before it.
#[derive(Clone, Debug)]
pub struct StaleFinding {
    /// The region that accessed; `None` for a system call's own copy.
    pub region: Option<HolderInfo>,
    /// The device page.
    pub page: u64,
    /// The file and file block the access was meant for.
    pub old_owner: (Ino, u64),
    /// The file and file block that own the page now, if any.
    pub new_owner: Option<(Ino, u64)>,
    /// The newest events that touched the page, oldest first.
    pub trace: Vec<TraceEvent>,
}

/// The stale accesses found.
#[derive(Default)]
pub(crate) struct StaleFindings(Mutex<Vec<StaleFinding>>);

impl Attachment for StaleFindings {
    const SLOT: Slot = Slot::StaleFindings;
}

impl StaleFindings {
    /// The first [`FINDINGS_MAX`] of them.
    pub(crate) fn all(&self) -> Vec<StaleFinding> {
        self.0.lock().clone()
    }

    fn is_full(&self) -> bool {
        self.0.lock().len() >= FINDINGS_MAX
    }

    fn push(&self, finding: StaleFinding) {
        let mut findings = self.0.lock();
        if findings.len() < FINDINGS_MAX {
            findings.push(finding);
        }
    }
}

/// How many findings are kept in full; more are counted only.
pub const FINDINGS_MAX: usize = 64;

/// The direction of a copy, with the memory on the caller's side.
enum CopyDirection<'a> {
    Out(&'a mut [u8]),
    In(&'a [u8]),
}

impl CopyDirection<'_> {
    fn len(&self) -> usize {
        match self {
            CopyDirection::Out(bytes) => bytes.len(),
            CopyDirection::In(bytes) => bytes.len(),
        }
    }
}

/// Which region accesses which part of which file.
pub(crate) struct AccessSubject<'a> {
    pub(crate) region: Option<&'a Pinned>,
    pub(crate) ino: Ino,
    pub(crate) file_block: u64,
}

/// Runs `body`, an access to `pages`, between two checks of the ledger.
fn watched<R>(
    kernel: &Kernel,
    pages: PageRange,
    since: Stamp,
    subject: &AccessSubject<'_>,
    body: impl FnOnce() -> R,
) -> R {
    let before = kernel.ledger.check(pages, since);
    race_point!("dma: checked, not copied");
    let result = body();
    let after = kernel.ledger.check_after_copy(pages, since);
    match (before, after) {
        (OwnershipCheck::Current, OwnershipCheck::Current) => {}
        (_, OwnershipCheck::Stale { page, .. }) | (OwnershipCheck::Stale { page, .. }, _) => {
            found_stale(kernel, page, pages, subject)
        }
        (OwnershipCheck::Orphan, _) | (_, OwnershipCheck::Orphan) => kernel.counters.orphan_dma.add(1),
    }
    result
}

#[cold]
fn found_stale(kernel: &Kernel, page: u64, pages: PageRange, subject: &AccessSubject<'_>) {
    kernel.counters.stale_dma.add(1);
    let findings = kernel.attached::<StaleFindings>();
    if findings.is_full() {
        return;
    }
    let finding = StaleFinding {
        region: subject.region.map(|pinned| pinned.holder.object.describe()),
        page,
        old_owner: (subject.ino, subject.file_block + (page - pages.start())),
        new_owner: kernel.owner_of(page),
        trace: kernel.trace_about(PageRange::new(page, 1)),
    };
    findings.push(finding);
}

/// Copies between memory and the device range that starts `skip` bytes into `pages`.
fn copy_watched(
    kernel: &Kernel,
    pages: PageRange,
    skip: u64,
    since: Stamp,
    subject: &AccessSubject<'_>,
    direction: CopyDirection<'_>,
) -> Result<(), Errno> {
    let len = direction.len() as u64;
    let offset = pages.start() * BLOCK + skip;
    let first = offset / BLOCK;
    let touched = PageRange::new(first, (offset + len).div_ceil(BLOCK) - first);
    let subject = AccessSubject { file_block: subject.file_block + (first - pages.start()), ..*subject };
    watched(kernel, touched, since, &subject, || match direction {
        CopyDirection::Out(bytes) => kernel.device.read(offset, bytes),
        CopyDirection::In(bytes) => kernel.device.write(offset, bytes),
    })
    .map_err(|_| Errno::EIO)
}

/// Reads part of an extent for a client that knows the device blocks: `skip` bytes into `extent`.
pub(crate) fn read_extent(
    kernel: &Kernel,
    ino: Ino,
    extent: &Extent,
    skip: u64,
    since: Stamp,
    into: &mut [u8],
) -> Result<(), Errno> {
    let subject = AccessSubject { region: None, ino, file_block: extent.file_block };
    copy_watched(kernel, pages_of(extent), skip, since, &subject, CopyDirection::Out(into))
}

/// Writes part of an extent; see [`read_extent`].
pub(crate) fn write_extent(
    kernel: &Kernel,
    ino: Ino,
    extent: &Extent,
    skip: u64,
    since: Stamp,
    from: &[u8],
) -> Result<(), Errno> {
    let subject = AccessSubject { region: None, ino, file_block: extent.file_block };
    copy_watched(kernel, pages_of(extent), skip, since, &subject, CopyDirection::In(from))?;
    // Through the block device: `pmem_do_write` goes past the CPU caches.
    kernel.caches.write_back(&kernel.device, extent.block * BLOCK + skip, from.len() as u64);
    Ok(())
}

/// Copies between memory and a file range held by short-term pins. Holes read as zeros; writing one
/// is EFAULT.
fn copy_short(
    kernel: &Kernel,
    inode: &Inode,
    pins: &ShortPins,
    offset: u64,
    mut direction: CopyDirection<'_>,
) -> Result<(), Errno> {
    let end = offset + direction.len() as u64;
    for piece in &pins.pieces {
        let (start_block, blocks) = match piece {
            Piece::Mapped(extent) => (extent.file_block, u64::from(extent.len)),
            Piece::Hole { file_block, len } => (*file_block, *len),
        };
        let from = offset.max(start_block * BLOCK);
        let to = end.min(start_block.saturating_add(blocks).saturating_mul(BLOCK));
        if from >= to {
            continue;
        }
        let window = (from - offset) as usize..(to - offset) as usize;
        match (piece, &mut direction) {
            (Piece::Hole { .. }, CopyDirection::Out(bytes)) => bytes[window].fill(0),
            (Piece::Hole { .. }, CopyDirection::In(_)) => return Err(Errno::EFAULT),
            (Piece::Mapped(extent), direction) => {
                let unwritten = extent.state == crate::extent_map::ExtentState::Unwritten;
                let part = match direction {
                    CopyDirection::Out(bytes) if unwritten => {
                        bytes[window].fill(0);
                        continue;
                    }
                    CopyDirection::Out(bytes) => CopyDirection::Out(&mut bytes[window]),
                    CopyDirection::In(bytes) => CopyDirection::In(&bytes[window]),
                };
                let subject = AccessSubject { region: None, ino: inode.ino(), file_block: extent.file_block };
                let skip = from - start_block * BLOCK;
                copy_watched(kernel, pages_of(extent), skip, pins.read_point, &subject, part)?;
            }
        }
    }
    Ok(())
}

/// Reads what short-term pins hold, from byte `offset` of the file on.
pub(crate) fn read_short(
    kernel: &Kernel,
    inode: &Inode,
    pins: &ShortPins,
    offset: u64,
    into: &mut [u8],
) -> Result<(), Errno> {
    copy_short(kernel, inode, pins, offset, CopyDirection::Out(into))
}

/// Writes what short-term pins hold, from byte `offset` of the file on.
pub(crate) fn write_short(
    kernel: &Kernel,
    inode: &Inode,
    pins: &ShortPins,
    offset: u64,
    from: &[u8],
) -> Result<(), Errno> {
    copy_short(kernel, inode, pins, offset, CopyDirection::In(from))
}

impl Pinned {
    /// The device pages of `offset..offset+len` of the region, piece by piece: pages, first block
    /// in the region, bytes to skip, length.
    fn pieces(&self, offset: u64, len: u64) -> impl Iterator<Item = (PageRange, u64, u64, u64)> + '_ {
        // Region offsets count from the region's first byte; pages from the block that holds it.
        let from = self.file_offset % BLOCK + offset;
        let to = from + len;
        let mut at = 0;
        self.holder.pages.iter().filter_map(move |pages| {
            let (start, end) = (at, at + pages.len() * BLOCK);
            at = end;
            let (from, to) = (from.max(start), to.min(end));
            (from < to).then(|| (*pages, start / BLOCK, from - start, to - from))
        })
    }

    pub(crate) fn check(&self, offset: u64, len: usize) -> Result<(), Errno> {
        let end = offset.checked_add(len as u64).ok_or(Errno::EFAULT)?;
        if end > self.len { Err(Errno::EFAULT) } else { Ok(()) }
    }

    /// The file block of the `nth` block of this region.
    fn file_block(&self, nth: u64) -> u64 {
        self.holder.range.start + nth
    }

    /// A device writes into the region, through the region's own page list. A wrong design lets it
    /// write into freed blocks.
    ///
    /// # Errors
    /// EFAULT outside the region, EIO if the device fails.
    pub fn dma_write(&self, kernel: &Kernel, offset: u64, mut from: &[u8]) -> Result<(), Errno> {
        self.check(offset, from.len())?;
        for (pages, nth, skip, len) in self.pieces(offset, from.len() as u64) {
            let (head, tail) = from.split_at(len as usize);
            let subject = AccessSubject { region: Some(self), ino: self.inode.ino(), file_block: self.file_block(nth) };
            copy_watched(kernel, pages, skip, self.read_point, &subject, CopyDirection::In(head))?;
            from = tail;
        }
        Ok(())
    }

    /// A device reads from the region; see [`Pinned::dma_write`].
    ///
    /// # Errors
    /// EFAULT outside the region, EIO if the device fails.
    pub fn dma_read(&self, kernel: &Kernel, offset: u64, mut into: &mut [u8]) -> Result<(), Errno> {
        self.check(offset, into.len())?;
        for (pages, nth, skip, len) in self.pieces(offset, into.len() as u64) {
            let (head, tail) = into.split_at_mut(len as usize);
            let subject = AccessSubject { region: Some(self), ino: self.inode.ino(), file_block: self.file_block(nth) };
            copy_watched(kernel, pages, skip, self.read_point, &subject, CopyDirection::Out(head))?;
            into = tail;
        }
        Ok(())
    }

    /// A guest's CPU begins to store into the region, which the caller has checked.
    pub(crate) fn store<'k>(&self, kernel: &'k Kernel, offset: u64, len: u64) -> StoreUnderWay<'k> {
        kernel.caches.store(self.pieces(offset, len).map(|(pages, _, skip, len)| {
            let (first, end) = (skip / BLOCK, (skip + len).div_ceil(BLOCK));
            PageRange::new(pages.start() + first, end - first)
        }))
    }

    /// Makes what was written to these bytes of the region durable: returns once the medium has it.
    ///
    /// # Errors
    /// EFAULT outside the region, EIO if the device fails.
    pub fn persist(&self, kernel: &Kernel, offset: u64, len: u64) -> Result<(), Errno> {
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(Errno::EFAULT);
        }
        self.pieces(offset, len).try_for_each(|(pages, _, skip, len)| persist_pages(kernel, pages, skip, len))
    }

    /// A device's atomic on 8 aligned bytes of the region. Returns the value before, or the one
    /// stored.
    ///
    /// # Errors
    /// EINVAL if misaligned, EFAULT outside the region, EIO if the device fails.
    pub fn dma_atomic(&self, kernel: &Kernel, offset: u64, op: AtomicOp) -> Result<u64, Errno> {
        self.check(offset, 8)?;
        if !(self.file_offset + offset).is_multiple_of(8) {
            return Err(Errno::EINVAL);
        }
        let (pages, nth, skip, _) = self.pieces(offset, 8).next().ok_or(Errno::EFAULT)?;
        let subject = AccessSubject { region: Some(self), ino: self.inode.ino(), file_block: self.file_block(nth) };
        atomic_at(kernel, pages, skip, self.read_point, &subject, op)
    }
}

/// As [`write_short`], durable when it returns: a call's own store, past the CPU caches.
pub(crate) fn write_short_through(
    kernel: &Kernel,
    inode: &Inode,
    pins: &ShortPins,
    offset: u64,
    from: &[u8],
) -> Result<(), Errno> {
    write_short(kernel, inode, pins, offset, from)?;
    write_back_short(kernel, pins, offset, from.len() as u64);
    Ok(())
}

/// Writes back the lines of `len` bytes from byte `offset` of the file on.
pub(crate) fn write_back_short(kernel: &Kernel, pins: &ShortPins, offset: u64, len: u64) {
    for (pages, skip, len) in mapped_parts(pins, offset, len) {
        kernel.caches.write_back(&kernel.device, pages.start() * BLOCK + skip, len);
    }
}

/// A store to what short-term pins hold begins; see [`StoreUnderWay`].
pub(crate) fn store_short<'k>(kernel: &'k Kernel, pins: &ShortPins) -> StoreUnderWay<'k> {
    kernel.caches.store(pins.pieces.iter().filter_map(|piece| match piece {
        Piece::Mapped(extent) => Some(pages_of(extent)),
        Piece::Hole { .. } => None,
    }))
}

/// Makes `len` bytes from byte `offset` of the file on durable; holes stay holes.
pub(crate) fn persist_short(kernel: &Kernel, pins: &ShortPins, offset: u64, len: u64) -> Result<(), Errno> {
    mapped_parts(pins, offset, len).try_for_each(|(pages, skip, len)| persist_pages(kernel, pages, skip, len))
}

/// The blocks of `len` bytes from byte `offset` of the file on: pages, bytes to skip, length.
fn mapped_parts(pins: &ShortPins, offset: u64, len: u64) -> impl Iterator<Item = (PageRange, u64, u64)> + '_ {
    pins.pieces.iter().filter_map(move |piece| {
        let Piece::Mapped(extent) = piece else { return None };
        let start = extent.file_block * BLOCK;
        let (from, to) = (offset.max(start), (offset + len).min(extent.end() * BLOCK));
        (from < to).then(|| (pages_of(extent), from - start, to - from))
    })
}

/// Makes `len` bytes from `skip` bytes into `pages` on durable.
fn persist_pages(kernel: &Kernel, pages: PageRange, skip: u64, len: u64) -> Result<(), Errno> {
    let first = pages.start() + skip / BLOCK;
    let end = pages.start() + (skip + len).div_ceil(BLOCK);
    kernel.device.sync_pages(PageRange::new(first, end - first)).map_err(|_| Errno::EIO)?;
    kernel.caches.write_back(&kernel.device, pages.start() * BLOCK + skip, len);
    kernel.counters.pages_persisted.add(end - first);
    Ok(())
}

pub(crate) fn atomic_at(
    kernel: &Kernel,
    pages: PageRange,
    skip: u64,
    since: Stamp,
    subject: &AccessSubject<'_>,
    op: AtomicOp,
) -> Result<u64, Errno> {
    let page = PageRange::new(pages.start() + skip / BLOCK, 1);
    let at = pages.start() * BLOCK + skip;
    watched(kernel, page, since, subject, || match op {
        AtomicOp::CompareSwap(expected, new) => kernel.device.compare_exchange_u64(at, expected, new),
        AtomicOp::FetchAdd(addend) => kernel.device.fetch_add_u64(at, addend),
        AtomicOp::Store(value) => kernel.device.store_u64(at, value).map(|()| value),
    })
    .map_err(|_| Errno::EIO)
}

#[cfg(all(test, not(any(daxlab_loom, daxlab_shuttle))))]
mod tests;
