//! The layout of a file as a value.
//!
//! It owns the sharing of structure between a layout and the next. Extents sit in chunks of at most
//! [`CHUNK`]; a layout is a table of them. Every update goes through one function,
//! [`Layout::rewritten`]: it collects the chunks that the range meets or touches, edits that list,
//! and puts the others into the new table as they are. So an update of a file with `n` extents
//! copies the touched chunks (6 KiB each) and `n / CHUNK` table entries of 24 bytes: for 100,000
//! extents some 10 KiB instead of 2.4 MiB. Collapsing and inserting move every extent behind the
//! range and copy them all. A look-up is two binary searches.
//!
//! Invariant: besides the module's, no chunk is empty or longer than [`CHUNK`].

use emulator::sync::Arc;

use super::{Extent, ExtentState, FILE_BLOCKS_MAX, FiemapExtent, Piece};
use crate::base::range::BlockRange;
use crate::base::units::BLOCK;

/// Extents in a chunk at most.
pub(super) const CHUNK: usize = 256;

/// A rewritten part with fewer extents takes a neighbouring chunk in, so that chunks don't crumble.
const CHUNK_MIN: usize = CHUNK / 4;

/// A run of extents, never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Chunk {
    /// The first file block, so that finding the chunk touches no other memory.
    first: u64,
    extents: Arc<[Extent]>,
}

impl Chunk {
    fn end(&self) -> u64 {
        self.extents.last().map_or(self.first, Extent::end)
    }
}

/// See the module. Cloning costs one reference.
#[derive(Clone, Debug)]
pub struct Layout {
    size: u64,
    mapped: u64,
    chunks: Arc<[Chunk]>,
}

impl Default for Layout {
    fn default() -> Layout {
        Layout { size: 0, mapped: 0, chunks: Arc::new([]) }
    }
}

/// Equal if they map alike; the cut into chunks does not count.
impl PartialEq for Layout {
    fn eq(&self, other: &Layout) -> bool {
        self.size == other.size && self.extents().eq(other.extents())
    }
}

impl Eq for Layout {}

impl Layout {
    /// The file's size in bytes. Extents may lie behind it (`FALLOC_FL_KEEP_SIZE`).
    pub fn size(&self) -> u64 {
        self.size
    }

    /// How many file blocks are mapped; a device block mapped twice counts twice.
    pub fn mapped_blocks(&self) -> u64 {
        self.mapped
    }

    /// How many extents there are.
    pub fn extent_count(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.extents.len()).sum()
    }

    /// All extents in file order.
    pub fn extents(&self) -> impl Iterator<Item = Extent> + '_ {
        self.chunks.iter().flat_map(|chunk| chunk.extents.iter().copied())
    }

    /// The extent that maps `file_block`, whole.
    pub fn lookup(&self, file_block: u64) -> Option<Extent> {
        let chunk = &self.chunks[self.chunks.partition_point(|chunk| chunk.first <= file_block).checked_sub(1)?];
        let at = chunk.extents.partition_point(|extent| extent.file_block <= file_block).checked_sub(1)?;
        chunk.extents.get(at).filter(|extent| file_block < extent.end()).copied()
    }

    /// The `len` blocks from `start` on (`len` may reach to infinity), piece by piece and without a
    /// gap: extents clipped to the range, and the holes between them.
    pub fn pieces(&self, start: u64, len: u64) -> Pieces<'_> {
        let chunk = self.chunks.partition_point(|chunk| chunk.end() <= start);
        let extents = self.chunks.get(chunk).map_or(&[][..], |chunk| &chunk.extents);
        let skip = extents.partition_point(|extent| extent.end() <= start);
        Pieces {
            left: BlockRange::new(start, start.saturating_add(len)),
            extents: extents[skip..].iter(),
            chunks: self.chunks.get(chunk + 1..).unwrap_or_default().iter(),
        }
    }

    /// What `FS_IOC_FIEMAP` shows of `range`.
    pub fn fiemap(&self, range: BlockRange) -> Vec<FiemapExtent> {
        let file_end = self.chunks.last().map_or(0, Chunk::end);
        let mapped = self.pieces(range.start, range.len()).filter_map(|piece| match piece {
            Piece::Mapped(part) => self.lookup(part.file_block),
            Piece::Hole { .. } => None,
        });
        mapped
            .map(|extent| FiemapExtent {
                logical: extent.file_block * BLOCK,
                physical: extent.block * BLOCK,
                length: u64::from(extent.len) * BLOCK,
                last: extent.end() == file_end,
                unwritten: extent.state == ExtentState::Unwritten,
                shared: extent.shared,
            })
            .collect()
    }

    /// The same map with another size. What lies behind it stays mapped; a truncate takes it out
    /// with [`Layout::without`].
    pub fn with_size(&self, size: u64) -> Layout {
        Layout { size, ..self.clone() }
    }

    /// With `added` mapped, which must be in file order and in holes. (What lies over a mapped
    /// block is a bug of the caller: debug builds panic, others leave the old mapping, and the new
    /// blocks are missing from the books at the end.)
    pub fn with_mapped(&self, added: &[Extent]) -> Layout {
        let (Some(first), Some(last)) = (added.first(), added.last()) else { return self.clone() };
        debug_assert!(added.windows(2).all(|pair| pair[0].end() <= pair[1].file_block), "not in file order: {added:?}");
        let in_hole = |extent: &Extent| match self.pieces(extent.file_block, extent.len.into()).next() {
            Some(Piece::Hole { len, .. }) => len == u64::from(extent.len),
            _ => false,
        };
        debug_assert!(added.iter().all(in_hole), "not in holes: {added:?}");
        self.rewritten(BlockRange::new(first.file_block, last.end()), |old, new| {
            let mut old = old.iter().copied().peekable();
            for extent in added.iter().filter(|extent| in_hole(extent)) {
                while let Some(before) = old.next_if(|before| before.file_block < extent.file_block) {
                    new.push(Some(before));
                }
                new.push(Some(*extent));
            }
            old.for_each(|behind| new.push(Some(behind)));
        })
    }

    /// Without any block in `range`, and what was mapped there, in file order.
    pub fn without(&self, range: BlockRange) -> (Layout, Vec<Extent>) {
        let mut removed = Vec::new();
        let left = self.rewritten(range, |old, new| {
            for extent in old {
                new.push(extent.clipped(BlockRange::new(0, range.start)));
                removed.extend(extent.clipped(range));
                new.push(extent.clipped(BlockRange::from(range.end.max(range.start))));
            }
        });
        (left, removed)
    }

    /// With what is mapped in `range` in `state`. Holes stay holes.
    pub fn with_state(&self, range: BlockRange, state: ExtentState) -> Layout {
        self.altered(range, |extent| Extent { state, ..extent })
    }

    /// With what is mapped in `range` shared or not. Holes stay holes.
    pub fn with_shared(&self, range: BlockRange, shared: bool) -> Layout {
        self.altered(range, |extent| Extent { shared, ..extent })
    }

    /// Without the blocks in `range`, everything behind it moved up by its length
    /// (`FALLOC_FL_COLLAPSE_RANGE`), and what was mapped there. The size is the caller's to set.
    pub fn collapsed(&self, range: BlockRange) -> (Layout, Vec<Extent>) {
        let (left, removed) = self.without(range);
        let moved = left.extents().map(|extent| {
            let file_block = extent.file_block - if extent.file_block >= range.end { range.len() } else { 0 };
            Extent { file_block, ..extent }
        });
        (Layout::from_extents(self.size, moved), removed)
    }

    /// With everything from block `at` on moved down by `len` blocks (`FALLOC_FL_INSERT_RANGE`).
    /// The size is the caller's to set. None if an extent would end beyond [`FILE_BLOCKS_MAX`]:
    /// EFBIG.
    pub fn inserted(&self, at: u64, len: u64) -> Option<Layout> {
        let end = self.chunks.last().map_or(0, Chunk::end);
        if end > at && end.checked_add(len).is_none_or(|end| end > FILE_BLOCKS_MAX) {
            return None;
        }
        let moved = self.extents().flat_map(|extent| {
            let behind = extent.clipped(BlockRange::from(at));
            let behind = behind.map(|extent| Extent { file_block: extent.file_block + len, ..extent });
            extent.clipped(BlockRange::new(0, at)).into_iter().chain(behind)
        });
        Some(Layout::from_extents(self.size, moved))
    }

    fn from_extents(size: u64, extents: impl Iterator<Item = Extent>) -> Layout {
        let mut new = Joined::default();
        extents.for_each(|extent| new.push(Some(extent)));
        let mapped = blocks_in(&new.0);
        Layout { size, mapped, chunks: into_chunks(&new.0).collect() }.checked(0)
    }

    fn altered(&self, range: BlockRange, alter: impl Fn(Extent) -> Extent) -> Layout {
        self.rewritten(range, |old, new| {
            for extent in old {
                new.push(extent.clipped(BlockRange::new(0, range.start)));
                new.push(extent.clipped(range).map(&alter));
                new.push(extent.clipped(BlockRange::from(range.end)));
            }
        })
    }

    /// The one update: `edit` gets the extents of the chunks that `range` meets or touches, and
    /// pushes those that are to stand there instead, in file order. What it changes must lie in
    /// `range`.
    fn rewritten(&self, range: BlockRange, edit: impl FnOnce(&[Extent], &mut Joined)) -> Layout {
        // Touching counts: an extent that ends where the range starts may become one with what is
        // put there.
        let from = self.chunks.partition_point(|chunk| chunk.end() < range.start);
        let to = self.chunks.partition_point(|chunk| chunk.first <= range.end).max(from);
        let one;
        let gathered: Vec<Extent>;
        let old: &[Extent] = if to - from == 1 {
            one = Arc::clone(&self.chunks[from].extents);
            &one
        } else {
            gathered = self.chunks[from..to].iter().flat_map(|chunk| chunk.extents.iter().copied()).collect();
            &gathered
        };
        let mut new = Joined::default();
        edit(old, &mut new);
        let mapped = self.mapped - blocks_in(old) + blocks_in(&new.0);
        let (mut head, mut tail) = (&self.chunks[..from], &self.chunks[to..]);
        if new.0.len() < CHUNK_MIN {
            if let Some((before, rest)) = head.split_last() {
                new.0.splice(0..0, before.extents.iter().copied());
                head = rest;
            } else if let Some((behind, rest)) = tail.split_first() {
                new.0.extend_from_slice(&behind.extents);
                tail = rest;
            }
        }
        let chunks = head.iter().cloned().chain(into_chunks(&new.0)).chain(tail.iter().cloned());
        // Collected twice over: the length of the chain is not known in advance.
        let chunks: Vec<Chunk> = chunks.collect();
        Layout { size: self.size, mapped, chunks: chunks.into() }.checked(head.len())
    }

    /// This, with the chunks around the one numbered `near` looked at in debug builds.
    fn checked(self, near: usize) -> Layout {
        if cfg!(debug_assertions) {
            let chunks = &self.chunks[near.saturating_sub(1)..(near + 3).min(self.chunks.len())];
            if let Err(what) = check_chunks(chunks) {
                debug_assert!(false, "{what}: {chunks:?}");
            }
        }
        self
    }

    /// Whether every invariant of the module holds; else which doesn't.
    #[cfg(all(test, not(any(daxlab_loom, daxlab_shuttle))))]
    pub(super) fn check(&self) -> Result<(), &'static str> {
        check_chunks(&self.chunks)?;
        let mapped: u64 = self.extents().map(|extent| u64::from(extent.len)).sum();
        if mapped == self.mapped { Ok(()) } else { Err("mapped blocks miscounted") }
    }

    /// Chunks that this layout and `other` both have.
    #[cfg(all(test, not(any(daxlab_loom, daxlab_shuttle))))]
    pub(super) fn chunks_in_common(&self, other: &Layout) -> (usize, usize) {
        let mine = self.chunks.iter();
        let common = mine.filter(|chunk| other.chunks.iter().any(|its| Arc::ptr_eq(&its.extents, &chunk.extents)));
        (common.count(), self.chunks.len())
    }
}

fn check_chunks(chunks: &[Chunk]) -> Result<(), &'static str> {
    for chunk in chunks {
        if chunk.extents.is_empty() || chunk.extents.len() > CHUNK {
            return Err("a chunk of no or too many extents");
        }
        if chunk.first != chunk.extents[0].file_block {
            return Err("a chunk filed under another's block");
        }
    }
    let mut extents = chunks.iter().flat_map(|chunk| chunk.extents.iter());
    let Some(mut before) = extents.next() else { return Ok(()) };
    for extent in extents {
        if extent.file_block < before.end() || extent.len == 0 {
            return Err("out of order, overlapping, or empty");
        }
        if before.joined(extent).is_some() {
            return Err("two extents that are one");
        }
        before = extent;
    }
    Ok(())
}

/// A list of extents that joins what can be joined.
#[derive(Default)]
struct Joined(Vec<Extent>);

impl Joined {
    fn push(&mut self, extent: Option<Extent>) {
        let Some(extent) = extent else { return };
        match self.0.last_mut().and_then(|last| last.joined(&extent).map(|both| (last, both))) {
            Some((last, both)) => *last = both,
            None => self.0.push(extent),
        }
    }
}

fn blocks_in(extents: &[Extent]) -> u64 {
    extents.iter().map(|extent| u64::from(extent.len)).sum()
}

/// Cuts `extents` into as few chunks as can be, of about equal length.
fn into_chunks(extents: &[Extent]) -> impl Iterator<Item = Chunk> + '_ {
    let count = extents.len().div_ceil(CHUNK);
    let each = extents.len().div_ceil(count.max(1)).max(1);
    extents.chunks(each).map(|part| Chunk { first: part[0].file_block, extents: part.into() })
}

/// The pieces of a range; see [`Layout::pieces`].
#[derive(Clone, Debug)]
pub struct Pieces<'a> {
    left: BlockRange,
    /// What is left of the present chunk; the first one ends behind `left.start`.
    extents: std::slice::Iter<'a, Extent>,
    chunks: std::slice::Iter<'a, Chunk>,
}

impl Iterator for Pieces<'_> {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        if self.left.is_empty() {
            return None;
        }
        if self.extents.len() == 0
            && let Some(chunk) = self.chunks.next()
        {
            self.extents = chunk.extents.iter();
        }
        let start = self.left.start;
        let piece = match self.extents.as_slice().first() {
            Some(extent) if extent.file_block <= start => {
                self.extents.next();
                Piece::Mapped(extent.clipped(self.left)?)
            }
            next => {
                let end = next.map_or(self.left.end, |next| next.file_block.min(self.left.end));
                Piece::Hole { file_block: start, len: end - start }
            }
        };
        self.left.start = piece.range().end;
        Some(piece)
    }
}
