//! The extent map: which device block holds which block of a file.
//!
//! It owns the value [`Layout`], a file's size and extents, and the words for its parts.
//! Invariants: extents are sorted by file block, don't overlap, and are as few as can be (what
//! could be one extent *is* one), so two layouts that map alike are equal; a layout never changes,
//! an update makes a new one. Kernel counterpart: the in-core extent tree of `struct xfs_ifork` and
//! its read-only use through `struct iomap`.

mod layout;
pub(crate) mod lookup;
#[cfg(all(test, not(any(daxlab_loom, daxlab_shuttle))))]
mod tests;

pub use layout::{Layout, Pieces};

use crate::base::range::BlockRange;
use crate::base::units::BLOCK;

/// File blocks are below this: byte offsets go to `i64::MAX`.
pub const FILE_BLOCKS_MAX: u64 = i64::MAX as u64 / BLOCK;

/// Whether an allocated block's bytes count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ExtentState {
    /// They do.
    Written,
    /// They don't: the file reads as zeros there.
    Unwritten,
}

/// A run of a file's blocks on a run of device blocks; 24 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Extent {
    /// The first file block.
    pub file_block: u64,
    /// The device block (page) that holds it.
    pub block: u64,
    /// How many blocks; never 0.
    pub len: u32,
    /// Written or unwritten.
    pub state: ExtentState,
    /// Whether another file, or this one elsewhere, may map the same device blocks.
    pub shared: bool,
}

const _: () = assert!(size_of::<Extent>() == 24, "files have many of these");

impl Extent {
    /// An unshared extent of `len` blocks, 2^32 - 1 at most: 16 times the largest device.
    pub fn new(file_block: u64, block: u64, len: u64, state: ExtentState) -> Extent {
        debug_assert!((1..=u64::from(u32::MAX)).contains(&len), "an extent of {len} blocks");
        Extent { file_block, block, len: len.try_into().unwrap_or(u32::MAX), state, shared: false }
    }

    /// One past its last file block.
    pub fn end(&self) -> u64 {
        self.file_block + u64::from(self.len)
    }

    /// Its file blocks.
    pub fn range(&self) -> BlockRange {
        BlockRange { start: self.file_block, end: self.end() }
    }

    /// The part of it in `range`, if any.
    pub fn clipped(&self, range: BlockRange) -> Option<Extent> {
        let both = self.range().intersect(range);
        let len = u32::try_from(both.len()).ok().filter(|len| *len > 0)?;
        Some(Extent { file_block: both.start, block: self.block + (both.start - self.file_block), len, ..*self })
    }

    /// The two as one, if `next` goes on where this one ends: in the file, on the device, and in
    /// kind.
    fn joined(&self, next: &Extent) -> Option<Extent> {
        let goes_on = self.end() == next.file_block
            && self.block + u64::from(self.len) == next.block
            && (self.state, self.shared) == (next.state, next.shared);
        let len = self.len.checked_add(next.len).filter(|_| goes_on)?;
        Some(Extent { len, ..*self })
    }
}

/// A part of a file: mapped in one way, or not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Mapped by this extent (or this part of one).
    Mapped(Extent),
    /// No block: reads as zeros.
    Hole {
        /// The first file block.
        file_block: u64,
        /// How many blocks; up to infinity (`u64::MAX - file_block`).
        len: u64,
    },
}

impl Piece {
    /// Its file blocks.
    pub fn range(&self) -> BlockRange {
        match *self {
            Piece::Mapped(extent) => extent.range(),
            Piece::Hole { file_block, len } => BlockRange { start: file_block, end: file_block.saturating_add(len) },
        }
    }
}

/// An extent as `FS_IOC_FIEMAP` shows it, in bytes. Source: Documentation/filesystems/fiemap.rst;
/// an extent that sticks out of the range asked for is shown whole, as that page allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FiemapExtent {
    /// Byte offset in the file.
    pub logical: u64,
    /// Byte offset on the device.
    pub physical: u64,
    /// Length in bytes.
    pub length: u64,
    /// The file's last extent. `FIEMAP_EXTENT_LAST`.
    pub last: bool,
    /// Allocated, and reads as zeros. `FIEMAP_EXTENT_UNWRITTEN`.
    pub unwritten: bool,
    /// Perhaps mapped elsewhere too. `FIEMAP_EXTENT_SHARED`.
    pub shared: bool,
}

/// The blocks that the bytes `offset..offset+len` touch: rounded outward. None if the bytes reach
/// beyond `i64::MAX`, where a file's offsets end: ERANGE, EFBIG or EINVAL, as the caller's call has
/// it.
pub fn blocks_of(offset: u64, len: u64) -> Option<BlockRange> {
    let end = end_of(offset, len)?;
    // No bytes touch no block.
    Some(BlockRange::new(offset / BLOCK, if len == 0 { 0 } else { end.div_ceil(BLOCK) }))
}

/// The blocks that lie in the bytes `offset..offset+len` as a whole: rounded inward. None as for
/// [`blocks_of`].
pub fn whole_blocks_of(offset: u64, len: u64) -> Option<BlockRange> {
    let end = end_of(offset, len)?;
    Some(BlockRange::new(offset.div_ceil(BLOCK), end / BLOCK))
}

fn end_of(offset: u64, len: u64) -> Option<u64> {
    offset.checked_add(len).filter(|end| *end <= i64::MAX as u64)
}
