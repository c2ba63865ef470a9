//! Reads an HdrHistogram interval log (`.hlog`) back into histograms.
//!
//! Takes logs of [`super::log::write`] and of HdrHistogram's own tools. Invariants: every histogram
//! of the log is returned, or the whole log is refused, with the line; the histograms of a log take
//! 256 MiB at most, whatever it states.

use hdrhistogram::Histogram;
use hdrhistogram::serialization::Deserializer;
use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry, Tag};
use thiserror::Error;

use super::encoding;

/// The most counts (of 8 bytes each) in the histograms of one log. That is enough for 900
/// histograms of call times up to an hour, to three significant digits.
const COUNTS_MAX: usize = 32 << 20;

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
    #[error("line {line}: not an HdrHistogram interval log of format 1.3")]
    Malformed {
        /// The number of the faulty line, from 1.
        line: usize,
    },
    /// A line's histogram cannot be decoded.
    #[error("line {line}: the histogram of tag {tag:?} cannot be decoded: {what}")]
    Histogram {
        /// The number of the faulty line, from 1.
        line: usize,
        /// The line's tag.
        tag: String,
        /// What is wrong with it.
        what: String,
    },
}

/// Reads all histograms of an interval log, in the order of its lines.
///
/// # Errors
/// [`LogReadError`], with the number of the first faulty line.
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
    let (mut logged, mut counts) = (Vec::new(), 0);
    let mut deserializer = Deserializer::new();
    for (line, text) in (1..).zip(log.split_inclusive(|byte| *byte == b'\n')) {
        if text.trim_ascii().is_empty() {
            continue;
        }
        // The library gets one line at a time: it takes a tag that reaches over a line's end, and
        // the histogram of that line would be lost.
        for entry in IntervalLogIterator::new(text) {
            let LogEntry::Interval(entry) = entry.map_err(|_| LogReadError::Malformed { line })? else { continue };
            let tag = entry.tag().map_or_else(String::new, |tag| tag.as_str().to_owned());
            // The library reads tags that it would not write, such as one with a blank.
            if Tag::new(&tag).is_none() {
                return Err(LogReadError::Malformed { line });
            }
            match decoded(entry.encoded_histogram(), &mut deserializer, &mut counts) {
                Ok(histogram) => logged.push(LoggedHistogram { tag, histogram }),
                Err(what) => return Err(LogReadError::Histogram { line, tag, what }),
            }
        }
    }
    Ok(logged)
}

/// Decodes one histogram, and adds its counts to `counts`.
fn decoded(base64: &str, deserializer: &mut Deserializer, counts: &mut usize) -> Result<Histogram<u64>, String> {
    let encoded = base64_decoded(base64).ok_or("not base64")?;
    let plain = encoding::plain(&encoded)?;
    let histogram: Histogram<u64> =
        deserializer.deserialize(&mut plain.as_slice()).map_err(|error| error.to_string())?;
    *counts += histogram.distinct_values();
    match *counts > COUNTS_MAX {
        true => Err(format!("the histograms of the log have more than {COUNTS_MAX} counts")),
        false => Ok(histogram),
    }
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
