//! Counters merge, bounds hold, and files read back or are refused with line and column.

use super::*;

/// Counters with a different value in every field.
fn numbered(from: u64) -> RaceCounters {
    let fields: serde_json::Map<String, serde_json::Value> =
        RaceCounters::NAMES.iter().zip(from..).map(|(name, value)| ((*name).to_owned(), value.into())).collect();
    serde_json::from_value(fields.into()).unwrap()
}

#[test]
fn counters_walk_in_order_and_serialise_under_the_same_names() {
    let counters = numbered(1_000);
    let walked: Vec<(String, u64)> = counters.iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let expected: Vec<(String, u64)> =
        RaceCounters::NAMES.iter().zip(1_000..).map(|(name, value)| ((*name).to_owned(), value)).collect();
    assert_eq!(walked, expected);
    assert_eq!(
        counters.stale_dma,
        1_000 + RaceCounters::NAMES.iter().position(|name| *name == "stale_dma").unwrap() as u64
    );
}

#[test]
fn shards_merge_in_any_order_and_peaks_take_the_larger() {
    let (a, b, c) = (numbered(10), numbered(500), numbered(90));
    let merged = |parts: &[RaceCounters]| {
        let mut sum = RaceCounters::default();
        parts.iter().for_each(|part| sum.merge(part));
        sum
    };
    assert_eq!(merged(&[a]), a, "merging into zero counters gives the same counters");
    assert_eq!(merged(&[a, b, c]), merged(&[c, b, a]));
    assert_eq!(merged(&[merged(&[a, b]), c]), merged(&[a, merged(&[b, c])]));
    for ((name, a), ((_, b), (_, sum))) in a.iter().zip(b.iter().zip(merged(&[a, b]).iter())) {
        let want = if name.ends_with("_peak") { a.max(b) } else { a + b };
        assert_eq!(sum, want, "{name}");
    }
    let mut full = numbered(u64::MAX - 100);
    full.merge(&numbered(u64::MAX - 100));
    assert_eq!(full.truncate_done, u64::MAX, "a sum saturates instead of wrapping around");
}

#[test]
fn a_result_reads_back_equal() {
    let run = sample::run();
    let text = run.to_json();
    assert_eq!(RunResult::from_json(&text, "r.json".as_ref()).unwrap(), run);
    assert!(text.ends_with("}\n"));
}

#[test]
fn a_malformed_result_is_refused_with_its_place() {
    let run = sample::run();
    let good = run.to_json();
    let refused = |text: &str, place: &str, what: &str| {
        let error = RunResult::from_json(text, "dir/r.json".as_ref()).unwrap_err().to_string();
        assert!(error.starts_with(&format!("dir/r.json:{place}")) && error.contains(what), "{error}");
        assert!(!error.contains(" at line "), "the error gives the position once: {error}");
    };
    refused("", "1:0: ", "EOF");
    refused("not json", "1:2: ", "expected ident");
    refused("[]", "1:", "not a result of schema 2");
    refused(&good.replacen("\"seed\"", "\"sead\"", 1), "3:8: ", "unknown field `sead`");
    refused(
        &good.replacen("\"seed\": 42", "\"seed\": \"42\"", 1),
        "3:14: ",
        "invalid type: string \"42\", expected u64",
    );
    refused(&good.replacen("\"verdict\": \"corrupts\"", "\"verdict\": \"fine\"", 1), "", "unknown variant `fine`");
    refused(&good.replacen("\"schema\": 2,", "", 1), "", "missing field `schema`");
    refused(&good[..good.len() / 2], "", "EOF");
}

#[test]
fn another_schema_is_not_reported_as_a_malformed_file() {
    let error =
        RunResult::from_json("{\"later\": [1, {}],\n \"schema\": 3, \"x\": null}", "r.json".as_ref()).unwrap_err();
    assert!(matches!(error, ResultReadError::Schema { line: 2, column: 12, found: 3, .. }), "{error:?}");
    assert!(error.to_string().contains("the result has schema 3, this daxlab reads schema 2"), "{error}");
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let missing = RunResult::read(&dir.path().join("none.json")).unwrap_err().to_string();
    assert!(missing.contains("none.json: cannot read the result"), "{missing}");
    let latin1 = dir.path().join("latin1.json");
    std::fs::write(&latin1, [0xe9, 0xe8]).unwrap();
    assert!(matches!(RunResult::read(&latin1), Err(ResultReadError::Io { .. })));
    let sparse = dir.path().join("huge.json");
    std::fs::File::create(&sparse).unwrap().set_len(MAX_RESULT_BYTES + 1).unwrap();
    assert!(matches!(RunResult::read(&sparse), Err(ResultReadError::TooLarge { .. })));
}

#[test]
fn evidence_is_bounded_and_counted() {
    let mut design = DesignResult::new("d", RaceVerdict::Corrupts);
    for number in 0..1_000 {
        design.push_violation(format!("violation {number}"));
        let trace = (0..500).map(|line| format!("line {line}")).collect();
        design.push_finding(ReportedFinding { trace, ..sample::finding(number) });
    }
    assert_eq!((design.violations.len(), design.findings.len()), (MAX_VIOLATIONS, MAX_FINDINGS));
    assert_eq!((design.violation_count(), design.finding_count()), (1_000, 1_000));
    assert_eq!(design.findings[0].trace.len(), MAX_TRACE_LINES);
    assert_eq!(design.findings[0].trace.last().unwrap(), "line 499", "the newest lines are kept");
    let mut run = RunResult::new(1, JobSummary::new("j", 1, 1));
    run.designs.push(design);
    assert!(run.has_violations());
}

#[test]
fn rates_round_down_and_survive_extremes() {
    assert_eq!(per_second(u64::MAX, 1), u64::MAX);
    assert_eq!(per_second(u64::MAX, u64::MAX), 1_000_000_000);
    assert_eq!(per_second(0, 1_000), 0);
    assert_eq!(per_second(999, 1_000_000_000_000), 0);
}
