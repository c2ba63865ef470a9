//! One small race for each role that the built-in job does not have, under every preset: it does
//! what it is there for wherever the design admits it, breaks nothing, and leaves nothing behind.

use std::time::Duration;

use emulator::sync::Arc;
use fs_sim::Sabotage;
use fs_sim::design::{ChangeRule, GateScope, PinGate, Preset, presets};
use reports::DesignResult;

use super::job::Job;
use super::run::new_machine;
use super::shared::RunLimits;
use super::supervisor::supervise;
use super::{DesignRun, StopFlag, outcome};
use crate::input::Source;

/// Few small files, two of them moved.
const FILES: &str = "[device]
size = \"16MiB\"
[files]
count = 4
size = \"128KiB\"
moved = 2
[direct_io]
count = 0
";
/// A truncater and a puncher, and by default an extender.
const CHANGERS: &str = "[truncaters]
count = 1
size = { dist = \"uniform\", min = \"0B\", max = \"128KiB\" }
[punchers]
count = 1
";
/// None of them.
const NO_CHANGERS: &str = "[truncaters]
count = 0
size = { dist = \"constant\", value = \"0B\" }
[punchers]
count = 0
[extenders]
count = 0
";

fn parse(changers: &str, registrants: &str, roles: &str) -> Job {
    let text = format!("{FILES}{changers}[registrants]\ncount = 2\n{registrants}\n{roles}");
    Job::parse(&Source::new("role.toml", text)).unwrap_or_else(|error| panic!("{error}"))
}

/// A job of two registrants, a truncater, a puncher and an extender, without direct I/O.
fn job(registrants: &str, roles: &str) -> Job {
    parse(CHANGERS, registrants, roles)
}

fn run(job: &Job, preset: &Preset, (seed, steps): (u64, u64), sabotage: Sabotage) -> DesignResult {
    let design = DesignRun {
        name: preset.name.to_owned(),
        axes: preset.axes,
        negative_control: preset.axes.stranger_change == ChangeRule::Proceed,
    };
    let limits = RunLimits { choices_max: steps, ..RunLimits::default() };
    let shared = new_machine(job, &design, seed, sabotage, limits).expect("a machine");
    let ended = supervise(&shared, Duration::from_secs(3600), &StopFlag::new(), &mut |_| {}, None);
    let (result, _) = outcome::judge(&Arc::clone(&shared), &design, ended);
    result
}

/// How many seeds a test tries until what it waits for has happened: which calls succeed in one run
/// is a matter of the threads' order, and on a busy machine few of them meet.
const SEEDS: u64 = 40;

/// Runs the job under every preset, with further seeds until everything has happened. `admits` says
/// where the operations of the role must succeed; elsewhere none of them may.
fn every_preset(job: &Job, operations: &[&str], admits: impl Fn(&Preset) -> bool) {
    for preset in presets() {
        let name = preset.name;
        let unsafe_design = preset.axes.stranger_change == ChangeRule::Proceed;
        let mut stale = 0;
        let mut missing: Vec<&str> = if admits(preset) { operations.to_vec() } else { Vec::new() };
        for seed in 11..11 + SEEDS {
            let result = run(job, preset, (seed, 600), Sabotage::default());
            assert_eq!(result.violations, [""; 0], "{name}");
            let count = |operation: &str| result.latency_ns.get(operation).map_or(0, |times| times.count);
            if !admits(preset) {
                let done: Vec<_> = operations.iter().filter(|operation| count(operation) > 0).collect();
                assert!(done.is_empty(), "{name}: {done:?} although the gate admits none");
            }
            missing.retain(|operation| count(operation) == 0);
            stale += result.counters.stale_dma;
            assert!(stale == 0 || unsafe_design, "{name}: stale DMA");
            if missing.is_empty() && (stale > 0 || !unsafe_design) {
                break;
            }
        }
        assert!(missing.is_empty(), "{name}: never {missing:?} on {SEEDS} seeds");
        assert_eq!(stale > 0, unsafe_design, "{name}: the negative control shows no stale DMA");
    }
}

/// Whether the design lets a long-term user that is no RDMA region pin at all.
fn admits_others(preset: &Preset) -> bool {
    let gate = preset.axes.pin_gate;
    preset.axes.gate_scope == GateScope::All && !matches!(gate, PinGate::Refuse | PinGate::Fault)
}

#[test]
fn on_demand_regions_work_in_every_design() {
    every_preset(&job("on_demand = 0.5", ""), &["register_on_demand", "dma_on_demand"], |_| true);
}

#[test]
fn windows_are_bound_used_and_unbound_wherever_regions_are() {
    let bound = ["bind_window", "dma_window", "unbind_window"];
    every_preset(&job("windows = 0.8", ""), &bound, |preset| preset.axes.pin_gate != PinGate::Refuse);
}

#[test]
fn windows_over_on_demand_regions_work_in_every_design() {
    let both = job("windows = 1.0\non_demand = 1.0", "");
    for preset in presets().iter().filter(|preset| preset.axes.stranger_change != ChangeRule::Proceed) {
        let went = (11..11 + SEEDS).any(|seed| {
            let result = run(&both, preset, (seed, 300), Sabotage::default());
            assert_eq!(result.violations, [""; 0], "{}", preset.name);
            let count = |operation: &str| result.latency_ns.get(operation).map_or(0, |times| times.count);
            assert_eq!(count("dma_on_demand"), result.counters.dma_operations, "{}", preset.name);
            count("dma_window") > 0
        });
        assert!(went, "{}", preset.name);
    }
}

#[test]
fn memory_is_held_by_address_in_every_design() {
    let held = ["mapped_read", "mapped_write", "vmsplice", "send_zero_copy"];
    every_preset(&job("", "[address_io]\ncount = 2\n"), &held, |_| true);
}

#[test]
fn packets_arrive_in_umems_where_the_gate_admits_them() {
    let packets = ["register_umem", "umem_receive", "umem_transmit"];
    every_preset(&job("", "[umems]\ncount = 2\nexit = 0.2\nrude = 0.2\n"), &packets, admits_others);
}

#[test]
fn rings_read_and_write_fixed_buffers_where_the_gate_admits_them() {
    let requests = ["register_buffers", "read_fixed", "write_fixed"];
    every_preset(&job("", "[rings]\ncount = 2\nexit = 0.2\nrude = 0.2\n"), &requests, admits_others);
}

#[test]
fn guests_load_store_and_flush_where_the_gate_admits_them() {
    let life = ["guest_attach", "guest_load", "guest_store", "guest_flush", "guest_detach"];
    every_preset(&job("", "[guests]\ncount = 2\nexit = 0.2\nrude = 0.2\n"), &life, admits_others);
}

#[test]
fn layout_clients_access_the_device_and_return_in_every_design() {
    let life = ["layout_get", "layout_read", "layout_write", "layout_return"];
    every_preset(&job("", "[layout_clients]\ncount = 2\nexit = 0.2\nrude = 0.1\n"), &life, |_| true);
}

#[test]
fn collapsers_move_blocks_in_every_design() {
    every_preset(&job("", "[collapsers]\ncount = 2\n"), &["collapse", "insert"], |_| true);
}

#[test]
fn reflinkers_share_blocks_in_every_design() {
    let remapped = ["reflink", "dedupe", "exchange", "unshare"];
    // Short ranges hold the same bytes more often.
    let reflinkers = "[reflinkers]\ncount = 2\nlength = { dist = \"uniform\", min = \"4KiB\", max = \"8KiB\" }\n\
                      [reflink_mix]\ndedupe = 60\n";
    every_preset(&job("", reflinkers), &remapped, |_| true);
}

#[test]
fn defragmenters_move_blocks_in_every_design() {
    every_preset(&job("", "[defragmenters]\ncount = 2\n"), &["defragment"], |_| true);
}

/// Pins are not rechecked against the map, or blocks are freed without closing their pages: then a
/// holder reaches moved blocks, also where block movers alone change layouts.
#[test]
fn a_rule_broken_on_purpose_is_found_where_block_movers_alone_change_layouts() {
    let movers = parse(
        NO_CHANGERS,
        "",
        "[collapsers]\ncount = 2\n[reflinkers]\ncount = 1\n[address_io]\ncount = 1\n[umems]\ncount = 1\n",
    );
    let named = |name| presets().iter().find(|preset| preset.name == name).expect("a preset");
    let violations = |name, seed, sabotage| run(&movers, named(name), (seed, 1_500), sabotage).violations;
    let (no_recheck, free_without_close) = (true, true);
    for name in ["kara", "odp"] {
        assert_eq!(violations(name, 1, Sabotage::default()), [""; 0], "{name}");
        let found = (1..=SEEDS).any(|seed| {
            let found = violations(name, seed, Sabotage { free_without_close, ..Sabotage::default() });
            found.iter().any(|what| what.starts_with("invariant 1: "))
        });
        assert!(found, "{name}: not on one of {SEEDS} seeds");
    }
    let mut seeds = 1..=SEEDS;
    let found = seeds.any(|seed| !violations("odp", seed, Sabotage { no_recheck, ..Sabotage::default() }).is_empty());
    assert!(found, "not on one of {SEEDS} seeds");
}
