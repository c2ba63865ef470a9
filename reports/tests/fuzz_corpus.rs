//! Replays the corpora of the fuzzers `result_json` and `hlog`.

#[path = "../../fuzz/properties/reports.rs"]
mod properties;
#[path = "../../fuzz/replay.rs"]
mod replay;

#[test]
fn results() {
    replay::replay("result_json", properties::result_json);
}

#[test]
fn interval_logs() {
    replay::replay("hlog", properties::hlog);
}
