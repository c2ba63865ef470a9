//! `.hlog`: HdrHistogram's interval log, format 1.3.
//!
//! Each design has one file with one interval, its whole race. The file has one line per key of
//! `latency_ns`: `Tag=truncate`, `Tag=truncate_unwaited`, `Tag=truncate_waited`. Encoded values are
//! nanoseconds. Only the `Interval_Max` column, which people read, is in milliseconds, as in files
//! of HdrHistogram's own writer. Histograms are V2, deflated, in base64. Times in the file are
//! seconds: `StartTime` and `BaseTime` since the epoch, the interval's start since `BaseTime`.

use std::io::{self, Write};
use std::time::Duration;

use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, IntervalLogWriterError, Tag};

use super::latency::{OpLatencies, keyed};

/// Nanoseconds in the unit of the `Interval_Max` column.
const NS_PER_MS: f64 = 1e6;

/// When a design's race ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogInterval {
    /// Start of the whole run, since the Unix epoch; zero if unknown.
    pub run_started: Duration,
    /// Start of this design's race, since the start of the run.
    pub offset: Duration,
    /// How long this design's race took.
    pub length: Duration,
}

/// Writes a design's interval log.
///
/// Each of `comments` becomes one header line; a space replaces each line end in it. An operation's
/// name becomes a tag; an underscore replaces each character that a tag cannot contain (comma,
/// space, line end).
///
/// # Errors
/// Errors of `out`.
pub fn write(
    out: &mut impl Write,
    comments: &[String],
    interval: LogInterval,
    latencies: &OpLatencies,
) -> io::Result<()> {
    for comment in comments {
        writeln!(out, "#[{}]", comment.replace(['\r', '\n'], " "))?;
    }
    let started = interval.run_started.as_secs_f64();
    writeln!(out, "#[Histogram log format version 1.3]")?;
    writeln!(out, "#[StartTime: {started:.3} (seconds since epoch)]")?;
    writeln!(out, "#[BaseTime: {started:.3} (seconds since epoch)]")?;
    writeln!(out, r#""StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram""#)?;

    // The library's builder cannot write the legend line. So this function writes the header, and
    // the library the intervals.
    let mut serializer = V2DeflateSerializer::new();
    let mut builder = IntervalLogWriterBuilder::new();
    builder.with_max_value_divisor(NS_PER_MS);
    let mut log = builder.begin_log_with(out, &mut serializer)?;
    for (name, latency) in latencies.iter() {
        for (key, histogram) in keyed(name, latency) {
            let tag = key.replace([',', ' ', '\r', '\n'], "_");
            log.write_histogram(&histogram, interval.offset, interval.length, Tag::new(&tag)).map_err(|error| {
                match error {
                    IntervalLogWriterError::IoError(error) => error,
                    IntervalLogWriterError::SerializeError(error) => io::Error::other(error),
                }
            })?;
        }
    }
    Ok(())
}
