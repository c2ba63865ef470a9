//! Replays the corpus of the fuzzer `file_system`.
#![cfg(not(any(daxlab_loom, daxlab_shuttle)))]

mod common;
mod file_model;
#[path = "../../fuzz/properties/file_system.rs"]
mod properties;
#[path = "../../fuzz/replay.rs"]
mod replay;

#[test]
fn calls_on_files() {
    replay::replay("file_system", properties::file_system);
}
