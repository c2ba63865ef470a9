//! A run's output folder: `result.json`, one `.hlog` per design, one `.hgrm` per design and
//! operation, `report.html`.
//!
//! Invariants: one run at a time has a folder, by a lock (flock(2)) on the folder itself. A folder
//! that holds other things than a run's files is refused. The files of two runs never stand beside
//! one `result.json`. All files of a run are first written and synced in a temporary folder inside
//! the output folder, which only this user can enter. Then `result.json` of the former run is
//! removed, the new files replace the old ones, and the new `result.json` comes last. A failure
//! before that leaves the former run as it was. A failure after that leaves the temporary folder,
//! with everything that has not been moved yet, and the error names it.
//!
//! Kernel counterpart: none; the rename rule is that of `rename(2)` after `fsync(2)`.

mod error;
mod folder;
mod names;
mod publish;
mod staged;
#[cfg(test)]
mod tests;
mod write;

pub use error::RunWriteError;
pub use folder::OutputFolder;
pub use names::{REPORT_NAME, RESULT_NAME};
pub use write::{WrittenRun, write_run};
