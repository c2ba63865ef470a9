//! Compares `docs/result.schema.json` and `docs/result-schema.md` with what the crate writes.

use std::fs;

use reports::{DesignResult, JobSummary, OpLatencies, RaceCounters, RaceVerdict, ReportedFinding, RunResult};
use serde_json::{Value, json};

fn docs(name: &str) -> String {
    let path = format!("{}/../docs/{name}", env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn validator() -> jsonschema::Validator {
    let schema: Value = serde_json::from_str(&docs("result.schema.json")).expect("the schema is JSON");
    jsonschema::validator_for(&schema).expect("the schema is a JSON Schema")
}

/// A result in which nothing is empty.
fn result() -> RunResult {
    let mut latencies = OpLatencies::new();
    latencies.record("truncate", 1_234, false);
    latencies.record("truncate", 9_876_543, true);
    let mut job = JobSummary::new("default", 10_000_000_000, 2);
    job.parameters.insert("files".to_owned(), "64".to_owned());
    let mut run = RunResult::new(u64::MAX, job);
    for verdict in RaceVerdict::ALL {
        let mut design = DesignResult::new(verdict.as_str(), verdict);
        design.axes.insert("pin_gate".to_owned(), "lease".to_owned());
        design.counters = RaceCounters { truncate_done: 2, dma_bytes: u64::MAX, ..RaceCounters::default() };
        design.latency_ns = latencies.summaries();
        design.push_violation("a page was freed while pinned");
        design.push_finding(ReportedFinding {
            kind: "stale_dma".to_owned(),
            trace: vec!["1ns".to_owned()],
            ..ReportedFinding::default()
        });
        run.designs.push(design);
    }
    run
}

/// All paths to a value, as JSON pointers.
fn pointers(value: &Value, at: &str, all: &mut Vec<String>) {
    let children: Vec<(String, &Value)> = match value {
        Value::Object(map) => map.iter().map(|(key, value)| (key.clone(), value)).collect(),
        Value::Array(items) => items.iter().enumerate().map(|(index, value)| (index.to_string(), value)).collect(),
        _ => Vec::new(),
    };
    for (key, child) in children {
        let pointer = format!("{at}/{key}");
        pointers(child, &pointer, all);
        all.push(pointer);
    }
}

#[test]
fn what_is_written_fits_the_schema() {
    let validator = validator();
    let value: Value = serde_json::from_str(&result().to_json()).unwrap();
    let errors: Vec<String> = validator.iter_errors(&value).map(|e| format!("{}: {e}", e.instance_path())).collect();
    assert!(errors.is_empty(), "{errors:#?}");
}

/// The schema and the reader agree on every possible omission: both refuse it, or it is a free-form
/// entry and both take it.
#[test]
fn a_missing_field_fails_schema_and_reader_alike() {
    let validator = validator();
    let good: Value = serde_json::from_str(&result().to_json()).unwrap();
    let mut all = Vec::new();
    pointers(&good, "", &mut all);
    let mut refused = 0;
    for pointer in all {
        let mut bad = good.clone();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let Some(object) = bad.pointer_mut(parent).and_then(Value::as_object_mut) else { continue };
        object.remove(key);
        let read = RunResult::from_json(&bad.to_string(), "r.json".as_ref()).is_ok();
        assert_eq!(validator.is_valid(&bad), read, "without {pointer}");
        refused += usize::from(!read);
    }
    assert!(refused > 4 * RaceCounters::NAMES.len(), "only {refused} omissions were refused");
}

#[test]
fn a_wrong_type_fails_schema_and_reader_alike() {
    let validator = validator();
    let good: Value = serde_json::from_str(&result().to_json()).unwrap();
    let mut all = Vec::new();
    pointers(&good, "", &mut all);
    for pointer in all {
        for wrong in [json!(null), json!(-1), json!(1.5), json!({"a": [1]})] {
            let mut bad = good.clone();
            *bad.pointer_mut(&pointer).unwrap() = wrong.clone();
            assert!(!validator.is_valid(&bad), "{wrong} at {pointer} fits the schema");
            assert!(RunResult::from_json(&bad.to_string(), "r.json".as_ref()).is_err(), "{wrong} at {pointer} is read");
        }
    }
}

#[test]
fn unknown_words_and_fields_fail_schema_and_reader_alike() {
    let validator = validator();
    let good: Value = serde_json::from_str(&result().to_json()).unwrap();
    for (pointer, wrong) in [
        ("/designs/0/verdict", json!("fine")),
        ("/designs/0/verdict", json!("Safe")),
        ("/schema", json!(3)),
        ("/extra", json!(1)),
        ("/job/extra", json!("x")),
        ("/designs/0/extra", json!(1)),
        ("/designs/0/counters/extra", json!(1)),
        ("/designs/0/latency_ns/truncate/p95", json!(1)),
        ("/designs/0/findings/0/extra", json!("x")),
    ] {
        let mut bad = good.clone();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        bad.pointer_mut(parent).unwrap()[key] = wrong.clone();
        assert!(!validator.is_valid(&bad), "{wrong} at {pointer} fits the schema");
        assert!(RunResult::from_json(&bad.to_string(), "r.json".as_ref()).is_err(), "{wrong} at {pointer} is read");
    }
}

#[test]
fn every_field_is_in_the_schema_and_in_the_prose() {
    let schema: Value = serde_json::from_str(&docs("result.schema.json")).unwrap();
    let prose = docs("result-schema.md");
    let in_schema: Vec<&String> = schema["$defs"]["counters"]["properties"].as_object().unwrap().keys().collect();
    let mut names: Vec<&str> = RaceCounters::NAMES.to_vec();
    names.sort_unstable();
    assert_eq!(in_schema, names);
    for name in names {
        assert!(prose.contains(&format!("\n| `{name}` | ")), "{name} has no row in docs/result-schema.md");
    }
    // The prose names every other field in a code span.
    let value: Value = serde_json::from_str(&result().to_json()).unwrap();
    let mut all = Vec::new();
    pointers(&value, "", &mut all);
    for pointer in
        all.iter().filter(|pointer| !["axes/", "parameters/", "truncate"].iter().any(|free| pointer.contains(free)))
    {
        let key = pointer.rsplit('/').next().unwrap();
        let known = key.parse::<usize>().is_ok()
            || [format!("`{key}`"), format!(".{key}`"), format!("`{key}[]`")].iter().any(|span| prose.contains(span));
        assert!(known, "{pointer} is not in docs/result-schema.md");
    }
}
