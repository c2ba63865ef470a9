//! `result.json`: what one run found, as a versioned file.
//!
//! `docs/result-schema.md` describes the format, `docs/result.schema.json` does so for programs,
//! and tests check that both agree with this code. Invariant: what is written here reads back
//! equal, and a file that does not fit the format is refused as a whole: unknown fields, missing
//! fields and other schema versions are errors with line and column. All times are nanoseconds.
//! There is no kernel counterpart.

mod counters;
mod read;
mod run;
#[cfg(test)]
pub(crate) mod sample;
#[cfg(test)]
mod tests;
mod verdict;

pub use counters::RaceCounters;
pub use read::{MAX_RESULT_BYTES, ResultReadError};
pub use run::{
    DesignResult, JobSummary, LatencySummary, MAX_FINDINGS, MAX_TRACE_LINES, MAX_VIOLATIONS, ReportedFinding,
    RunResult, SCHEMA_VERSION, per_second,
};
pub use verdict::RaceVerdict;
