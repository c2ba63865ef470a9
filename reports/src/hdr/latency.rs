//! Call times by operation: recorded, merged and summed up.
//!
//! This file owns the histograms; [`super::log`] and [`super::hgrm`] write files of them.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;

use crate::result::LatencySummary;

/// The longest time recorded, in nanoseconds: one hour. Longer calls are recorded as this.
pub const MAX_NS: u64 = 3_600_000_000_000;

/// Significant decimal digits kept.
pub const SIGNIFICANT_DIGITS: u8 = 3;

/// The ending of keys and tags for calls that never waited.
pub const UNWAITED: &str = "_unwaited";

/// The ending of keys and tags for calls that waited at least once.
pub const WAITED: &str = "_waited";

/// Times of one operation's calls, waited and unwaited apart.
///
/// ```
/// use reports::Latency;
/// let mut latency = Latency::new();
/// latency.record(840, false);
/// latency.record(3_000_000, true);
/// assert_eq!((latency.unwaited().len(), latency.waited().len(), latency.all().len()), (1, 1, 2));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Latency {
    unwaited: Histogram<u64>,
    waited: Histogram<u64>,
}

impl Default for Latency {
    fn default() -> Self {
        Latency::new()
    }
}

/// An empty histogram that grows with what is recorded.
fn empty() -> Histogram<u64> {
    Histogram::new(SIGNIFICANT_DIGITS).expect("a histogram can have 0 to 5 digits, and this one has 3")
}

impl Latency {
    /// No calls yet.
    pub fn new() -> Self {
        Latency { unwaited: empty(), waited: empty() }
    }

    /// Records a call that took `nanoseconds`, blocked time included. `waited`: the call blocked at
    /// least once.
    ///
    /// Allocates only when the value is larger than all before it by a power of two.
    pub fn record(&mut self, nanoseconds: u64, waited: bool) {
        let histogram = if waited { &mut self.waited } else { &mut self.unwaited };
        // `saturating_record` would clamp the value to the histogram's present size: it never
        // grows.
        let recorded = histogram.record(nanoseconds.clamp(1, MAX_NS));
        recorded.expect("a histogram that may grow takes every value up to an hour");
    }

    /// Adds all of another shard's calls.
    pub fn merge(&mut self, other: &Latency) {
        for (mine, theirs) in [(&mut self.unwaited, &other.unwaited), (&mut self.waited, &other.waited)] {
            mine.add(theirs).expect("a histogram that may grow takes every histogram up to an hour");
        }
    }

    /// Calls that never waited.
    pub fn unwaited(&self) -> &Histogram<u64> {
        &self.unwaited
    }

    /// Calls that waited at least once.
    pub fn waited(&self) -> &Histogram<u64> {
        &self.waited
    }

    /// All calls.
    pub fn all(&self) -> Histogram<u64> {
        let mut all = self.unwaited.clone();
        all.add(&self.waited).expect("a histogram that may grow takes every histogram up to an hour");
        all
    }
}

/// Times of all operations of one design, by operation name.
///
/// The caller chooses the names. A race uses `truncate`, `punch`, `register`, `deregister` and
/// `dma`: the tables list these first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OpLatencies {
    operations: BTreeMap<String, Latency>,
}

impl OpLatencies {
    /// No operations yet.
    pub fn new() -> Self {
        OpLatencies::default()
    }

    /// Records one call of `operation`; see [`Latency::record`]. Only the first call of an
    /// operation allocates its name.
    pub fn record(&mut self, operation: &str, nanoseconds: u64, waited: bool) {
        match self.operations.get_mut(operation) {
            Some(latency) => latency.record(nanoseconds, waited),
            None => self.operation(operation).record(nanoseconds, waited),
        }
    }

    /// The histograms of `operation`; empty ones are made if there are none. For callers that merge
    /// their own recordings, and for operations that must be listed even without a call.
    pub fn operation(&mut self, operation: &str) -> &mut Latency {
        self.operations.entry(operation.to_owned()).or_default()
    }

    /// The histograms of `operation`; `None` if no call named it.
    pub fn get(&self, operation: &str) -> Option<&Latency> {
        self.operations.get(operation)
    }

    /// Adds all of another shard's calls.
    ///
    /// ```
    /// use reports::OpLatencies;
    /// let (mut a, mut b) = (OpLatencies::new(), OpLatencies::new());
    /// a.record("punch", 700, false);
    /// b.record("punch", 900, false);
    /// a.merge(&b);
    /// assert_eq!(a.summaries()["punch"].count, 2);
    /// ```
    pub fn merge(&mut self, other: &OpLatencies) {
        for (name, theirs) in &other.operations {
            self.operation(name).merge(theirs);
        }
    }

    /// Names and histograms, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Latency)> {
        self.operations.iter().map(|(name, latency)| (name.as_str(), latency))
    }

    /// The value for [`DesignResult::latency_ns`](crate::result::DesignResult). Each operation `X`
    /// has the key `X` (all calls); it also has `X_unwaited` and `X_waited` if there was such a
    /// call.
    pub fn summaries(&self) -> BTreeMap<String, LatencySummary> {
        let mut summaries = BTreeMap::new();
        for (name, latency) in &self.operations {
            for (key, histogram) in keyed(name, latency) {
                summaries.insert(key, summary(&histogram));
            }
        }
        summaries
    }
}

/// The histograms of one operation, each with its key in `result.json` and its tag in the logs.
pub(crate) fn keyed(name: &str, latency: &Latency) -> Vec<(String, Histogram<u64>)> {
    let mut histograms = vec![(name.to_owned(), latency.all())];
    for (ending, part) in [(UNWAITED, &latency.unwaited), (WAITED, &latency.waited)] {
        if !part.is_empty() {
            histograms.push((format!("{name}{ending}"), part.clone()));
        }
    }
    histograms
}

/// The five numbers that `result.json` keeps of a histogram; all 0 if it is empty.
pub fn summary(histogram: &Histogram<u64>) -> LatencySummary {
    LatencySummary {
        count: histogram.len(),
        p50: histogram.value_at_quantile(0.5),
        p99: histogram.value_at_quantile(0.99),
        p999: histogram.value_at_quantile(0.999),
        max: if histogram.is_empty() { 0 } else { histogram.max() },
    }
}
