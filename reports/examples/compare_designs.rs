//! Counts and times two designs in two shards each, merges the shards, and prints the comparison.

use reports::{DesignResult, JobSummary, OpLatencies, RaceCounters, RaceVerdict, RunResult, text};

/// What one actor records: its counters and its call times.
fn shard(calls: u64, refused: u64, call_ns: u64) -> (RaceCounters, OpLatencies) {
    let mut latencies = OpLatencies::new();
    (1..=calls).for_each(|call| latencies.record("truncate", call_ns + call, false));
    let counters = RaceCounters {
        truncate_attempts: calls + refused,
        truncate_done: calls,
        truncate_etxtbsy: refused,
        ..RaceCounters::default()
    };
    (counters, latencies)
}

fn main() {
    let mut run = RunResult::new(1, JobSummary::new("example", 1_000_000_000, 2));
    for (name, verdict, refused, call_ns) in
        [("mainline", RaceVerdict::Refuses, 0, 2_900), ("rfc-v2", RaceVerdict::Safe, 120, 3_400)]
    {
        // Merging is exact and works in any order, so each actor can record without a lock.
        let (mut counters, mut latencies) = shard(800, refused, call_ns);
        let (other_counters, other_latencies) = shard(500, refused / 2, call_ns + 300);
        counters.merge(&other_counters);
        latencies.merge(&other_latencies);

        let mut design = DesignResult::new(name, verdict);
        design.counters = counters;
        design.latency_ns = latencies.summaries();
        design.elapsed_ns = 1_000_000_000;
        design.operations = counters.truncate_done;
        design.operations_per_second = reports::result::per_second(design.operations, design.elapsed_ns);
        run.designs.push(design);
    }
    print!("{}", text::tables(&run, &text::TableOptions { width: 120, ansi: false }));
}
