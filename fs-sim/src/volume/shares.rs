//! How many times each shared block is mapped.
//!
//! It owns the counts of blocks that are mapped more than once, by several files or by one in
//! several places. Invariants: a run on the list is mapped as often as its count says, at least
//! twice; an allocated block that is not listed is mapped once, orphaned, or on its way into or
//! out of a file; touching runs of one count are one run. Kernel counterpart: the reference count
//! btree of XFS (fs/xfs/libxfs/xfs_refcount.c), which also lists only shared blocks.
//!
//! A count rises only by a layout change of a file that maps the block, and falls only when a file
//! drops it. So a changer that has the turn of a file that maps a block may find that its count
//! fell meanwhile, but a block that was the file's alone stays so.

use std::collections::BTreeMap;

use emulator::pin::PageRange;
use emulator::sync::Mutex;

/// See the module.
#[derive(Debug, Default)]
pub struct Shares(Mutex<Runs>);

/// By first page: one past the last, and how often it is mapped.
#[derive(Debug, Default)]
struct Runs(BTreeMap<u64, (u64, u64)>);

impl Runs {
    /// The pages of `pages` in device order, in runs of one count; 1 where nothing is listed.
    fn counts(&self, pages: PageRange) -> Vec<(PageRange, u64)> {
        let before = self.0.range(..pages.start()).next_back().map_or(pages.start(), |(start, _)| *start);
        let mut found = Vec::new();
        let mut at = pages.start();
        for (start, (end, count)) in self.0.range(before..pages.end()) {
            let Some(run) = PageRange::new(*start, end - start).intersect(pages) else { continue };
            if at < run.start() {
                found.push((PageRange::new(at, run.start() - at), 1));
            }
            found.push((run, *count));
            at = run.end();
        }
        if at < pages.end() {
            found.push((PageRange::new(at, pages.end() - at), 1));
        }
        found
    }

    /// Makes a run begin at `page` if one reaches over it.
    fn split_at(&mut self, page: u64) {
        if let Some((start, (end, count))) = self.0.range_mut(..page).next_back()
            && *end > page
        {
            let (start, tail) = (*start, (*end, *count));
            self.0.insert(start, (page, tail.1));
            self.0.insert(page, tail);
        }
    }

    /// Sets the count of a run; 1 takes it off the list.
    fn set(&mut self, pages: PageRange, count: u64) {
        self.split_at(pages.start());
        self.split_at(pages.end());
        let inside: Vec<u64> = self.0.range(pages.start()..pages.end()).map(|(start, _)| *start).collect();
        for start in inside {
            self.0.remove(&start);
        }
        if count < 2 {
            return;
        }
        let (mut start, mut end) = (pages.start(), pages.end());
        if let Some((before, reaches)) = self.0.range(..start).next_back().map(|(at, reaches)| (*at, *reaches))
            && reaches == (start, count)
        {
            start = before;
        }
        if let Some((behind, its)) = self.0.get(&end).copied()
            && its == count
        {
            self.0.remove(&end);
            end = behind;
        }
        self.0.insert(start, (end, count));
    }
}

impl Shares {
    /// The pages of `pages` in device order, in runs that are mapped equally often. The pages must
    /// belong to a file.
    pub fn counts(&self, pages: PageRange) -> Vec<(PageRange, u64)> {
        self.0.lock().counts(pages)
    }

    /// Another mapping of `pages` is about to be published.
    pub fn share(&self, pages: PageRange) {
        let mut runs = self.0.lock();
        for (run, count) in runs.counts(pages) {
            runs.set(run, count + 1);
        }
    }

    /// A mapping of `pages` is gone from its file. Returns the pages that no file maps any more:
    /// the caller frees them.
    #[must_use]
    pub fn release(&self, pages: PageRange) -> Vec<PageRange> {
        let mut runs = self.0.lock();
        let mut last = Vec::new();
        for (run, count) in runs.counts(pages) {
            match count {
                1 => last.push(run),
                _ => runs.set(run, count - 1),
            }
        }
        last
    }

    /// Everything that is mapped more than once, in device order, and how often.
    pub fn runs(&self) -> Vec<(PageRange, u64)> {
        let runs = self.0.lock();
        runs.0.iter().map(|(start, (end, count))| (PageRange::new(*start, end - start), *count)).collect()
    }
}

#[cfg(all(test, not(any(daxlab_loom, daxlab_shuttle))))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAGES: u64 = 40;

    fn listed(counts: &[u64]) -> Vec<(PageRange, u64)> {
        let mut runs: Vec<(PageRange, u64)> = Vec::new();
        for (page, count) in (0..).zip(counts) {
            match runs.last_mut() {
                Some((run, same)) if same == count => *run = PageRange::new(run.start(), run.len() + 1),
                _ => runs.push((PageRange::new(page, 1), *count)),
            }
        }
        runs
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

        /// Against a number for each page.
        #[test]
        fn counts_are_those_of_a_plain_vector(
            steps in prop::collection::vec((any::<bool>(), 0..PAGES, 1..PAGES), 1..60),
        ) {
            let shares = Shares::default();
            let mut plain = vec![1u64; PAGES as usize];
            for (share, start, len) in steps {
                let pages = PageRange::new(start, len.min(PAGES - start));
                let part = &mut plain[start as usize..pages.end() as usize];
                if share {
                    shares.share(pages);
                    part.iter_mut().for_each(|count| *count += 1);
                } else {
                    let last: Vec<u64> = shares.release(pages).iter().flat_map(|run| run.pages()).collect();
                    let expected: Vec<u64> = pages.pages().filter(|page| part[(page - start) as usize] == 1).collect();
                    prop_assert_eq!(last, expected);
                    part.iter_mut().filter(|count| **count > 1).for_each(|count| *count -= 1);
                }
                let all = listed(&plain);
                let shared: Vec<_> = all.into_iter().filter(|(_, count)| *count > 1).collect();
                prop_assert_eq!(shares.runs(), shared);
                prop_assert_eq!(shares.counts(PageRange::new(0, PAGES)), listed(&plain));
            }
        }
    }
}
