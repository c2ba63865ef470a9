//! What the fuzzers `result_json` and `hlog` run: any bytes as the text of a result, any bytes as
//! an interval log.
//!
//! It owns the properties: what is read prints, and reads back equal after it was written again;
//! an error points into the text. The fuzzers and `reports/tests/fuzz_corpus.rs` include this file.
#![allow(dead_code, reason = "each fuzzer uses one of the functions")]

use std::path::Path;

use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};
use reports::hdr::{self, LogReadError, LoggedHistogram};
use reports::plot::{self, Plot, PlotSeries};
use reports::result::ResultReadError;
use reports::{RunResult, html, text};

/// What an input is cut off at.
const INPUT_MAX: usize = 64 << 10;
/// The most counts in the histograms of a log that is written again.
const COUNTS_MAX: usize = 1 << 16;
/// The first byte of the cookies of HdrHistogram's formats. No line of a log begins with it.
const HISTOGRAM_BEGINS: u8 = 0x1c;

/// An input as the text of `result.json`.
///
/// # Panics
/// When a property does not hold.
pub(crate) fn result_json(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(&data[..data.len().min(INPUT_MAX)]) else { return };
    match RunResult::from_json(text, Path::new("result.json")) {
        Ok(run) => result_prints(&run),
        Err(error) => {
            let (ResultReadError::Malformed { line, column, .. } | ResultReadError::Schema { line, column, .. }) =
                &error
            else {
                panic!("an error of a file, which was not read: {error}")
            };
            check_position(text, *line, *column);
            assert!(error.to_string().starts_with(&format!("result.json:{line}:{column}: ")), "{error}");
        }
    }
}

/// Line and column lie in the text: line 1 at least, column 0 for the end of a line.
fn check_position(text: &str, line: usize, column: usize) {
    let mut lines = text.split('\n');
    let found = line.checked_sub(1).and_then(|before| lines.nth(before));
    let found = found.unwrap_or_else(|| panic!("no line {line} in the text"));
    assert!(column <= found.len() + 1, "no column {column} in line {line} of {} bytes", found.len());
}

fn result_prints(run: &RunResult) {
    let written = run.to_json();
    let read = RunResult::from_json(&written, Path::new("result.json")).expect("what was written is read");
    assert_eq!(read, *run);
    for (width, ansi) in [(0, false), (100, false), (usize::MAX, true)] {
        let tables = text::tables(run, &text::TableOptions { width, ansi });
        assert!(ansi || !tables.chars().any(|c| c.is_control() && c != '\n'), "a control character in {tables:?}");
        assert!(tables.ends_with('\n'));
    }
    let page = html::page(run, &[]).expect("a page");
    assert!(!page.contains("<script"), "a result can't bring a script");
    assert!(!page.chars().any(|c| c.is_control() && c != '\n'), "a control character in the page");
    let usual = |key: &String| ["truncate", "punch", "register", "deregister", "dma"].contains(&key.as_str());
    if run.designs.len() <= html::DESIGNS_DRAWN && run.designs.iter().all(|d| d.latency_ns.keys().all(usual)) {
        assert!(page.len() <= html::MAX_PAGE_BYTES, "a page of {} bytes", page.len());
    }
}

/// An input as an interval log. An input that begins as an encoded histogram does becomes a log of
/// one line, so that the fuzzer need not write base64.
///
/// # Panics
/// When a property does not hold.
pub(crate) fn hlog(data: &[u8]) {
    let data = &data[..data.len().min(INPUT_MAX)];
    match data.first() {
        Some(&HISTOGRAM_BEGINS) => log(format!("Tag=t,0.0,1.0,1.0,{}\n", base64(data)).as_bytes()),
        _ => log(data),
    }
}

/// Standard base64 (RFC 4648, section 4).
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = (0..3).fold(0, |bits, n| bits << 8 | u32::from(chunk.get(n).copied().unwrap_or(0)));
        let letter =
            |n: usize| if n > chunk.len() { '=' } else { LETTERS[(bits >> (18 - 6 * n) & 63) as usize].into() };
        text.extend((0..4).map(letter));
    }
    text
}

fn log(data: &[u8]) {
    match hdr::read_log(data) {
        Ok(logged) => {
            // A walk of the widest histogram takes a tenth of a second.
            if logged.iter().map(|line| line.histogram.distinct_values()).sum::<usize>() > COUNTS_MAX {
                return;
            }
            logged.iter().for_each(histogram_prints);
            assert_eq!(hdr::read_log(&rewritten(&logged)).expect("what was written is read"), logged);
        }
        Err(error) => {
            let (LogReadError::Malformed { line } | LogReadError::Histogram { line, .. }) = &error;
            let lines = data.split(|byte| *byte == b'\n').count();
            assert!((1..=lines).contains(line), "line {line} of {lines}");
            assert!(error.to_string().starts_with(&format!("line {line}: ")), "{error}");
        }
    }
}

/// The same log, written by HdrHistogram's library.
fn rewritten(logged: &[LoggedHistogram]) -> Vec<u8> {
    let (mut log, mut serializer) = (Vec::new(), V2DeflateSerializer::new());
    let mut writer = IntervalLogWriterBuilder::new().begin_log_with(&mut log, &mut serializer).expect("a log");
    for line in logged {
        let tag = Tag::new(&line.tag).expect("a tag that was read is one");
        let tag = Some(tag).filter(|tag| !tag.as_str().is_empty());
        let zero = std::time::Duration::ZERO;
        writer.write_histogram(&line.histogram, zero, zero, tag).expect("a line");
    }
    log
}

fn histogram_prints(line: &LoggedHistogram) {
    let histogram = &line.histogram;
    let steps = hdr::percentile_walk(histogram);
    assert_eq!(steps.is_empty(), histogram.is_empty());
    assert!(steps.is_sorted_by(|a, b| a.quantile <= b.quantile && a.value <= b.value && a.count <= b.count));
    if let Some(last) = steps.last() {
        assert_eq!((last.quantile, last.count), (1.0, histogram.len()));
    }
    let mut text = Vec::new();
    hdr::hgrm::write(&mut text, histogram).expect("a distribution");
    let summary = hdr::summary(histogram);
    assert!(summary.p50 <= summary.p99 && summary.p99 <= summary.p999 && summary.p999 <= summary.max);
    let series = vec![PlotSeries { name: line.tag.clone(), style: 0, steps }];
    let svg = plot::svg(&Plot { id: "p".to_owned(), title: line.tag.clone(), series });
    assert!(!svg.contains("NaN") && !svg.contains("inf\""), "a coordinate is not finite");
}
