//! The claim on an output folder, and what may lie in one.
//!
//! It owns the lock and the list of names that a run's files have. Invariant: while an
//! [`OutputFolder`] lives, no other one is made for the same folder, by this process or another.

use std::fs::{self, DirEntry, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::error::{RunWriteError, io_error};
use super::names::{REPORT_NAME, RESULT_NAME, STAGING_PREFIX};
use super::staged::StagedFiles;

/// How often a folder that is removed while it is claimed is made anew.
const CLAIMS_MAX: u32 = 16;
/// How many names of other things an error lists.
const NAMES_LISTED: usize = 3;

/// An output folder that no other run writes into until this value is dropped.
///
/// A drop without results removes the folders that the claim has made.
///
/// ```
/// use reports::OutputFolder;
/// # let there = tempfile::tempdir().unwrap();
/// let folder = OutputFolder::claim(&there.path().join("out")).unwrap();
/// let second = OutputFolder::claim(&there.path().join("out")).unwrap_err();
/// assert!(second.to_string().starts_with("another run writes into"), "{second}");
/// drop(folder);
/// assert!(!there.path().join("out").exists());
/// ```
#[derive(Debug)]
pub struct OutputFolder {
    path: PathBuf,
    /// The folder itself, open and locked.
    locked: File,
    made: MadeFolders,
}

impl OutputFolder {
    /// Claims `dir`, for a run whose results are to be written there. Call it before the run, so
    /// that the run's results are not lost: it checks that the folder can be written to.
    ///
    /// Creates the folder and its parents if they are missing.
    ///
    /// # Errors
    /// [`RunWriteError`]: another run has the folder, it holds other things than a run's files, or
    /// the operating system refuses. The folder is as before.
    pub fn claim(dir: &Path) -> Result<OutputFolder, RunWriteError> {
        for _ in 0..CLAIMS_MAX {
            let made = MadeFolders::make(dir)?;
            let locked = match File::open(dir) {
                Ok(folder) => folder,
                // A run that ended without results has just removed it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(io_error("open the output folder", dir)(error)),
            };
            match locked.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(RunWriteError::InUse { path: dir.to_owned() }),
                Err(TryLockError::Error(error)) => return Err(io_error("lock the output folder", dir)(error)),
            }
            let folder = OutputFolder { path: dir.to_owned(), locked, made };
            if folder.is_still_there() {
                folder.entries()?.refuse_others(dir)?;
                drop(StagedFiles::new(dir)?.add("writable", |out| io::Write::write_all(out, b"probe\n"))?);
                return Ok(folder);
            }
        }
        let error = io::Error::other("another process keeps removing it");
        Err(io_error("create the output folder", dir)(error))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the path still leads to the folder that was claimed.
    pub(super) fn is_still_there(&self) -> bool {
        let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
        let claimed = self.locked.metadata().map(identity);
        let found = fs::metadata(&self.path).map(identity);
        claimed.ok().zip(found.ok()).is_some_and(|(claimed, found)| claimed == found)
    }

    /// Makes the names in the folder durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.locked.sync_all()
    }

    /// The folder has results now: it stays.
    pub(super) fn keep(mut self) {
        self.made.0.clear();
    }

    /// What lies in the folder.
    pub(super) fn entries(&self) -> Result<FolderEntries, RunWriteError> {
        let read = || -> io::Result<FolderEntries> {
            let mut entries = FolderEntries::default();
            for entry in fs::read_dir(&self.path)? {
                let entry = entry?;
                let kind = entry_kind(&entry)?;
                match kind {
                    EntryKind::RunFile => entries.files.push(entry.path()),
                    EntryKind::Staging => entries.staging.push(entry.path()),
                    EntryKind::Other => entries.others.push(entry.path()),
                }
            }
            Ok(entries)
        };
        read().map_err(io_error("read the output folder", &self.path))
    }
}

/// What an entry of an output folder is.
enum EntryKind {
    /// A file that a run writes.
    RunFile,
    /// The temporary folder of a run that was cut off.
    Staging,
    /// Anything else.
    Other,
}

/// Symbolic links are never followed: a link is another thing.
fn entry_kind(entry: &DirEntry) -> io::Result<EntryKind> {
    let kind = entry.file_type()?;
    let name = entry.file_name();
    let Some(name) = name.to_str() else { return Ok(EntryKind::Other) };
    let is_run_name = name == RESULT_NAME || name == REPORT_NAME || name.ends_with(".hlog") || name.ends_with(".hgrm");
    Ok(match () {
        () if kind.is_file() && is_run_name => EntryKind::RunFile,
        () if kind.is_dir() && name.starts_with(STAGING_PREFIX) => EntryKind::Staging,
        () => EntryKind::Other,
    })
}

/// What lies in an output folder.
#[derive(Debug, Default)]
pub(super) struct FolderEntries {
    pub(super) files: Vec<PathBuf>,
    pub(super) staging: Vec<PathBuf>,
    others: Vec<PathBuf>,
}

impl FolderEntries {
    fn refuse_others(&self, dir: &Path) -> Result<(), RunWriteError> {
        if self.others.is_empty() {
            return Ok(());
        }
        let mut names: Vec<String> = self.others.iter().filter_map(|path| path.file_name()).map(shown).collect();
        names.sort();
        let more = names.len().saturating_sub(NAMES_LISTED);
        names.truncate(NAMES_LISTED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        Err(RunWriteError::OtherThings { path: dir.to_owned(), found: names.join(", ") + &more })
    }
}

/// A name of any bytes, in quotes and on one line.
fn shown(name: &std::ffi::OsStr) -> String {
    format!("`{}`", name.to_string_lossy().escape_debug())
}

/// The folders created for an output folder. Dropping this removes them unless they were kept.
#[derive(Debug)]
struct MadeFolders(Vec<PathBuf>);

impl MadeFolders {
    fn make(dir: &Path) -> Result<Self, RunWriteError> {
        let missing = dir.ancestors().take_while(|path| !path.as_os_str().is_empty() && !path.exists());
        let made = MadeFolders(missing.map(Path::to_owned).collect());
        fs::create_dir_all(dir).map_err(io_error("create the output folder", dir))?;
        Ok(made)
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
