//! Files that appear under their final names only when all of them are complete, and folders that
//! are removed on failure.

use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why nothing was written.
#[derive(Debug, Error)]
pub enum RunWriteError {
    /// The operating system refused an action.
    #[error("cannot {action} {}: {source}; nothing written", path.display())]
    Io {
        /// The action, as a verb.
        action: &'static str,
        /// The path of the action.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// The two lists have different lengths.
    #[error("{designs} designs but latencies of {latencies}: each design needs its own latencies; nothing written")]
    Mismatch {
        /// Entries in `result.designs`.
        designs: usize,
        /// Entries in `latencies`.
        latencies: usize,
    },
    /// The report page could not be rendered.
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

/// The folders created for an output folder. Dropping this removes them unless they were kept.
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
        // The deepest folder first. remove_dir refuses a folder that another process has put a file
        // into; it stays.
        for dir in &self.0 {
            let _ = fs::remove_dir(dir);
        }
    }
}

/// Files written under temporary names. Dropping this removes them unless they were published.
#[derive(Default)]
pub(super) struct StagedFiles {
    /// The temporary and the final path of each file.
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
        // The process id makes the names of two runs in one folder differ.
        let temporary = dir.join(format!(".{name}.{}.tmp", std::process::id()));
        let file = File::create(&temporary).map_err(io_error("write", &temporary))?;
        self.files.push((temporary, target));
        let (temporary, _) = &self.files[self.files.len() - 1];
        let mut out = BufWriter::new(file);
        write(&mut out).map_err(io_error("write", temporary))?;
        let file = out.into_inner().map_err(|error| io_error("write", temporary)(error.into_error()))?;
        // A rename can reach the disk before the contents do. Without this sync, a power cut could
        // leave an empty file.
        file.sync_all().map_err(io_error("sync", temporary))
    }

    /// Renames all files, in order. When a rename fails, removes those renamed files that replaced
    /// no older file.
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
