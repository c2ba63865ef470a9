//! A map that is published as a whole, and the recheck of a pinner that has read it.
//!
//! It owns the generation of a map. Invariants: the generation changes before a map becomes visible
//! and again afterwards, and never takes a value twice. Kernel counterpart: the sequence count
//! behind `pin_user_pages_fast`, and its recheck (mm/gup.c).
//!
//! # The order of steps
//! - *A changer* closes the pages that leave, publishes the map, stamps the pages, and reopens
//!   them. Pages that move are stamped before the map is published.
//! - *A pinner* takes [`Published::look`], pins what the map said, and asks [`Published::holds`]. A
//!   pin that comes before the close is seen by the changer; one that comes after the reopening
//!   finds the generation changed.

use crate::ledger::{Ledger, OwnershipCheck, Stamp};
use crate::runtime::pages::PageRange;
use crate::runtime::sync::Rcu;
use crate::runtime::sync::atomic::{AtomicU64, Ordering};
use crate::runtime::sync::race::race_point;

/// See the module.
#[derive(Debug)]
pub struct Published<T> {
    generation: AtomicU64,
    map: Rcu<T>,
}

/// When a pinner read a map: the generation first, then the read point, then the map.
#[derive(Clone, Copy, Debug)]
pub struct ReadMoment {
    /// The generation before the map was read.
    pub generation: u64,
    /// The read point before the map was read.
    pub read_point: Stamp,
}

impl<T: Send + Sync + 'static> Published<T> {
    /// A first map.
    pub fn new(map: T) -> Published<T> {
        Published { generation: AtomicU64::new(1), map: Rcu::new(map) }
    }

    /// Runs `look` on the current map, without a lock. `look` must not block.
    pub fn read<R>(&self, look: impl FnOnce(&T) -> R) -> R {
        self.map.read(look)
    }

    /// The current generation.
    pub fn generation(&self) -> u64 {
        // ORDERING: SeqCst. A pinner reads it before the map and again after its pin; the second
        // read must not be satisfied from before the pin's read-modify-write.
        self.generation.load(Ordering::SeqCst)
    }

    /// Publishes a map with other blocks than before. The pages that leave are closed, or the
    /// design gives them up while pinned. The caller serialises publications.
    pub fn publish(&self, map: T) {
        // ORDERING: SeqCst, both. The first, before the map: a pinner that reads the new map with
        // a generation (and a read point) from before it is caught by the recheck, so a block that
        // just joined is never pinned with a read point older than its last departure. The second,
        // after the map and before the pages reopen: a pinner that read the old map is caught.
        self.generation.fetch_add(1, Ordering::SeqCst);
        race_point!("map: generation changed, map not published");
        self.publish_same_blocks(map);
        race_point!("map: map published, generation not changed");
        self.generation.fetch_add(1, Ordering::SeqCst);
    }

    /// Publishes a map with the same blocks in the same places; the generation stays. The caller
    /// serialises publications.
    pub fn publish_same_blocks(&self, map: T) {
        self.map.replace(map);
    }

    /// Runs `look` on the current map. Returns the moment too, for [`Published::holds`].
    pub fn look<R>(&self, ledger: &Ledger, look: impl FnOnce(&T) -> R) -> (ReadMoment, R) {
        let generation = self.generation();
        let read_point = ledger.read_point();
        race_point!("map: read point drawn, map not read");
        (ReadMoment { generation, read_point }, self.read(look))
    }

    /// Whether `pages`, which were pinned after a look at the map at `moment`, are still the
    /// file's. `same`: whether a map says the same of them.
    pub fn holds(
        &self,
        ledger: &Ledger,
        moment: ReadMoment,
        pages: impl IntoIterator<Item = PageRange>,
        same: impl FnOnce(&T) -> bool,
    ) -> bool {
        if self.generation() == moment.generation {
            return true;
        }
        // Another part of the file has changed, or this one. The map is read before the stamps: a
        // block that left and came back was stamped before the map shows it again.
        self.read(same)
            && pages.into_iter().all(|pages| ledger.check(pages, moment.read_point) == OwnershipCheck::Current)
    }
}
