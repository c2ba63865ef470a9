//! The pin table against a plain model: every pin is a list of units with counts, every close a
//! range.
#![cfg(not(any(daxlab_loom, daxlab_shuttle)))]
#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::collections::{BTreeMap, BTreeSet};

use emulator::pin::{
    Census, Closing, Contended, Frozen, Orphaned, PageRange, Pin, PinError, PinKind, PinTable, Unit, Unpinned,
};
use proptest::collection::vec;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Op {
    Pin(PageRange, PinKind),
    Unpin(usize),
    Close(PageRange),
    Freeze(usize),
    Forge(PageRange),
    Orphan(usize),
    Reopen(usize),
    Flag(usize, bool),
    Census(PageRange),
}

enum Held<'t, const F: usize> {
    Closing(Closing<'t, F>),
    Frozen(Frozen<'t, F>),
    Orphaned(Orphaned<'t, F>, Vec<Unit>),
}

impl<const F: usize> Held<'_, F> {
    fn range(&self) -> PageRange {
        match self {
            Held::Closing(closing) => closing.range(),
            Held::Frozen(frozen) => frozen.range(),
            Held::Orphaned(orphaned, _) => orphaned.range(),
        }
    }
}

/// What the table should say, kept in the plainest way: pins and marks by unit.
#[derive(Default)]
struct Model {
    counts: BTreeMap<Unit, Census>,
    orphan: BTreeSet<Unit>,
}

fn size<const F: usize>(level: usize) -> u64 {
    (F as u64).pow(level as u32)
}

fn pages<const F: usize>(unit: Unit) -> PageRange {
    PageRange::new(unit.index * size::<F>(unit.level), size::<F>(unit.level))
}

fn meet(a: PageRange, b: PageRange) -> bool {
    a.intersect(b).is_some()
}

/// The largest aligned units that a range covers, found by trying all sizes at each place.
fn units<const F: usize>(range: PageRange) -> Vec<Unit> {
    let mut found = Vec::new();
    let mut at = range.start();
    while at < range.end() {
        let fits = |level: &usize| at.is_multiple_of(size::<F>(*level)) && range.end() - at >= size::<F>(*level);
        let level = (0..3).rev().find(fits).unwrap();
        found.push(Unit { level, index: at / size::<F>(level) });
        at += size::<F>(level);
    }
    found
}

impl Model {
    fn count(&self, unit: Unit) -> Census {
        self.counts.get(&unit).copied().unwrap_or_default()
    }

    fn add(&mut self, unit: Unit, kind: PinKind) {
        let count = self.counts.entry(unit).or_default();
        match kind {
            PinKind::Short => count.short += 1,
            PinKind::Long => count.long += 1,
        }
    }

    /// True if the unit is left empty with an orphan's mark.
    fn sub(&mut self, unit: Unit, kind: PinKind) -> bool {
        let count = self.counts.get_mut(&unit).unwrap();
        match kind {
            PinKind::Short => count.short -= 1,
            PinKind::Long => count.long -= 1,
        }
        if count.is_zero() {
            self.counts.remove(&unit);
        }
        self.count(unit).is_zero() && self.orphan.contains(&unit)
    }

    fn census<const F: usize>(&self, range: PageRange) -> Census {
        let met = self.counts.iter().filter(|(unit, _)| meet(pages::<F>(**unit), range));
        met.fold(Census::default(), |sum, (_, count)| Census {
            short: sum.short + count.short,
            long: sum.long + count.long,
        })
    }
}

struct Run<'t, const F: usize> {
    table: &'t PinTable<F>,
    model: Model,
    pins: Vec<Pin>,
    held: Vec<Held<'t, F>>,
    /// Units whose words were ever written by a pin, to compare all of them after each step.
    touched: BTreeSet<Unit>,
}

impl<'t, const F: usize> Run<'t, F> {
    fn new(table: &'t PinTable<F>) -> Self {
        Run { table, model: Model::default(), pins: Vec::new(), held: Vec::new(), touched: BTreeSet::new() }
    }

    fn shut(&self, range: PageRange) -> bool {
        self.held.iter().any(|held| meet(held.range(), range))
    }

    fn pin(&mut self, range: PageRange, kind: PinKind) {
        let result = self.table.pin(range, kind);
        let units = units::<F>(range);
        self.touched.extend(&units);
        if range.end() > self.table.pages() {
            assert_eq!(result, Err(PinError::OutOfRange));
        } else if let Some(refused) = units.iter().position(|&unit| self.shut(pages::<F>(unit))) {
            let orphan_seen =
                units[..=refused].iter().any(|&u| self.model.count(u).is_zero() && self.model.orphan.contains(&u));
            assert_eq!(result, Err(PinError::Closed(Unpinned { orphan_seen })));
        } else {
            units.iter().for_each(|&unit| self.model.add(unit, kind));
            let pin = result.unwrap();
            assert_eq!((pin.range(), pin.kind()), (range, kind));
            self.pins.push(pin);
        }
    }

    fn unpin(&mut self, at: usize) {
        let pin = self.pins.swap_remove(at);
        let mut orphan_seen = false;
        for unit in units::<F>(pin.range()) {
            orphan_seen |= self.model.sub(unit, pin.kind());
        }
        assert_eq!(self.table.unpin(pin), Unpinned { orphan_seen });
    }

    fn close(&mut self, range: PageRange) {
        let contended = self.shut(range);
        match self.table.close(range) {
            Ok(closing) => {
                assert!(!contended, "{range} is closed by another changer");
                assert_eq!(closing.range(), range);
                self.held.push(Held::Closing(closing));
            }
            Err(Contended) => assert!(contended, "no other changer has {range} closed"),
        }
    }

    fn freeze(&mut self, closing: Closing<'t, F>) -> Held<'t, F> {
        let range = closing.range();
        let census = self.model.census::<F>(range);
        assert_eq!(closing.census(), census);
        match closing.freeze() {
            Ok(frozen) => {
                assert!(census.is_zero(), "{range} was frozen with {census:?}");
                self.model.orphan.retain(|&unit| !meet(pages::<F>(unit), range));
                Held::Frozen(frozen)
            }
            Err(closing) => {
                assert!(!census.is_zero(), "{range} was not frozen");
                Held::Closing(closing)
            }
        }
    }

    fn orphan(&mut self, closing: Closing<'t, F>) -> Held<'t, F> {
        let range = closing.range();
        let marked: Vec<Unit> = self.model.counts.keys().copied().filter(|&u| meet(pages::<F>(u), range)).collect();
        self.model.orphan.extend(&marked);
        Held::Orphaned(closing.orphan(), marked)
    }

    fn reopen(&mut self, held: Held<'t, F>) {
        if let Held::Orphaned(orphaned, marked) = held {
            let reports = |&unit: &Unit| !self.model.count(unit).is_zero() && self.model.orphan.contains(&unit);
            let orphan_seen = marked.is_empty() || !marked.iter().all(reports);
            assert_eq!(orphaned.reopen(), Unpinned { orphan_seen });
        }
    }

    fn step(&mut self, op: Op) {
        match op {
            Op::Pin(range, kind) => self.pin(range, kind),
            Op::Close(range) if range.end() <= self.table.pages() && !range.is_empty() => self.close(range),
            Op::Close(_) => {}
            Op::Forge(range) => drop(self.table.forge(range)),
            Op::Census(range) => assert_eq!(self.table.census(range), self.model.census::<F>(range)),
            Op::Unpin(n) if !self.pins.is_empty() => self.unpin(n % self.pins.len()),
            Op::Freeze(n) | Op::Orphan(n) | Op::Reopen(n) | Op::Flag(n, _) if !self.held.is_empty() => {
                let held = self.held.swap_remove(n % self.held.len());
                let held = match (op, held) {
                    (Op::Freeze(_), Held::Closing(closing)) => self.freeze(closing),
                    (Op::Orphan(_), Held::Closing(closing)) => self.orphan(closing),
                    (Op::Flag(_, shorts_only), Held::Closing(closing)) => {
                        let census = self.model.census::<F>(closing.range());
                        let busy = census.short > 0 || !shorts_only && census.long > 0;
                        assert_eq!(closing.flag_waiter(shorts_only), busy);
                        Held::Closing(closing)
                    }
                    (_, held) => return self.reopen(held),
                };
                self.held.push(held);
            }
            _ => {}
        }
        for &unit in &self.touched {
            let Some(word) = self.table.word(unit) else { continue };
            let count = self.model.count(unit);
            assert_eq!((word.short(), word.long()), (count.short, count.long), "{unit:?}");
            assert_eq!(word.has_orphan(), self.model.orphan.contains(&unit), "{unit:?}");
        }
    }

    /// Gives everything back; then nothing is left but hints, and those go when each unit is frozen
    /// once.
    fn finish(mut self) {
        while !self.held.is_empty() {
            let held = self.held.swap_remove(0);
            self.reopen(held);
        }
        assert_eq!(self.table.all_zero(), self.model.counts.is_empty());
        while !self.pins.is_empty() {
            self.unpin(0);
        }
        assert_eq!(self.table.busy_words(1), []);
        let device = PageRange::new(0, self.table.pages());
        let frozen = self.table.close(device).unwrap().freeze();
        assert!(frozen.is_ok(), "nothing is pinned");
        drop(frozen);
        let mut all = self.touched.clone();
        all.extend(self.touched.iter().flat_map(|&unit| {
            (unit.level + 1..3).map(move |level| Unit { level, index: unit.index / size::<F>(level - unit.level) })
        }));
        for &unit in &all {
            if pages::<F>(unit).end() <= device.end() {
                assert!(self.table.close(pages::<F>(unit)).unwrap().freeze().is_ok());
            }
        }
        for unit in all {
            let Some(word) = self.table.word(unit) else { continue };
            let whole = pages::<F>(unit).end() <= device.end();
            // A folio that the device cuts short is never closed itself: it keeps the hint that
            // something may be below.
            let left = word.is_busy() || word.has_waiters() || word.has_orphan() || whole && word.has_below();
            assert!(!left, "{unit:?} ends as {word:?}");
        }
    }
}

/// Ranges that begin and end near the borders of units more often than not.
fn ranges<const F: usize>(pages: u64) -> impl Strategy<Value = PageRange> {
    let near = move |level: usize| {
        let size = size::<F>(level);
        (0..=pages / size, -1i64..=1).prop_map(move |(at, off)| (at * size).saturating_add_signed(off).min(pages))
    };
    let place = move || prop_oneof![near(0), near(1), near(2)];
    let whole = (0..3usize, any::<u64>()).prop_map(move |(level, index)| {
        let size = size::<F>(level);
        PageRange::new(index % pages.div_ceil(size) * size, size)
    });
    let short = (place(), 0..=2 * F as u64 + 1).prop_map(|(start, len)| PageRange::new(start, len));
    let long = (place(), place()).prop_map(|(a, b)| PageRange::new(a.min(b), a.abs_diff(b)));
    prop_oneof![4 => whole, 4 => short, 1 => long]
}

fn ops<const F: usize>(pages: u64) -> impl Strategy<Value = Op> {
    let kind = prop_oneof![Just(PinKind::Short), Just(PinKind::Long)];
    prop_oneof![
        6 => (ranges::<F>(pages), kind).prop_map(|(range, kind)| Op::Pin(range, kind)),
        5 => any::<usize>().prop_map(Op::Unpin),
        4 => ranges::<F>(pages).prop_map(Op::Close),
        3 => any::<usize>().prop_map(Op::Freeze),
        1 => ranges::<F>(pages).prop_map(Op::Forge),
        2 => any::<usize>().prop_map(Op::Orphan),
        3 => any::<usize>().prop_map(Op::Reopen),
        2 => any::<(usize, bool)>().prop_map(|(n, shorts_only)| Op::Flag(n, shorts_only)),
        2 => ranges::<F>(pages).prop_map(Op::Census),
    ]
}

fn run<const F: usize>(pages: u64, ops: Vec<Op>) {
    let table = PinTable::<F>::with_fanout(pages).unwrap();
    let mut run = Run::new(&table);
    for op in ops {
        run.step(op);
    }
    run.finish();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn small_table_with_whole_folios(ops in vec(ops::<4>(64), 1..400)) {
        run::<4>(64, ops);
    }

    #[test]
    fn small_table_cut_off_in_a_folio(ops in vec(ops::<4>(27), 1..400)) {
        run::<4>(27, ops);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn real_table(ops in vec(ops::<512>((1 << 18) + 1500), 1..60)) {
        run::<512>((1 << 18) + 1500, ops);
    }
}
