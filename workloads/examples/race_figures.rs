//! Prints what a race finds, one line a design and seed: `race_figures [SECONDS] [SEEDS] [DESIGN,…]`.
use std::time::Duration;

use fs_sim::design::presets;
use workloads::job::Job;
use workloads::race::{DesignRun, Quiet, RaceConfig, StopFlag, run};

fn main() {
    let mut args = std::env::args().skip(1);
    let seconds: f64 = args.next().map_or(1.2, |text| text.parse().expect("seconds"));
    let seeds: u64 = args.next().map_or(1, |text| text.parse().expect("a number of seeds"));
    let only: Option<Vec<String>> = args.next().map(|text| text.split(',').map(str::to_owned).collect());
    for seed in 1..=seeds {
        for preset in presets() {
            if only.as_ref().is_some_and(|names| names.iter().all(|name| name != preset.name)) {
                continue;
            }
            let design = DesignRun {
                name: preset.name.to_owned(),
                axes: preset.axes,
                negative_control: preset.name == "unsafe",
            };
            let config = RaceConfig {
                job: Job::built_in(),
                designs: vec![design],
                seed,
                duration_per_design: Duration::from_secs_f64(seconds),
                threads: None,
                sabotage: fs_sim::Sabotage {
                    no_recheck: std::env::var_os("NO_RECHECK").is_some(),
                    free_without_close: std::env::var_os("NO_CLOSE").is_some(),
                },
            };
            let report = run(config, &Quiet, &StopFlag::new()).expect("a race");
            let design = &report.result.designs[0];
            let c = &design.counters;
            println!(
                "{seed:3} {:13} {:9} {:4}kop/s trunc {:6}/{:6} busy {:6} eintr {:4} w {:5} | reg {:6}-{:6} dereg {:6} dma {:7} | stale {:6} orph {:5} opk {:3} zom {:2} sigio {:5} kill {:3} abort {:5} dead {:4} | retry {:6} met {:6} brk {:5} to {:4} ref {:7} | {:5.2}s viol {}",
                design.name,
                design.verdict,
                design.operations_per_second / 1000,
                c.truncate_done,
                c.truncate_attempts,
                c.truncate_etxtbsy,
                c.truncate_eintr,
                c.truncate_waited,
                c.registrations_granted,
                c.registrations_refused,
                c.deregistrations,
                c.dma_operations,
                c.stale_dma,
                c.orphan_dma,
                c.orphaned_blocks_peak,
                c.zombie_leases_peak,
                c.sigio_sent,
                c.processes_killed,
                c.mrs_aborted,
                c.deadlocks,
                c.pin_retries,
                c.closes_met_pin,
                c.lease_breaks,
                c.lease_timeouts,
                c.refusals,
                design.elapsed_ns as f64 / 1e9,
                design.violation_count(),
            );
            for violation in design.violations.iter().take(6) {
                println!("      {violation}");
            }
            if std::env::var_os("VERBOSE").is_some() {
                for (name, latency) in &design.latency_ns {
                    println!("      {name:22} {latency:?}");
                }
            }
        }
    }
}
