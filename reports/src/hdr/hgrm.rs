//! `.hgrm`: HdrHistogram's percentile distribution, as text.
//!
//! The layout is that of the Java library's `outputPercentileDistribution` with three significant
//! digits and a scaling ratio of 1, so values are nanoseconds. HdrHistogram's plotter reads it, and
//! so does every tool that reads the plotter's input. The last row, at 100%, has no fourth column.

use std::io::{self, Write};

use hdrhistogram::Histogram;

use super::latency::SIGNIFICANT_DIGITS;
use super::percentiles::percentile_walk;

/// Writes the percentile distribution of one histogram.
///
/// # Errors
/// Errors of `out`.
pub fn write(out: &mut impl Write, histogram: &Histogram<u64>) -> io::Result<()> {
    let digits = usize::from(SIGNIFICANT_DIGITS);
    writeln!(out, "{:>12} {:>14} {:>10} {:>14}\n", "Value", "Percentile", "TotalCount", "1/(1-Percentile)")?;
    for step in percentile_walk(histogram) {
        let value = step.value as f64;
        write!(out, "{value:12.digits$} {:.12} {:10}", half_up(step.quantile), step.count)?;
        if step.quantile < 1.0 {
            writeln!(out, " {:14.2}", 1.0 / (1.0 - step.quantile))?;
        } else {
            writeln!(out)?;
        }
    }
    let max = if histogram.is_empty() { 0 } else { histogram.max() } as f64;
    let buckets = u64::from(histogram.buckets());
    // n buckets have n + 1 half-buckets of distinct values: the first bucket uses both of its
    // halves.
    let sub_buckets = 2 * histogram.distinct_values() as u64 / (buckets + 1);
    writeln!(
        out,
        "#[Mean    = {:12.digits$}, StdDeviation   = {:12.digits$}]",
        half_up(histogram.mean()),
        histogram.stdev()
    )?;
    writeln!(out, "#[Max     = {max:12.digits$}, Total count    = {:12}]", histogram.len())?;
    writeln!(out, "#[Buckets = {buckets:12}, SubBuckets     = {sub_buckets:12}]")
}

/// When formatting, Java rounds a tie away from zero and Rust rounds it to even. The next larger
/// double makes Rust round such a tie as Java does.
fn half_up(value: f64) -> f64 {
    value.next_up()
}
