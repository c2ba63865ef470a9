//! Races a small job under two designs and prints both verdicts.
//!
//! The job is TOML text, as a job file holds it: two registrants pin ranges of four files and let
//! the NIC write to them, while a truncater and a puncher change the files. `unsafe` frees pinned
//! blocks, so the NIC writes into blocks that have left their file. `rfc-v2` fails a change that
//! meets a pin.
//!
//! Run it with `cargo run -p workloads --example race_two_designs`.

use std::time::Duration;

use workloads::input::Source;
use workloads::input::designs::DesignCatalogue;
use workloads::race::job::Job;
use workloads::race::{DesignRun, Quiet, RaceConfig, StopFlag, run};

const JOB: &str = r#"
name = "two designs"

[device]
size = "16MiB"

[files]
count = 4
size = "256KiB"

[registrants]
count = 2
region_length = { dist = "uniform", min = "4KiB", max = "64KiB" }

[truncaters]
count = 1
size = { dist = "uniform", min = "0B", max = "256KiB" }

[punchers]
count = 1
"#;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let job = Job::parse(&Source::new("<example>", JOB))?;
    let designs = DesignCatalogue::default().resolve("unsafe, rfc-v2")?;
    let designs = designs.into_iter().map(|entry| DesignRun {
        name: entry.design.name,
        axes: entry.design.axes,
        negative_control: entry.negative_control,
    });
    let config = RaceConfig {
        job,
        designs: designs.collect(),
        seed: 7,
        duration_per_design: Duration::from_millis(300),
        threads: None,
    };
    let report = run(config, &Quiet, &StopFlag::new())?;
    for design in &report.result.designs {
        let counters = &design.counters;
        println!(
            "{:8} {:?}: {} truncates done, {} failed with ETXTBSY, {} stale DMA accesses",
            design.name, design.verdict, counters.truncate_done, counters.truncate_etxtbsy, counters.stale_dma
        );
        for violation in &design.violations {
            println!("         {violation}");
        }
    }
    match report.failed {
        true => Err("an invariant was broken".into()),
        false => Ok(()),
    }
}
