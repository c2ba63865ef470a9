//! Lists of device pages as sets.
//!
//! It owns their arithmetic. Invariant: what it returns is sorted and disjoint, and takes a time
//! that grows with the lists' lengths, not with their product.

use emulator::pin::PageRange;

/// Sorts and joins overlapping and touching ranges.
pub(crate) fn merge(ranges: &mut Vec<PageRange>) {
    ranges.sort_unstable_by_key(|range| range.start());
    let mut merged: Vec<PageRange> = Vec::with_capacity(ranges.len());
    for range in ranges.drain(..).filter(|range| !range.is_empty()) {
        match merged.last_mut() {
            Some(last) if range.start() <= last.end() => {
                *last = PageRange::new(last.start(), last.end().max(range.end()) - last.start());
            }
            _ => merged.push(range),
        }
    }
    *ranges = merged;
}

fn merged(ranges: &[PageRange]) -> Vec<PageRange> {
    let mut ranges = ranges.to_vec();
    merge(&mut ranges);
    ranges
}

/// The pages that both lists name.
pub(crate) fn common(one: &[PageRange], other: &[PageRange]) -> Vec<PageRange> {
    let (one, other) = (merged(one), merged(other));
    let (mut a, mut b) = (one.iter().peekable(), other.iter().peekable());
    let mut both = Vec::new();
    while let (Some(first), Some(second)) = (a.peek(), b.peek()) {
        both.extend(first.intersect(**second));
        if first.end() < second.end() {
            a.next()
        } else {
            b.next()
        };
    }
    both
}

/// `ranges` without whatever `taken` names.
pub(crate) fn without(ranges: &[PageRange], taken: &[PageRange]) -> Vec<PageRange> {
    let mut left = Vec::new();
    let taken = merged(taken);
    let mut holes = taken.iter().peekable();
    for range in merged(ranges) {
        let mut at = range.start();
        while let Some(hole) = holes.peek().filter(|hole| hole.start() < range.end()) {
            if hole.start() > at {
                left.push(PageRange::new(at, hole.start() - at));
            }
            at = at.max(hole.end());
            if hole.end() >= range.end() {
                // It may reach into the next range too.
                break;
            }
            holes.next();
        }
        if at < range.end() {
            left.push(PageRange::new(at, range.end() - at));
        }
    }
    left
}

pub(crate) fn count(ranges: &[PageRange]) -> u64 {
    ranges.iter().map(|range| range.len()).sum()
}

/// New blocks, taken from the front.
#[derive(Debug)]
pub(crate) struct BlockSupply(std::collections::VecDeque<PageRange>);

impl BlockSupply {
    pub(crate) fn new(runs: &[PageRange]) -> BlockSupply {
        BlockSupply(runs.iter().copied().collect())
    }

    /// The next `blocks` blocks; fewer only if there are no more.
    pub(crate) fn take(&mut self, mut blocks: u64) -> Vec<PageRange> {
        let mut taken = Vec::new();
        while blocks > 0 {
            let Some(run) = self.0.pop_front() else { break };
            let now = run.len().min(blocks);
            taken.push(PageRange::new(run.start(), now));
            blocks -= now;
            if now < run.len() {
                self.0.push_front(PageRange::new(run.start() + now, run.len() - now));
            }
        }
        taken
    }

    pub(crate) fn rest(self) -> Vec<PageRange> {
        self.0.into()
    }
}

#[cfg(all(test, not(any(daxlab_loom, daxlab_shuttle))))]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn set(ranges: &[PageRange]) -> BTreeSet<u64> {
        ranges.iter().flat_map(|range| range.pages()).collect()
    }

    fn sorted(ranges: &[PageRange]) -> bool {
        ranges.iter().all(|range| !range.is_empty()) && ranges.windows(2).all(|two| two[0].end() <= two[1].start())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn agree_with_sets_of_pages(
            one in prop::collection::vec((0..60u64, 0..9u64), 0..12),
            other in prop::collection::vec((0..60u64, 0..9u64), 0..12),
        ) {
            let ranges = |list: Vec<(u64, u64)>| -> Vec<PageRange> {
                list.into_iter().map(|(start, len)| PageRange::new(start, len)).collect()
            };
            let (one, other) = (ranges(one), ranges(other));
            let both = common(&one, &other);
            prop_assert!(sorted(&both));
            prop_assert_eq!(set(&both), &set(&one) & &set(&other));
            let left = without(&one, &other);
            prop_assert!(sorted(&left));
            prop_assert_eq!(set(&left), &set(&one) - &set(&other));
            let mut supply = BlockSupply::new(&merged(&one));
            let total = count(&merged(&one));
            let head = supply.take(total / 3);
            prop_assert_eq!(count(&head), total / 3);
            prop_assert_eq!(&set(&head) | &set(&supply.rest()), set(&one));
        }
    }
}
