//! The folder's contents after success and after every kind of failure.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write as _};
use std::path::Path;
use std::time::Duration;

use super::staged::StagedFiles;
use super::*;
use crate::hdr::{OpLatencies, sample};
use crate::html;
use crate::result::{DesignResult, JobSummary, RaceVerdict, RunResult};

/// All names in a folder, also hidden ones, sorted.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn small_run(designs: &[&str], operations: &[&str]) -> (RunResult, Vec<OpLatencies>) {
    let mut latencies = OpLatencies::new();
    operations.iter().for_each(|operation| latencies.record(operation, 777, false));
    let mut run = RunResult::new(1, JobSummary::new("small", 1_000, 1));
    for name in designs {
        let mut design = DesignResult::new(name, RaceVerdict::Safe);
        design.latency_ns = latencies.summaries();
        design.elapsed_ns = 2_500_000_000;
        run.designs.push(design);
    }
    let latencies = vec![latencies; designs.len()];
    (run, latencies)
}

#[test]
fn a_run_is_written_whole_and_reads_back() {
    let there = tempfile::tempdir().unwrap();
    let dir = there.path().join("a/b/out");
    let (run, latencies) = sample::run();
    let written = write_run(&dir, &run, &latencies, Duration::from_secs(1_700_000_000)).unwrap();
    assert_eq!(RunResult::read(&written.result).unwrap(), run);
    assert_eq!(written.files.len(), 10 + 10 * 5 + 2);
    assert_eq!(written.files.last(), Some(&written.result), "result.json appears last");
    let mut listed: Vec<String> =
        written.files.iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    listed.sort();
    assert_eq!(names(&dir), listed, "no temporary file is left");
    assert_eq!(fs::read_to_string(&written.report).unwrap(), html::page(&run, &latencies).unwrap());
}

#[test]
fn designs_follow_each_other_in_the_logs() {
    let there = tempfile::tempdir().unwrap();
    let (run, latencies) = small_run(&["one", "two"], &["dma"]);
    write_run(there.path(), &run, &latencies, Duration::from_millis(1_700_000_000_250)).unwrap();
    let log = |name| fs::read_to_string(there.path().join(name)).unwrap();
    assert!(log("one.hlog").contains("#[BaseTime: 1700000000.250 (seconds since epoch)]"));
    assert!(log("one.hlog").contains("\nTag=dma,0.000,2.500,0.001,HIST"), "{}", log("one.hlog"));
    assert!(log("two.hlog").contains("\nTag=dma,2.500,2.500,0.001,HIST"), "{}", log("two.hlog"));
}

#[test]
fn a_second_run_replaces_the_first() {
    let there = tempfile::tempdir().unwrap();
    let (mut run, latencies) = small_run(&["one"], &["dma"]);
    write_run(there.path(), &run, &latencies, Duration::ZERO).unwrap();
    run.seed = 2;
    let before = names(there.path());
    let written = write_run(there.path(), &run, &latencies, Duration::ZERO).unwrap();
    assert_eq!(RunResult::read(&written.result).unwrap().seed, 2);
    assert_eq!(names(there.path()), before);
}

#[test]
fn file_names_are_safe_and_never_equal() {
    let there = tempfile::tempdir().unwrap();
    let long = "x".repeat(500);
    let designs =
        ["../../etc/passwd", "my design", "my/design", "My Design", "", "..", "-rf", "été", "a", "a-b", &long];
    let (run, latencies) = small_run(&designs, &["b-c", "c"]);
    let written = write_run(there.path(), &run, &latencies, Duration::ZERO).unwrap();
    assert_eq!(names(there.path()).len(), designs.len() * 3 + 2);
    assert_eq!(written.files.len(), designs.len() * 3 + 2);
    for name in names(there.path()) {
        assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)), "{name}");
        assert!(!name.starts_with(['.', '-']) && name.len() < 200, "{name}");
    }
    for name in
        ["_.._.._etc_passwd.hlog", "my_design.hlog", "my_design-2.hlog", "My_Design-3.hlog", "_.hlog", "_...hlog"]
    {
        assert!(there.path().join(name).exists(), "{name} is not in {:?}", names(there.path()));
    }
    assert!(there.path().join("a-b-c.hgrm").exists() && there.path().join("a-b-c-2.hgrm").exists());
}

#[test]
fn a_folder_that_cannot_be_made_is_named_and_nothing_is_left() {
    let there = tempfile::tempdir().unwrap();
    let file = there.path().join("file");
    fs::write(&file, "kept").unwrap();
    let (run, latencies) = small_run(&["one"], &["dma"]);
    for error in [
        check_writable(&file.join("out")).unwrap_err(),
        check_writable(&file).unwrap_err(),
        write_run(&file.join("out"), &run, &latencies, Duration::ZERO).unwrap_err(),
    ] {
        let message = error.to_string();
        assert!(message.contains(file.to_str().unwrap()) && message.ends_with("; nothing written"), "{message}");
    }
    assert_eq!(names(there.path()), ["file"]);
    assert_eq!(fs::read_to_string(&file).unwrap(), "kept");
}

#[test]
fn a_folder_in_a_files_place_leaves_all_else_untouched() {
    for place in [RESULT_NAME, REPORT_NAME, "two.hlog"] {
        let there = tempfile::tempdir().unwrap();
        fs::create_dir(there.path().join(place)).unwrap();
        fs::write(there.path().join("one.hlog"), "old").unwrap();
        let before = names(there.path());
        let (run, latencies) = small_run(&["one", "two"], &["dma"]);
        let error = write_run(there.path(), &run, &latencies, Duration::ZERO).unwrap_err().to_string();
        assert!(error.contains(place), "{error}");
        assert_eq!(names(there.path()), before, "after {error}");
        assert_eq!(fs::read_to_string(there.path().join("one.hlog")).unwrap(), "old");
        assert_eq!(check_writable(there.path()).is_err(), place != "two.hlog");
        assert_eq!(names(there.path()), before);
    }
}

#[test]
fn a_rename_that_fails_removes_new_files() {
    let there = tempfile::tempdir().unwrap();
    fs::write(there.path().join("old"), "old").unwrap();
    let mut staged = StagedFiles::default();
    for name in ["old", "new", "blocked", "never"] {
        staged.add(there.path(), name, |out| out.write_all(b"contents")).unwrap();
    }
    // Another process creates a folder of this name after the check in `add`.
    fs::create_dir(there.path().join("blocked")).unwrap();
    let error = staged.publish().unwrap_err().to_string();
    assert!(error.contains("blocked"), "{error}");
    assert_eq!(names(there.path()), ["blocked", "old"]);
}

#[test]
fn a_failing_writer_leaves_no_temporary_file() {
    let there = tempfile::tempdir().unwrap();
    let mut staged = StagedFiles::default();
    staged.add(there.path(), "first", |out| out.write_all(b"x")).unwrap();
    let full = |_: &mut BufWriter<File>| Err(io::Error::from(io::ErrorKind::StorageFull));
    let error = staged.add(there.path(), "second", full).unwrap_err().to_string();
    assert!(error.contains("second"), "{error}");
    drop(staged);
    assert!(names(there.path()).is_empty());
}

#[test]
fn a_check_makes_the_folder_and_nothing_else() {
    let there = tempfile::tempdir().unwrap();
    let dir = there.path().join("deep/out");
    check_writable(&dir).unwrap();
    assert!(names(&dir).is_empty());
    check_writable(&dir).unwrap();
    assert_eq!(names(there.path()), ["deep"]);
}

#[test]
fn lists_that_do_not_belong_together_are_refused() {
    let there = tempfile::tempdir().unwrap();
    let (run, _) = small_run(&["one", "two"], &["dma"]);
    let error = write_run(&there.path().join("out"), &run, &[], Duration::ZERO).unwrap_err();
    assert!(error.to_string().starts_with("2 designs but latencies of 0"), "{error}");
    assert!(names(there.path()).is_empty());
}
