//! Ranges of a file, in 4 KiB blocks.
//!
//! It owns the arithmetic of half-open block ranges, the last of which may reach to infinity.
//! Invariant: `start <= end`.

use crate::base::units::BLOCK;

/// `start..end` in file blocks; `end == u64::MAX` is infinity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockRange {
    /// First block.
    pub start: u64,
    /// One past the last block.
    pub end: u64,
}

impl BlockRange {
    /// The whole file: `[0, infinity)`.
    pub const ALL: BlockRange = BlockRange { start: 0, end: u64::MAX };

    /// No block.
    pub const NONE: BlockRange = BlockRange { start: 0, end: 0 };

    /// `start..end`, empty if `end` is smaller.
    pub fn new(start: u64, end: u64) -> BlockRange {
        BlockRange { start, end: end.max(start) }
    }

    /// From `start` to infinity.
    pub fn from(start: u64) -> BlockRange {
        BlockRange { start, end: u64::MAX }
    }

    /// The blocks that the byte range `offset..offset+len` touches.
    pub fn of_bytes(offset: u64, len: u64) -> BlockRange {
        let end = offset.saturating_add(len).div_ceil(BLOCK);
        BlockRange::new(offset / BLOCK, end)
    }

    /// Whether it holds no block.
    pub fn is_empty(self) -> bool {
        self.start >= self.end
    }

    /// How many blocks.
    pub fn len(self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Whether the two share a block.
    pub fn overlaps(self, other: BlockRange) -> bool {
        self.start.max(other.start) < self.end.min(other.end)
    }

    /// Whether `other` lies inside.
    pub fn contains(self, other: BlockRange) -> bool {
        other.is_empty() || (self.start <= other.start && other.end <= self.end)
    }

    /// What the two share.
    pub fn intersect(self, other: BlockRange) -> BlockRange {
        BlockRange::new(self.start.max(other.start), self.end.min(other.end))
    }

    /// The smallest range that holds both; an empty one adds nothing.
    pub fn hull(self, other: BlockRange) -> BlockRange {
        match (self.is_empty(), other.is_empty()) {
            (_, true) => self,
            (true, false) => other,
            (false, false) => BlockRange::new(self.start.min(other.start), self.end.max(other.end)),
        }
    }

    /// What is left of this range without `other`: at most two parts, none empty.
    pub fn minus(self, other: BlockRange) -> impl Iterator<Item = BlockRange> {
        let left = BlockRange::new(self.start, self.end.min(other.start));
        let right = BlockRange::new(self.start.max(other.end), self.end);
        let (left, right) = if self.overlaps(other) { (left, right) } else { (self, BlockRange::new(0, 0)) };
        [left, right].into_iter().filter(|part| !part.is_empty())
    }

    /// Whether the ranges of `parts` together hold all of this one.
    pub fn is_covered_by(self, parts: impl IntoIterator<Item = BlockRange>) -> bool {
        let mut parts: Vec<BlockRange> = parts.into_iter().collect();
        parts.sort_unstable();
        let mut reached = self.start;
        for part in parts {
            if part.start > reached {
                break;
            }
            reached = reached.max(part.end);
        }
        reached >= self.end
    }
}

/// Blocks of a file that lie apart: ranges in order, no two of which overlap or touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct BlockRanges(Vec<BlockRange>);

impl BlockRanges {
    pub(crate) fn add(&mut self, range: BlockRange) {
        if range.is_empty() {
            return;
        }
        // Those that it overlaps or touches become one with it.
        let from = self.0.partition_point(|part| part.end < range.start);
        let to = self.0.partition_point(|part| part.start <= range.end);
        let joined = self.0[from..to].iter().fold(range, |joined, part| joined.hull(*part));
        self.0.splice(from..to, [joined]);
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = BlockRange> + '_ {
        self.0.iter().copied()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn overlaps(&self, range: BlockRange) -> bool {
        let at = self.0.partition_point(|part| part.end <= range.start);
        self.0.get(at).is_some_and(|part| part.overlaps(range))
    }

    /// Whether one of them holds all of `range`.
    pub(crate) fn covers(&self, range: BlockRange) -> bool {
        let at = self.0.partition_point(|part| part.end < range.end);
        range.is_empty() || self.0.get(at).is_some_and(|part| part.contains(range))
    }

    /// The smallest range that holds them all.
    pub(crate) fn hull(&self) -> BlockRange {
        self.0.iter().fold(BlockRange::NONE, |hull, part| hull.hull(*part))
    }
}

impl Extend<BlockRange> for BlockRanges {
    fn extend<T: IntoIterator<Item = BlockRange>>(&mut self, ranges: T) {
        ranges.into_iter().for_each(|range| self.add(range));
    }
}

impl FromIterator<BlockRange> for BlockRanges {
    fn from_iter<T: IntoIterator<Item = BlockRange>>(ranges: T) -> BlockRanges {
        let mut all = BlockRanges::default();
        all.extend(ranges);
        all
    }
}

impl From<Option<BlockRange>> for BlockRanges {
    fn from(range: Option<BlockRange>) -> BlockRanges {
        range.into_iter().collect()
    }
}

impl From<BlockRange> for BlockRanges {
    fn from(range: BlockRange) -> BlockRanges {
        Some(range).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minus_and_cover() {
        let r = BlockRange::new;
        let minus = |a: BlockRange, b| a.minus(b).collect::<Vec<_>>();
        assert_eq!(minus(r(2, 8), r(4, 6)), [r(2, 4), r(6, 8)]);
        assert_eq!(minus(r(2, 8), r(0, 4)), [r(4, 8)]);
        assert_eq!(minus(r(2, 8), r(0, 9)), []);
        assert_eq!(minus(r(2, 8), r(8, 9)), [r(2, 8)]);
        assert!(r(2, 8).is_covered_by([r(5, 9), r(0, 5)]));
        assert!(!r(2, 8).is_covered_by([r(6, 9), r(0, 5)]));
        assert_eq!(BlockRange::of_bytes(4095, 2), r(0, 2));
        assert_eq!(BlockRange::of_bytes(4096, 1), r(1, 2));
    }

    #[test]
    fn ranges_apart() {
        let r = BlockRange::new;
        let of = |ranges: &[BlockRange]| ranges.iter().copied().collect::<BlockRanges>();
        let apart = of(&[r(8, 9), r(0, 2), r(5, 5)]);
        assert_eq!(apart.0, [r(0, 2), r(8, 9)]);
        assert_eq!(apart.hull(), r(0, 9));
        for (range, meets) in [(r(2, 8), false), (r(1, 3), true), (r(7, 9), true), (r(9, 20), false), (r(8, 8), false)]
        {
            assert_eq!(apart.overlaps(range), meets, "{range:?}");
        }
        assert_eq!(of(&[r(0, 2), r(8, 9), r(2, 4)]).0, [r(0, 4), r(8, 9)], "what touches is one");
        assert_eq!(of(&[r(0, 2), r(4, 5), r(8, 9), BlockRange::from(1)]).0, [BlockRange::ALL]);
        assert!(BlockRanges::from(BlockRange::NONE).is_empty() && !BlockRanges::default().overlaps(BlockRange::ALL));
    }
}
