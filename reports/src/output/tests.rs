//! The folder's contents after success and after every kind of failure.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use super::names::STAGING_PREFIX;
use super::publish::publish;
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
        OutputFolder::claim(&file.join("out")).unwrap_err(),
        OutputFolder::claim(&file).unwrap_err(),
        write_run(&file.join("out"), &run, &latencies, Duration::ZERO).unwrap_err(),
    ] {
        let message = error.to_string();
        assert!(message.contains(file.to_str().unwrap()) && message.contains("; nothing written; choose"), "{message}");
        assert!(!error.is_wrong_input());
    }
    assert_eq!(names(there.path()), ["file"]);
    assert_eq!(fs::read_to_string(&file).unwrap(), "kept");
}

/// Also a link under the name of a run's file: it would lead the writer elsewhere.
#[test]
fn a_folder_with_other_things_is_refused_and_untouched() {
    let (run, latencies) = small_run(&["one", "two"], &["dma"]);
    for place in ["notes.txt", RESULT_NAME, "two.hlog", ".hidden"] {
        let there = tempfile::tempdir().unwrap();
        match place {
            RESULT_NAME => symlink("/dev/null", there.path().join(place)).unwrap(),
            "two.hlog" => fs::create_dir(there.path().join(place)).unwrap(),
            file => fs::write(there.path().join(file), "mine").unwrap(),
        }
        fs::write(there.path().join("one.hlog"), "old").unwrap();
        let before = names(there.path());
        let error = write_run(there.path(), &run, &latencies, Duration::ZERO).unwrap_err();
        assert!(error.is_wrong_input() && error.to_string().contains(&format!("`{place}`")), "{error}");
        assert_eq!(names(there.path()), before, "after {error}");
        assert_eq!(fs::read_to_string(there.path().join("one.hlog")).unwrap(), "old");
    }
    let there = tempfile::tempdir().unwrap();
    (0..9).for_each(|n| fs::write(there.path().join(format!("f{n}")), "").unwrap());
    let error = OutputFolder::claim(there.path()).unwrap_err().to_string();
    assert!(error.contains("`f0`, `f1`, `f2` and 6 more; nothing written"), "{error}");
}

#[test]
fn files_of_a_former_run_never_stand_beside_a_new_result() {
    let there = tempfile::tempdir().unwrap();
    let (run, latencies) = small_run(&["one", "two"], &["dma", "punch"]);
    write_run(there.path(), &run, &latencies, Duration::ZERO).unwrap();
    // A run that was killed while it wrote.
    fs::create_dir(there.path().join(format!("{STAGING_PREFIX}cut-off"))).unwrap();
    fs::write(there.path().join(format!("{STAGING_PREFIX}cut-off/one.hlog")), "half").unwrap();
    let (run, latencies) = small_run(&["three"], &["dma"]);
    write_run(there.path(), &run, &latencies, Duration::ZERO).unwrap();
    assert_eq!(names(there.path()), ["report.html", "result.json", "three-dma.hgrm", "three.hlog"]);
}

#[test]
fn two_runs_never_have_one_folder() {
    let there = tempfile::tempdir().unwrap();
    let dir = there.path().join("out");
    let (run, latencies) = small_run(&["one"], &["dma"]);
    let first = OutputFolder::claim(&dir).unwrap();
    let error = write_run(&dir, &run, &latencies, Duration::ZERO).unwrap_err();
    assert!(error.to_string().starts_with("another run writes into"), "{error}");
    assert!(!error.is_wrong_input());
    first.write(&run, &latencies, Duration::ZERO).unwrap();
    write_run(&dir, &run, &latencies, Duration::ZERO).unwrap();
}

#[test]
fn a_folder_that_is_removed_during_the_run_is_made_anew() {
    let there = tempfile::tempdir().unwrap();
    let dir = there.path().join("out");
    let (run, latencies) = small_run(&["one"], &["dma"]);
    let folder = OutputFolder::claim(&dir).unwrap();
    fs::remove_dir(&dir).unwrap();
    let written = folder.write(&run, &latencies, Duration::ZERO).unwrap();
    assert_eq!(RunResult::read(&written.result).unwrap(), run);
}

#[test]
fn a_rename_that_fails_keeps_every_new_file_and_names_where() {
    let there = tempfile::tempdir().unwrap();
    let folder = OutputFolder::claim(there.path()).unwrap();
    let mut staged = StagedFiles::new(there.path()).unwrap();
    for name in ["new", "blocked", RESULT_NAME] {
        staged = staged.add(name, |out| out.write_all(b"contents")).unwrap();
    }
    // Another process creates a folder of this name after the claim, and the old result is there.
    fs::create_dir(there.path().join("blocked")).unwrap();
    fs::write(there.path().join(RESULT_NAME), "old").unwrap();
    let error = publish(staged, &folder).unwrap_err();
    let RunWriteError::NotInPlace { staged, .. } = &error else { panic!("{error}") };
    let message = error.to_string();
    assert!(message.contains("blocked") && message.contains(staged.to_str().unwrap()), "{message}");
    assert_eq!(fs::read_to_string(staged.join(RESULT_NAME)).unwrap(), "contents");
    assert!(!there.path().join(RESULT_NAME).exists(), "no old result beside new files");
}

#[test]
fn a_failing_writer_leaves_no_temporary_file() {
    let there = tempfile::tempdir().unwrap();
    let staged = StagedFiles::new(there.path()).unwrap().add("first", |out| out.write_all(b"x")).unwrap();
    let full = |_: &mut BufWriter<File>| Err(io::Error::from(io::ErrorKind::StorageFull));
    let error = staged.add("second", full).unwrap_err().to_string();
    assert!(error.contains("second") && error.ends_with("make room there, or choose another output folder"), "{error}");
    assert!(names(there.path()).is_empty());
}

/// What another process plants is neither followed nor overwritten: names are random, files and
/// folder are created or not at all, and only this user can enter the folder.
#[test]
fn a_planted_link_is_not_followed() {
    let there = tempfile::tempdir().unwrap();
    let (dir, victim) = (there.path().join("out"), there.path().join("victim"));
    fs::write(&victim, "kept").unwrap();
    let (run, latencies) = small_run(&["one"], &["dma"]);
    let folder = OutputFolder::claim(&dir).unwrap();
    for name in [RESULT_NAME, REPORT_NAME, "one.hlog"] {
        symlink(&victim, dir.join(format!(".{name}.{}.tmp", std::process::id()))).unwrap();
    }
    folder.write(&run, &latencies, Duration::ZERO).unwrap();
    assert_eq!(fs::read_to_string(&victim).unwrap(), "kept");

    let staged = StagedFiles::new(there.path()).unwrap();
    let inside = names(there.path()).into_iter().find(|name| name.starts_with(STAGING_PREFIX)).unwrap();
    let inside = there.path().join(inside);
    assert_eq!(fs::metadata(&inside).unwrap().permissions().mode() & 0o077, 0);
    symlink(&victim, inside.join("planted")).unwrap();
    assert!(staged.add("planted", |out| out.write_all(b"x")).is_err());
    assert_eq!(fs::read_to_string(&victim).unwrap(), "kept");
}

#[test]
fn a_claim_leaves_nothing_behind() {
    let there = tempfile::tempdir().unwrap();
    let dir = there.path().join("deep/out");
    let folder = OutputFolder::claim(&dir).unwrap();
    assert!(names(&dir).is_empty());
    drop(folder);
    assert!(names(there.path()).is_empty());
    fs::create_dir(there.path().join("mine")).unwrap();
    drop(OutputFolder::claim(&there.path().join("mine")).unwrap());
    assert_eq!(names(there.path()), ["mine"]);
}

#[test]
fn lists_that_do_not_belong_together_are_refused() {
    let there = tempfile::tempdir().unwrap();
    let (run, _) = small_run(&["one", "two"], &["dma"]);
    let error = write_run(&there.path().join("out"), &run, &[], Duration::ZERO).unwrap_err();
    assert!(error.to_string().starts_with("2 designs but latencies of 0"), "{error}");
    assert!(names(there.path()).is_empty());
}
