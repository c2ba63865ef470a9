//! Files that are complete before the first of them appears under its final name.
//!
//! It owns the temporary folder. Invariant: its name is random, and the folder and every file in it
//! are created by this call or not at all (O_EXCL): nothing that another process has planted is
//! followed or overwritten.

use std::fs::{File, Permissions};
use std::io::{self, BufWriter};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::error::{RunWriteError, io_error};
use super::names::STAGING_PREFIX;

/// Files in a temporary folder. Dropping this removes them unless they were published.
#[derive(Debug)]
pub(super) struct StagedFiles {
    dir: PathBuf,
    temporary: TempDir,
    names: Vec<String>,
}

impl StagedFiles {
    /// None yet. The temporary folder is made in `dir`.
    pub(super) fn new(dir: &Path) -> Result<StagedFiles, RunWriteError> {
        let mut builder = tempfile::Builder::new();
        let builder = builder.prefix(STAGING_PREFIX).permissions(Permissions::from_mode(0o700));
        let temporary = builder.tempdir_in(dir).map_err(io_error("write into", dir))?;
        Ok(StagedFiles { dir: dir.to_owned(), temporary, names: Vec::new() })
    }

    /// Adds a file, complete and on the disk.
    pub(super) fn add(
        mut self,
        name: &str,
        write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
    ) -> Result<StagedFiles, RunWriteError> {
        // Errors name the file that the user knows, not the temporary one.
        let target = self.dir.join(name);
        let create = File::options().write(true).create_new(true).open(self.temporary.path().join(name));
        let mut out = BufWriter::new(create.map_err(io_error("write", &target))?);
        write(&mut out).map_err(io_error("write", &target))?;
        let file = out.into_inner().map_err(|error| io_error("write", &target)(error.into_error()))?;
        // A rename can reach the disk before the contents do. Without this sync, a power cut could
        // leave an empty file.
        file.sync_all().map_err(io_error("sync", &target))?;
        self.names.push(name.to_owned());
        Ok(self)
    }

    /// The temporary folder, which stays from now on, and the names in it.
    pub(super) fn keep(self) -> (PathBuf, Vec<String>) {
        (self.temporary.keep(), self.names)
    }
}
