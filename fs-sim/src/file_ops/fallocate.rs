//! `fallocate`: allocate, punch hole, zero range, unshare range; and the allocation that a fault or a pin needs.
//!
//! It owns the changes of a file's map that are not a matter of size alone. Invariants: allocation gives unwritten blocks,
//! which read as zeros; a hole punched over part of a block zeroes that part; a block that is pinned never turns unwritten
//! without the holders' design having its say **\[chosen\]**. Kernel counterpart: `xfs_file_fallocate`.

use emulator::pin::PageRange;
use emulator::sync::Arc;

use super::change::{Change, Patience, Plan, Ready};
use super::plan::{mapped, marked, tail_block};
use super::rw::is_writable;
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
    /// `FALLOC_FL_COLLAPSE_RANGE`: takes the range out, and moves what is behind it up.
    CollapseRange,
    /// `FALLOC_FL_INSERT_RANGE`: moves what is at the offset and behind it down, and leaves a hole.
    InsertRange,
    /// `FALLOC_FL_UNSHARE_RANGE`: allocate what is missing, and copy what is shared.
    UnshareRange {
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
    /// Whether what is shared in the range becomes the file's own.
    pub(crate) unshare: bool,
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
        let grows = self.size_min > size;
        let unshares = self.unshare && marked(layout, self.range);
        if blocks == 0 && !grows && !unshares {
            return Ok(None);
        }
        let touches = match grows {
            true => BlockRange::from(self.range.start.min(size / BLOCK)),
            false => self.range,
        };
        // What lies behind the old end in its block is zeroed.
        let tail = if grows { tail_block(size) } else { BlockRange::NONE };
        let writes = match unshares {
            true => vec![tail.intersect(BlockRange::new(0, self.range.start)), self.range],
            false => vec![tail],
        };
        let touches = (blocks > 0 || grows).then_some(touches).into();
        Ok(Some(Plan { touches, blocks, writes, ..Plan::default() }))
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

/// What a fault or a pin needs of a range that lies inside the file, judged with the ticket held, so that nothing is
/// allocated behind an end that a truncate has just set.
struct Fault {
    range: BlockRange,
    /// Whether holes are filled; else only what is shared becomes the file's own.
    allocate: bool,
}

impl Fault {
    fn allocation(&self) -> Allocate {
        Allocate { range: self.range, size_min: 0, state: ExtentState::Written, unshare: true }
    }
}

impl Change for Fault {
    fn plan(&self, layout: &Layout) -> Result<Option<Plan>, Errno> {
        if self.range.end > layout.size().div_ceil(BLOCK) {
            return Err(Errno::EFAULT);
        }
        match self.allocate {
            true => self.allocation().plan(layout),
            false if !marked(layout, self.range) => Ok(None),
            false => Ok(Some(Plan { writes: vec![self.range], ..Plan::default() })),
        }
    }

    fn apply(&self, kernel: &Kernel, layout: &Layout, ready: &Ready<'_>) -> Layout {
        match self.allocate {
            true => self.allocation().apply(kernel, layout, ready),
            false => layout.clone(),
        }
    }
}

/// The parts of blocks at the edges of a byte range.
fn edges(offset: u64, end: u64) -> impl Iterator<Item = (u64, u64)> {
    let first = (offset, offset.next_multiple_of(BLOCK).min(end));
    let last = ((end / BLOCK * BLOCK).max(first.1), end);
    [first, last].into_iter().filter(|(from, to)| from < to)
}

fn edge_blocks(offset: u64, end: u64) -> impl Iterator<Item = BlockRange> {
    edges(offset, end).map(|(from, to)| BlockRange::of_bytes(from, to - from))
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
        let leaves = mapped(layout, self.whole()).next().is_some();
        if !leaves && !edge_blocks(self.offset, self.end).any(|block| marked(layout, block)) {
            return Ok(None);
        }
        Ok(Some(Plan {
            touches: leaves.then_some(self.whole()).into(),
            leaves: vec![self.whole()],
            writes: edge_blocks(self.offset, self.end).collect(),
            ..Plan::default()
        }))
    }

    fn apply(&self, kernel: &Kernel, layout: &Layout, _ready: &Ready<'_>) -> Layout {
        for (from, to) in edges(self.offset, self.end) {
            kernel.zero_within_block(layout, from, to - from);
        }
        layout.without(self.whole()).0
    }
}

/// Allocates the holes of a byte range, and turns its whole blocks unwritten where they are written: for unpinned blocks that
/// is not a layout change, for pinned ones it counts as one **\[chosen\]**. Where the design lets a change go on under pins,
/// the pinned blocks are overwritten with zeros instead and stay written. Shared ones are replaced by new ones.
struct Zero {
    offset: u64,
    end: u64,
    size_min: u64,
}

impl Zero {
    /// Every block that the bytes touch.
    fn all(&self) -> BlockRange {
        BlockRange::of_bytes(self.offset, self.end - self.offset)
    }

    /// The blocks that lie in the byte range as a whole.
    fn whole(&self) -> BlockRange {
        BlockRange::new(self.offset.div_ceil(BLOCK), self.end / BLOCK)
    }
}

impl Change for Zero {
    fn plan(&self, layout: &Layout) -> Result<Option<Plan>, Errno> {
        let state = ExtentState::Unwritten;
        let growth = Allocate { range: self.all(), size_min: self.size_min, state, unshare: false };
        let growth = growth.plan(layout)?;
        let mut touched = mapped(layout, self.whole());
        let turns = touched.any(|extent| extent.state == ExtentState::Written);
        let edges: Vec<BlockRange> = edge_blocks(self.offset, self.end).collect();
        if growth.is_none() && !turns && !edges.iter().any(|block| marked(layout, *block)) {
            return Ok(None);
        }
        let mut plan = growth.unwrap_or_default();
        // An old end inside the range is zeroed with the rest.
        plan.writes.retain(|tail| !tail.overlaps(self.all()));
        plan.writes.extend(edges);
        Ok(Some(Plan { unwritten: vec![self.whole()], ..plan }))
    }

    fn apply(&self, kernel: &Kernel, layout: &Layout, ready: &Ready<'_>) -> Layout {
        for (from, to) in edges(self.offset, self.end) {
            kernel.zero_within_block(layout, from, to - from);
        }
        if self.size_min > layout.size() {
            kernel.zero_to_block_end(layout, layout.size());
        }
        let mut next = fill_holes(layout, self.all(), ready.fresh, ExtentState::Unwritten);
        for piece in pieces_in(layout, self.whole()) {
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
        // Locked still: else it could commit half of what another change has published since.
        self.journal.commit(&[inode]);
    }
}

impl Task {
    /// Changes the allocation of `len` bytes at `offset` of the file open as `fd`.
    ///
    /// # Errors
    /// EBADF (not open for writing), EINVAL (length 0, not a file; collapse and insert: not block aligned, a range that reaches
    /// the end of the file, or an offset behind it), EFBIG, ENOSPC (nothing changed); ETXTBSY, EDEADLK, EINTR as the design
    /// says.
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
                Mode::Allocate { keep_size } | Mode::UnshareRange { keep_size } => {
                    let size_min = if keep_size { 0 } else { end };
                    let range = BlockRange::of_bytes(offset, len);
                    let unshare = matches!(mode, Mode::UnshareRange { .. });
                    let change = Allocate { range, size_min, state: ExtentState::Unwritten, unshare };
                    self.change(inode, &change, Patience::Waits).map(|_| ())
                }
                Mode::PunchHole => self.change_and_zero(inode, &Punch { offset, end }, offset, end),
                Mode::ZeroRange { keep_size } => {
                    let size_min = if keep_size { 0 } else { end };
                    self.change_and_zero(inode, &Zero { offset, end, size_min }, offset, end)
                }
                Mode::CollapseRange => self.collapse(inode, offset, len),
                Mode::InsertRange => self.insert(inode, offset, len),
            }
        })
    }

    /// Runs a change that also zeroes the parts of blocks at the edges of a byte range; where nothing changes, that is an
    /// overwrite.
    fn change_and_zero(&self, inode: &Arc<Inode>, change: &dyn Change, offset: u64, end: u64) -> Result<(), Errno> {
        while !self.change(inode, change, Patience::Waits)? {
            let mut done = true;
            for (from, to) in edges(offset, end) {
                done &= self.zero_part(inode, from, to)?;
            }
            if done {
                break;
            }
        }
        Ok(())
    }

    /// Zeroes a part of a block in place. False if it is shared.
    fn zero_part(&self, inode: &Inode, from: u64, to: u64) -> Result<bool, Errno> {
        let kernel = self.kernel();
        let pins = kernel.pin_short(inode, BlockRange::of_bytes(from, to - from), Some(self))?;
        let shared = pins.pieces.iter().any(|piece| matches!(piece, Piece::Mapped(extent) if extent.shared));
        // A hole or an unwritten block reads as zeros already.
        let zeroed = match pins.pieces.iter().all(is_writable) {
            true => kernel.write_short(inode, &pins, from, &vec![0; (to - from) as usize]),
            false => Ok(()),
        };
        kernel.unpin_short(pins);
        zeroed.map(|()| !shared)
    }

    /// Allocates the holes of a range as written zeros, and copies what is shared, for a fault or a pin, which must not wait
    /// under a conflict.
    ///
    /// # Errors
    /// EFAULT beyond the end of the file; ETXTBSY under a conflict; ENOSPC.
    pub(crate) fn fault_in(&self, inode: &Arc<Inode>, range: BlockRange) -> Result<(), Errno> {
        self.change(inode, &Fault { range, allocate: true }, Patience::Never).map(|_| ())
    }

    /// As [`Task::fault_in`], leaving holes alone: for a pin for reading.
    ///
    /// # Errors
    /// As for [`Task::fault_in`].
    pub(crate) fn unshare(&self, inode: &Arc<Inode>, range: BlockRange) -> Result<(), Errno> {
        self.change(inode, &Fault { range, allocate: false }, Patience::Never).map(|_| ())
    }
}
