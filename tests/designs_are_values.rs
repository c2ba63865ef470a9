//! No code reads a design's name: what corrupts is an axis, whatever the design is called.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

mod common;

use std::fs;

use common::{counter, designs, race, result};

fn corrupts(toml: &str) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("mine.toml");
    fs::write(&file, toml).unwrap();
    let out = dir.path().join("out");
    let run = race(&out, &["--quick", "--design", file.to_str().unwrap()]);
    assert_eq!(run.status.code(), Some(1), "a user's design that corrupts fails the run");
    let result = result(&out);
    let designs = designs(&result);
    assert_eq!(designs.len(), 1);
    assert_eq!(designs[0].1["verdict"], "corrupts");
    assert!(counter(designs[0].1, "stale_dma") > 0);
}

#[test]
fn a_copy_of_the_negative_control_corrupts_under_any_name() {
    let shown = common::daxlab().args(["designs", "unsafe"]).output().unwrap();
    let copy = String::from_utf8(shown.stdout).unwrap();
    corrupts(&copy.replace("my-unsafe", "x"));
}

#[test]
fn one_axis_alone_corrupts() {
    corrupts("name = \"almost\"\nbase = \"rfc-v2\"\nstranger_change = \"proceed\"\n");
}
