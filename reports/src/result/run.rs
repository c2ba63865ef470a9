//! The types of `result.json`: a run, its job, its designs, and the evidence of damage.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::counters::RaceCounters;
use super::verdict::RaceVerdict;

/// The version of the format that this crate writes and reads.
pub const SCHEMA_VERSION: u32 = 2;

/// Findings kept for one design; further ones are only counted. A wrong design makes about one per
/// microsecond.
pub const MAX_FINDINGS: usize = 64;

/// Violations kept for one design; further ones are only counted.
pub const MAX_VIOLATIONS: usize = 256;

/// Lines of trace kept in one finding: the newest ones.
pub const MAX_TRACE_LINES: usize = 128;

/// One run: one job, one seed, any number of designs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunResult {
    /// The format's version: [`SCHEMA_VERSION`].
    pub schema: u32,
    /// The seed of every actor's stream of random choices.
    pub seed: u64,
    /// What the job asked for.
    pub job: JobSummary,
    /// True if Ctrl-C ended the run early; then the numbers are of the part that ran.
    pub interrupted: bool,
    /// One entry per design, in the order they ran.
    pub designs: Vec<DesignResult>,
}

/// What the job asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobSummary {
    /// The job's name.
    pub name: String,
    /// Time asked for, per design, in nanoseconds.
    pub duration_ns: u64,
    /// Threads asked for.
    pub threads: u32,
    /// All other parameters of the job, by name. Values are spelled as in the job file.
    pub parameters: BTreeMap<String, String>,
}

/// One design's outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DesignResult {
    /// The design's name.
    pub name: String,
    /// The design's choice on each axis.
    pub axes: BTreeMap<String, String>,
    /// What the design did.
    pub counters: RaceCounters,
    /// Call times by operation; see `hdr::OpLatencies::summaries` for the keys.
    pub latency_ns: BTreeMap<String, LatencySummary>,
    /// The verdict in one word.
    pub verdict: RaceVerdict,
    /// Time the design's race took, in nanoseconds.
    pub elapsed_ns: u64,
    /// Finished operations, as in `counters.operations`.
    pub operations: u64,
    /// `operations` divided by `elapsed_ns`, per second, rounded down; see [`per_second`].
    pub operations_per_second: u64,
    /// Broken invariants, one sentence each. [`DesignResult::push_violation`] keeps at most
    /// [`MAX_VIOLATIONS`].
    pub violations: Vec<String>,
    /// Violations not kept in `violations`.
    pub violations_dropped: u64,
    /// Evidence of stale DMA. [`DesignResult::push_finding`] keeps at most [`MAX_FINDINGS`].
    pub findings: Vec<ReportedFinding>,
    /// Findings not kept in `findings`.
    pub findings_dropped: u64,
    /// True for the negative control, where stale DMA is expected and is no violation.
    pub expected_corruption: bool,
}

/// How one operation's call times were distributed, in nanoseconds, to three significant digits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LatencySummary {
    /// Calls recorded.
    pub count: u64,
    /// Half of the calls took at most this long.
    pub p50: u64,
    /// 99% took at most this long.
    pub p99: u64,
    /// 99.9% took at most this long.
    pub p999: u64,
    /// The longest call.
    pub max: u64,
}

/// One piece of evidence: which access reached a block of which owner, and the events before it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReportedFinding {
    /// What was found, in a word or two (`stale_dma`, `foreign_bytes`, …).
    pub kind: String,
    /// The memory region, or the range, it was found through.
    pub region: String,
    /// The owner that the block was registered for: inode, offset and generation.
    pub old_owner: String,
    /// The owner of the block at the time of the access.
    pub new_owner: String,
    /// One sentence for people.
    pub detail: String,
    /// The events that led to it, oldest first.
    pub trace: Vec<String>,
}

/// Operations per second, rounded down. 0 if `elapsed_ns` is 0.
///
/// ```
/// assert_eq!(reports::result::per_second(500, 2_000_000_000), 250);
/// assert_eq!(reports::result::per_second(500, 0), 0);
/// ```
pub fn per_second(operations: u64, elapsed_ns: u64) -> u64 {
    let scaled = u128::from(operations) * 1_000_000_000;
    scaled.checked_div(u128::from(elapsed_ns)).map_or(0, |rate| u64::try_from(rate).unwrap_or(u64::MAX))
}

impl JobSummary {
    /// A job without further parameters. `duration_ns`: time asked for, per design, in nanoseconds.
    pub fn new(name: &str, duration_ns: u64, threads: u32) -> Self {
        JobSummary { name: name.to_owned(), duration_ns, threads, parameters: BTreeMap::new() }
    }
}

impl RunResult {
    /// A run without designs.
    pub fn new(seed: u64, job: JobSummary) -> Self {
        RunResult { schema: SCHEMA_VERSION, seed, job, interrupted: false, designs: Vec::new() }
    }

    /// True if any design broke an invariant. `daxlab race` then exits with 1.
    pub fn has_violations(&self) -> bool {
        self.designs.iter().any(|design| design.violation_count() > 0)
    }

    /// The text of `result.json`: indented, with one final newline, fields in declaration order,
    /// maps sorted by key.
    pub fn to_json(&self) -> String {
        let mut text =
            serde_json::to_string_pretty(self).expect("integers, strings and string-keyed maps always serialise");
        text.push('\n');
        text
    }
}

impl DesignResult {
    /// A design whose counters are all 0.
    pub fn new(name: &str, verdict: RaceVerdict) -> Self {
        DesignResult {
            name: name.to_owned(),
            axes: BTreeMap::new(),
            counters: RaceCounters::default(),
            latency_ns: BTreeMap::new(),
            verdict,
            elapsed_ns: 0,
            operations: 0,
            operations_per_second: 0,
            violations: Vec::new(),
            violations_dropped: 0,
            findings: Vec::new(),
            findings_dropped: 0,
            expected_corruption: false,
        }
    }

    /// Keeps a violation. Once [`MAX_VIOLATIONS`] are kept, only counts it.
    pub fn push_violation(&mut self, violation: impl Into<String>) {
        if self.violations.len() < MAX_VIOLATIONS {
            self.violations.push(violation.into());
        } else {
            self.violations_dropped = self.violations_dropped.saturating_add(1);
        }
    }

    /// Keeps a finding with the newest [`MAX_TRACE_LINES`] lines of its trace. Once
    /// [`MAX_FINDINGS`] are kept, only counts it.
    pub fn push_finding(&mut self, mut finding: ReportedFinding) {
        if self.findings.len() < MAX_FINDINGS {
            let old = finding.trace.len().saturating_sub(MAX_TRACE_LINES);
            finding.trace.drain(..old);
            self.findings.push(finding);
        } else {
            self.findings_dropped = self.findings_dropped.saturating_add(1);
        }
    }

    /// How many invariants were broken, kept violations and dropped ones.
    pub fn violation_count(&self) -> u64 {
        self.violations_dropped.saturating_add(self.violations.len() as u64)
    }

    /// How many findings there were, kept and dropped ones.
    pub fn finding_count(&self) -> u64 {
        self.findings_dropped.saturating_add(self.findings.len() as u64)
    }
}
