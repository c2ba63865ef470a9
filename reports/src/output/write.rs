//! Writes a whole run.
//!
//! It owns which files a run has, and what is in them. Invariant: all of them are written before
//! one appears.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::RunWriteError;
use super::folder::OutputFolder;
use super::names::{FileNames, REPORT_NAME, RESULT_NAME};
use super::publish::publish;
use super::staged::StagedFiles;
use crate::hdr::log::LogInterval;
use crate::hdr::{OpLatencies, hgrm, log};
use crate::html;
use crate::human::one_line;
use crate::result::RunResult;

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

impl OutputFolder {
    /// Writes a whole run, and gives the claim up. The description of [`crate::output`] says when
    /// which file becomes visible.
    ///
    /// `latencies[i]` belongs to `run.designs[i]`. `run_started` is the start of the run since the
    /// Unix epoch, zero if unknown. The designs must have run one after the other, in this order.
    /// File names are made of the designs' names: characters other than letters, digits, dot, dash
    /// and underscore become underscores, and equal names get `-2`, `-3`, …
    ///
    /// # Errors
    /// [`RunWriteError`]; except for [`RunWriteError::NotInPlace`], the former run is untouched.
    pub fn write(
        self,
        run: &RunResult,
        latencies: &[OpLatencies],
        run_started: Duration,
    ) -> Result<WrittenRun, RunWriteError> {
        if run.designs.len() != latencies.len() {
            return Err(RunWriteError::Mismatch { designs: run.designs.len(), latencies: latencies.len() });
        }
        let dir = self.path().to_owned();
        // A user may have removed or renamed the folder since: the results go where they were to
        // go.
        let folder = if self.is_still_there() { self } else { OutputFolder::claim(&dir)? };
        let page = html::page(run, latencies)?;
        let mut staged = StagedFiles::new(&dir)?;
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
            staged = staged.add(&name, |out| log::write(out, &comments, interval, latencies))?;
            for (operation, latency) in latencies.iter() {
                let all = latency.all();
                if !all.is_empty() {
                    let name = names.unique(&[&design.name, operation], "hgrm");
                    staged = staged.add(&name, |out| hgrm::write(out, &all))?;
                }
            }
        }
        staged = staged.add(REPORT_NAME, |out| out.write_all(page.as_bytes()))?;
        staged = staged.add(RESULT_NAME, |out| out.write_all(run.to_json().as_bytes()))?;
        let files = publish(staged, &folder)?;
        folder.keep();
        Ok(WrittenRun { result: dir.join(RESULT_NAME), report: dir.join(REPORT_NAME), files })
    }
}

/// Claims `dir` and writes a whole run into it: [`OutputFolder::claim`], then
/// [`OutputFolder::write`].
///
/// # Errors
/// [`RunWriteError`].
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
    OutputFolder::claim(dir)?.write(run, latencies, run_started)
}
