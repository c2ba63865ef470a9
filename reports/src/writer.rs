//! A run's output folder: `result.json`, one `.hlog` a design, one `.hgrm` a design and operation, `report.html`.
//!
//! Invariant: under its own name a file is either absent, the old one, or complete. Everything is first written and synced
//! under temporary names; only when all of it is on disk are the files renamed, `result.json` last, so that a folder with a
//! new `result.json` has all the rest. A failure removes what this call has made. Files of an earlier run that this one
//! doesn't replace stay: they are not ours to delete.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use crate::hdr::log::Interval;
use crate::hdr::{OpLatencies, hgrm, log};
use crate::result::RunResult;
use crate::{figures, html};

/// Longest part of a file name that comes from a design's or an operation's name, in bytes.
const STEM_MAX: usize = 80;

/// The page's and the result's name in their folder.
pub const REPORT_NAME: &str = "report.html";
/// See [`REPORT_NAME`].
pub const RESULT_NAME: &str = "result.json";

/// What a successful [`write_run`] left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The folder's `result.json`.
    pub result: PathBuf,
    /// The folder's `report.html`.
    pub report: PathBuf,
    /// Every file written, these two included, in the order of renaming.
    pub files: Vec<PathBuf>,
}

/// Why nothing was written.
#[derive(Debug, Error)]
pub enum WriteError {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}; nothing written", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The caller's two lists don't belong together.
    #[error("{designs} designs but latencies of {latencies}: each design needs its own; nothing written")]
    Mismatch {
        /// Entries in `result.designs`.
        designs: usize,
        /// Entries in `latencies`.
        latencies: usize,
    },
    /// The page could not be made.
    #[error("cannot render the report page: {0}; nothing written")]
    Page(#[from] askama::Error),
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> WriteError {
    let path = path.to_owned();
    move |source| WriteError::Io { action, path, source }
}

/// Shows that results can be written into `dir`, before a run whose results would be lost otherwise.
///
/// Makes the folder, and its parents, if they are missing; writes, syncs and removes one small file. When this fails,
/// folders it made are removed again.
///
/// # Errors
/// [`WriteError::Io`], which names the path and what the operating system said.
///
/// ```
/// # let there = tempfile::tempdir().unwrap();
/// # std::fs::write(there.path().join("file"), "").unwrap();
/// let error = reports::check_writable(&there.path().join("file/out")).unwrap_err();
/// assert!(error.to_string().contains("nothing written"), "{error}");
/// reports::check_writable(&there.path().join("new/out")).unwrap();
/// ```
pub fn check_writable(dir: &Path) -> Result<(), WriteError> {
    let made = MadeFolders::make(dir)?;
    // The names that results will have: a folder in their place would fail only after the run.
    for name in [RESULT_NAME, REPORT_NAME] {
        refuse_folder(&dir.join(name))?;
    }
    let mut staged = Staged::default();
    staged.add(dir, "writable", |out| out.write_all(b"probe\n"))?;
    drop(staged);
    made.keep();
    Ok(())
}

/// Writes a whole run into `dir`; see the module's description of what is visible when.
///
/// `latencies[i]` belongs to `run.designs[i]`. `run_started` is the start of the run since the Unix epoch, zero if unknown;
/// the designs ran one after the other, in order. File names are made of the designs' names: other characters than letters,
/// digits, dot, dash and underscore become underscores, and names that meet get `-2`, `-3`, …
///
/// # Errors
/// [`WriteError`]; nothing of this call is left in `dir` then.
///
/// ```
/// use reports::{DesignResult, JobSummary, OpLatencies, RunResult, Verdict, write_run};
/// # let dir = tempfile::tempdir().unwrap();
/// let mut run = RunResult::new(7, JobSummary::new("default", 1_000_000_000, 2));
/// let mut latencies = OpLatencies::new();
/// latencies.record("truncate", 12_400, false);
/// let mut design = DesignResult::new("rfc-v2", Verdict::Refuses);
/// design.latency_ns = latencies.summaries();
/// run.designs.push(design);
/// let written = write_run(dir.path(), &run, &[latencies], std::time::Duration::ZERO).unwrap();
/// assert!(dir.path().join("rfc-v2.hlog").exists() && dir.path().join("rfc-v2-truncate.hgrm").exists());
/// assert_eq!(RunResult::read(&written.result).unwrap(), run);
/// ```
pub fn write_run(
    dir: &Path,
    run: &RunResult,
    latencies: &[OpLatencies],
    run_started: Duration,
) -> Result<Written, WriteError> {
    if run.designs.len() != latencies.len() {
        return Err(WriteError::Mismatch { designs: run.designs.len(), latencies: latencies.len() });
    }
    let page = html::page(run, latencies)?;
    let made = MadeFolders::make(dir)?;
    let mut staged = Staged::default();
    let mut names = FileNames::default();
    let mut offset = Duration::ZERO;
    for (design, latencies) in run.designs.iter().zip(latencies) {
        let length = Duration::from_nanos(design.elapsed_ns);
        let interval = Interval { run_started, offset, length };
        offset = offset.saturating_add(length);
        let comments = [
            format!("daxlab race: job {}, seed {}", figures::one_line(&run.job.name, 200), run.seed),
            format!("design {}", figures::one_line(&design.name, 200)),
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
    Ok(Written { result: dir.join(RESULT_NAME), report: dir.join(REPORT_NAME), files })
}

fn refuse_folder(path: &Path) -> Result<(), WriteError> {
    if path.is_dir() {
        let is_folder = io::Error::from(io::ErrorKind::IsADirectory);
        return Err(io_error("replace", path)(is_folder));
    }
    Ok(())
}

/// Folders made on the way to an output folder; removed again unless kept.
struct MadeFolders(Vec<PathBuf>);

impl MadeFolders {
    fn make(dir: &Path) -> Result<Self, WriteError> {
        let missing = dir.ancestors().take_while(|path| !path.as_os_str().is_empty() && !path.exists());
        let made = MadeFolders(missing.map(Path::to_owned).collect());
        fs::create_dir_all(dir).map_err(io_error("create the output folder", dir))?;
        Ok(made)
    }

    fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for MadeFolders {
    fn drop(&mut self) {
        // Deepest first. A folder that somebody else has put something into stays, as remove_dir refuses it.
        for dir in &self.0 {
            let _ = fs::remove_dir(dir);
        }
    }
}

/// Files written under temporary names; removed unless published.
#[derive(Default)]
struct Staged {
    /// Temporary and final name.
    files: Vec<(PathBuf, PathBuf)>,
}

impl Staged {
    fn add(
        &mut self,
        dir: &Path,
        name: &str,
        write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
    ) -> Result<(), WriteError> {
        let target = dir.join(name);
        refuse_folder(&target)?;
        // The process id keeps two runs into one folder apart.
        let temporary = dir.join(format!(".{name}.{}.tmp", std::process::id()));
        let file = File::create(&temporary).map_err(io_error("write", &temporary))?;
        self.files.push((temporary, target));
        let (temporary, _) = &self.files[self.files.len() - 1];
        let mut out = BufWriter::new(file);
        write(&mut out).map_err(io_error("write", temporary))?;
        let file = out.into_inner().map_err(|error| io_error("write", temporary)(error.into_error()))?;
        // A rename may reach the disk before the contents do: without this a power cut leaves an empty file.
        file.sync_all().map_err(io_error("sync", temporary))
    }

    /// Renames everything, in order. When a rename fails, files that were put where there was none are removed again.
    fn publish(mut self) -> Result<Vec<PathBuf>, WriteError> {
        let files = std::mem::take(&mut self.files);
        let mut fresh = Vec::new();
        let mut published = Vec::new();
        for (index, (temporary, target)) in files.iter().enumerate() {
            let replaces = target.exists();
            if let Err(error) = fs::rename(temporary, target) {
                fresh.iter().for_each(|path: &PathBuf| drop(fs::remove_file(path)));
                self.files = files[index..].to_vec();
                return Err(io_error("rename into place", target)(error));
            }
            if !replaces {
                fresh.push(target.clone());
            }
            published.push(target.clone());
        }
        Ok(published)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        for (temporary, _) in &self.files {
            let _ = fs::remove_file(temporary);
        }
    }
}

/// File names given out so far, in lower case: also a file system that ignores case must keep them apart.
#[derive(Default)]
struct FileNames {
    used: BTreeSet<String>,
}

impl FileNames {
    /// A name like `rfc-v2-truncate.hgrm`, different from all given out before.
    fn unique(&mut self, parts: &[&str], extension: &str) -> String {
        let stem = parts.iter().map(|part| sanitised(part)).collect::<Vec<_>>().join("-");
        let mut name = format!("{stem}.{extension}");
        let mut number = 1_u64;
        while !self.used.insert(name.to_ascii_lowercase()) {
            number += 1;
            name = format!("{stem}-{number}.{extension}");
        }
        name
    }
}

/// A name reduced to letters, digits, dot, dash and underscore; never empty, hidden or longer than [`STEM_MAX`].
fn sanitised(name: &str) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let mut clean: String = name.chars().map(|c| if allowed(c) { c } else { '_' }).take(STEM_MAX).collect();
    if clean.is_empty() || clean.starts_with(['.', '-']) {
        clean.insert(0, '_');
    }
    clean
}

#[cfg(test)]
mod tests;
