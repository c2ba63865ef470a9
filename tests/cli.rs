//! The command line's contract. Bad input is reported with its place, exits with 2 and writes
//! nothing. An interrupted race still prints and writes its result.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

mod common;

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Output, Stdio};

use common::{daxlab, race, result};

/// Asserts that `run` was refused as wrong input with all of `words` in its message, and that
/// nothing was written to `out`.
fn refused(run: &Output, out: &Path, words: &[&str]) {
    let stderr = String::from_utf8_lossy(&run.stderr);
    assert_eq!(run.status.code(), Some(2), "{stderr}");
    for word in words {
        assert!(stderr.contains(word), "`{word}` is not in:\n{stderr}");
    }
    assert!(run.stdout.is_empty(), "nothing on stdout");
    assert!(!out.join("result.json").exists(), "nothing written");
}

fn bad_job(text: &str, words: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let (job, out) = (dir.path().join("bad.toml"), dir.path().join("out"));
    fs::write(&job, text).unwrap();
    let run = race(&out, &[job.to_str().unwrap()]);
    refused(&run, &out, words);
    assert!(!out.exists(), "not even the folder");
}

#[test]
fn unknown_key_in_a_job() {
    bad_job("name = \"j\"\n[device]\nsiz = \"64MiB\"\n", &["siz", "bad.toml:3:1", "size"]);
}

#[test]
fn wrong_unit_in_a_job() {
    bad_job("name = \"j\"\n[device]\nsize = \"64 bananas\"\n", &["bad.toml:3:8"]);
    bad_job("name = \"j\"\n[run]\nduration = 5\n", &["bad.toml:3:12"]);
}

#[test]
fn a_job_that_cannot_be_run() {
    bad_job("[device]\nsize = \"2MiB\"\n", &["too small", "bad.toml:2:8", "need"]);
    bad_job(
        "[registrants]\nregion_lifetime = { dist = \"uniform\", min = \"5ms\", max = \"1ms\" }\n",
        &["are reversed", "bad.toml:2:58"],
    );
    bad_job("[mix]\nregister = 0\n", &["mix", "bad.toml:2:12"]);
}

#[test]
fn unreadable_job() {
    let out = tempfile::tempdir().unwrap();
    let run = race(&out.path().join("out"), &["no-such-job.toml"]);
    refused(&run, out.path(), &["no-such-job.toml", "No such file"]);
}

#[test]
fn unknown_design_suggests_the_nearest() {
    let out = tempfile::tempdir().unwrap();
    let run = race(out.path(), &["--design", "rfc-v3"]);
    refused(&run, out.path(), &["rfc-v3", "rfc-v2"]);
}

#[test]
fn bad_design_file_shows_line_and_column() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("mine.toml");
    fs::write(&file, "name = \"x\"\nbase = \"rfc-v2\"\nstranger_change = \"procede\"\n").unwrap();
    let out = dir.path().join("out");
    let run = race(&out, &["--design", file.to_str().unwrap()]);
    refused(&run, &out, &["mine.toml:3:19", "proceed"]);
}

#[test]
fn wrong_values_of_options() {
    let out = tempfile::tempdir().unwrap();
    for args in
        [&["--duration", "5"][..], &["--threads", "0"], &["--seed", "x"], &["--duration", "0s"], &["--design", ""]]
    {
        let run = race(out.path(), args);
        assert_eq!(run.status.code(), Some(2), "{args:?}: {}", String::from_utf8_lossy(&run.stderr));
        assert!(!out.path().join("result.json").exists());
    }
}

#[test]
fn a_short_race_writes_everything_and_prints_the_table() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let run = race(&out, &["--quick", "--duration", "200ms", "--design", "rfc-v2,revoke", "--seed", "7"]);
    assert_eq!(run.status.code(), Some(0), "{}", String::from_utf8_lossy(&run.stderr));
    let table = String::from_utf8(run.stdout).unwrap();
    assert!(table.contains("rfc-v2") && table.contains("revoke") && table.contains("safe"), "{table}");
    assert!(String::from_utf8_lossy(&run.stderr).contains("seed 7"));
    let result = result(&out);
    assert_eq!((&result["schema"], &result["seed"]), (&2.into(), &7.into()));
    for file in ["report.html", "rfc-v2.hlog", "revoke.hlog", "rfc-v2-truncate.hgrm"] {
        assert!(out.join(file).metadata().unwrap().len() > 0, "{file}");
    }
}

#[test]
fn interrupted_in_mid_race_it_still_reports() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let mut child = daxlab()
        .args(["race", "--design", "rfc-v2", "--duration", "1h", "--out"])
        .arg(&out)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The first design's line on stderr says that the race is on.
    let mut stderr = child.stderr.take().unwrap();
    let mut seen = String::new();
    let mut byte = [0];
    while !seen.contains("[1/1]") {
        assert_eq!(stderr.read(&mut byte).unwrap(), 1, "{seen}");
        seen.push(char::from(byte[0]));
    }
    let killed = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).unwrap();
    let done = child.wait_with_output().unwrap();
    assert!(matches!(done.status.code(), Some(0 | 1)), "{:?}: {rest}", done.status);
    assert_eq!(result(&out)["interrupted"], true);
    assert!(out.join("report.html").exists());
}

#[test]
fn a_closed_pipe_is_no_error() {
    let mut child = daxlab().arg("designs").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let done = child.wait_with_output().unwrap();
    assert_eq!(done.status.code(), Some(0), "{}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn help_and_usage() {
    let help = daxlab().args(["race", "--help"]).output().unwrap();
    assert_eq!(help.status.code(), Some(0));
    assert!(!String::from_utf8_lossy(&help.stdout).contains("sabotage"), "not for users");
    assert_eq!(daxlab().arg("rase").output().unwrap().status.code(), Some(2));
}
