//! Any bytes, as `emulator::vhost_user::fuzz::messages` reads them.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| emulator::vhost_user::fuzz::messages(data));
