//! Allocation in groups, so that threads rarely contend.
//!
//! It owns which blocks are free. Invariants: an allocation gets all it asked for or changes
//! nothing; at most one group's lock is held at a time, and nothing else happens under it; a block
//! that is freed twice is noticed, recorded, and changes nothing. Kernel counterpart:
//! `xfs_alloc_vextent_start_ag` and `xfs_free_extent`.

use std::fmt;

use emulator::pin::{Frozen, PageRange};
use emulator::race_point;
use emulator::sync::Mutex;
use emulator::sync::atomic::{AtomicU64, Ordering};

use super::group::{FOLIO, FreeExtents};

/// Blocks in a group of a device that is neither small nor huge: 64 MiB.
const GROUP: u64 = 64 << 8;

/// Small devices have about this many groups all the same.
const GROUPS_WANTED: u64 = 16;

/// Huge devices have longer groups instead of more than this many.
const GROUPS_MAX: u64 = 1024;

/// How many corruptions are kept; more are counted only.
const CORRUPTIONS_MAX: usize = 16;

/// Where to search first, as any number: the same number always means the same group. A file's
/// blocks stay together if the caller passes its inode number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupHint(pub u64);

/// Not enough free blocks: ENOSPC. Nothing was allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{asked} blocks were asked for, {found} found free; enlarge the device or let go of files")]
pub struct NoSpace {
    /// Blocks asked for.
    pub asked: u64,
    /// Blocks found free, one group after the other.
    pub found: u64,
}

/// A broken invariant 4, which was ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Corruption {
    /// Free pages were given back: freed twice, or never allocated.
    FreeOfFree(PageRange),
    /// Pages that the device doesn't have were given back.
    Outside(PageRange),
}

impl fmt::Display for Corruption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Corruption::FreeOfFree(pages) => write!(f, "device {pages} freed although free"),
            Corruption::Outside(pages) => write!(f, "device {pages} freed, which the device doesn't have"),
        }
    }
}

/// One group, alone in its cache lines.
#[derive(Debug)]
#[repr(align(128))]
struct Group {
    extents: Mutex<FreeExtents>,
    /// What the lock's last holder left: the longest run and the sum of free blocks. Read before
    /// taking the lock.
    largest: AtomicU64,
    free: AtomicU64,
}

impl Group {
    /// Runs `work` under the group's lock.
    fn with<R>(&self, work: impl FnOnce(&mut FreeExtents) -> R) -> R {
        let mut extents = self.extents.lock();
        let result = work(&mut extents);
        // ORDERING: Relaxed: hints, written in the order of the lock; they are checked again under
        // it.
        self.largest.store(extents.largest(), Ordering::Relaxed);
        self.free.store(extents.free(), Ordering::Relaxed);
        result
    }
}

/// See the module.
#[derive(Debug)]
pub struct Allocator {
    pages: u64,
    group_pages: u64,
    groups: Box<[Group]>,
    corruptions: Mutex<(u64, Vec<Corruption>)>,
}

impl Allocator {
    /// An allocator of `pages` pages, all free, in groups of 64 MiB: shorter ones (of whole folios)
    /// where that would make fewer than 16, longer ones where it would make more than 1024.
    pub fn new(pages: u64) -> Allocator {
        let small = (pages / GROUPS_WANTED / FOLIO * FOLIO).clamp(FOLIO, GROUP);
        let group_pages = small.max(pages.div_ceil(GROUPS_MAX).next_multiple_of(FOLIO));
        let group = |n: u64| {
            let start = n * group_pages;
            let extents = FreeExtents::new(PageRange::new(start, group_pages.min(pages - start)));
            let (largest, free) = (AtomicU64::new(extents.largest()), AtomicU64::new(extents.free()));
            Group { extents: Mutex::new(extents), largest, free }
        };
        let groups = (0..pages.div_ceil(group_pages)).map(group).collect();
        Allocator { pages, group_pages, groups, corruptions: Mutex::new((0, Vec::new())) }
    }

    /// All groups once, from the hinted one on and round the ring.
    fn ring(&self, hint: GroupHint) -> impl Iterator<Item = &Group> {
        let first = (hint.0 % self.groups.len().max(1) as u64) as usize;
        let (before, from) = self.groups.split_at(first);
        from.iter().chain(before)
    }

    /// Allocates `blocks` blocks; none for 0. In one run if any group has one, starting on a folio
    /// (2 MiB) if 512 or more are asked for and a group has such a run; the hinted group and those
    /// behind it are searched first. Else in as few runs as taking the longest first gives, in the
    /// order of the ring. The contents are undefined.
    ///
    /// # Errors
    /// [`NoSpace`] if the groups, searched one after the other, had less together; everything
    /// taken was given back. Two requests at once that both need most of what is left can both be
    /// refused, and blocks freed meanwhile can be missed.
    pub fn alloc(&self, blocks: u64, hint: GroupHint) -> Result<Vec<PageRange>, NoSpace> {
        if blocks == 0 {
            return Ok(Vec::new());
        }
        if let Some(run) = self.alloc_run(blocks, hint) {
            return Ok(vec![run]);
        }
        let mut runs: Vec<PageRange> = Vec::new();
        let mut left = blocks;
        for group in self.ring(hint) {
            race_point!("alloc: between groups");
            group.with(|extents| {
                while left > 0
                    && let Some(run) = extents.take_at_most(left)
                {
                    left -= run.len();
                    match runs.last_mut() {
                        Some(last) if last.end() == run.start() => {
                            *last = PageRange::new(last.start(), last.len() + run.len())
                        }
                        _ => runs.push(run),
                    }
                }
            });
            if left == 0 {
                return Ok(runs);
            }
        }
        for run in runs {
            self.put(run);
        }
        Err(NoSpace { asked: blocks, found: blocks - left })
    }

    fn alloc_run(&self, blocks: u64, hint: GroupHint) -> Option<PageRange> {
        let take = |aligned| {
            // ORDERING: Relaxed: a hint. A run that it hides was given back during this search,
            // and the gathering finds it.
            let mut promising = self.ring(hint).filter(|group| group.largest.load(Ordering::Relaxed) >= blocks);
            promising.find_map(|group| group.with(|extents| extents.take_run(blocks, aligned)))
        };
        let aligned = if blocks >= FOLIO { take(true) } else { None };
        aligned.or_else(|| take(false))
    }

    /// Marks `pages` as allocated, as found by a mount. False if some were allocated already (or
    /// are outside the device); those before them stay marked.
    pub(crate) fn claim(&self, pages: PageRange) -> bool {
        if pages.end() > self.pages {
            return false;
        }
        let mut at = pages.start();
        while at < pages.end() {
            let index = at / self.group_pages;
            let end = pages.end().min((index + 1) * self.group_pages);
            if !self.groups[index as usize].with(|extents| extents.claim(PageRange::new(at, end - at))) {
                return false;
            }
            at = end;
        }
        true
    }

    /// Takes back blocks that no file reaches any more: the token proves their pages frozen. They
    /// are free before the token's end reopens them, so the next owner may find them closed for a
    /// moment, as any pinner that meets a layout change.
    pub fn free<const FANOUT: usize>(&self, frozen: Frozen<'_, FANOUT>) {
        self.put(frozen.range());
        race_point!("free: in the books, not reopened");
        drop(frozen);
    }

    fn put(&self, run: PageRange) {
        let inside = run.intersect(PageRange::new(0, self.pages)).unwrap_or(PageRange::new(0, 0));
        if inside != run && !run.is_empty() {
            self.corrupted(Corruption::Outside(PageRange::new(
                run.start().max(self.pages),
                run.end() - run.start().max(self.pages),
            )));
        }
        let mut at = inside.start();
        while at < inside.end() {
            let index = at / self.group_pages;
            let end = inside.end().min((index + 1) * self.group_pages);
            let twice = self.groups[index as usize].with(|extents| extents.put(PageRange::new(at, end - at)));
            twice.into_iter().for_each(|pages| self.corrupted(Corruption::FreeOfFree(pages)));
            at = end;
        }
    }

    #[cold]
    fn corrupted(&self, what: Corruption) {
        let mut corruptions = self.corruptions.lock();
        corruptions.0 += 1;
        if corruptions.1.len() < CORRUPTIONS_MAX {
            corruptions.1.push(what);
        }
    }

    /// How many corruptions there were, and the first 16 of them.
    pub fn corruptions(&self) -> (u64, Vec<Corruption>) {
        self.corruptions.lock().clone()
    }

    /// How many blocks the device has.
    pub fn blocks(&self) -> u64 {
        self.pages
    }

    /// How many groups there are, and blocks in each (but perhaps the last).
    pub fn groups(&self) -> (usize, u64) {
        (self.groups.len(), self.group_pages)
    }

    /// Free blocks: exact while no task allocates or frees, else as of some moment for each group.
    /// Takes no lock.
    pub fn free_blocks(&self) -> u64 {
        self.groups.iter().map(|group| group.free.load(Ordering::Relaxed)).sum()
    }

    /// Allocated blocks, orphaned ones among them. They are counted separately, as they are taken
    /// and given back, so that they can be checked against the free ones. Takes every group's lock
    /// in turn.
    pub fn allocated_blocks(&self) -> u64 {
        self.groups.iter().map(|group| group.extents.lock().allocated()).sum()
    }

    /// The longest run that one group has free, in blocks; a hint, like [`Allocator::free_blocks`].
    pub fn largest_free(&self) -> u64 {
        self.groups.iter().map(|group| group.largest.load(Ordering::Relaxed)).max().unwrap_or(0)
    }

    /// What is wrong with the books: corruptions met so far, and broken invariants of the groups.
    /// For the end of a run.
    pub fn check(&self) -> Vec<String> {
        let (count, first) = self.corruptions();
        let mut wrong: Vec<String> = first.iter().map(|what| format!("invariant 4: {what}")).collect();
        if count > first.len() as u64 {
            wrong.push(format!("invariant 4: {} more corruptions of the allocator", count - first.len() as u64));
        }
        for (n, group) in self.groups.iter().enumerate() {
            if let Err(what) = group.extents.lock().check() {
                wrong.push(format!("invariant 4: allocation group {n}: {what}"));
            }
        }
        wrong
    }

    /// What is wrong with the device as a whole while no task allocates or frees: every block must
    /// be either free or in exactly one of `owned` (the extents of all files, each shared one
    /// once, and the orphaned blocks). Reports runs of blocks that have no owner and are not free
    /// (leaked), have two owners, or are owned and free: the first 16 of them, in device order.
    pub fn check_owned(&self, owned: impl IntoIterator<Item = PageRange>) -> Vec<String> {
        let mut runs: Vec<(PageRange, &str)> = owned.into_iter().map(|pages| (pages, "owned")).collect();
        for group in &self.groups {
            runs.extend(group.extents.lock().extents().map(|pages| (pages, "free")));
        }
        runs.retain(|(pages, _)| !pages.is_empty());
        runs.push((PageRange::new(self.pages, 0), "the end"));
        runs.sort_unstable_by_key(|(pages, _)| (pages.start(), pages.end()));
        let mut wrong = Vec::new();
        let (mut reached, mut before) = (0, "the start");
        for (pages, kind) in runs {
            if pages.start() > reached {
                wrong.push(format!(
                    "invariant 4: device {} neither free nor owned",
                    PageRange::new(reached, pages.start() - reached)
                ));
            } else if pages.start() < reached && !pages.is_empty() {
                let both = PageRange::new(pages.start(), reached.min(pages.end()) - pages.start());
                wrong.push(format!("invariant 4: device {both} {before} and {kind}"));
            }
            if pages.end() > self.pages {
                wrong.push(format!("invariant 4: device {pages} {kind}, beyond the device's end"));
            }
            if pages.end() >= reached {
                (reached, before) = (pages.end(), kind);
            }
        }
        wrong.truncate(CORRUPTIONS_MAX);
        wrong
    }
}
