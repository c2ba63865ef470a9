//! The oracle detects a broken pin protocol: a run of a safe design fails when one rule of the
//! protocol is left out. `cargo test` requires a finding on one of five seeds, `make test` on four
//! of them.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

mod common;

use common::{race, slow};

fn found(rule: &str, seed: u64) -> bool {
    let out = tempfile::tempdir().unwrap();
    let seed = seed.to_string();
    let run = race(out.path(), &["--quick", "--design", "rfc-v2", "--seed", &seed, "--sabotage", rule]);
    match run.status.code() {
        Some(1) => true,
        Some(0) => false,
        other => panic!("exit code {other:?}: {}", String::from_utf8_lossy(&run.stderr)),
    }
}

fn check(rule: &str) {
    if slow() {
        let found = (1..=5).filter(|seed| found(rule, *seed)).count();
        assert!(found >= 4, "{rule}: seen on {found} of 5 seeds");
    } else {
        assert!((1..=5).any(|seed| found(rule, seed)), "{rule}: seen on none of 5 seeds");
    }
}

#[test]
fn a_missing_recheck_is_seen() {
    check("no-recheck");
}

#[test]
fn a_block_freed_without_a_close_is_seen() {
    check("free-without-close");
}
