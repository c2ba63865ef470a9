//! Copies to and from a file's blocks, watched by the ledger.
//!
//! It owns the detection of stale accesses: every copy, by a device through a region's own page list or by a system call
//! through short-term pins, is checked against the ledger before and after. Invariant: an access that overlaps the moment a
//! page leaves the file (or the offset) it was pinned for does not go unnoticed. Kernel counterpart: none; on real hardware
//! this is silent corruption, which is why the lab exists.

pub(crate) mod on_demand;

use emulator::ledger::{OwnershipCheck, Stamp};
use emulator::pin::PageRange;
use emulator::race_point;
use emulator::runtime::trace::TraceEvent;

use crate::errno::Errno;
use crate::extent_map::{Extent, Piece};
use crate::gup::{Pinned, ShortPins};
use crate::holders::HolderInfo;
use crate::inode::{Ino, Inode};
use crate::{BLOCK, Kernel};

/// A stale access: what was found, and what led there.
#[derive(Clone, Debug)]
pub struct Finding {
    /// Who accessed; none for a system call's own copy.
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

/// How many findings are kept in full; more are counted only.
pub const FINDINGS_MAX: usize = 64;

/// What the responder does at an address, eight bytes at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtomicOp {
    /// Compare with the first, and if equal swap in the second.
    CompareSwap(u64, u64),
    /// Add.
    FetchAdd(u64),
    /// Store, whatever is there.
    Store(u64),
}

/// One direction of a copy.
enum Copy<'a> {
    Out(&'a mut [u8]),
    In(&'a [u8]),
}

impl Copy<'_> {
    fn len(&self) -> usize {
        match self {
            Copy::Out(bytes) => bytes.len(),
            Copy::In(bytes) => bytes.len(),
        }
    }
}

/// Who accesses which part of which file.
struct Subject<'a> {
    region: Option<&'a Pinned>,
    ino: Ino,
    file_block: u64,
}

impl Kernel {
    /// Runs `body`, an access to `pages`, between two looks at the ledger.
    fn watched<R>(&self, pages: PageRange, since: Stamp, subject: &Subject<'_>, body: impl FnOnce() -> R) -> R {
        let before = self.ledger.check(pages, since);
        race_point!("dma: checked, not copied");
        let result = body();
        let after = self.ledger.check_after_copy(pages, since);
        match (before, after) {
            (OwnershipCheck::Current, OwnershipCheck::Current) => {}
            (_, OwnershipCheck::Stale { page, .. }) | (OwnershipCheck::Stale { page, .. }, _) => {
                self.found_stale(page, pages, subject)
            }
            (OwnershipCheck::Orphan, _) | (_, OwnershipCheck::Orphan) => self.counters.orphan_dma.add(1),
        }
        result
    }

    #[cold]
    fn found_stale(&self, page: u64, pages: PageRange, subject: &Subject<'_>) {
        self.counters.stale_dma.add(1);
        if self.findings.lock().len() >= FINDINGS_MAX {
            return;
        }
        let finding = Finding {
            region: subject.region.map(|pinned| pinned.holder.object.describe()),
            page,
            old_owner: (subject.ino, subject.file_block + (page - pages.start())),
            new_owner: self.owner_of(page),
            trace: self.trace_about(PageRange::new(page, 1)),
        };
        let mut findings = self.findings.lock();
        if findings.len() < FINDINGS_MAX {
            findings.push(finding);
        }
    }

    /// The file and file block that a device page belongs to now: a walk over all inodes, for findings and questions.
    pub fn owner_of(&self, page: u64) -> Option<(Ino, u64)> {
        self.inodes.snapshot().into_iter().find_map(|(ino, inode)| {
            inode.layout(|layout| {
                layout
                    .extents()
                    .find(|extent| extent.block <= page && page - extent.block < u64::from(extent.len))
                    .map(|extent| (ino, extent.file_block + (page - extent.block)))
            })
        })
    }

    /// Copies between memory and the device range that starts `skip` bytes into `pages`.
    fn copy(
        &self,
        pages: PageRange,
        skip: u64,
        since: Stamp,
        subject: &Subject<'_>,
        direction: Copy<'_>,
    ) -> Result<(), Errno> {
        let len = direction.len() as u64;
        let offset = pages.start() * BLOCK + skip;
        let first = offset / BLOCK;
        let touched = PageRange::new(first, (offset + len).div_ceil(BLOCK) - first);
        let subject = Subject { file_block: subject.file_block + (first - pages.start()), ..*subject };
        self.watched(touched, since, &subject, || match direction {
            Copy::Out(bytes) => self.device.read(offset, bytes),
            Copy::In(bytes) => self.device.write(offset, bytes),
        })
        .map_err(|_| Errno::EIO)
    }

    /// Reads part of an extent that somebody outside knows by its device blocks: `skip` bytes into `extent`.
    pub(crate) fn read_extent(
        &self,
        ino: Ino,
        extent: &Extent,
        skip: u64,
        since: Stamp,
        into: &mut [u8],
    ) -> Result<(), Errno> {
        let subject = Subject { region: None, ino, file_block: extent.file_block };
        self.copy(crate::gup::pages_of(extent), skip, since, &subject, Copy::Out(into))
    }

    /// Writes part of an extent; see [`Kernel::read_extent`].
    pub(crate) fn write_extent(
        &self,
        ino: Ino,
        extent: &Extent,
        skip: u64,
        since: Stamp,
        from: &[u8],
    ) -> Result<(), Errno> {
        let subject = Subject { region: None, ino, file_block: extent.file_block };
        self.copy(crate::gup::pages_of(extent), skip, since, &subject, Copy::In(from))
    }

    /// Copies between memory and a file range held by short-term pins. Holes read as zeros; writing one is EFAULT.
    fn copy_short(&self, inode: &Inode, pins: &ShortPins, offset: u64, mut direction: Copy<'_>) -> Result<(), Errno> {
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
                (Piece::Hole { .. }, Copy::Out(bytes)) => bytes[window].fill(0),
                (Piece::Hole { .. }, Copy::In(_)) => return Err(Errno::EFAULT),
                (Piece::Mapped(extent), direction) => {
                    let unwritten = extent.state == crate::extent_map::ExtentState::Unwritten;
                    let part = match direction {
                        Copy::Out(bytes) if unwritten => {
                            bytes[window].fill(0);
                            continue;
                        }
                        Copy::Out(bytes) => Copy::Out(&mut bytes[window]),
                        Copy::In(bytes) => Copy::In(&bytes[window]),
                    };
                    let subject = Subject { region: None, ino: inode.ino(), file_block: extent.file_block };
                    let skip = from - start_block * BLOCK;
                    self.copy(crate::gup::pages_of(extent), skip, pins.read_point, &subject, part)?;
                }
            }
        }
        Ok(())
    }

    /// Reads what short-term pins hold, from byte `offset` of the file on.
    pub(crate) fn read_short(
        &self,
        inode: &Inode,
        pins: &ShortPins,
        offset: u64,
        into: &mut [u8],
    ) -> Result<(), Errno> {
        self.copy_short(inode, pins, offset, Copy::Out(into))
    }

    /// Writes what short-term pins hold, from byte `offset` of the file on.
    pub(crate) fn write_short(&self, inode: &Inode, pins: &ShortPins, offset: u64, from: &[u8]) -> Result<(), Errno> {
        self.copy_short(inode, pins, offset, Copy::In(from))
    }
}

impl Pinned {
    /// The device byte offsets of `offset..offset+len` of the region, piece by piece, as (pages, skip, length).
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

    fn check(&self, offset: u64, len: usize) -> Result<(), Errno> {
        let end = offset.checked_add(len as u64).ok_or(Errno::EFAULT)?;
        if end > self.len { Err(Errno::EFAULT) } else { Ok(()) }
    }

    /// The file block of the `nth` block of this region.
    fn file_block(&self, nth: u64) -> u64 {
        self.holder.range.start + nth
    }

    /// A device writes into the region, through the region's own page list: a wrong design lets it write into blocks that
    /// were freed.
    ///
    /// # Errors
    /// EFAULT outside the region, EIO if the device fails.
    pub fn dma_write(&self, kernel: &Kernel, offset: u64, mut from: &[u8]) -> Result<(), Errno> {
        self.check(offset, from.len())?;
        for (pages, nth, skip, len) in self.pieces(offset, from.len() as u64) {
            let (head, tail) = from.split_at(len as usize);
            let subject = Subject { region: Some(self), ino: self.inode.ino(), file_block: self.file_block(nth) };
            kernel.copy(pages, skip, self.read_point, &subject, Copy::In(head))?;
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
            let subject = Subject { region: Some(self), ino: self.inode.ino(), file_block: self.file_block(nth) };
            kernel.copy(pages, skip, self.read_point, &subject, Copy::Out(head))?;
            into = tail;
        }
        Ok(())
    }

    /// Makes what was written to these bytes of the region durable: returns once the medium has it.
    ///
    /// # Errors
    /// EFAULT outside the region, EIO if the device fails.
    pub fn persist(&self, kernel: &Kernel, offset: u64, len: u64) -> Result<(), Errno> {
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(Errno::EFAULT);
        }
        self.pieces(offset, len).try_for_each(|(pages, _, skip, len)| kernel.persist(pages, skip, len))
    }

    /// A device's atomic on 8 aligned bytes of the region; the value before, or the one stored.
    ///
    /// # Errors
    /// EINVAL if misaligned, EFAULT outside the region, EIO if the device fails.
    pub fn dma_atomic(&self, kernel: &Kernel, offset: u64, op: AtomicOp) -> Result<u64, Errno> {
        self.check(offset, 8)?;
        if !(self.file_offset + offset).is_multiple_of(8) {
            return Err(Errno::EINVAL);
        }
        let (pages, nth, skip, _) = self.pieces(offset, 8).next().ok_or(Errno::EFAULT)?;
        let subject = Subject { region: Some(self), ino: self.inode.ino(), file_block: self.file_block(nth) };
        kernel.atomic_at(pages, skip, self.read_point, &subject, op)
    }
}

impl Kernel {
    /// Makes `len` bytes from `skip` bytes into `pages` on durable.
    fn persist(&self, pages: PageRange, skip: u64, len: u64) -> Result<(), Errno> {
        let first = pages.start() + skip / BLOCK;
        let end = pages.start() + (skip + len).div_ceil(BLOCK);
        self.device.sync_pages(PageRange::new(first, end - first)).map_err(|_| Errno::EIO)?;
        self.counters.pages_persisted.add(end - first);
        Ok(())
    }

    fn atomic_at(
        &self,
        pages: PageRange,
        skip: u64,
        since: Stamp,
        subject: &Subject<'_>,
        op: AtomicOp,
    ) -> Result<u64, Errno> {
        let page = PageRange::new(pages.start() + skip / BLOCK, 1);
        let at = pages.start() * BLOCK + skip;
        self.watched(page, since, subject, || match op {
            AtomicOp::CompareSwap(expected, new) => self.device.compare_exchange_u64(at, expected, new),
            AtomicOp::FetchAdd(addend) => self.device.fetch_add_u64(at, addend),
            AtomicOp::Store(value) => self.device.store_u64(at, value).map(|()| value),
        })
        .map_err(|_| Errno::EIO)
    }
}
