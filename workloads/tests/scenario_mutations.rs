//! The suite finds what it must find: with one rule of the simulated kernel broken on purpose,
//! scenarios fail, and the scenario named here is among them.
#![cfg(not(any(daxlab_loom, daxlab_shuttle)))]
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

use fs_sim::Sabotage;
use reports::scenarios::CellVerdict;
use workloads::input::designs::DesignCatalogue;
use workloads::suite::scenarios;

/// The number of presets under which the scenario `id` fails while a rule is broken.
fn failing(id: &str, sabotage: Sabotage) -> usize {
    let mut catalogue = DesignCatalogue::default();
    let presets = catalogue.resolve("all").unwrap();
    let names: Vec<&str> = catalogue.names().collect();
    let built_in = scenarios::built_in(&names).unwrap();
    let scenario = scenarios::find(&built_in, id).unwrap();
    let report = scenarios::run_sabotaged_for_tests(std::slice::from_ref(scenario), &presets, sabotage).unwrap();
    report.count(CellVerdict::Failed)
}

#[track_caller]
fn seen_by(id: &str, sabotage: Sabotage) {
    assert_eq!(failing(id, Sabotage::default()), 0);
    assert!(failing(id, sabotage) > 0, "{id} does not see it");
}

/// Lease conflict table: exclusive leases don't conflict with other holders' requests.
#[test]
fn s10_sees_a_lease_table_without_conflicts() {
    seen_by("S10", Sabotage { no_lease_conflict: true, ..Sabotage::default() });
}

/// Break timeout: a lease break never times out.
#[test]
fn s01_sees_breaks_that_never_time_out() {
    seen_by("S01", Sabotage { no_break_timeout: true, ..Sabotage::default() });
}

/// Signal target: the signal goes to the holder of the open file instead of the setter.
#[test]
fn s25_sees_a_signal_to_the_wrong_process() {
    seen_by("S25", Sabotage { signal_to_holder: true, ..Sabotage::default() });
}

/// Deferred release: what a release schedules is forgotten.
#[test]
fn s21_sees_a_forgotten_nested_release() {
    seen_by("S21", Sabotage { no_nested_release: true, ..Sabotage::default() });
}

/// Freeze before free: blocks are freed without closing their pages and waiting for pins.
#[test]
fn s16_sees_blocks_freed_under_a_pin() {
    seen_by("S16", Sabotage { free_without_close: true, ..Sabotage::default() });
}

/// Zombie pin check: a zombie lease lets new pins through.
#[test]
fn s18_sees_a_zombie_that_lets_pins_through() {
    seen_by("S18", Sabotage { zombie_lets_pin: true, ..Sabotage::default() });
}
