//! Made-up results of ten designs for the tests, without call times: every verdict, every kind of
//! number.

use super::{DesignResult, JobSummary, RaceCounters, RaceVerdict, ReportedFinding, RunResult, per_second};

pub(crate) const DESIGNS: [(&str, RaceVerdict); 10] = [
    ("unsafe", RaceVerdict::Corrupts),
    ("mainline", RaceVerdict::Stalls),
    ("rfc-v2", RaceVerdict::Refuses),
    ("man-page", RaceVerdict::Refuses),
    ("chinner-2019", RaceVerdict::Stalls),
    ("chinner-2025", RaceVerdict::Stalls),
    ("kara", RaceVerdict::Refuses),
    ("gunthorpe", RaceVerdict::Refuses),
    ("odp", RaceVerdict::Safe),
    ("revoke", RaceVerdict::Safe),
];

/// A run without designs.
pub(crate) fn empty_run() -> RunResult {
    let mut job = JobSummary::new("default", 5_000_000_000, 2);
    job.parameters = [("files", "64"), ("file size", "8MiB"), ("pin lifetime", "exp(2ms)"), ("punch mix", "0.2")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    RunResult::new(42, job)
}

/// The design at `index` of [`DESIGNS`]. `waited`: how many of its truncate calls waited.
pub(crate) fn design(index: usize, waited: u64) -> DesignResult {
    let (name, verdict) = DESIGNS[index];
    let mut design = DesignResult::new(name, verdict);
    design.elapsed_ns = 5_004_000_000 + 1_000_000 * index as u64;
    design.counters = counters(verdict, index as u64, waited);
    design.operations = design.counters.operations;
    design.operations_per_second = per_second(design.operations, design.elapsed_ns);
    design.axes = [("lease_rules", "man-page"), ("pin_gate", "unbreakable"), ("stranger_change", verdict.as_str())]
        .map(|(axis, choice)| (axis.to_owned(), choice.to_owned()))
        .into();
    if verdict == RaceVerdict::Corrupts {
        design.expected_corruption = true;
        (0..200).for_each(|number| design.push_finding(finding(number)));
    }
    design
}

/// A whole run, without call times.
pub(crate) fn run() -> RunResult {
    let mut run = empty_run();
    run.designs = (0..DESIGNS.len()).map(|index| design(index, 0)).collect();
    run
}

fn counters(verdict: RaceVerdict, index: u64, waited: u64) -> RaceCounters {
    let refused = if verdict == RaceVerdict::Refuses { 3_100 + 40 * index } else { 0 };
    RaceCounters {
        truncate_attempts: 12_000 + refused,
        truncate_done: 12_000,
        truncate_etxtbsy: refused,
        truncate_eintr: waited / 70,
        truncate_waited: waited,
        registrations_granted: 15_000,
        registrations_refused: 800 * (index % 3),
        dma_operations: 40_000 + 1_234_567 * index,
        dma_bytes: (40_000 + 1_234_567 * index) * 2048,
        stale_dma: if verdict == RaceVerdict::Corrupts { 18_211 } else { 0 },
        orphan_dma: if verdict == RaceVerdict::Stalls { 921 * index } else { 0 },
        orphaned_blocks_peak: if verdict == RaceVerdict::Stalls { 512 } else { 0 },
        zombie_leases_peak: index % 4,
        sigio_sent: 2_200 * (index % 5),
        processes_killed: index % 2 * 17,
        mrs_aborted: if index == 9 { 8_120 } else { 0 },
        operations: 1_400_000 + 41_000 * index,
        refusals: refused,
        ..RaceCounters::default()
    }
}

/// A finding with a long trace, and markup in it.
pub(crate) fn finding(number: usize) -> ReportedFinding {
    ReportedFinding {
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
