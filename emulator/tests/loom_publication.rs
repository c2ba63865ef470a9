//! A pinner's recheck against the publication of a map, under loom: the real [`Published`], pin
//! table and ledger.
//!
//! Run: `RUSTFLAGS="--cfg daxlab_loom" cargo test -p emulator --test loom_publication --release`.
//! The file has one or two blocks; its map says for each on which page it lies. What a page holds
//! is loom's own cell: an access that is not ordered with the next owner's is found as such.
#![cfg(daxlab_loom)]
#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use emulator::ledger::{Ledger, Ownership, OwnershipCheck, Published, ReadMoment};
use emulator::pin::{PageRange, Pin, PinKind, PinTable};
use emulator::sync::{Arc, Mutex, thread};
use loom::cell::UnsafeCell;

const PAGES: u64 = 4;
const FIRST: PageRange = PageRange::new(0, 1);
/// In another folio than the first.
const SECOND: PageRange = PageRange::new(2, 1);

/// On which page each of the two blocks lies; none for a hole.
type Map = [Option<PageRange>; 2];

struct Machine {
    table: PinTable<2>,
    ledger: Ledger,
    map: Published<Map>,
    /// Serialises publications.
    map_lock: Mutex<()>,
    memory: Vec<UnsafeCell<u64>>,
}

// SAFETY: the cells are what the models are about: loom reports every access that isn't ordered
// with the others.
unsafe impl Sync for Machine {}
// SAFETY: as for Sync.
unsafe impl Send for Machine {}

impl Machine {
    fn new(map: Map) -> Arc<Machine> {
        Arc::new(Machine {
            table: PinTable::mutated(PAGES, None).unwrap(),
            ledger: Ledger::new(PAGES).unwrap(),
            map: Published::new(map),
            map_lock: Mutex::new(()),
            memory: (0..PAGES).map(|_| UnsafeCell::new(0)).collect(),
        })
    }

    fn touch(&self, page: PageRange) {
        // SAFETY: loom checks that no other thread is in the cell, and that all earlier ones are
        // ordered before.
        self.memory[page.start() as usize].with_mut(|cell| unsafe { *cell += 1 });
    }

    /// Publishes the newest map with another place for `block`.
    fn place(&self, block: usize, page: Option<PageRange>) {
        let _publishing = self.map_lock.lock();
        let mut next = self.map.read(|map| *map);
        next[block] = page;
        self.map.publish(next);
    }

    /// Takes `block` from its page and gives the page to an owner that writes at once. Gives up if
    /// the page is pinned.
    fn free(&self, block: usize, page: PageRange) {
        let Ok(closing) = self.table.close(page) else { return };
        let Ok(frozen) = closing.freeze() else { return };
        self.place(block, None);
        self.ledger.stamp(page, Ownership::Changed);
        drop(frozen);
        self.touch(page);
    }

    /// Moves a page into or out of the file: it is stamped before the map shows it. Gives up if the
    /// page is pinned.
    fn moves(&self, block: usize, page: PageRange, to: Option<PageRange>) -> bool {
        let Ok(closing) = self.table.close(page) else { return false };
        let Ok(frozen) = closing.freeze() else { return false };
        self.ledger.stamp(page, Ownership::Changed);
        self.place(block, to);
        drop(frozen);
        true
    }

    /// Pins the page of `block`, if it has one, and rechecks: the page, the moment, and whether the
    /// pin holds.
    fn pin(&self, block: usize) -> Option<(Pin, PageRange, ReadMoment, bool)> {
        let (moment, page) = self.map.look(&self.ledger, |map| map[block]);
        let page = page?;
        let pin = self.table.pin(page, PinKind::Short).ok()?;
        let holds = self.map.holds(&self.ledger, moment, [page], |map| map[block] == Some(page));
        Some((pin, page, moment, holds))
    }

    /// Accesses `block` through a pin that holds: the block is never stale then.
    fn access(&self, block: usize) {
        let Some((pin, page, moment, holds)) = self.pin(block) else { return };
        if holds {
            self.touch(page);
            let check = self.ledger.check_after_copy(page, moment.read_point);
            assert_eq!(check, OwnershipCheck::Current, "a stale pin");
        }
        let _ = self.table.unpin(pin);
    }
}

/// A machine whose file begins with `map`: `change` runs in a thread of its own, against `access`.
fn check(map: Map, change: fn(&Machine), access: fn(&Machine)) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(4);
    builder.check(move || {
        let machine = Machine::new(map);
        let changer = {
            let machine = Arc::clone(&machine);
            thread::spawn(move || change(&machine))
        };
        access(&machine);
        changer.join().unwrap();
    });
}

/// The step behind the map, and the closed page.
#[test]
fn a_block_that_leaves_is_not_accessed() {
    check([Some(FIRST), None], |machine| machine.free(0, FIRST), |machine| machine.access(0));
}

/// The step before the map: the page was another file's until just now.
#[test]
fn a_block_that_joins_is_not_pinned_with_an_older_read_point() {
    let joins = |machine: &Machine| {
        machine.ledger.stamp(FIRST, Ownership::Changed);
        machine.place(0, Some(FIRST));
    };
    check([None, None], joins, |machine| machine.access(0));
}

/// The stamps: the map alone says the same as before.
#[test]
fn a_block_that_left_and_came_back_is_not_pinned_with_an_older_read_point() {
    let leaves_and_returns = |machine: &Machine| {
        if machine.moves(0, FIRST, None) {
            machine.moves(0, FIRST, Some(FIRST));
        }
    };
    check([Some(FIRST), None], leaves_and_returns, |machine| machine.access(0));
}

/// A publication elsewhere in the file never undoes a pin.
#[test]
fn a_change_of_another_block_leaves_a_pin_alone() {
    let access = |machine: &Machine| {
        if let Some((pin, _, _, holds)) = machine.pin(0) {
            assert!(holds, "its block did not change");
            let _ = machine.table.unpin(pin);
        }
    };
    check([Some(FIRST), Some(SECOND)], |machine| machine.free(1, SECOND), access);
}

/// Two publications of disjoint changes: none is lost.
#[test]
fn disjoint_changes_are_both_published() {
    let both = |machine: &Machine| machine.free(0, FIRST);
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(4);
    builder.check(move || {
        let machine = Machine::new([Some(FIRST), Some(SECOND)]);
        let changer = {
            let machine = Arc::clone(&machine);
            thread::spawn(move || both(&machine))
        };
        machine.free(1, SECOND);
        changer.join().unwrap();
        let map = machine.map.read(|map| *map);
        // A change gives up if it meets the other one's closing.
        let given_up = |block: usize, page: PageRange| map[block] == Some(page);
        assert!(!(given_up(0, FIRST) && given_up(1, SECOND)), "one of them closes its page");
        let published = map.iter().filter(|page| page.is_none()).count() as u64;
        assert_eq!(machine.map.generation(), 1 + 2 * published);
    });
}
