//! Why results could not be written.
//!
//! It owns the words. Invariant: each error names the file or folder, and says what to do.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why nothing was written, or not everything.
#[derive(Debug, Error)]
pub enum RunWriteError {
    /// The operating system refused an action.
    #[error("cannot {action} {}: {source}; nothing written; {}", path.display(), remedy(source))]
    Io {
        /// The action, as a verb.
        action: &'static str,
        /// The path of the action.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// Another run has the folder.
    #[error("another run writes into {}; wait for its end, or choose another output folder", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// The folder holds things that no run wrote.
    #[error(
        "the output folder {} holds what is not a run's: {found}; nothing written; choose a new folder, an empty one, \
         or one that holds a former run alone",
        path.display()
    )]
    OtherThings {
        /// The folder.
        path: PathBuf,
        /// Some of the names.
        found: String,
    },
    /// Everything is written, but could not be put in place.
    #[error("cannot {action} {}: {source}; the results are complete, but in {}", path.display(), staged.display())]
    NotInPlace {
        /// The action, as a verb.
        action: &'static str,
        /// The path of the action.
        path: PathBuf,
        /// The folder that has what is not in place.
        staged: PathBuf,
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

impl RunWriteError {
    /// Whether the caller asked for what cannot be, so that other input is needed. Otherwise this
    /// machine could not do it now.
    pub fn is_wrong_input(&self) -> bool {
        matches!(self, RunWriteError::OtherThings { .. } | RunWriteError::Mismatch { .. })
    }
}

/// The system has no descriptor left (errno(3)). [`io::ErrorKind`] has no name for it.
const ENFILE: i32 = 23;
/// This process has no descriptor left.
const EMFILE: i32 = 24;

/// What a user can do about an error of the operating system.
fn remedy(error: &io::Error) -> &'static str {
    if matches!(error.raw_os_error(), Some(ENFILE | EMFILE)) {
        return "raise the limit of descriptors (`ulimit -n`)";
    }
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            "make room there, or choose another output folder"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "choose an output folder that may be written to"
        }
        _ => "choose another output folder",
    }
}

/// Makes a [`RunWriteError::Io`] of an error.
pub(super) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RunWriteError {
    let path = path.to_owned();
    move |source| RunWriteError::Io { action, path, source }
}
