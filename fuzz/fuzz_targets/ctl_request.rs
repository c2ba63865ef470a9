//! Any bytes, as `workloads::serving::fuzz::ctl_request` reads them.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| workloads::serving::fuzz::ctl_request(data));
