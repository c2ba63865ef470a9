//! The free extents of one allocation group.
//!
//! It owns two orders of the same extents: by start (to join freed extents with their neighbours)
//! and by length (to find the best fit). Invariants: both hold the same extents; these are
//! disjoint, not adjacent, and inside the group; free blocks plus allocated blocks are the group.
//! Kernel counterpart: the bnobt and cntbt of an XFS allocation group.

use std::collections::{BTreeMap, BTreeSet};

use emulator::pin::PageRange;

/// Blocks in a 2 MiB folio: runs of at least as many start on a folio where they can.
pub(super) const FOLIO: u64 = 512;

/// Extents looked at for an aligned start before the search settles for one that is long enough
/// whatever its start.
const ALIGNED_TRIES: usize = 32;

/// See the module.
#[derive(Debug)]
pub(super) struct FreeExtents {
    group: PageRange,
    by_start: BTreeMap<u64, u64>,
    /// (length, start)
    by_len: BTreeSet<(u64, u64)>,
    free: u64,
    allocated: u64,
}

impl FreeExtents {
    /// All of `group` is free.
    pub(super) fn new(group: PageRange) -> FreeExtents {
        let mut all =
            FreeExtents { group, by_start: BTreeMap::new(), by_len: BTreeSet::new(), free: 0, allocated: group.len() };
        all.put(group);
        all
    }

    pub(super) fn free(&self) -> u64 {
        self.free
    }

    pub(super) fn allocated(&self) -> u64 {
        self.allocated
    }

    /// The length of the longest free extent.
    pub(super) fn largest(&self) -> u64 {
        self.by_len.last().map_or(0, |(len, _)| *len)
    }

    pub(super) fn extents(&self) -> impl Iterator<Item = PageRange> + '_ {
        self.by_start.iter().map(|(start, len)| PageRange::new(*start, *len))
    }

    /// Takes one run of `blocks` out of the shortest extent that holds it (the lowest of these);
    /// with `aligned`, one that starts on a folio.
    pub(super) fn take_run(&mut self, blocks: u64, aligned: bool) -> Option<PageRange> {
        let long_enough = self.by_len.range((blocks, 0)..).map(|(len, start)| PageRange::new(*start, *len));
        let run = if aligned {
            let at_any_start = self.by_len.range((blocks + FOLIO - 1, 0)..).take(1);
            let at_any_start = at_any_start.map(|(len, start)| PageRange::new(*start, *len));
            long_enough.take(ALIGNED_TRIES).chain(at_any_start).find_map(|extent| {
                let start = extent.start().next_multiple_of(FOLIO);
                (start + blocks <= extent.end()).then(|| PageRange::new(start, blocks))
            })
        } else {
            long_enough.map(|extent| PageRange::new(extent.start(), blocks)).next()
        }?;
        self.take(run);
        Some(run)
    }

    /// Takes a run of at most `blocks`: all of them if one run has them, else the longest there
    /// is.
    pub(super) fn take_at_most(&mut self, blocks: u64) -> Option<PageRange> {
        self.take_run(blocks.min(self.largest()).max(1), false)
    }

    /// Takes `run` if all of it is free.
    pub(super) fn claim(&mut self, run: PageRange) -> bool {
        let before = self.by_start.range(..=run.start()).next_back();
        let free = before.is_some_and(|(start, len)| run.end() <= start + len);
        if free {
            self.take(run);
        }
        free
    }

    /// Takes `run`, which lies in one free extent.
    fn take(&mut self, run: PageRange) {
        let Some((&start, &len)) = self.by_start.range(..=run.start()).next_back() else { return };
        debug_assert!(run.end() <= start + len, "{run} isn't free");
        self.remove(start, len);
        self.add(start, run.start() - start);
        self.add(run.end(), (start + len).saturating_sub(run.end()));
        self.allocated += run.len();
    }

    /// Gives back `run`, which lies in the group. Returns what of it was free already: a bug of
    /// the caller, which changes nothing here.
    pub(super) fn put(&mut self, run: PageRange) -> Vec<PageRange> {
        let before = self.by_start.range(..run.start()).next_back();
        let first = before.filter(|(start, len)| *start + *len > run.start()).map_or(run.start(), |(start, _)| *start);
        let twice: Vec<PageRange> = self
            .by_start
            .range(first..run.end())
            .filter_map(|(start, len)| PageRange::new(*start, *len).intersect(run))
            .collect();
        let mut at = run.start();
        for free in &twice {
            self.put_new(at, free.start() - at);
            at = free.end();
        }
        self.put_new(at, run.end() - at);
        twice
    }

    /// Adds `len` allocated blocks from `start` on, joined with what is free on either side.
    fn put_new(&mut self, start: u64, len: u64) {
        if len == 0 {
            return;
        }
        self.allocated -= len;
        let (mut start, mut len) = (start, len);
        if let Some((&before, &its)) = self.by_start.range(..start).next_back()
            && before + its == start
        {
            self.remove(before, its);
            (start, len) = (before, its + len);
        }
        if let Some(&its) = self.by_start.get(&(start + len)) {
            self.remove(start + len, its);
            len += its;
        }
        self.add(start, len);
    }

    fn add(&mut self, start: u64, len: u64) {
        if len > 0 {
            self.by_start.insert(start, len);
            self.by_len.insert((len, start));
            self.free += len;
        }
    }

    fn remove(&mut self, start: u64, len: u64) {
        self.by_start.remove(&start);
        self.by_len.remove(&(len, start));
        self.free -= len;
    }

    /// The invariant of the module that does not hold, if any.
    pub(super) fn check(&self) -> Result<(), &'static str> {
        let mut end = None;
        for extent in self.extents() {
            if extent.is_empty() || extent.start() < self.group.start() || extent.end() > self.group.end() {
                return Err("a free extent is empty or lies outside the group");
            }
            if end.is_some_and(|end| end >= extent.start()) {
                return Err("two free extents overlap or touch");
            }
            if !self.by_len.contains(&(extent.len(), extent.start())) {
                return Err("a free extent is missing from the order by length");
            }
            end = Some(extent.end());
        }
        if self.by_len.len() != self.by_start.len() {
            return Err("the order by length has extents of its own");
        }
        if self.extents().map(PageRange::len).sum::<u64>() != self.free {
            return Err("the count of free blocks is not what is free");
        }
        if self.free + self.allocated != self.group.len() {
            return Err("free and allocated blocks are not the whole group");
        }
        Ok(())
    }
}
