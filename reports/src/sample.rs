//! Made-up results of ten designs for the tests: every verdict, every kind of number, waited and unwaited calls.

use crate::hdr::OpLatencies;
use crate::result::{Counters, DesignResult, Finding, JobSummary, RunResult, Verdict, per_second};

const DESIGNS: [(&str, Verdict); 10] = [
    ("unsafe", Verdict::Corrupts),
    ("mainline", Verdict::Stalls),
    ("rfc-v2", Verdict::Refuses),
    ("man-page", Verdict::Refuses),
    ("chinner-2019", Verdict::Stalls),
    ("chinner-2025", Verdict::Stalls),
    ("kara", Verdict::Refuses),
    ("gunthorpe", Verdict::Refuses),
    ("odp", Verdict::Safe),
    ("revoke", Verdict::Safe),
];

/// A repeatable stream of numbers from 0 to 1.
pub(crate) struct Stream(pub(crate) u64);

impl Stream {
    pub(crate) fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Call times with a long tail; `waits` is the share of calls that block.
fn times(latencies: &mut OpLatencies, operation: &str, calls: u64, middle_ns: f64, waits: f64, stream: &mut Stream) {
    for _ in 0..calls {
        let waited = stream.next() < waits;
        let spread: f64 = (0..6).map(|_| stream.next()).sum::<f64>() - 3.0;
        let tail = if stream.next() > 0.999 { 20.0 * stream.next() } else { 1.0 };
        let base = if waited { 2e6 * (1.0 + 9.0 * stream.next()) } else { middle_ns };
        latencies.record(operation, (base * (0.6 * spread).exp() * tail) as u64, waited);
    }
}

/// A whole run.
pub(crate) fn run() -> (RunResult, Vec<OpLatencies>) {
    let mut job = JobSummary::new("default", 5_000_000_000, 2);
    job.parameters = [("files", "64"), ("file size", "8MiB"), ("pin lifetime", "exp(2ms)"), ("punch mix", "0.2")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    let mut run = RunResult::new(42, job);
    let mut all = Vec::new();
    for (index, (name, verdict)) in DESIGNS.into_iter().enumerate() {
        let mut stream = Stream(index as u64 + 1);
        let waits = if verdict == Verdict::Stalls { 0.25 } else { 0.0 };
        let mut latencies = OpLatencies::new();
        let factor = 1.0 + 0.13 * index as f64;
        times(&mut latencies, "truncate", 12_000, 3_400.0 * factor, waits, &mut stream);
        times(&mut latencies, "punch", 9_000, 2_800.0 * factor, waits / 2.0, &mut stream);
        times(&mut latencies, "register", 15_000, 5_100.0 * factor, 0.001 * index as f64, &mut stream);
        times(&mut latencies, "deregister", 14_000, 900.0 * factor, 0.0, &mut stream);
        times(&mut latencies, "dma", 40_000, 310.0 * factor, 0.0, &mut stream);

        let mut design = DesignResult::new(name, verdict);
        design.latency_ns = latencies.summaries();
        design.elapsed_ns = 5_004_000_000 + 1_000_000 * index as u64;
        design.counters = counters(verdict, index as u64, &design);
        design.operations = design.counters.operations;
        design.operations_per_second = per_second(design.operations, design.elapsed_ns);
        design.axes = [("lease_rules", "man-page"), ("pin_gate", "unbreakable"), ("stranger_change", verdict.as_str())]
            .map(|(axis, choice)| (axis.to_owned(), choice.to_owned()))
            .into();
        if verdict == Verdict::Corrupts {
            design.expected_corruption = true;
            (0..200).for_each(|number| design.push_finding(finding(number)));
        }
        run.designs.push(design);
        all.push(latencies);
    }
    (run, all)
}

fn counters(verdict: Verdict, index: u64, design: &DesignResult) -> Counters {
    let waited = design.latency_ns.get("truncate_waited").map_or(0, |latency| latency.count);
    let refused = if verdict == Verdict::Refuses { 3_100 + 40 * index } else { 0 };
    Counters {
        truncate_attempts: 12_000 + refused,
        truncate_done: 12_000,
        truncate_etxtbsy: refused,
        truncate_eintr: waited / 70,
        truncate_waited: waited,
        registrations_granted: 15_000,
        registrations_refused: 800 * (index % 3),
        dma_operations: 40_000 + 1_234_567 * index,
        dma_bytes: (40_000 + 1_234_567 * index) * 2048,
        stale_dma: if verdict == Verdict::Corrupts { 18_211 } else { 0 },
        orphan_dma: if verdict == Verdict::Stalls { 921 * index } else { 0 },
        orphaned_blocks_peak: if verdict == Verdict::Stalls { 512 } else { 0 },
        zombie_leases_peak: index % 4,
        sigio_sent: 2_200 * (index % 5),
        processes_killed: index % 2 * 17,
        mrs_aborted: if index == 9 { 8_120 } else { 0 },
        operations: 1_400_000 + 41_000 * index,
        refusals: refused,
        ..Counters::default()
    }
}

/// A finding with a long trace, and markup in it.
pub(crate) fn finding(number: usize) -> Finding {
    Finding {
        kind: "stale_dma".to_owned(),
        region: format!("mr {number} offset 0x{:x}", number * 4096),
        old_owner: format!("inode 17 offset 0x{:x} generation 3", number * 4096),
        new_owner: "inode 23 offset 0x0 generation 1".to_owned(),
        detail: "RDMA WRITE of 512 bytes landed in a block that <b>inode 23</b> had been given 41µs before".to_owned(),
        trace: (0..40)
            .map(|line| {
                format!("{:>9}ns actor {} truncate inode=17 \"to\"=0 & free block {}", line * 730, line % 5, line * 8)
            })
            .collect(),
    }
}
