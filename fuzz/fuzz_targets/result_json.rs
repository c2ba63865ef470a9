//! Any bytes, as `properties/reports.rs` reads them for `result_json`.
#![no_main]

#[path = "../properties/reports.rs"]
mod properties;

libfuzzer_sys::fuzz_target!(|data: &[u8]| properties::result_json(data));
