//! Reflink, dedupe and exchange-range: layout changes of two files at once, or of two places in
//! one file.
//!
//! It owns what they check and the two maps that they make. Invariants: a block that becomes
//! shared is counted before a second map shows it, and is never written in place afterwards;
//! contents are compared only while no task can write them. Kernel counterpart:
//! `xfs_file_remap_range`, `generic_remap_file_range_prep` (fs/remap_range.c),
//! `xfs_exchange_range`.

use emulator::sync::Arc;
use emulator::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::base::errno::Errno;
use crate::base::range::BlockRange;
use crate::base::units::{BLOCK, FILE_MAX};
use crate::extent_map::lookup::{mapped, pages_of, tail_block};
use crate::extent_map::{Extent, ExtentState, Layout};
use crate::layout_change::copy::{same_bytes, zero_to_block_end};
use crate::layout_change::driver::{change_layouts, meets_pins_anyway};
use crate::layout_change::plan::{ChangePlan, ClearedBlocks, FilePlace, JointChange, Patience, StillHolds};
use crate::vfs::inode::Inode;
use crate::vfs::kernel::Kernel;
use crate::vfs::task::Task;

/// The most bytes that one dedupe compares, as in the filesystems that compare under their locks.
/// Kernel: `BTRFS_MAX_DEDUPE_LEN`, `OCFS2_MAX_DEDUPE_LEN`.
const DEDUPE_MAX: u64 = 16 << 20;

/// Extents of `from`, at the offsets that they have in `to`.
fn moved(extents: impl IntoIterator<Item = Extent>, from: BlockRange, to: BlockRange) -> Vec<Extent> {
    let place = |extent: Extent| Extent { file_block: to.start + (extent.file_block - from.start), ..extent };
    extents.into_iter().map(place).collect()
}

/// Whether two places overlap in one file.
fn overlap(a: FilePlace, b: FilePlace, len: u64) -> bool {
    a.side == b.side && a.blocks(len).overlaps(b.blocks(len))
}

/// Maps the blocks of one place at the other place too.
struct Remap {
    from: FilePlace,
    to: FilePlace,
    /// Bytes asked for; 0 means to the end of the source.
    len: u64,
    /// Only if both places hold the same bytes (and then without a change of size).
    compare: bool,
    compared: Compared,
}

/// What a dedupe has found out about its two places.
#[derive(Debug, Default)]
struct Compared {
    /// The contents were compared before any lease was broken. Once is enough: the comparison that
    /// counts is the one with the pages closed.
    looked: AtomicBool,
    differ: AtomicBool,
    /// How many bytes are remapped.
    bytes: AtomicU64,
}

impl Remap {
    /// How many bytes are remapped, by the rules of `generic_remap_checks`: ranges end at block
    /// boundaries or at the end of the file.
    fn length(&self, from: &Layout, to: &Layout) -> Result<u64, Errno> {
        let (size_from, size_to) = (from.size(), to.size());
        let len = match self.len {
            0 if self.compare => return Ok(0),
            0 => size_from.checked_sub(self.from.offset).ok_or(Errno::EINVAL)?,
            len => len,
        };
        if len == 0 {
            return Ok(0);
        }
        let ends = |place: FilePlace| place.offset.checked_add(len).ok_or(Errno::EINVAL);
        let (end_from, end_to) = (ends(self.from)?, ends(self.to)?);
        if end_from > size_from || (self.compare && end_to > size_to) {
            return Err(Errno::EINVAL);
        }
        if end_to > FILE_MAX {
            return Err(Errno::EFBIG);
        }
        let at_the_end = end_from == size_from && if self.compare { end_to == size_to } else { end_to >= size_to };
        let len = match (len % BLOCK, at_the_end) {
            (0, _) | (_, true) => len,
            // FIDEDUPERANGE may do less than asked; cloning may not.
            (part, false) if self.compare => len - part,
            (_, false) => return Err(Errno::EINVAL),
        };
        if overlap(self.from, self.to, len) {
            return Err(Errno::EINVAL);
        }
        Ok(if self.compare { len.min(DEDUPE_MAX) } else { len })
    }

    /// The written extents of the source. An unwritten block of the source becomes a hole of the
    /// target, as in XFS.
    fn source<'a>(&self, from: &'a Layout, len: u64) -> impl Iterator<Item = Extent> + use<'a> {
        mapped(from, self.from.blocks(len)).filter(|extent| extent.state == ExtentState::Written)
    }

    /// Whether the contents allow the remap.
    fn compares(&self, kernel: &Kernel, layouts: &[Layout], len: u64) -> Result<bool, Errno> {
        if !self.compare {
            return Ok(true);
        }
        let (from, to) = self.places(layouts);
        let same = same_bytes(kernel, (from, self.from), (to, self.to), len)?;
        self.compared.differ.store(!same, Ordering::Relaxed);
        Ok(same)
    }

    fn places<'a>(&self, layouts: &'a [Layout]) -> (&'a Layout, &'a Layout) {
        (&layouts[self.from.side], &layouts[self.to.side])
    }
}

impl JointChange for Remap {
    fn plan(&self, kernel: &Kernel, layouts: &[Layout]) -> Result<Option<Vec<ChangePlan>>, Errno> {
        let (from, to) = self.places(layouts);
        let len = self.length(from, to)?;
        let (source, target) = (self.from.blocks(len), self.to.blocks(len));
        let grows = !self.compare && self.to.offset + len > to.size();
        let there: Vec<Extent> = mapped(to, target).collect();
        let wanted = moved(self.source(from, len), source, target);
        self.compared.bytes.store(len, Ordering::Relaxed);
        if len == 0 || (!grows && there == wanted) {
            return Ok(None);
        }
        // Compared here so that no lease is broken for files that differ; once more if they did
        // and the call has waited for pins since.
        let looks = !self.compared.looked.swap(true, Ordering::Relaxed) || self.compared.differ.load(Ordering::Relaxed);
        if looks && !self.compares(kernel, layouts, len)? {
            return Ok(None);
        }
        let mut plans: Vec<ChangePlan> = layouts.iter().map(|_| ChangePlan::default()).collect();
        if self.source(from, len).any(|extent| !extent.shared) {
            plans[self.from.side] =
                ChangePlan { touches: source.into(), shares: vec![source], ..ChangePlan::default() };
        }
        let plan = &mut plans[self.to.side];
        let from_end = BlockRange::from(target.start.min(to.size() / BLOCK));
        let touched = if grows { from_end } else { target };
        plan.touches.add(touched);
        plan.leaves = vec![target];
        let tail = if grows { tail_block(to.size()) } else { BlockRange::NONE };
        plan.writes = vec![tail.intersect(BlockRange::new(0, target.start))];
        plan.zeroes = plan.writes.clone();
        Ok(Some(plans))
    }

    fn holds(&self, kernel: &Kernel, planned: &[Layout], layouts: &[Layout]) -> Result<StillHolds, Errno> {
        let (before, _) = self.places(planned);
        let (from, to) = self.places(layouts);
        let Ok(len) = self.length(from, to) else { return Ok(StillHolds::Again) };
        if !self.source(before, len).eq(self.source(from, len)) {
            // A block that has turned written since was not closed: a task may be writing it.
            return Ok(StillHolds::Again);
        }
        Ok(if self.compares(kernel, layouts, len)? { StillHolds::Yes } else { StillHolds::No })
    }

    fn apply(&self, kernel: &Kernel, layouts: &[Layout], _ready: &ClearedBlocks<'_>) -> Vec<Layout> {
        let (from, to) = self.places(layouts);
        // The turn is held: the plan's checks still hold.
        let len = self.length(from, to).unwrap_or(0);
        let (source, target) = (self.from.blocks(len), self.to.blocks(len));
        let extents: Vec<Extent> = self.source(from, len).map(|extent| Extent { shared: true, ..extent }).collect();
        let mut next = layouts.to_vec();
        for extent in &extents {
            kernel.shares.share(pages_of(extent));
            let side = &mut next[self.from.side];
            *side = side.with_shared(extent.range(), true);
        }
        let size = to.size();
        let end = if self.compare { size } else { size.max(self.to.offset + len) };
        if end > size && self.to.offset > size {
            zero_to_block_end(kernel, to, size);
        }
        let side = &mut next[self.to.side];
        *side = side.without(target).0.with_mapped(&moved(extents, source, target)).with_size(end);
        next
    }
}

/// Swaps the blocks of two places.
pub(crate) struct Exchange {
    pub(crate) a: FilePlace,
    pub(crate) b: FilePlace,
    pub(crate) len: u64,
}

impl JointChange for Exchange {
    fn plan(&self, _kernel: &Kernel, layouts: &[Layout]) -> Result<Option<Vec<ChangePlan>>, Errno> {
        let (a, b) = (&layouts[self.a.side], &layouts[self.b.side]);
        if self.len == 0 {
            return Ok(None);
        }
        let ends = |place: FilePlace| place.offset.checked_add(self.len).ok_or(Errno::EINVAL);
        let (end_a, end_b) = (ends(self.a)?, ends(self.b)?);
        let at_both_ends = end_a == a.size() && end_b == b.size();
        if end_a > a.size() || end_b > b.size() || !(self.len.is_multiple_of(BLOCK) || at_both_ends) {
            return Err(Errno::EINVAL);
        }
        if overlap(self.a, self.b, self.len) {
            return Err(Errno::EINVAL);
        }
        let (from, to) = (self.a.blocks(self.len), self.b.blocks(self.len));
        let there: Vec<Extent> = mapped(b, to).collect();
        if there == moved(mapped(a, from), from, to) {
            // Both places are holes, or share the same blocks.
            return Ok(None);
        }
        let mut plans: Vec<ChangePlan> = layouts.iter().map(|_| ChangePlan::default()).collect();
        for (place, blocks) in [(self.a, from), (self.b, to)] {
            let plan = &mut plans[place.side];
            plan.touches.add(blocks);
            plan.moves.push(blocks);
        }
        Ok(Some(plans))
    }

    fn apply(&self, _kernel: &Kernel, layouts: &[Layout], _ready: &ClearedBlocks<'_>) -> Vec<Layout> {
        let (from, to) = (self.a.blocks(self.len), self.b.blocks(self.len));
        let of_a: Vec<Extent> = mapped(&layouts[self.a.side], from).collect();
        let of_b: Vec<Extent> = mapped(&layouts[self.b.side], to).collect();
        let mut next = layouts.to_vec();
        for (place, range) in [(self.a, from), (self.b, to)] {
            next[place.side] = next[place.side].without(range).0;
        }
        for (place, extents) in [(self.a, moved(of_b, to, from)), (self.b, moved(of_a, from, to))] {
            next[place.side] = next[place.side].with_mapped(&extents);
        }
        next
    }
}

/// Runs the change that `make` makes of the two files, which are taken in the order of their inode
/// numbers.
pub(crate) fn change_both<C: JointChange>(
    task: &Task,
    a: &Arc<Inode>,
    b: &Arc<Inode>,
    make: impl FnOnce(usize, usize) -> C,
) -> Result<C, Errno> {
    let (inodes, change): (&[&Arc<Inode>], C) = match a.ino().cmp(&b.ino()) {
        std::cmp::Ordering::Equal => (&[a], make(0, 0)),
        std::cmp::Ordering::Less => (&[a, b], make(0, 1)),
        std::cmp::Ordering::Greater => (&[b, a], make(1, 0)),
    };
    // A change without effect, or one that fails its checks, does not queue for a turn.
    let layouts: Vec<Layout> = inodes.iter().map(|inode| inode.layout(Layout::clone)).collect();
    let has_effect = change.plan(task.kernel(), &layouts)?.is_some();
    if has_effect || meets_pins_anyway(task, change.meets_file(), Patience::Waits) {
        change_layouts(task, inodes, &change, Patience::Waits)?;
    } else {
        for inode in inodes {
            inode.turn.wait_until_unheld(task);
        }
    }
    Ok(change)
}

pub(crate) fn remap(
    task: &Task,
    (src, src_off): (&Arc<Inode>, u64),
    (dst, dst_off): (&Arc<Inode>, u64),
    len: u64,
    compare: bool,
) -> Result<Option<u64>, Errno> {
    if !src_off.is_multiple_of(BLOCK) || !dst_off.is_multiple_of(BLOCK) {
        return Err(Errno::EINVAL);
    }
    let remap = change_both(task, src, dst, |from, to| Remap {
        from: FilePlace { side: from, offset: src_off },
        to: FilePlace { side: to, offset: dst_off },
        len,
        compare,
        compared: Compared::default(),
    })?;
    let Compared { differ, bytes, .. } = remap.compared;
    Ok((!differ.into_inner()).then(|| bytes.into_inner()))
}
