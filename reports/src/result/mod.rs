//! `result.json`: what one run found, as a versioned file.
//!
//! The format is described in `docs/result-schema.md` and, for machines, in `docs/result.schema.json`; tests hold the three
//! together. Invariant: what is written here reads back equal, and nothing that doesn't fit the format is read at all:
//! unknown fields, missing fields and other schema versions are errors that name the place. All times are nanoseconds.

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
