//! Allocation: filling holes, for `fallocate`, a fault or a pin.
//!
//! It owns the changes that only add blocks or make shared ones the file's own, and the cleaning
//! of unwritten blocks. Invariants: `fallocate` gives unwritten blocks, which read as zeros; a
//! fault and a pin get written zeros, and never wait under a conflict. Kernel counterpart:
//! `xfs_alloc_file_space`, `dax_iomap_fault`.

use emulator::sync::Arc;

use crate::base::errno::Errno;
use crate::base::range::BlockRange;
use crate::base::units::BLOCK;
use crate::extent_map::lookup::{fill_holes, holes, marked, pages_of, pieces_in, tail_block};
use crate::extent_map::{ExtentState, Layout, Piece};
use crate::layout_change::copy::{zero_blocks, zero_to_block_end};
use crate::layout_change::driver::change_layout;
use crate::layout_change::plan::{Change, ChangePlan, ClearedBlocks, Patience};
use crate::vfs::inode::Inode;
use crate::vfs::kernel::Kernel;
use crate::vfs::task::Task;

/// Allocates the missing blocks of a range, as `state`.
pub(crate) struct Allocate {
    pub(crate) range: BlockRange,
    /// The smallest size of the file afterwards, in bytes.
    pub(crate) size_min: u64,
    pub(crate) state: ExtentState,
    /// Whether shared blocks in the range become the file's own.
    pub(crate) unshare: bool,
    /// Whether the call is `fallocate`, which meets pins anywhere in the file; a write, a fault or
    /// a pin allocates too.
    pub(crate) by_fallocate: bool,
}

impl Change for Allocate {
    fn plan(&self, layout: &Layout) -> Result<Option<ChangePlan>, Errno> {
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
        // The bytes behind the old end, in the block of the old end, are zeroed.
        let tail = if grows { tail_block(size) } else { BlockRange::NONE };
        let writes = match unshares {
            true => vec![tail.intersect(BlockRange::new(0, self.range.start)), self.range],
            false => vec![tail],
        };
        let touches = (blocks > 0 || grows).then_some(touches).into();
        Ok(Some(ChangePlan { touches, blocks, writes, zeroes: vec![tail], ..ChangePlan::default() }))
    }

    fn meets_file(&self) -> bool {
        self.by_fallocate
    }

    fn apply(&self, kernel: &Kernel, layout: &Layout, ready: &ClearedBlocks<'_>) -> Layout {
        if self.state == ExtentState::Written {
            for pages in ready.fresh {
                zero_blocks(kernel, *pages);
            }
        }
        if self.size_min > layout.size() {
            zero_to_block_end(kernel, layout, layout.size());
        }
        let filled = fill_holes(layout, self.range, ready.fresh, self.state);
        let size = filled.size().max(self.size_min);
        filled.with_size(size)
    }
}

/// What a fault or a pin needs of a range inside the file. It is planned with the turn held, so
/// nothing is allocated behind an end that a truncate has just set.
struct FaultAllocation {
    range: BlockRange,
    /// Whether holes are filled; else only shared blocks become the file's own.
    allocate: bool,
    /// What needs it.
    cause: AllocationCause,
}

/// Which access needs blocks of the file's own: it allocates or copies them without waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AllocationCause {
    /// A fault: the process's own leases are judged as for a write.
    Fault,
    /// A long-term pin: the process's own leases do not forbid what its pin needs.
    LongTermPin,
}

impl FaultAllocation {
    fn allocation(&self) -> Allocate {
        Allocate { range: self.range, size_min: 0, state: ExtentState::Written, unshare: true, by_fallocate: false }
    }
}

impl Change for FaultAllocation {
    fn plan(&self, layout: &Layout) -> Result<Option<ChangePlan>, Errno> {
        if self.range.end > layout.size().div_ceil(BLOCK) {
            return Err(Errno::EFAULT);
        }
        let plan = match self.allocate {
            true => self.allocation().plan(layout)?,
            false if !marked(layout, self.range) => None,
            false => Some(ChangePlan { writes: vec![self.range], ..ChangePlan::default() }),
        };
        let for_own_pin = self.cause == AllocationCause::LongTermPin;
        Ok(plan.map(|plan| ChangePlan { for_own_pin, ..plan }))
    }

    fn meets_file(&self) -> bool {
        false
    }

    fn apply(&self, kernel: &Kernel, layout: &Layout, ready: &ClearedBlocks<'_>) -> Layout {
        match self.allocate {
            true => self.allocation().apply(kernel, layout, ready),
            false => layout.clone(),
        }
    }
}

/// Turns the unwritten blocks of a range into written zeros. This is no layout change and needs no
/// turn. The zeros are on the device before the state is published, and the map's lock keeps the
/// blocks in the file meanwhile.
pub(crate) fn clean_unwritten(kernel: &Arc<Kernel>, inode: &Inode, range: BlockRange) {
    let unwritten = |piece: &Piece| matches!(piece, Piece::Mapped(e) if e.state == ExtentState::Unwritten);
    if !inode.layout(|layout| pieces_in(layout, range).iter().any(unwritten)) {
        return;
    }
    let _publishing = inode.map_lock.lock();
    // With the map locked nothing is published: an unwritten block can neither turn written nor
    // leave the file.
    let pieces = inode.layout(|layout| pieces_in(layout, range));
    let mut next = inode.layout(Layout::clone);
    for piece in pieces.iter().filter(|piece| unwritten(piece)) {
        let Piece::Mapped(extent) = piece else { continue };
        zero_blocks(kernel, pages_of(extent));
        let blocks = BlockRange::new(extent.file_block, extent.file_block + u64::from(extent.len));
        next = next.with_state(blocks, ExtentState::Written);
    }
    inode.publish_same_blocks(next);
    // Still locked: else this could commit half of what another change has published meanwhile.
    kernel.journal.commit([inode.to_commit()]);
}

/// Allocates the holes of a range as written zeros and copies what is shared, for a fault or a
/// pin. It never waits under a conflict.
///
/// # Errors
/// EFAULT beyond the end of the file; ETXTBSY under a conflict; ENOSPC.
pub(crate) fn fault_in(
    task: &Task,
    inode: &Arc<Inode>,
    range: BlockRange,
    cause: AllocationCause,
) -> Result<(), Errno> {
    change_layout(task, inode, &FaultAllocation { range, allocate: true, cause }, Patience::Never).map(|_| ())
}

/// As [`fault_in`], but leaves holes alone: for a pin that only reads.
///
/// # Errors
/// As for [`fault_in`].
pub(crate) fn unshare(task: &Task, inode: &Arc<Inode>, range: BlockRange) -> Result<(), Errno> {
    let cause = AllocationCause::LongTermPin;
    change_layout(task, inode, &FaultAllocation { range, allocate: false, cause }, Patience::Never).map(|_| ())
}
