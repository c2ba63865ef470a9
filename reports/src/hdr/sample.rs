//! Made-up call times of the ten sample designs for the tests: waited and unwaited calls with a
//! long tail.

use super::OpLatencies;
use crate::result::sample::{DESIGNS, design, empty_run};
use crate::result::{DesignResult, RaceVerdict, RunResult};

/// A repeatable stream of numbers from 0 to 1.
pub(crate) struct SampleStream(pub(crate) u64);

impl SampleStream {
    pub(crate) fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Records call times with a long tail; `waits` is the share of calls that block.
fn times(
    latencies: &mut OpLatencies,
    operation: &str,
    calls: u64,
    middle_ns: f64,
    waits: f64,
    stream: &mut SampleStream,
) {
    for _ in 0..calls {
        let waited = stream.next() < waits;
        let spread: f64 = (0..6).map(|_| stream.next()).sum::<f64>() - 3.0;
        let tail = if stream.next() > 0.999 { 20.0 * stream.next() } else { 1.0 };
        let base = if waited { 2e6 * (1.0 + 9.0 * stream.next()) } else { middle_ns };
        latencies.record(operation, (base * (0.6 * spread).exp() * tail) as u64, waited);
    }
}

/// A whole run, with the call times of each design.
pub(crate) fn run() -> (RunResult, Vec<OpLatencies>) {
    let mut run = empty_run();
    let mut all = Vec::new();
    for (index, (_, verdict)) in DESIGNS.into_iter().enumerate() {
        let mut stream = SampleStream(index as u64 + 1);
        let waits = if verdict == RaceVerdict::Stalls { 0.25 } else { 0.0 };
        let mut latencies = OpLatencies::new();
        let factor = 1.0 + 0.13 * index as f64;
        times(&mut latencies, "truncate", 12_000, 3_400.0 * factor, waits, &mut stream);
        times(&mut latencies, "punch", 9_000, 2_800.0 * factor, waits / 2.0, &mut stream);
        times(&mut latencies, "register", 15_000, 5_100.0 * factor, 0.001 * index as f64, &mut stream);
        times(&mut latencies, "deregister", 14_000, 900.0 * factor, 0.0, &mut stream);
        times(&mut latencies, "dma", 40_000, 310.0 * factor, 0.0, &mut stream);

        let summaries = latencies.summaries();
        let waited = summaries.get("truncate_waited").map_or(0, |latency| latency.count);
        run.designs.push(DesignResult { latency_ns: summaries, ..design(index, waited) });
        all.push(latencies);
    }
    (run, all)
}
