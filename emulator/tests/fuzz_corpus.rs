//! Replays the corpora of the fuzzers `request_queue` and `messages`.
#![cfg(not(any(daxlab_loom, daxlab_shuttle)))]

#[path = "../../fuzz/replay.rs"]
mod replay;

use emulator::vhost_user::fuzz;

#[test]
fn request_queues() {
    replay::replay("request_queue", fuzz::request_queue);
}

#[test]
fn messages() {
    replay::replay("messages", fuzz::messages);
}
