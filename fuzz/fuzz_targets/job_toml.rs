//! Any bytes, as `properties/workloads.rs` reads them for `job_toml`.
#![no_main]

#[path = "../properties/workloads.rs"]
mod properties;

libfuzzer_sys::fuzz_target!(|data: &[u8]| properties::job_toml(data));
