//! Page ranges: how every layer names device pages.
//!
//! It owns one value type. It stands in the lowest layer because trace events, poison, pins and
//! ownership stamps all name pages. Invariant: `start + len` never overflows. Kernel counterpart: a
//! page frame number and a count.

use std::fmt;
use std::ops::Range;

/// A run of 4 KiB pages of the device, by page number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageRange {
    start: u64,
    len: u64,
}

impl PageRange {
    /// `len` pages from page `start` on; cut short where page numbers end (2^64).
    pub const fn new(start: u64, len: u64) -> PageRange {
        let room = u64::MAX - start;
        PageRange { start, len: if len < room { len } else { room } }
    }

    /// The first page.
    #[inline]
    pub const fn start(self) -> u64 {
        self.start
    }

    /// How many pages.
    #[inline]
    pub const fn len(self) -> u64 {
        self.len
    }

    /// The page after the last.
    #[inline]
    pub const fn end(self) -> u64 {
        self.start + self.len
    }

    /// Whether there is no page in it.
    pub const fn is_empty(self) -> bool {
        self.len == 0
    }

    /// The pages in both; none if they don't meet.
    pub fn intersect(self, other: PageRange) -> Option<PageRange> {
        let start = self.start.max(other.start);
        let end = self.end().min(other.end());
        (start < end).then(|| PageRange { start, len: end - start })
    }

    /// Whether `page` is one of them.
    pub const fn contains(self, page: u64) -> bool {
        page >= self.start && page - self.start < self.len
    }

    /// Every page number in order.
    pub fn pages(self) -> Range<u64> {
        self.start..self.end()
    }
}

impl fmt::Display for PageRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pages {}..{}", self.start, self.end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let a = PageRange::new(4, 6);
        assert_eq!(a.intersect(PageRange::new(8, 9)), Some(PageRange::new(8, 2)));
        assert_eq!(a.intersect(PageRange::new(10, 1)), None);
        assert!(a.contains(9) && !a.contains(10) && !a.contains(3));
        assert_eq!(PageRange::new(u64::MAX, 5).end(), u64::MAX);
        assert_eq!(a.to_string(), "pages 4..10");
    }
}
