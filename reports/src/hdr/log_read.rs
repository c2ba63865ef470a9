//! Reads an HdrHistogram interval log (`.hlog`) back into histograms.
//!
//! Takes logs of [`super::log::write`] and of HdrHistogram's own tools. Invariant: every histogram
//! of the log is returned, or the whole log is refused.

use hdrhistogram::Histogram;
use hdrhistogram::serialization::Deserializer;
use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
use thiserror::Error;

/// One line of an interval log.
#[derive(Clone, Debug, PartialEq)]
pub struct LoggedHistogram {
    /// The line's tag: a key of `latency_ns`, such as `truncate` or `truncate_waited`. Empty if the
    /// line has none.
    pub tag: String,
    /// The call times, in nanoseconds.
    pub histogram: Histogram<u64>,
}

/// Why an interval log could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LogReadError {
    /// A line does not follow the format.
    #[error("entry {entry}: not an HdrHistogram interval log of format 1.3")]
    Malformed {
        /// The number of the faulty entry, from 1. Comments and blank lines do not count.
        entry: usize,
    },
    /// A line's histogram cannot be decoded.
    #[error("entry {entry}: the histogram of tag {tag:?} cannot be decoded: {what}")]
    Histogram {
        /// The number of the faulty entry, from 1. Comments and blank lines do not count.
        entry: usize,
        /// The line's tag.
        tag: String,
        /// What is wrong with it.
        what: String,
    },
}

/// Reads all histograms of an interval log, in the order of its lines.
///
/// # Errors
/// [`LogReadError`], with the number of the first faulty entry.
///
/// ```
/// use reports::{OpLatencies, hdr};
/// let mut latencies = OpLatencies::new();
/// latencies.record("punch", 700, false);
/// let mut file = Vec::new();
/// hdr::log::write(&mut file, &[], hdr::log::LogInterval::default(), &latencies).unwrap();
/// let logged = hdr::read_log(&file).unwrap();
/// assert_eq!((logged[0].tag.as_str(), logged[0].histogram.max()), ("punch", 700));
/// ```
pub fn read_log(log: &[u8]) -> Result<Vec<LoggedHistogram>, LogReadError> {
    let mut logged = Vec::new();
    let mut deserializer = Deserializer::new();
    for (index, line) in IntervalLogIterator::new(log).enumerate() {
        let entry = index + 1;
        match line.map_err(|_| LogReadError::Malformed { entry })? {
            LogEntry::StartTime(_) | LogEntry::BaseTime(_) => {}
            LogEntry::Interval(line) => {
                let tag = line.tag().map_or_else(String::new, |tag| tag.as_str().to_owned());
                let fault = |what: String| LogReadError::Histogram { entry, tag: tag.clone(), what };
                let bytes = base64_decoded(line.encoded_histogram()).ok_or_else(|| fault("not base64".to_owned()))?;
                let histogram =
                    deserializer.deserialize(&mut bytes.as_slice()).map_err(|error| fault(error.to_string()))?;
                logged.push(LoggedHistogram { tag, histogram });
            }
        }
    }
    Ok(logged)
}

/// Decodes standard base64 (RFC 4648, section 4). `None` if a character is not of its alphabet.
fn base64_decoded(text: &str) -> Option<Vec<u8>> {
    let (mut bytes, mut bits, mut bits_held) = (Vec::with_capacity(text.len() / 4 * 3), 0_u32, 0);
    for letter in text.trim_end_matches('=').bytes() {
        let value = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6 | u32::from(value)) & 0xffff;
        bits_held += 6;
        if bits_held >= 8 {
            bits_held -= 8;
            bytes.push((bits >> bits_held & 0xff) as u8);
        }
    }
    Some(bytes)
}
