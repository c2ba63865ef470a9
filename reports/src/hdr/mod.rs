//! Call times: recorded, merged, summed up, written as HdrHistogram files, and read back.
//!
//! Each operation has two histograms: calls that never waited, and calls that waited. They answer
//! different questions: what the mechanism costs, and how long a design makes its callers wait. A
//! sum of both answers neither. Values are nanoseconds from 1 ns to [`MAX_NS`], kept to three
//! significant digits. A value outside this range is clamped to it, never dropped.
//!
//! Invariant: merging shards is exact. It gives the histogram that a single recorder of all calls
//! would have. A histogram grows with the largest value seen (16 KiB up to 2 µs, 96 KiB up to 2
//! ms, 264 KiB at an hour), so every actor can afford its own. Kernel counterpart: ftrace's `hist`
//! triggers.

mod encoding;
pub mod hgrm;
mod latency;
pub mod log;
mod log_read;
mod percentiles;
#[cfg(test)]
pub(crate) mod sample;
#[cfg(test)]
mod tests;

pub use latency::{Latency, MAX_NS, OpLatencies, SIGNIFICANT_DIGITS, UNWAITED, WAITED, summary};
pub use log_read::{LogReadError, LoggedHistogram, read_log};
pub use percentiles::{PercentileStep, TICKS_PER_HALF_DISTANCE, percentile_walk};
