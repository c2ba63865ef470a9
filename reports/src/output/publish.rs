//! Replaces the files of a folder's former run by those of a new one.
//!
//! Invariant: while files of both runs are in the folder, there is no `result.json`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::error::RunWriteError;
use super::folder::OutputFolder;
use super::names::RESULT_NAME;
use super::staged::StagedFiles;

/// Why a publication failed.
struct PublishError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PublishError {
    let path = path.to_owned();
    move |source| PublishError { action, path, source }
}

/// Replaces the files of the former run in `folder`. Returns the paths in the order of
/// renaming: that of `add`, with [`RESULT_NAME`] last.
///
/// # Errors
/// [`RunWriteError::NotInPlace`]: the temporary folder stays, with all files that were not
/// renamed.
pub(super) fn publish(files: StagedFiles, folder: &OutputFolder) -> Result<Vec<PathBuf>, RunWriteError> {
    let entries = folder.entries()?;
    let dir = folder.path().to_owned();
    let (staged, names) = files.keep();
    let put_in_place = || -> Result<Vec<PathBuf>, PublishError> {
        let result = dir.join(RESULT_NAME);
        let (last, others): (Vec<&String>, Vec<&String>) = names.iter().partition(|name| *name == RESULT_NAME);
        // Without a result, no reader takes the files in the folder for those of one run.
        if entries.files.contains(&result) {
            fs::remove_file(&result).map_err(failed("replace", &result))?;
        }
        for old in entries.files.iter().filter(|old| **old != result) {
            if !others.iter().any(|name| dir.join(name) == **old) {
                fs::remove_file(old).map_err(failed("remove", old))?;
            }
        }
        let mut published = Vec::new();
        for (name, is_last) in others.iter().map(|name| (name, false)).chain(last.iter().map(|name| (name, true))) {
            let target = dir.join(name);
            if is_last {
                folder.sync().map_err(failed("sync", &dir))?;
            }
            fs::rename(staged.join(name), &target).map_err(failed("rename into place", &target))?;
            published.push(target);
        }
        folder.sync().map_err(failed("sync", &dir))?;
        Ok(published)
    };
    let published = put_in_place().map_err(|error| RunWriteError::NotInPlace {
        action: error.action,
        path: error.path,
        staged: staged.clone(),
        source: error.source,
    })?;
    // What runs that were cut off have left.
    for left in entries.staging.iter().chain([&staged]) {
        let _ = fs::remove_dir_all(left);
    }
    Ok(published)
}
