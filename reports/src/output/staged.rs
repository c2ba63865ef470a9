//! Files and folders that appear whole or not at all.

use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why nothing was written.
#[derive(Debug, Error)]
pub enum RunWriteError {
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

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RunWriteError {
    let path = path.to_owned();
    move |source| RunWriteError::Io { action, path, source }
}

pub(super) fn refuse_folder(path: &Path) -> Result<(), RunWriteError> {
    if path.is_dir() {
        let is_folder = io::Error::from(io::ErrorKind::IsADirectory);
        return Err(io_error("replace", path)(is_folder));
    }
    Ok(())
}

/// Folders made on the way to an output folder; removed again unless kept.
pub(super) struct MadeFolders(Vec<PathBuf>);

impl MadeFolders {
    pub(super) fn make(dir: &Path) -> Result<Self, RunWriteError> {
        let missing = dir.ancestors().take_while(|path| !path.as_os_str().is_empty() && !path.exists());
        let made = MadeFolders(missing.map(Path::to_owned).collect());
        fs::create_dir_all(dir).map_err(io_error("create the output folder", dir))?;
        Ok(made)
    }

    pub(super) fn keep(mut self) {
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
pub(super) struct StagedFiles {
    /// Temporary and final name.
    files: Vec<(PathBuf, PathBuf)>,
}

impl StagedFiles {
    pub(super) fn add(
        &mut self,
        dir: &Path,
        name: &str,
        write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
    ) -> Result<(), RunWriteError> {
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
    pub(super) fn publish(mut self) -> Result<Vec<PathBuf>, RunWriteError> {
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

impl Drop for StagedFiles {
    fn drop(&mut self) {
        for (temporary, _) in &self.files {
            let _ = fs::remove_file(temporary);
        }
    }
}
