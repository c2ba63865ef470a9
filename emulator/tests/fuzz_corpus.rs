//! Replays the fuzzers' corpus, so that every test run checks each input they found.
#![cfg(not(any(daxlab_loom, daxlab_shuttle)))]
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

use std::path::Path;

use emulator::vhost_user::fuzz;

fn replay(target: &str, run: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() > 10, "{} holds {} files", folder.display(), files.len());
    for file in files {
        // Shown if it fails.
        println!("{}", file.display());
        run(&std::fs::read(&file).unwrap());
    }
}

#[test]
fn request_queues() {
    replay("request_queue", fuzz::request_queue);
}

#[test]
fn messages() {
    replay("messages", fuzz::messages);
}

#[test]
fn the_shortest_inputs() {
    for data in [&[][..], &[0], &[255; 3], &[0; 64], &[255; 64]] {
        fuzz::request_queue(data);
        fuzz::messages(data);
    }
}
