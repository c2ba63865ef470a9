//! Call times: recorded, merged, summed up, and written as HdrHistogram files.
//!
//! One operation has two histograms: calls that never waited and calls that did. They answer different questions (what
//! does the mechanism cost; how long does a design make people wait) and a sum of both answers neither. Values are
//! nanoseconds from 1 ns to [`MAX_NS`], kept to three significant digits; what is outside is clamped, never dropped.
//!
//! Invariant: merging shards is exact: it gives the histogram that one recorder of all calls would have. A histogram grows
//! with the largest value seen (16 KiB up to 2 µs, 96 KiB up to 2 ms, 264 KiB at an hour), so one per actor is affordable.

pub mod hgrm;
mod latency;
pub mod log;
mod percentiles;
#[cfg(test)]
pub(crate) mod sample;
#[cfg(test)]
mod tests;

pub use latency::{Latency, MAX_NS, OpLatencies, SIGNIFICANT_DIGITS, UNWAITED, WAITED, summary};
pub use percentiles::{PercentileStep, TICKS_PER_HALF_DISTANCE, percentile_walk};
