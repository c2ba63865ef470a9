//! Any bytes, as `properties/reports.rs` reads them for `hlog`.
#![no_main]

#[path = "../properties/reports.rs"]
mod properties;

libfuzzer_sys::fuzz_target!(|data: &[u8]| properties::hlog(data));
