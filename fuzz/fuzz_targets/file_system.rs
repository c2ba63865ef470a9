//! Any bytes, as `properties/file_system.rs` reads them: calls, compared with the plain model.
#![no_main]

#[path = "../../fs-sim/tests/common/mod.rs"]
mod common;
#[path = "../../fs-sim/tests/file_model/mod.rs"]
mod file_model;
#[path = "../properties/file_system.rs"]
mod properties;

libfuzzer_sys::fuzz_target!(|data: &[u8]| properties::file_system(data));
