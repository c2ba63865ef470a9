//! Replays the corpora of the fuzzers `job_toml`, `design_toml`, `scenario_text` and
//! `ctl_request`.
#![cfg(not(any(daxlab_loom, daxlab_shuttle)))]

#[path = "../../fuzz/properties/workloads.rs"]
mod properties;
#[path = "../../fuzz/replay.rs"]
mod replay;

#[test]
fn jobs() {
    replay::replay("job_toml", properties::job_toml);
}

#[test]
fn designs() {
    replay::replay("design_toml", properties::design_toml);
}

#[test]
fn scenarios() {
    replay::replay("scenario_text", properties::scenario_text);
}

#[test]
fn requests() {
    replay::replay("ctl_request", workloads::serving::fuzz::ctl_request);
}
