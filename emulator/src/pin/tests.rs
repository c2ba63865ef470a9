//! Counts at their limits, and the bits that no public observation shows.

use super::levels::Geometry;
use super::word::{BELOW, CLOSE_BELOW, CLOSED, ORPHAN, WAITERS};
use super::*;
use crate::runtime::sync::atomic::Ordering;

type Table = PinTable<4>;
const FOLIO: PageRange = PageRange::new(0, 4);
const GIANT: PageRange = PageRange::new(0, 16);

fn table() -> Table {
    Table::with_fanout(32).expect("a few words of address space")
}

fn page(index: u64) -> Unit {
    Unit { level: 0, index }
}

impl Table {
    /// Sets a word as if very many had pinned it.
    fn preload(&self, unit: Unit, word: u64) {
        self.at(unit).store(word, Ordering::SeqCst);
    }

    fn bits(&self, unit: Unit) -> u64 {
        self.at(unit).load(Ordering::SeqCst)
    }
}

#[test]
fn a_full_count_refuses_and_the_rollback_is_exact() {
    for (kind, other, half) in [(PinKind::Short, PinKind::Long, 1 << 15), (PinKind::Long, PinKind::Short, 1 << 27)] {
        let table = table();
        let before = (half - 1) * kind.one();
        table.preload(page(6), before);
        let last = table.pin(PageRange::new(6, 1), kind).unwrap();
        assert_eq!(table.word(page(6)).unwrap().count(kind), half);
        let full = table.pin(PageRange::new(5, 4), kind);
        assert_eq!(full, Err(PinError::CountFull(Unpinned::default())));
        assert_eq!((table.bits(page(5)), table.bits(page(6)), table.bits(page(7))), (0, half * kind.one(), 0));
        let fits = table.pin(PageRange::new(5, 4), other).unwrap();
        let _ = (table.unpin(fits), table.unpin(last));
        assert_eq!(table.bits(page(6)), before, "one below half its field again");
        let again = table.pin(PageRange::new(6, 1), kind).unwrap();
        let _ = table.unpin(again);
    }
}

#[test]
fn a_full_folio_refuses_and_a_closed_one_says_so_first() {
    let (table, folio) = (table(), Unit { level: 1, index: 0 });
    table.preload(folio, (1 << 27) * PinKind::Long.one());
    assert_eq!(table.pin(FOLIO, PinKind::Long), Err(PinError::CountFull(Unpinned::default())));
    let closing = table.close(PageRange::new(0, 1)).unwrap();
    assert_eq!(table.pin(FOLIO, PinKind::Long), Err(PinError::Closed(Unpinned::default())));
    drop(closing);
    assert_eq!(table.bits(folio), (1 << 27) * PinKind::Long.one());
}

#[test]
fn too_many_closes_below_are_contended() {
    let (table, folio) = (table(), Unit { level: 1, index: 0 });
    table.preload(folio, (1 << 15) * CLOSE_BELOW);
    assert_eq!(table.close(PageRange::new(0, 1)).err(), Some(Contended));
    assert_eq!(table.bits(folio), (1 << 15) * CLOSE_BELOW);
    assert_eq!((table.bits(page(0)), table.bits(Unit { level: 2, index: 0 })), (0, 0));
}

#[test]
fn a_range_beyond_the_device_is_refused() {
    let table = table();
    for range in [PageRange::new(32, 1), PageRange::new(31, 2), PageRange::new(u64::MAX, u64::MAX)] {
        assert_eq!(table.pin(range, PinKind::Short), Err(PinError::OutOfRange));
    }
    let empty = table.pin(PageRange::new(32, 0), PinKind::Short).unwrap();
    let _ = table.unpin(empty);
    assert!(table.all_zero());
}

#[test]
fn below_goes_only_with_a_zero_scan_of_the_unit_itself() {
    let (table, folio, giant) = (table(), Unit { level: 1, index: 0 }, Unit { level: 2, index: 0 });
    let pin = table.pin(PageRange::new(1, 1), PinKind::Short).unwrap();
    assert_eq!((table.bits(folio), table.bits(giant)), (BELOW, BELOW));
    drop(table.close(FOLIO).unwrap().freeze().unwrap_err());
    assert_eq!(table.bits(folio), BELOW, "given up: something is pinned");
    let _ = table.unpin(pin);
    drop(table.close(FOLIO).unwrap());
    assert_eq!(table.bits(folio), BELOW, "given up without a scan");
    let forged = table.forge(FOLIO);
    assert!(forged.is_forged() && forged.range() == FOLIO);
    drop(forged);
    assert_eq!(table.bits(folio), BELOW, "a forged token closes nothing");
    let frozen = table.close(GIANT).unwrap().freeze().unwrap();
    assert_eq!(table.bits(giant), BELOW | CLOSED);
    drop(frozen);
    assert_eq!((table.bits(folio), table.bits(giant)), (BELOW, 0), "the folio itself was not closed");
    drop(table.close(FOLIO).unwrap().freeze().unwrap());
    assert_eq!((table.bits(folio), table.bits(giant)), (0, 0));
}

#[test]
fn a_waiters_flag_follows_the_busy_word_and_leaves_with_the_closer() {
    let (table, folio) = (table(), Unit { level: 1, index: 0 });
    let folio_pin = table.pin(FOLIO, PinKind::Short).unwrap();
    let pins = [0, 1].map(|at| table.pin(PageRange::new(at, 1), PinKind::Long).unwrap());
    let closing = table.close(PageRange::new(0, 2)).unwrap();
    let other = table.close(PageRange::new(2, 1)).unwrap();
    assert!(closing.flag_waiter(true) && other.flag_waiter(false));
    assert_eq!(table.bits(folio), BELOW | WAITERS | (2 * CLOSE_BELOW) | 1, "the folio's pin is in the way of both");
    let _ = table.unpin(folio_pin);
    assert!(!closing.flag_waiter(true), "no short-term pin is left");
    assert!(closing.flag_waiter(false));
    let long = PinKind::Long.one();
    assert_eq!((table.bits(page(0)), table.bits(page(1))), (long | CLOSED | WAITERS, long | CLOSED));
    let [first, second] = pins;
    let _ = table.unpin(first);
    assert!(closing.flag_waiter(false));
    assert_eq!((table.bits(page(0)), table.bits(page(1))), (CLOSED, long | CLOSED | WAITERS));
    drop(closing);
    assert_eq!(
        (table.bits(page(1)), table.bits(folio)),
        (long, BELOW | WAITERS | CLOSE_BELOW),
        "the other one waits on"
    );
    drop(other);
    assert_eq!(table.bits(folio), BELOW);
    let _ = table.unpin(second);
}

#[test]
fn a_flag_below_a_closed_folio_is_taken_back() {
    let table = table();
    let pin = table.pin(PageRange::new(3, 1), PinKind::Long).unwrap();
    let closing = table.close(FOLIO).unwrap();
    assert!(closing.flag_waiter(false));
    assert_eq!(table.bits(page(3)), PinKind::Long.one() | WAITERS);
    drop(closing);
    assert_eq!(table.bits(page(3)), PinKind::Long.one());
    let _ = table.unpin(pin);
}

#[test]
fn a_shared_orphan_mark_stays_until_nothing_is_pinned() {
    let (table, folio) = (table(), Unit { level: 1, index: 0 });
    let long = table.pin(FOLIO, PinKind::Long).unwrap();
    let orphaned = [0, 1].map(|at| table.close(PageRange::new(at, 1)).unwrap().orphan());
    for orphan in orphaned {
        assert!(!orphan.reopen().orphan_seen, "the folio's pin will report");
    }
    assert_eq!(table.bits(folio), ORPHAN | PinKind::Long.one());
    assert!(table.unpin(long).orphan_seen);
    drop(table.close(PageRange::new(0, 1)).unwrap().freeze().unwrap());
    assert_eq!(table.bits(folio), 0, "the first reaper takes the mark: the last unpinner has reported");
    drop(table.close(PageRange::new(1, 1)).unwrap().freeze().unwrap());
    assert!(table.all_zero());
}

#[test]
fn the_refused_pin_that_was_the_last_reports_the_orphan() {
    let table = table();
    let pin = table.pin(PageRange::new(0, 1), PinKind::Long).unwrap();
    assert!(!table.close(FOLIO).unwrap().orphan().reopen().orphan_seen);
    let held = table.close(PageRange::new(1, 1)).unwrap();
    assert!(table.unpin(pin).orphan_seen);
    let refused = table.pin(PageRange::new(0, 2), PinKind::Short).unwrap_err();
    assert_eq!(refused, PinError::Closed(Unpinned { orphan_seen: true }));
    drop(held);
    assert!(table.close(FOLIO).unwrap().orphan().reopen().orphan_seen, "nothing was pinned any more");
}

#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "was dropped")]
fn a_dropped_pin_is_a_bug() {
    drop(table().pin(FOLIO, PinKind::Short));
}

#[test]
fn the_real_table_has_real_sizes() {
    let table = PinTable::new(1 << 19).unwrap();
    let pin = table.pin(PageRange::new(1 << 18, 1 << 18), PinKind::Long).unwrap();
    assert_eq!(table.census(PageRange::new(1 << 18, 1)), Census { short: 0, long: 1 });
    assert_eq!(table.busy_words(9), [(Unit { level: 2, index: 1 }, Word(PinKind::Long.one()))]);
    assert_eq!(Geometry::<512>::size(1), 512);
    let _ = table.unpin(pin);
    assert!(table.all_zero());
}
