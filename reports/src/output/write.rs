//! Writes a whole run, and checks beforehand that this will be possible.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::names::FileNames;
use super::staged::{MadeFolders, RunWriteError, StagedFiles, refuse_folder};
use crate::hdr::log::LogInterval;
use crate::hdr::{OpLatencies, hgrm, log};
use crate::html;
use crate::human::one_line;
use crate::result::RunResult;

/// The page's file name in the output folder.
pub const REPORT_NAME: &str = "report.html";
/// The result's file name in the output folder.
pub const RESULT_NAME: &str = "result.json";

/// The files that a successful [`write_run`] wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrittenRun {
    /// The path of `result.json`.
    pub result: PathBuf,
    /// The path of `report.html`.
    pub report: PathBuf,
    /// All files written, these two included, in the order of renaming.
    pub files: Vec<PathBuf>,
}

/// Checks that results can be written into `dir`. Call it before a run, so that the run's results
/// are not lost.
///
/// Creates the folder and its parents if they are missing; then writes, syncs and removes one small
/// file. On failure it removes the folders that it created.
///
/// # Errors
/// [`RunWriteError::Io`], with the path and the operating system's error.
///
/// ```
/// # let there = tempfile::tempdir().unwrap();
/// # std::fs::write(there.path().join("file"), "").unwrap();
/// let error = reports::check_writable(&there.path().join("file/out")).unwrap_err();
/// assert!(error.to_string().contains("nothing written"), "{error}");
/// reports::check_writable(&there.path().join("new/out")).unwrap();
/// ```
pub fn check_writable(dir: &Path) -> Result<(), RunWriteError> {
    let made = MadeFolders::make(dir)?;
    // A folder with the name of a result file would make the write fail only after the run.
    for name in [RESULT_NAME, REPORT_NAME] {
        refuse_folder(&dir.join(name))?;
    }
    let mut staged = StagedFiles::default();
    staged.add(dir, "writable", |out| out.write_all(b"probe\n"))?;
    drop(staged);
    made.keep();
    Ok(())
}

/// Writes a whole run into `dir`; the description of [`crate::output`] says when which file becomes
/// visible.
///
/// `latencies[i]` belongs to `run.designs[i]`. `run_started` is the start of the run since the Unix
/// epoch, zero if unknown. The designs must have run one after the other, in this order. File names
/// are made of the designs' names: characters other than letters, digits, dot, dash and underscore
/// become underscores, and equal names get `-2`, `-3`, …
///
/// # Errors
/// [`RunWriteError`]; then no file of this call is left in `dir`.
///
/// ```
/// use reports::{DesignResult, JobSummary, OpLatencies, RunResult, RaceVerdict, write_run};
/// # let dir = tempfile::tempdir().unwrap();
/// let mut run = RunResult::new(7, JobSummary::new("default", 1_000_000_000, 2));
/// let mut latencies = OpLatencies::new();
/// latencies.record("truncate", 12_400, false);
/// let mut design = DesignResult::new("rfc-v2", RaceVerdict::Refuses);
/// design.latency_ns = latencies.summaries();
/// run.designs.push(design);
/// let written = write_run(dir.path(), &run, &[latencies], std::time::Duration::ZERO).unwrap();
/// assert!(dir.path().join("rfc-v2.hlog").exists());
/// assert!(dir.path().join("rfc-v2-truncate.hgrm").exists());
/// assert_eq!(RunResult::read(&written.result).unwrap(), run);
/// ```
pub fn write_run(
    dir: &Path,
    run: &RunResult,
    latencies: &[OpLatencies],
    run_started: Duration,
) -> Result<WrittenRun, RunWriteError> {
    if run.designs.len() != latencies.len() {
        return Err(RunWriteError::Mismatch { designs: run.designs.len(), latencies: latencies.len() });
    }
    let page = html::page(run, latencies)?;
    let made = MadeFolders::make(dir)?;
    let mut staged = StagedFiles::default();
    let mut names = FileNames::default();
    let mut offset = Duration::ZERO;
    for (design, latencies) in run.designs.iter().zip(latencies) {
        let length = Duration::from_nanos(design.elapsed_ns);
        let interval = LogInterval { run_started, offset, length };
        offset = offset.saturating_add(length);
        let comments = [
            format!("daxlab race: job {}, seed {}", one_line(&run.job.name, 200), run.seed),
            format!("design {}", one_line(&design.name, 200)),
            "values are nanoseconds, Interval_Max is in milliseconds".to_owned(),
        ];
        let name = names.unique(&[&design.name], "hlog");
        staged.add(dir, &name, |out| log::write(out, &comments, interval, latencies))?;
        for (operation, latency) in latencies.iter() {
            let all = latency.all();
            if !all.is_empty() {
                let name = names.unique(&[&design.name, operation], "hgrm");
                staged.add(dir, &name, |out| hgrm::write(out, &all))?;
            }
        }
    }
    staged.add(dir, REPORT_NAME, |out| out.write_all(page.as_bytes()))?;
    staged.add(dir, RESULT_NAME, |out| out.write_all(run.to_json().as_bytes()))?;
    let files = staged.publish()?;
    made.keep();
    Ok(WrittenRun { result: dir.join(RESULT_NAME), report: dir.join(REPORT_NAME), files })
}
