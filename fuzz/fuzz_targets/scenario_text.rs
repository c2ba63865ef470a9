//! Any bytes, as `properties/workloads.rs` reads them for `scenario_text`.
#![no_main]

#[path = "../properties/workloads.rs"]
mod properties;

libfuzzer_sys::fuzz_target!(|data: &[u8]| properties::scenario_text(data));
