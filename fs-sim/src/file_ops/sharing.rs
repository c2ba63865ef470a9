//! Reflink, dedupe and exchange-range: layout changes of two files at once, or of two places in one.
//!
//! It owns what they check and what they make of the two maps. Invariants: a block that becomes shared is counted before a
//! second map shows it, and is written in place by nobody from then on; contents are compared only when nobody can write
//! them. Kernel counterpart: `xfs_file_remap_range`, `generic_remap_file_range_prep` (fs/remap_range.c),
//! `xfs_exchange_range`.

use emulator::sync::Arc;
use emulator::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::change::{Holds, Joint, Patience, Plan, Ready};
use super::plan::{mapped, tail_block};
use crate::errno::Errno;
use crate::extent_map::{Extent, ExtentState, Layout};
use crate::inode::Inode;
use crate::process::description::{Access, Deferred};
use crate::process::fd_table::Fd;
use crate::process::task::Task;
use crate::range::BlockRange;
use crate::{BLOCK, FILE_MAX, Kernel};

/// The most bytes that one dedupe compares, as in the file systems that compare under their locks.
/// Kernel: `BTRFS_MAX_DEDUPE_LEN`, `OCFS2_MAX_DEDUPE_LEN`.
const DEDUPE_MAX: u64 = 16 << 20;

/// A range of one of the files of a change.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// Which file, in the order of the change.
    side: usize,
    /// Byte offset, block aligned.
    offset: u64,
}

impl Place {
    /// The blocks of `len` bytes, the last perhaps in part.
    fn blocks(self, len: u64) -> BlockRange {
        BlockRange::of_bytes(self.offset, len)
    }
}

/// Extents of `from` as they lie in `to`.
fn moved(extents: impl IntoIterator<Item = Extent>, from: BlockRange, to: BlockRange) -> Vec<Extent> {
    let place = |extent: Extent| Extent { file_block: to.start + (extent.file_block - from.start), ..extent };
    extents.into_iter().map(place).collect()
}

/// Whether two ranges overlap in one file.
fn overlap(a: Place, b: Place, len: u64) -> bool {
    a.side == b.side && a.blocks(len).overlaps(b.blocks(len))
}

/// Maps the blocks of one place at the other as well.
struct Remap {
    from: Place,
    to: Place,
    /// Bytes asked for; 0: to the end of the source.
    len: u64,
    /// Only if both places hold the same bytes (and then without a change of size).
    compare: bool,
    compared: Compared,
}

/// What a dedupe has found out about its two places.
#[derive(Debug, Default)]
struct Compared {
    /// They were looked at before anybody was told of the change: once is enough, what counts is the look at what is shut.
    looked: AtomicBool,
    differ: AtomicBool,
    /// How many bytes it is about.
    bytes: AtomicU64,
}

impl Remap {
    /// How many bytes it is about, by the rules of `generic_remap_checks`: ranges end at block boundaries, or at the end of
    /// the file.
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
        let ends = |place: Place| place.offset.checked_add(len).ok_or(Errno::EINVAL);
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
            // FIDEDUPERANGE may do less than it is asked to; cloning may not.
            (part, false) if self.compare => len - part,
            (_, false) => return Err(Errno::EINVAL),
        };
        if overlap(self.from, self.to, len) {
            return Err(Errno::EINVAL);
        }
        Ok(if self.compare { len.min(DEDUPE_MAX) } else { len })
    }

    /// The written extents of the source: what is unwritten there becomes a hole, as it does in XFS.
    fn source<'a>(&self, from: &'a Layout, len: u64) -> impl Iterator<Item = Extent> + use<'a> {
        mapped(from, self.from.blocks(len)).filter(|extent| extent.state == ExtentState::Written)
    }

    /// Whether the contents allow it.
    fn compares(&self, kernel: &Kernel, layouts: &[Layout], len: u64) -> Result<bool, Errno> {
        if !self.compare {
            return Ok(true);
        }
        let (from, to) = self.places(layouts);
        let same = kernel.same_bytes((from, self.from), (to, self.to), len)?;
        self.compared.differ.store(!same, Ordering::Relaxed);
        Ok(same)
    }

    fn places<'a>(&self, layouts: &'a [Layout]) -> (&'a Layout, &'a Layout) {
        (&layouts[self.from.side], &layouts[self.to.side])
    }
}

impl Joint for Remap {
    fn plan(&self, kernel: &Kernel, layouts: &[Layout]) -> Result<Option<Vec<Plan>>, Errno> {
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
        // Looked at here so that nobody's lease is broken for files that differ.
        if !self.compared.looked.swap(true, Ordering::Relaxed) && !self.compares(kernel, layouts, len)? {
            return Ok(None);
        }
        let mut plans: Vec<Plan> = layouts.iter().map(|_| Plan::default()).collect();
        if self.source(from, len).any(|extent| !extent.shared) {
            plans[self.from.side] = Plan { touches: source.into(), shares: vec![source], ..Plan::default() };
        }
        let plan = &mut plans[self.to.side];
        let from_end = BlockRange::from(target.start.min(to.size() / BLOCK));
        let touched = if grows { from_end } else { target };
        plan.touches.add(touched);
        plan.leaves = vec![target];
        let tail = if grows { tail_block(to.size()) } else { BlockRange::NONE };
        plan.writes = vec![tail.intersect(BlockRange::new(0, target.start))];
        Ok(Some(plans))
    }

    fn holds(&self, kernel: &Kernel, planned: &[Layout], layouts: &[Layout]) -> Result<Holds, Errno> {
        let (before, _) = self.places(planned);
        let (from, to) = self.places(layouts);
        let Ok(len) = self.length(from, to) else { return Ok(Holds::Again) };
        if !self.source(before, len).eq(self.source(from, len)) {
            // What has turned written since was not shut: somebody may be writing it.
            return Ok(Holds::Again);
        }
        Ok(if self.compares(kernel, layouts, len)? { Holds::Yes } else { Holds::No })
    }

    fn apply(&self, kernel: &Kernel, layouts: &[Layout], _ready: &Ready<'_>) -> Vec<Layout> {
        let (from, to) = self.places(layouts);
        // The ticket is held: what was checked is so still.
        let len = self.length(from, to).unwrap_or(0);
        let (source, target) = (self.from.blocks(len), self.to.blocks(len));
        let extents: Vec<Extent> = self.source(from, len).map(|extent| Extent { shared: true, ..extent }).collect();
        let mut next = layouts.to_vec();
        for extent in &extents {
            kernel.shares.share(crate::gup::pages_of(extent));
            let side = &mut next[self.from.side];
            *side = side.with_shared(extent.range(), true);
        }
        let size = to.size();
        let end = if self.compare { size } else { size.max(self.to.offset + len) };
        if end > size && self.to.offset > size {
            kernel.zero_to_block_end(to, size);
        }
        let side = &mut next[self.to.side];
        *side = side.without(target).0.with_mapped(&moved(extents, source, target)).with_size(end);
        next
    }
}

/// Swaps the blocks of two places.
struct Exchange {
    a: Place,
    b: Place,
    len: u64,
}

impl Joint for Exchange {
    fn plan(&self, _kernel: &Kernel, layouts: &[Layout]) -> Result<Option<Vec<Plan>>, Errno> {
        let (a, b) = (&layouts[self.a.side], &layouts[self.b.side]);
        if self.len == 0 {
            return Ok(None);
        }
        let ends = |place: Place| place.offset.checked_add(self.len).ok_or(Errno::EINVAL);
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
            // Both are holes, or share the same blocks.
            return Ok(None);
        }
        let mut plans: Vec<Plan> = layouts.iter().map(|_| Plan::default()).collect();
        for (place, blocks) in [(self.a, from), (self.b, to)] {
            let plan = &mut plans[place.side];
            plan.touches.add(blocks);
            plan.moves.push(blocks);
        }
        Ok(Some(plans))
    }

    fn apply(&self, _kernel: &Kernel, layouts: &[Layout], _ready: &Ready<'_>) -> Vec<Layout> {
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

impl Kernel {
    /// Whether two places hold the same bytes. Exact when nobody can write them.
    ///
    /// # Errors
    /// EIO: one can't be read.
    fn same_bytes(&self, a: (&Layout, Place), b: (&Layout, Place), len: u64) -> Result<bool, Errno> {
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
                    Some(at) => self.device.read(at, bytes).map_err(|_| Errno::EIO)?,
                    None => bytes.fill(0),
                }
            }
            if found[0][..part] != found[1][..part] {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Task {
    /// The frame of a system call on two open files.
    fn with_two_files<R>(
        &self,
        a: Fd,
        b: Fd,
        body: impl FnOnce((&Arc<Inode>, Access), (&Arc<Inode>, Access)) -> Result<R, Errno>,
    ) -> Result<R, Errno> {
        self.syscall(|| {
            let descriptions = {
                let fds = self.process().fds.lock();
                // Both are looked up before a reference is taken on either.
                let (a, b) = (fds.get(a)?, fds.get(b)?);
                [a.get(), b.get()]
            };
            let result = match (descriptions[0].file(), descriptions[1].file()) {
                (Some((_, a)), Some((_, b))) if !a.is_open() || !b.is_open() => Err(Errno::EBADF),
                (Some(a), Some(b)) => body(a, b),
                _ => Err(Errno::EINVAL),
            };
            let mut deferred = Deferred::default();
            for description in descriptions {
                description.put(&mut deferred);
            }
            self.kernel().run_deferred(deferred);
            result
        })
    }

    /// Runs what `make` makes of the two files' places in the order of their inodes' numbers.
    fn change_both<C: Joint>(
        &self,
        a: &Arc<Inode>,
        b: &Arc<Inode>,
        make: impl FnOnce(usize, usize) -> C,
    ) -> Result<C, Errno> {
        let (inodes, change): (&[&Arc<Inode>], C) = match a.ino().cmp(&b.ino()) {
            std::cmp::Ordering::Equal => (&[a], make(0, 0)),
            std::cmp::Ordering::Less => (&[a, b], make(0, 1)),
            std::cmp::Ordering::Greater => (&[b, a], make(1, 0)),
        };
        // Nothing to do, or nothing that can be done: not worth a place in the queue.
        let layouts: Vec<Layout> = inodes.iter().map(|inode| inode.layout(Layout::clone)).collect();
        if change.plan(self.kernel(), &layouts)?.is_some() {
            self.change_jointly(inodes, &change, Patience::Waits)?;
        }
        Ok(change)
    }

    fn remap(
        &self,
        (src, src_off): (&Arc<Inode>, u64),
        (dst, dst_off): (&Arc<Inode>, u64),
        len: u64,
        compare: bool,
    ) -> Result<Option<u64>, Errno> {
        if !src_off.is_multiple_of(BLOCK) || !dst_off.is_multiple_of(BLOCK) {
            return Err(Errno::EINVAL);
        }
        let remap = self.change_both(src, dst, |from, to| Remap {
            from: Place { side: from, offset: src_off },
            to: Place { side: to, offset: dst_off },
            len,
            compare,
            compared: Compared::default(),
        })?;
        let Compared { differ, bytes, .. } = remap.compared;
        Ok((!differ.into_inner()).then(|| bytes.into_inner()))
    }

    /// Maps `len` bytes at `src_off` of one file at `dst_off` of another (or of the same) too, in the place of what was there;
    /// `len` 0 means to the end of the source. Writing either file later copies the block first. `FICLONERANGE`,
    /// ioctl_ficlonerange(2).
    ///
    /// # Errors
    /// EBADF (source not open for reading, target not for writing), EINVAL (not block aligned but for the end of both files,
    /// beyond the source's end, overlapping in one file, not a file), EFBIG, ENOSPC; ETXTBSY, EDEADLK, EINTR as the design
    /// says.
    pub fn reflink(&self, src: Fd, src_off: u64, dst: Fd, dst_off: u64, len: u64) -> Result<(), Errno> {
        self.with_two_files(src, dst, |(from, may), (to, may_too)| {
            if !may.read || !may_too.write {
                return Err(Errno::EBADF);
            }
            self.remap((from, src_off), (to, dst_off), len, false).map(|_| ())
        })
    }

    /// Shares the blocks of `len` bytes of two files if they hold the same bytes: how many bytes it was then, none if they
    /// differ. A length that ends neither at a block nor at the end of both files is rounded down, and no more than 16 MiB
    /// are looked at **\[chosen\]**: "This limit will be enforced silently by the filesystem". `FIDEDUPERANGE` and its
    /// `bytes_deduped`, ioctl_fideduperange(2).
    ///
    /// # Errors
    /// EBADF (source not open for reading), EINVAL (not block aligned, beyond the end of a file, overlapping in one file, not a
    /// file), EIO (a block of either is poisoned), ENOSPC; ETXTBSY, EDEADLK, EINTR as the design says.
    pub fn dedupe(&self, src: Fd, src_off: u64, dst: Fd, dst_off: u64, len: u64) -> Result<Option<u64>, Errno> {
        self.with_two_files(src, dst, |(from, may), (to, _)| {
            // Every process owns every file here: the target may be deduplicated whatever it is open for.
            if !may.read {
                return Err(Errno::EBADF);
            }
            self.remap((from, src_off), (to, dst_off), len, true)
        })
    }

    /// Swaps the blocks of `len` bytes of two files, or of two places in one. `XFS_IOC_EXCHANGE_RANGE`.
    ///
    /// # Errors
    /// EBADF (not both open for reading and writing), EINVAL (not block aligned but for the end of both files, beyond the end
    /// of a file, overlapping in one file, not a file), ENOSPC; ETXTBSY, EDEADLK, EINTR as the design says.
    pub fn exchange_range(&self, a: Fd, a_off: u64, b: Fd, b_off: u64, len: u64) -> Result<(), Errno> {
        self.with_two_files(a, b, |(a, may), (b, may_too)| {
            if [may, may_too].iter().any(|access| !access.read || !access.write) {
                return Err(Errno::EBADF);
            }
            if !a_off.is_multiple_of(BLOCK) || !b_off.is_multiple_of(BLOCK) {
                return Err(Errno::EINVAL);
            }
            self.change_both(a, b, |one, other| Exchange {
                a: Place { side: one, offset: a_off },
                b: Place { side: other, offset: b_off },
                len,
            })
            .map(|_| ())
        })
    }
}
