//! The percentile walk: turns a histogram into the steps of a line, for files and plots.

use hdrhistogram::Histogram;

/// Steps of a percentile walk per halving of the distance to 100%; the default of HdrHistogram's
/// own tools.
pub const TICKS_PER_HALF_DISTANCE: u32 = 5;

/// One step of a percentile walk.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PercentileStep {
    /// The share of calls reached, from 0 to 1.
    pub quantile: f64,
    /// That share of calls took at most this long, in nanoseconds.
    pub value: u64,
    /// Calls that took at most `value`.
    pub count: u64,
}

/// Walks a histogram in steps that halve each time the distance to 100% halves, as HdrHistogram's
/// percentile output does. The last step is at 1.0. An empty histogram has no steps.
///
/// This follows the arithmetic of HdrHistogram's Java library, in percent. The Rust library's own
/// walk sums quantiles instead and rounds differently where a step falls exactly on a value's
/// share. Its files would differ from those of HdrHistogram's tools.
pub fn percentile_walk(histogram: &Histogram<u64>) -> Vec<PercentileStep> {
    let total = histogram.len();
    let (mut steps, mut count, mut level) = (Vec::new(), 0_u64, 0.0_f64);
    let mut last = None;
    for recorded in histogram.iter_recorded() {
        count = count.saturating_add(recorded.count_at_value());
        let value = recorded.value_iterated_to();
        last = Some(PercentileStep { quantile: 1.0, value, count });
        let reached = 100.0 * count as f64 / total as f64;
        while reached >= level && level < 100.0 {
            steps.push(PercentileStep { quantile: level / 100.0, value, count });
            level = next_level(level);
            if count >= total {
                break;
            }
        }
    }
    steps.extend(last);
    steps
}

/// The next percentage after `level`, which is below 100. Returns 100 when the next step is too
/// small for a double.
fn next_level(level: f64) -> f64 {
    let halvings = ((100.0 / (100.0 - level)).ln() / std::f64::consts::LN_2).floor();
    let ticks = f64::from(TICKS_PER_HALF_DISTANCE) * (halvings + 1.0).exp2();
    let next = level + 100.0 / ticks;
    if next > level { next } else { 100.0 }
}
