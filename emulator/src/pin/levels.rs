//! Levels: how a range of pages falls into the largest units that it covers whole, and which units
//! lie above those.
//!
//! It owns the geometry and no state. Invariants: the units of a range are disjoint, in order, and
//! cover it exactly; cutting the range at the end of any unit leaves the units before the cut as
//! they were (a rollback depends on it); at most two units of each level above the page are parents
//! of a range. Kernel counterpart: PTE, PMD and PUD mappings of one range.

use std::ops::Range;

use crate::runtime::pages::PageRange;

/// Page, folio, giant folio.
pub(super) const LEVELS: usize = 3;

/// One page, folio or giant folio: its level (0, 1, 2) and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Unit {
    /// 0 page, 1 folio, 2 giant folio.
    pub level: usize,
    /// Its number among those of its level.
    pub index: u64,
}

/// The geometry of a table whose units hold `FANOUT` units of the level below.
pub(super) struct Geometry<const FANOUT: usize>;

impl<const FANOUT: usize> Geometry<FANOUT> {
    const SHIFT: u32 = {
        assert!(FANOUT.is_power_of_two() && FANOUT >= 2, "the fan-out is a power of two, 2 at least");
        FANOUT.trailing_zeros()
    };

    /// log2 of the pages in a unit of `level`.
    #[inline]
    pub(super) const fn shift(level: usize) -> u32 {
        Self::SHIFT * level as u32
    }

    /// Pages in a unit of `level`.
    #[inline]
    pub(super) const fn size(level: usize) -> u64 {
        1 << Self::shift(level)
    }

    /// The largest unit that starts at page `at` and ends at or before `end`; `at < end`.
    #[inline]
    pub(super) const fn unit_at(at: u64, end: u64) -> Unit {
        let mut level = 0;
        while level + 1 < LEVELS {
            let size = Self::size(level + 1);
            if at & (size - 1) != 0 || end - at < size {
                break;
            }
            level += 1;
        }
        Unit { level, index: at >> Self::shift(level) }
    }

    /// The units of `range`, in order.
    #[inline]
    pub(super) fn units(range: PageRange) -> impl Iterator<Item = Unit> {
        let (mut at, end) = (range.start(), range.end());
        std::iter::from_fn(move || {
            (at < end).then(|| {
                let unit = Self::unit_at(at, end);
                at += Self::size(unit.level);
                unit
            })
        })
    }

    /// The unit of `level` above (or equal to) `unit`.
    #[inline]
    pub(super) const fn above(unit: Unit, level: usize) -> Unit {
        Unit { level, index: unit.index >> Self::shift(level - unit.level) }
    }

    /// The numbers, one level down, of what `unit` consists of.
    pub(super) const fn children(unit: Unit) -> Range<u64> {
        let first = unit.index << Self::SHIFT;
        first..first + FANOUT as u64
    }

    /// The pages of `unit`.
    pub(super) const fn pages(unit: Unit) -> PageRange {
        PageRange::new(unit.index << Self::shift(unit.level), Self::size(unit.level))
    }

    /// The parents of `range`: the units that hold some, not all of whose pages are in it; from the
    /// top, each once.
    pub(super) fn parents(range: PageRange) -> impl DoubleEndedIterator<Item = Unit> {
        let ends = if range.is_empty() { None } else { Some((range.start(), range.end() - 1)) };
        ends.into_iter().flat_map(move |(first, last)| {
            // From the top: level 2, then level 1. At each, only the units at the two ends can
            // stick out of the range.
            (1..LEVELS).rev().flat_map(move |level| {
                let (left, right) = (first >> Self::shift(level), last >> Self::shift(level));
                let sticks_out = move |index: &u64| {
                    let pages = Self::pages(Unit { level, index: *index });
                    pages.start() < range.start() || pages.end() > range.end()
                };
                let right = (right != left).then_some(right);
                [Some(left), right].into_iter().flatten().filter(sticks_out).map(move |index| Unit { level, index })
            })
        })
    }
}

#[cfg(all(test, not(any(daxlab_loom, daxlab_shuttle))))]
mod tests {
    use super::*;

    type Real = Geometry<512>;
    type Tiny = Geometry<2>;

    /// Every range of a small device: units tile it, prefixes keep their units, parents are exactly
    /// what sticks out.
    #[test]
    fn units_and_parents_of_every_small_range() {
        let pages = 16;
        for start in 0..pages {
            for len in 0..=pages - start {
                let range = PageRange::new(start, len);
                let units: Vec<_> = Tiny::units(range).collect();
                let covered: Vec<_> = units.iter().flat_map(|&unit| Tiny::pages(unit).pages()).collect();
                assert_eq!(covered, range.pages().collect::<Vec<_>>());
                for (n, &unit) in units.iter().enumerate() {
                    let prefix = PageRange::new(start, Tiny::pages(unit).end() - start);
                    assert_eq!(Tiny::units(prefix).collect::<Vec<_>>(), units[..=n]);
                    if unit.level + 1 < LEVELS {
                        let up = Tiny::pages(Tiny::above(unit, unit.level + 1));
                        assert!(up.intersect(range) != Some(up), "a larger unit would have fitted");
                    }
                }
                let mut expected: Vec<_> =
                    units.iter().flat_map(|&u| (u.level + 1..LEVELS).map(move |l| Tiny::above(u, l))).collect();
                expected.sort_by_key(|unit| (std::cmp::Reverse(unit.level), unit.index));
                expected.dedup();
                assert_eq!(Tiny::parents(range).collect::<Vec<_>>(), expected, "{range}");
            }
        }
    }

    #[test]
    fn real_sizes() {
        let gib = Real::size(2);
        assert_eq!((Real::size(1), gib), (512, 262_144));
        let range = PageRange::new(511, gib + 1 + 512);
        let levels: Vec<_> = Real::units(range).map(|unit| unit.level).collect();
        assert_eq!((levels.len(), levels[0], levels[1]), (1 + 512 + 1, 0, 1), "no giant covered whole: folios");
        let units: Vec<_> = Real::units(PageRange::new(gib, gib)).collect();
        assert_eq!(units, [Unit { level: 2, index: 1 }]);
        assert_eq!(Real::parents(PageRange::new(gib, gib)).count(), 0);
    }
}
