//! From what was observed to a result: invariants, findings, counters, the verdict.
//!
//! It owns the judgement. Invariant: the judgement depends on what happened and on whether the run
//! is the negative control, never on a design's name. Kernel counterpart: none.

use emulator::sync::Arc;
use fs_sim::design::Axis;
use fs_sim::pinning::dma::StaleFinding;
use rdma_sim::Nic;
use reports::{DesignResult, OpLatencies, RaceVerdict, result};

use super::config::DesignRun;
use super::oracle;
use super::shared::RaceShared;
use super::supervisor::RunEnd;

/// The beginnings of the violations that the negative control is expected to show.
const EXPECTED: [&str; 3] = ["invariant 1:", "invariant 2:", "invariant 7:"];

/// Reads all files back, checks the machine at rest, and judges.
pub(super) fn judge(shared: &Arc<RaceShared>, design: &DesignRun, ended: RunEnd) -> (DesignResult, OpLatencies) {
    let mut foreign = ended.stats.foreign_reads;
    let mut broken = ended.broken.clone();
    broken.extend(ended.stats.broken.iter().cloned());
    broken.extend(ended.stats.foreign_examples.iter().map(|what| format!("invariant 7: {what}")));
    if ended.left_behind {
        broken.push("the files were not read back: the machine is not at rest".to_owned());
        broken.extend(shared.kernel.violations());
    } else {
        let admin = shared.kernel.spawn();
        let read_back = oracle::read_back(&admin, &shared.payloads, &shared.files());
        admin.exit();
        drop(admin);
        foreign += read_back.foreign;
        broken.extend(read_back.foreign_examples.iter().map(|what| format!("invariant 7: at the end, {what}")));
        broken.extend(read_back.unaccounted.iter().map(|what| format!("invariant 7: {what}")));
        broken.extend(shared.kernel.check_at_rest());
        let regions = Nic::of(&shared.kernel).live_regions();
        if regions > 0 {
            broken.push(format!("invariant 3: {regions} memory regions live without a process"));
        }
    }
    let counters = counters(shared, &ended);
    let stale = counters.stale_dma;
    if stale > 0 {
        broken.push(format!("invariant 2: {stale} accesses landed in blocks that had left their file or offset"));
    }
    if design.negative_control {
        broken.retain(|what| !EXPECTED.iter().any(|expected| what.starts_with(expected)));
        if stale == 0 {
            broken.push("the negative control showed no stale DMA: the detectors saw nothing".to_owned());
        }
    }
    let refused_all = counters.registrations_granted == 0 && counters.registrations_refused > 0;
    let verdict = verdict(stale > 0 || foreign > 0, refused_all, waits(shared));
    let latencies = ended.stats.latencies();
    let mut result = DesignResult::new(&design.name, verdict);
    result.axes = Axis::ALL.map(|axis| (axis.name().to_owned(), design.axes.get(axis).to_owned())).into();
    result.latency_ns = latencies.summaries();
    result.elapsed_ns = ended.elapsed;
    result.operations = counters.operations;
    result.operations_per_second = result::per_second(counters.operations, ended.elapsed);
    result.counters = counters;
    result.expected_corruption = design.negative_control;
    for what in broken {
        result.push_violation(what);
    }
    for finding in shared.kernel.findings() {
        result.push_finding(reported(finding));
    }
    // Findings beyond the number that is kept in full.
    result.findings_dropped = stale.saturating_sub(result.findings.len() as u64);
    (result, latencies)
}

/// Whether any task waited for a long-term pin.
fn waits(shared: &RaceShared) -> bool {
    shared.kernel.counters.waits_for_long_term_pin.get() > 0
}

/// The verdict: the worst that was observed.
fn verdict(corrupts: bool, refuses: bool, stalls: bool) -> RaceVerdict {
    match (corrupts, refuses, stalls) {
        (true, ..) => RaceVerdict::Corrupts,
        (_, true, _) => RaceVerdict::Refuses,
        (.., true) => RaceVerdict::Stalls,
        _ => RaceVerdict::Safe,
    }
}

/// The merged counters of the actors, and the counters of the machine.
fn counters(shared: &RaceShared, ended: &RunEnd) -> reports::RaceCounters {
    let kernel = &shared.kernel.counters;
    let nic = Nic::of(&shared.kernel);
    // Kills by an actor's own step or by the end of the run are not caused by the design.
    let not_by_design = ended.stats.chosen_kills + ended.killed_at_end;
    reports::RaceCounters {
        stale_dma: kernel.stale_dma.get(),
        orphan_dma: kernel.orphan_dma.get(),
        orphaned_blocks_peak: shared.kernel.usage().orphaned_peak,
        zombie_leases_peak: kernel.zombie_leases.peak(),
        sigio_sent: kernel.sigio_sent.get(),
        processes_killed: kernel.processes_killed.get().saturating_sub(not_by_design),
        mrs_aborted: nic.counters.mrs_aborted.get(),
        deadlocks: kernel.deadlocks.get(),
        stuck_tasks: ended.stuck,
        pin_retries: kernel.pin_retries.get(),
        closes_met_pin: kernel.closes_met_pin.get(),
        lease_breaks: kernel.lease_breaks.get(),
        lease_timeouts: kernel.lease_timeouts.get(),
        ..ended.stats.counters
    }
}

fn reported(finding: StaleFinding) -> reports::ReportedFinding {
    let owner = |(ino, block): (fs_sim::base::numbers::Ino, u64)| format!("inode {} block {block}", ino.0);
    let region = match &finding.region {
        Some(info) => {
            let number = |what: &str, number: Option<u64>| number.map_or(String::new(), |n| format!(", {what} {n}"));
            let processes: Vec<String> = info.processes.iter().map(|pid| pid.to_string()).collect();
            format!(
                "{}{}{} of process {}",
                info.kind,
                number("context", info.context),
                number("key", info.region.map(u64::from)),
                if processes.is_empty() { "none left".to_owned() } else { processes.join(", ") }
            )
        }
        None => "the copy of a system call".to_owned(),
    };
    let old_owner = owner(finding.old_owner);
    let new_owner = finding.new_owner.map_or_else(|| "no file".to_owned(), owner);
    reports::ReportedFinding {
        kind: "stale_dma".to_owned(),
        detail: format!("device page {} was reached for {old_owner} and belongs to {new_owner}", finding.page),
        region,
        old_owner,
        new_owner,
        trace: finding.trace.iter().map(ToString::to_string).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_that_was_seen_is_the_verdict() {
        assert_eq!(verdict(true, true, true), RaceVerdict::Corrupts);
        assert_eq!(verdict(false, true, true), RaceVerdict::Refuses);
        assert_eq!(verdict(false, false, true), RaceVerdict::Stalls);
        assert_eq!(verdict(false, false, false), RaceVerdict::Safe);
    }
}
