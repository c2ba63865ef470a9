//! What a race found is never lost and never mixed: it is printed before it is written, a
//! violation decides the exit code, and one run at a time has an output folder.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

mod common;

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::{daxlab, race, result};

const SHORT: [&str; 4] = ["--design", "kara", "--duration", "1ms"];

/// A run in which no file ever shrinks: the negative control sees no stale DMA, which is a
/// violation.
const VIOLATION: &str = "name = \"calm\"
[registrants]
count = 1
[mix]
change = 0
[truncaters]
count = 1
unaligned = 0.0
size = { dist = \"constant\", value = \"512KiB\" }
[punchers]
count = 0
[extenders]
count = 0
";

fn stderr(run: &Output) -> String {
    String::from_utf8_lossy(&run.stderr).into_owned()
}

/// All names in a folder, sorted.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Asserts that the command could not run or write, and said all of `words`.
fn could_not(run: &Output, words: &[&str]) {
    let stderr = stderr(run);
    assert_eq!(run.status.code(), Some(3), "{stderr}");
    for word in words {
        assert!(stderr.contains(word), "`{word}` is not in:\n{stderr}");
    }
}

/// `daxlab race` into `DIR/out`, where DIR is a file system with 16 KiB of room. It is mounted in a
/// namespace of its own: that needs no privilege where unprivileged user namespaces are allowed,
/// and root elsewhere.
fn race_on_a_full_disk(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new("unshare");
    command
        .args(["--map-root-user", "--mount", "sh", "-c"])
        .arg("mount -t tmpfs -o size=16k none \"$1\" && shift && exec \"$@\"")
        .args(["sh", dir.to_str().unwrap(), env!("CARGO_BIN_EXE_daxlab"), "race"])
        .args(args)
        .arg("--out")
        .arg(dir.join("out"));
    command
}

#[test]
fn a_full_disk_costs_the_files_and_not_the_table() {
    let dir = tempfile::tempdir().unwrap();
    let run = race_on_a_full_disk(dir.path(), &SHORT).output().unwrap();
    let out = dir.path().join("out");
    could_not(&run, &["--out", out.to_str().unwrap(), "No space left on device", "make room there"]);
    assert!(String::from_utf8_lossy(&run.stdout).contains("kara"), "the table is printed");
}

#[test]
fn a_stdout_that_takes_nothing_costs_the_table_and_not_the_files() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let full = || Stdio::from(File::options().write(true).open("/dev/full").unwrap());
    let run = daxlab().arg("race").args(SHORT).arg("--out").arg(&out).stdout(full()).output().unwrap();
    could_not(&run, &["stdout could not be written", "No space left on device"]);
    assert_eq!(result(&out)["designs"][0]["name"], "kara");
    could_not(&daxlab().arg("designs").stdout(full()).output().unwrap(), &["stdout"]);
    could_not(&daxlab().args(["scenario", "run", "S14"]).stdout(full()).output().unwrap(), &["stdout"]);
    // A full stderr is no reason to fail.
    let run = daxlab().arg("race").args(SHORT).arg("--out").arg(&out).stderr(full()).output().unwrap();
    assert_eq!(run.status.code(), Some(0));
}

#[test]
fn an_unwritable_folder_is_named_before_anything_runs() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a-file");
    fs::write(&file, "").unwrap();
    for out in [Path::new("/proc/no-such-folder"), &file.join("out")] {
        let run = race(out, &SHORT);
        could_not(&run, &[out.to_str().unwrap(), "nothing written", "choose another output folder"]);
        assert!(run.stdout.is_empty() && !stderr(&run).contains("seed"), "{}", stderr(&run));
    }
}

#[test]
fn a_violation_decides_the_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let (job, disk) = (dir.path().join("calm.toml"), dir.path().join("disk"));
    fs::write(&job, VIOLATION).unwrap();
    fs::create_dir(&disk).unwrap();
    let full = File::options().write(true).open("/dev/full").unwrap();
    let args = [job.to_str().unwrap(), "--design", "unsafe", "--duration", "1ms"];
    let run = race_on_a_full_disk(&disk, &args).stdout(full).output().unwrap();
    assert_eq!(run.status.code(), Some(1), "{}", stderr(&run));
    assert!(stderr(&run).contains("stdout could not be written") && stderr(&run).contains("--out"), "{}", stderr(&run));
}

#[test]
fn a_folder_with_other_things_is_refused() {
    let out = tempfile::tempdir().unwrap();
    fs::write(out.path().join("thesis.tex"), "mine").unwrap();
    let run = race(out.path(), &SHORT);
    assert_eq!(run.status.code(), Some(2), "{}", stderr(&run));
    assert!(stderr(&run).contains("thesis.tex"), "{}", stderr(&run));
    assert_eq!(names(out.path()), ["thesis.tex"]);
}

#[test]
fn a_run_replaces_the_former_one_whole() {
    let out = tempfile::tempdir().unwrap();
    assert_eq!(race(out.path(), &["--design", "rfc-v2", "--duration", "1ms"]).status.code(), Some(0));
    assert!(out.path().join("rfc-v2.hlog").exists());
    assert_eq!(race(out.path(), &SHORT).status.code(), Some(0));
    let left = names(out.path());
    assert!(left.contains(&"kara.hlog".to_owned()) && !left.iter().any(|name| name.contains("rfc-v2")), "{left:?}");
    assert_eq!(result(out.path())["designs"].as_array().unwrap().len(), 1);
}

#[test]
fn two_runs_at_once_never_have_one_folder() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let mut first = daxlab()
        .args(["race", "--design", "kara", "--duration", "1h", "--out"])
        .arg(&out)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The first design's line on stderr says that the race is on.
    let (mut seen, mut byte) = (String::new(), [0]);
    while !seen.contains("[1/1]") {
        assert_eq!(first.stderr.as_mut().unwrap().read(&mut byte).unwrap(), 1, "{seen}");
        seen.push(char::from(byte[0]));
    }
    let second = race(&out, &SHORT);
    could_not(&second, &["another run writes into", out.to_str().unwrap(), "choose another output folder"]);
    let killed = Command::new("kill").args(["-INT", &first.id().to_string()]).status().unwrap();
    assert!(killed.success() && first.wait().unwrap().code().is_some());
    assert_eq!(result(&out)["interrupted"], true);
}
