//! `fallocate`: allocate, punch hole, zero range; and the allocation that a fault or a pin needs.
//!
//! It owns the changes of a file's map that are not a matter of size alone. Invariants: allocation gives unwritten blocks,
//! which read as zeros; a hole punched over part of a block zeroes that part; a block that is pinned never turns unwritten
//! without the holders' design having its say **\[chosen\]**. Kernel counterpart: `xfs_file_fallocate`.

use emulator::pin::PageRange;
use emulator::sync::Arc;

use super::change::{Change, Fate, Patience, Plan, Ready};
use super::truncate::mapped_pages;
use crate::errno::Errno;
use crate::extent_map::{Extent, ExtentState, Layout, Piece};
use crate::gup::pieces_in;
use crate::inode::Inode;
use crate::process::fd_table::Fd;
use crate::process::task::Task;
use crate::range::BlockRange;
use crate::{BLOCK, FILE_MAX, Kernel};

/// What `fallocate` is to do with the range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
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
}

/// Allocates the missing blocks of a range, as `state`.
pub(crate) struct Allocate {
    pub(crate) range: BlockRange,
    /// The size afterwards is at least this many bytes.
    pub(crate) size_min: u64,
    pub(crate) state: ExtentState,
}

/// How many blocks of a range are holes.
pub(crate) fn holes(layout: &Layout, range: BlockRange) -> u64 {
    pieces_in(layout, range)
        .iter()
        .map(|piece| match piece {
            Piece::Hole { len, .. } => *len,
            Piece::Mapped(_) => 0,
        })
        .sum()
}

/// Spreads new blocks over the holes of a range.
pub(crate) fn fill_holes(layout: &Layout, range: BlockRange, fresh: &[PageRange], state: ExtentState) -> Layout {
    const NONE: PageRange = PageRange::new(0, 0);
    let mut fresh = fresh.iter().copied();
    let mut run = fresh.next().unwrap_or(NONE);
    let mut added = Vec::new();
    for piece in pieces_in(layout, range) {
        let Piece::Hole { mut file_block, mut len } = piece else { continue };
        while len > 0 && !run.is_empty() {
            let n = len.min(run.len());
            added.push(Extent::new(file_block, run.start(), n, state));
            file_block += n;
            len -= n;
            run = PageRange::new(run.start() + n, run.len() - n);
            if run.is_empty() {
                run = fresh.next().unwrap_or(NONE);
            }
        }
    }
    layout.with_mapped(&added)
}

impl Change for Allocate {
    fn plan(&self, layout: &Layout) -> Result<Option<Plan>, Errno> {
        let blocks = holes(layout, self.range);
        let size = layout.size();
        if blocks == 0 && self.size_min <= size {
            return Ok(None);
        }
        let touches =
            if self.size_min > size { BlockRange::from(self.range.start.min(size / BLOCK)) } else { self.range };
        Ok(Some(Plan::growth(touches, blocks)))
    }

    fn apply(&self, kernel: &Kernel, layout: &Layout, ready: &Ready<'_>) -> Layout {
        if self.state == ExtentState::Written {
            for pages in ready.fresh {
                // The blocks are the volume's own: the device has them.
                let _in_range = kernel.device.zero(*pages);
            }
        }
        if self.size_min > layout.size() {
            kernel.zero_to_block_end(layout, layout.size());
        }
        let filled = fill_holes(layout, self.range, ready.fresh, self.state);
        let size = filled.size().max(self.size_min);
        filled.with_size(size)
    }
}

/// What a fault needs: the blocks of a range that lies inside the file, judged with the ticket held, so that nothing is
/// allocated behind an end that a truncate has just set.
struct Fault(BlockRange);

impl Fault {
    fn allocation(&self) -> Allocate {
        Allocate { range: self.0, size_min: 0, state: ExtentState::Written }
    }
}

impl Change for Fault {
    fn plan(&self, layout: &Layout) -> Result<Option<Plan>, Errno> {
        if self.0.end > layout.size().div_ceil(BLOCK) {
            return Err(Errno::EFAULT);
        }
        self.allocation().plan(layout)
    }

    fn apply(&self, kernel: &Kernel, layout: &Layout, ready: &Ready<'_>) -> Layout {
        self.allocation().apply(kernel, layout, ready)
    }
}

/// Takes the whole blocks of a byte range out of the file and zeroes the partial ones.
struct Punch {
    offset: u64,
    end: u64,
}

impl Punch {
    fn whole(&self) -> BlockRange {
        BlockRange::new(self.offset.div_ceil(BLOCK), self.end / BLOCK)
    }
}

impl Change for Punch {
    fn plan(&self, layout: &Layout) -> Result<Option<Plan>, Errno> {
        let leaving = mapped_pages(layout, self.whole());
        if leaving.is_empty() {
            return Ok(None);
        }
        Ok(Some(Plan::departure(self.whole(), leaving)))
    }

    fn apply(&self, _kernel: &Kernel, layout: &Layout, _ready: &Ready<'_>) -> Layout {
        layout.without(self.whole()).0
    }
}

/// Allocates the holes of a range, and turns its whole blocks unwritten where they are written: for unpinned blocks that is
/// not a layout change, for pinned ones it counts as one **\[chosen\]**. Where the design lets a change go on under pins, the
/// pinned blocks are overwritten with zeros instead and stay written.
struct Zero {
    /// Every block that the bytes touch.
    all: BlockRange,
    /// The blocks that lie in the byte range as a whole.
    whole: BlockRange,
    size_min: u64,
}

impl Change for Zero {
    fn plan(&self, layout: &Layout) -> Result<Option<Plan>, Errno> {
        let turning = written_pages(layout, self.whole);
        let growth = Allocate { range: self.all, size_min: self.size_min, state: ExtentState::Unwritten };
        Ok(match growth.plan(layout)? {
            Some(plan) => Some(Plan { leaving: turning, fate: Fate::TurnsUnwritten, ..plan }),
            None if turning.is_empty() => None,
            None => Some(Plan {
                range: self.all,
                touches: BlockRange::new(0, 0),
                leaving: turning,
                fate: Fate::TurnsUnwritten,
                blocks: 0,
            }),
        })
    }

    fn apply(&self, kernel: &Kernel, layout: &Layout, ready: &Ready<'_>) -> Layout {
        if self.size_min > layout.size() {
            kernel.zero_to_block_end(layout, layout.size());
        }
        let mut next = fill_holes(layout, self.all, ready.fresh, ExtentState::Unwritten);
        for piece in pieces_in(layout, self.whole) {
            let Piece::Mapped(extent) = piece else { continue };
            for gone in ready.gone {
                if let Some(cut) = gone.intersect(crate::gup::pages_of(&extent)) {
                    let start = extent.file_block + (cut.start() - extent.block);
                    next = next.with_state(BlockRange::new(start, start + cut.len()), ExtentState::Unwritten);
                }
            }
        }
        let size = next.size().max(self.size_min);
        next.with_size(size)
    }
}

/// The device pages of the written blocks in a range.
fn written_pages(layout: &Layout, range: BlockRange) -> Vec<PageRange> {
    pieces_in(layout, range)
        .iter()
        .filter_map(|piece| match piece {
            Piece::Mapped(extent) if extent.state == ExtentState::Written => Some(crate::gup::pages_of(extent)),
            Piece::Mapped(_) | Piece::Hole { .. } => None,
        })
        .collect()
}

impl Kernel {
    /// Turns the unwritten blocks of a range into written zeros: not a layout change, needs no ticket. The zeros are on the
    /// device before the state is published, and the pages are pinned meanwhile.
    pub(crate) fn clean_unwritten(self: &Arc<Self>, inode: &Inode, range: BlockRange) {
        let unwritten = |piece: &Piece| matches!(piece, Piece::Mapped(e) if e.state == ExtentState::Unwritten);
        if !inode.layout(|layout| pieces_in(layout, range).iter().any(unwritten)) {
            return;
        }
        let _publishing = inode.map_lock.lock();
        // With the map locked nothing is published, so what is unwritten now can neither be written nor leave.
        let pieces = inode.layout(|layout| pieces_in(layout, range));
        let mut next = inode.layout(Layout::clone);
        for piece in pieces.iter().filter(|piece| unwritten(piece)) {
            let Piece::Mapped(extent) = piece else { continue };
            let _in_range = self.device.zero(crate::gup::pages_of(extent));
            let blocks = BlockRange::new(extent.file_block, extent.file_block + u64::from(extent.len));
            next = next.with_state(blocks, ExtentState::Written);
        }
        inode.publish_same_blocks(next);
    }
}

impl Task {
    /// Changes the allocation of `len` bytes at `offset` of the file open as `fd`.
    ///
    /// # Errors
    /// EBADF (not open for writing), EINVAL (length 0, not a file), EFBIG, ENOSPC (nothing changed); ETXTBSY, EDEADLK, EINTR
    /// as the design says.
    pub fn fallocate(&self, fd: Fd, mode: Mode, offset: u64, len: u64) -> Result<(), Errno> {
        self.with_file(fd, |_, inode, access| {
            if !access.write {
                return Err(Errno::EBADF);
            }
            if len == 0 {
                return Err(Errno::EINVAL);
            }
            let end = offset.checked_add(len).filter(|end| *end <= FILE_MAX).ok_or(Errno::EFBIG)?;
            match mode {
                Mode::Allocate { keep_size } => {
                    let size_min = if keep_size { 0 } else { end };
                    let range = BlockRange::of_bytes(offset, len);
                    let change = Allocate { range, size_min, state: ExtentState::Unwritten };
                    self.change(inode, &change, Patience::Waits).map(|_| ())
                }
                Mode::PunchHole => self.punch(inode, offset, end),
                Mode::ZeroRange { keep_size } => {
                    let size_min = if keep_size { 0 } else { end };
                    let whole = BlockRange::new(offset.div_ceil(BLOCK), end / BLOCK);
                    let all = BlockRange::of_bytes(offset, len);
                    self.change(inode, &Zero { all, whole, size_min }, Patience::Waits)?;
                    self.zero_edges(inode, offset, end)
                }
            }
        })
    }

    fn punch(&self, inode: &Arc<Inode>, offset: u64, end: u64) -> Result<(), Errno> {
        self.change(inode, &Punch { offset, end }, Patience::Waits)?;
        self.zero_edges(inode, offset, end)
    }

    /// Zeroes the parts of blocks at the edges of a byte range whose whole blocks were dealt with: an overwrite.
    fn zero_edges(&self, inode: &Arc<Inode>, offset: u64, end: u64) -> Result<(), Errno> {
        let first = (offset, offset.next_multiple_of(BLOCK).min(end));
        let last = ((end / BLOCK * BLOCK).max(first.1), end);
        for (from, to) in [first, last] {
            if from < to {
                self.zero_part(inode, from, to)?;
            }
        }
        Ok(())
    }

    fn zero_part(&self, inode: &Inode, from: u64, to: u64) -> Result<(), Errno> {
        let kernel = self.kernel();
        let pins = kernel.pin_short(inode, BlockRange::of_bytes(from, to - from), Some(self))?;
        let written = pins
            .pieces
            .iter()
            .all(|piece| matches!(piece, Piece::Mapped(extent) if extent.state == ExtentState::Written));
        // A hole or an unwritten block reads as zeros already.
        let zeroed = match written {
            true => kernel.write_short(inode, &pins, from, &vec![0; (to - from) as usize]),
            false => Ok(()),
        };
        kernel.unpin_short(pins);
        zeroed
    }

    /// Allocates the holes of a range as written zeros for a fault or a pin, which must not wait under a conflict.
    ///
    /// # Errors
    /// EFAULT beyond the end of the file; ETXTBSY under a conflict; ENOSPC.
    pub(crate) fn fault_in(&self, inode: &Arc<Inode>, range: BlockRange) -> Result<(), Errno> {
        self.change(inode, &Fault(range), Patience::Never).map(|_| ())
    }
}
