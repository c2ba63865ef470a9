//! Recording, exact merging, and reading both file formats back.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogIterator, IntervalLogWriterBuilder, LogEntry};

use super::latency::keyed;
use super::log::LogInterval;
use super::*;
use crate::result::LatencySummary;

/// A repeatable stream of call times of all magnitudes, from 1 ns to about 2^38 ns (some minutes).
fn times(seed: u64, count: usize) -> impl Iterator<Item = (u64, bool)> {
    let mut state = seed;
    (0..count).map(move |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let magnitude = (state >> 59) + (state >> 58 & 7);
        (1 + ((state >> 16) & ((1 << magnitude) - 1)), state >> 40 & 3 == 0)
    })
}

fn recorded(seed: u64, count: usize) -> OpLatencies {
    let mut latencies = OpLatencies::new();
    for (index, (time, waited)) in times(seed, count).enumerate() {
        latencies.record(["truncate", "punch", "dma"][index % 3], time, waited);
    }
    latencies
}

#[test]
fn merged_shards_equal_one_recorder() {
    let mut whole = OpLatencies::new();
    let mut shards = vec![OpLatencies::new(); 7];
    for (index, (time, waited)) in times(11, 20_000).enumerate() {
        whole.record("dma", time, waited);
        shards[index % 7].record("dma", time, waited);
    }
    let mut forward = OpLatencies::new();
    shards.iter().for_each(|shard| forward.merge(shard));
    let mut backward = OpLatencies::new();
    shards.iter().rev().for_each(|shard| backward.merge(shard));
    assert_eq!(forward, whole);
    assert_eq!(backward, whole);
    assert_eq!(forward.summaries(), whole.summaries());
    assert_eq!(whole.summaries()["dma"].count, 20_000);
}

#[test]
fn merging_with_nothing_changes_nothing() {
    let mut merged = recorded(3, 999);
    merged.merge(&OpLatencies::new());
    assert_eq!(merged, recorded(3, 999));
    let mut from_empty = OpLatencies::new();
    from_empty.merge(&merged);
    assert_eq!(from_empty, merged);
}

#[test]
fn times_outside_the_range_are_clamped_and_kept() {
    let mut latency = Latency::new();
    latency.record(0, false);
    latency.record(u64::MAX, false);
    let summary = summary(latency.unwaited());
    assert_eq!(summary.count, 2);
    assert_eq!(summary.p50, 1);
    assert!(summary.max >= MAX_NS && summary.max < MAX_NS + MAX_NS / 1000, "{}", summary.max);
}

#[test]
fn three_significant_digits_are_kept() {
    for (time, _) in times(5, 5_000) {
        let mut latency = Latency::new();
        latency.record(time, true);
        let max = summary(latency.waited()).max;
        assert!(max >= time && max - time <= time / 1000, "{time} was kept as {max}");
    }
}

#[test]
fn keys_tell_waited_from_unwaited() {
    let mut latencies = OpLatencies::new();
    latencies.record("truncate", 500, false);
    latencies.record("truncate", 900_000, true);
    latencies.record("register", 700, false);
    latencies.operation("punch");
    let summaries = latencies.summaries();
    let keys: Vec<&str> = summaries.keys().map(String::as_str).collect();
    assert_eq!(keys, ["punch", "register", "register_unwaited", "truncate", "truncate_unwaited", "truncate_waited"]);
    assert_eq!(summaries["punch"], LatencySummary::default());
    assert_eq!(summaries["truncate"].count, 2);
    assert_eq!(summaries["truncate_unwaited"].max, 500);
    assert_eq!(summaries["truncate_waited"].p50, summaries["truncate"].max);
}

#[test]
fn the_log_reads_back_exactly() {
    let latencies = recorded(23, 30_000);
    let interval = LogInterval {
        run_started: Duration::from_millis(1_441_812_279_474),
        offset: Duration::from_millis(1_250),
        length: Duration::from_millis(10_007),
    };
    let mut bytes = Vec::new();
    log::write(&mut bytes, &["design rfc-v2\nsecond line".to_owned()], interval, &latencies).unwrap();
    let text = std::str::from_utf8(&bytes).unwrap();
    assert!(text.starts_with("#[design rfc-v2 second line]\n#[Histogram log format version 1.3]\n"), "{text}");

    let mut expected: BTreeMap<String, Histogram<u64>> =
        latencies.iter().flat_map(|(name, latency)| keyed(name, latency)).collect();
    let logged = read_log(&bytes).unwrap();
    let mut logged = logged.into_iter();
    let mut base_time = None;
    for entry in IntervalLogIterator::new(&bytes) {
        match entry.unwrap() {
            LogEntry::BaseTime(time) => base_time = Some(time),
            LogEntry::StartTime(time) => assert_eq!(time, interval.run_started),
            LogEntry::Interval(line) => {
                let LoggedHistogram { tag, histogram } = logged.next().unwrap();
                assert_eq!(tag, line.tag().unwrap().as_str());
                let want = expected.remove(&tag).unwrap();
                assert_eq!(histogram, want);
                assert_eq!(summary(&histogram), summary(&want));
                assert_eq!(line.start_timestamp(), interval.offset);
                assert_eq!(line.duration(), interval.length);
                let max_ms = want.max() as f64 / 1e6;
                assert!((line.max() - max_ms).abs() <= 0.0005, "{} is not {max_ms} ms", line.max());
            }
        }
    }
    assert_eq!(base_time, Some(interval.run_started));
    assert!(logged.next().is_none());
    assert!(expected.is_empty(), "not in the log: {:?}", expected.keys());
}

#[test]
fn a_damaged_log_is_refused_with_the_number_of_the_line() {
    let mut latencies = OpLatencies::new();
    latencies.record("dma", 5, false);
    let mut bytes = Vec::new();
    log::write(&mut bytes, &[], LogInterval::default(), &latencies).unwrap();
    let good = String::from_utf8(bytes).unwrap();
    assert_eq!(read_log(good.as_bytes()).unwrap().len(), 2);
    let refused = |text: &str| read_log(text.as_bytes()).unwrap_err();
    // The header has five lines.
    assert_eq!(refused(&good.replacen("Tag=dma,", "Tag=dma", 1)), LogReadError::Malformed { line: 6 });
    assert_eq!(refused(&good.replacen("Tag=dma,", "Tag=d ma,", 1)), LogReadError::Malformed { line: 6 });
    // A tag does not go on in the next line, which would hide what is left of this one.
    assert_eq!(refused(&good.replacen("Tag=dma,", "Tag=dma\n", 1)), LogReadError::Malformed { line: 6 });
    assert_eq!(refused(&good.replacen("dma_unwaited,", "dma\nTag=dma,", 1)), LogReadError::Malformed { line: 7 });
    assert_eq!(read_log(good.replace("Tag=", "\r\n\nTag=").as_bytes()), read_log(good.as_bytes()), "blank lines");
    let (before, histogram) = good.split_at(good.find("HIST").unwrap());
    for damage in [format!("!{histogram}"), histogram.replacen("HIST", "AAAA", 1), histogram[12..].to_owned()] {
        let error = refused(&format!("{before}{damage}"));
        assert!(matches!(&error, LogReadError::Histogram { line: 6, tag, .. } if tag == "dma"), "{error}");
    }
}

/// A plain V2 encoding over values up to an hour, whose header states `stated` bytes of counts.
fn encoding(stated: u32, digits: u32, payload: &[u8]) -> Vec<u8> {
    let words = [0x1c84_9313, stated, 0, digits].map(u32::to_be_bytes).concat();
    let bounds = [1, MAX_NS].map(u64::to_be_bytes).concat();
    [&words, &bounds, &1_f64.to_be_bytes()[..], payload].concat()
}

/// HdrHistogram's library allocates what the header states, and adds counts up unchecked.
#[test]
fn an_encoding_that_states_too_much_is_refused_before_it_is_decoded() {
    assert!(encoding::plain(&encoding(2, 3, &[2, 2])).is_ok());
    // 2^62 - 1 calls; a number that says how many zeros are skipped, and is the smallest of all.
    let many = [0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
    let least = [0xff; 9];
    for (bytes, says) in [
        (encoding(u32::MAX, 3, &[2]), "4294967295 bytes of counts are stated, 1 there"),
        (encoding(9, 3, &least), "skips too many zeros"),
        (encoding(27, 3, &[many; 3].concat()), "exceed 2^63 calls"),
        (encoding(1, 3, &[0x80]), "cut off"),
        (encoding(0, 3, &[])[..39].to_vec(), "too short"),
        (vec![0; 60], "not a histogram"),
    ] {
        let refused = encoding::plain(&bytes).unwrap_err();
        assert!(refused.contains(says), "{refused}");
    }
}

/// A line of 80 bytes can state a histogram of 50 MiB.
#[test]
fn a_log_whose_histograms_are_too_large_together_is_refused() {
    let mut wide = Histogram::<u64>::new_with_bounds(1, u64::MAX, 5).unwrap();
    wide.record(1).unwrap();
    let (mut log, mut serializer) = (Vec::new(), V2DeflateSerializer::new());
    let mut writer = IntervalLogWriterBuilder::new().begin_log_with(&mut log, &mut serializer).unwrap();
    (0..8).for_each(|_| writer.write_histogram(&wide, Duration::ZERO, Duration::ZERO, None).unwrap());
    let error = read_log(&log).unwrap_err();
    assert!(matches!(&error, LogReadError::Histogram { line: 6, what, .. } if what.contains("more than")), "{error}");
}

#[test]
fn names_that_a_tag_cannot_have_are_still_logged() {
    let mut latencies = OpLatencies::new();
    latencies.record("a, b\nc", 5, false);
    let mut bytes = Vec::new();
    log::write(&mut bytes, &[], LogInterval::default(), &latencies).unwrap();
    let tags: Vec<String> = IntervalLogIterator::new(&bytes)
        .filter_map(|entry| match entry.unwrap() {
            LogEntry::Interval(line) => Some(line.tag().unwrap().as_str().to_owned()),
            _ => None,
        })
        .collect();
    assert_eq!(tags, ["a__b_c", "a__b_c_unwaited"]);
}

#[test]
fn the_percentile_file_reads_back() {
    let histogram = recorded(42, 12_345).get("punch").unwrap().all();
    let mut bytes = Vec::new();
    hgrm::write(&mut bytes, &histogram).unwrap();
    let text = String::from_utf8(bytes).unwrap();
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("       Value     Percentile TotalCount 1/(1-Percentile)"));
    assert_eq!(lines.next(), Some(""));

    let (footer, rows): (Vec<&str>, Vec<&str>) = lines.partition(|line| line.starts_with('#'));
    assert!(rows.len() > 40, "only {} rows", rows.len());
    let mut last_count = 0;
    for (index, row) in rows.iter().enumerate() {
        let columns: Vec<&str> = row.split_whitespace().collect();
        let (value, quantile): (f64, f64) = (columns[0].parse().unwrap(), columns[1].parse().unwrap());
        let count: u64 = columns[2].parse().unwrap();
        assert_eq!(histogram.count_between(0, value as u64), count, "{row}");
        assert!(count as f64 >= quantile * histogram.len() as f64 - 1e-6, "{row}");
        assert!(count >= last_count, "{row}");
        last_count = count;
        if index + 1 < rows.len() {
            let inverted: f64 = columns[3].parse().unwrap();
            assert!((inverted - 1.0 / (1.0 - quantile)).abs() <= 0.006 + inverted * inverted * 1e-12, "{row}");
        } else {
            assert_eq!((quantile, columns.len()), (1.0, 3), "{row}");
        }
    }
    assert_eq!(last_count, histogram.len());
    assert_eq!(
        footer[0],
        format!("#[Mean    = {:12.3}, StdDeviation   = {:12.3}]", histogram.mean(), histogram.stdev())
    );
    assert_eq!(footer[1], format!("#[Max     = {:8}.000, Total count    = {:12}]", histogram.max(), histogram.len()));
    assert!(footer[2].ends_with("SubBuckets     =         2048]"), "{}", footer[2]);
}

/// Output of `HistogramLogProcessor` of HdrHistogram 2.1.11 (Java) for eight calls of 1 ns to 8 ns.
/// Several steps fall exactly on a value's share; a walk that sums quantiles would round them to
/// the next value.
const EIGHT_CALLS: &str = "       Value     Percentile TotalCount 1/(1-Percentile)

       1.000 0.000000000000          1           1.00
       1.000 0.100000000000          1           1.11
       2.000 0.200000000000          2           1.25
       3.000 0.300000000000          3           1.43
       4.000 0.400000000000          4           1.67
       4.000 0.500000000000          4           2.00
       5.000 0.550000000000          5           2.22
       5.000 0.600000000000          5           2.50
       6.000 0.650000000000          6           2.86
       6.000 0.700000000000          6           3.33
       6.000 0.750000000000          6           4.00
       7.000 0.775000000000          7           4.44
       7.000 0.800000000000          7           5.00
       7.000 0.825000000000          7           5.71
       7.000 0.850000000000          7           6.67
       7.000 0.875000000000          7           8.00
       8.000 0.887500000000          8           8.89
       8.000 1.000000000000          8
#[Mean    =        4.500, StdDeviation   =        2.291]
#[Max     =        8.000, Total count    =            8]
#[Buckets =            1, SubBuckets     =         2048]
";

#[test]
fn the_percentile_file_is_the_java_tools_to_the_byte() {
    let mut latency = Latency::new();
    (1..=8).for_each(|value| latency.record(value, false));
    let mut bytes = Vec::new();
    hgrm::write(&mut bytes, latency.unwaited()).unwrap();
    assert_eq!(String::from_utf8(bytes).unwrap(), EIGHT_CALLS);
}

#[test]
fn ties_are_rounded_as_java_rounds_them() {
    let mut latency = Latency::new();
    (0..15).for_each(|_| latency.record(1, false));
    latency.record(2, false);
    let mut bytes = Vec::new();
    hgrm::write(&mut bytes, latency.unwaited()).unwrap();
    let text = String::from_utf8(bytes).unwrap();
    assert!(text.contains("#[Mean    =        1.063, "), "the mean is 1.0625: {text}");
}

#[test]
fn a_walk_over_more_calls_than_a_double_counts_ends() {
    let mut histogram = Histogram::<u64>::new(3).unwrap();
    histogram.record_n(5, u64::MAX - 9).unwrap();
    histogram.record_n(9, 8).unwrap();
    let walk = percentile_walk(&histogram);
    assert!(walk.len() < 400, "{} steps", walk.len());
    assert_eq!(walk.last(), Some(&PercentileStep { quantile: 1.0, value: 9, count: u64::MAX - 1 }));
}

#[test]
fn an_empty_percentile_file_has_no_rows() {
    let mut bytes = Vec::new();
    hgrm::write(&mut bytes, Latency::new().unwaited()).unwrap();
    let text = String::from_utf8(bytes).unwrap();
    assert_eq!(text.lines().count(), 5, "{text}");
    assert!(text.contains("Total count    =            0"), "{text}");
}
