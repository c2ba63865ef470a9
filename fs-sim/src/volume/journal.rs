//! The journal: what of the volume a power cut leaves.
//!
//! It owns, for every inode, the layout as of its last committed change, and the *free-pending*
//! blocks: those that have left their file in a committed change while pinned. (A block that is in
//! no layout and not free-pending is free, whether or not the allocator had been told before the
//! cut.) A change commits once, with both files if it concerns two, after its map is published and
//! before any block that left is freed **\[chosen\]**: its metadata is durable when the call
//! returns, and a block is never free while a committed layout names it. Names are durable at once.
//! [`caches`](crate::volume::caches) says which bytes are durable.
//!
//! Invariants: no block is in two committed layouts (unless shared), or in one and free-pending;
//! after the cut nothing commits. Kernel counterpart: the log of XFS (fs/xfs/xfs_log.c); the
//! free-pending blocks are its extent-free intents without a done item
//! (fs/xfs/xfs_extfree_item.c).

use std::collections::BTreeMap;

use emulator::pin::PageRange;
use emulator::sync::Mutex;

use crate::base::numbers::Ino;
use crate::extent_map::Layout;
use crate::volume::PageList;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Journal(Mutex<JournalRecords>);

#[derive(Debug, Default)]
struct JournalRecords {
    layouts: BTreeMap<Ino, Layout>,
    pending: PageList,
    cut: bool,
}

/// What the journal holds at the moment of a cut.
#[derive(Debug, Default)]
pub(crate) struct JournalContents {
    pub(crate) layouts: BTreeMap<Ino, Layout>,
    pub(crate) pending: Vec<PageRange>,
}

impl Journal {
    /// Commits these inodes' published layouts. The caller has held the locks of their maps since
    /// it published: so of two commits the later one is not undone by the earlier, and no half of
    /// a change of two files is committed.
    pub(crate) fn commit(&self, changed: impl IntoIterator<Item = (Ino, Layout)>) {
        let mut records = self.0.lock();
        if !records.cut {
            records.layouts.extend(changed);
        }
    }

    /// Commits an inode's eviction.
    pub(crate) fn evicted(&self, ino: Ino) {
        let mut records = self.0.lock();
        if !records.cut {
            records.layouts.remove(&ino);
        }
    }

    /// `pages` have left their file and are pinned: free-pending.
    pub(crate) fn left_behind(&self, pages: PageRange) {
        let mut records = self.0.lock();
        if !records.cut {
            records.pending.put(pages);
        }
    }

    /// `pages` are about to be free in the allocator's books.
    pub(crate) fn freed(&self, pages: PageRange) {
        let mut records = self.0.lock();
        if !records.cut {
            let _intents = records.pending.take(pages);
        }
    }

    /// Ends all commits, runs `at_the_cut`, and returns what is durable.
    pub(crate) fn cut(&self, at_the_cut: impl FnOnce()) -> JournalContents {
        let mut records = self.0.lock();
        records.cut = true;
        at_the_cut();
        JournalContents { layouts: std::mem::take(&mut records.layouts), pending: records.pending.pages() }
    }
}
