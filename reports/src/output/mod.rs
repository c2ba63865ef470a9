//! A run's output folder: `result.json`, one `.hlog` per design, one `.hgrm` per design and
//! operation, `report.html`.
//!
//! Invariant: a file under its final name is absent, the old one, or complete. All files are first
//! written and synced under temporary names. When all are on disk, they are renamed, `result.json`
//! last, so a folder with a new `result.json` has all other files too. A failure removes the files
//! and folders that the call created. Files of an earlier run that this run does not replace stay.
//! Kernel counterpart: none; the rename rule is that of `rename(2)` after `fsync(2)`.

mod names;
mod staged;
#[cfg(test)]
mod tests;
mod write;

pub use staged::RunWriteError;
pub use write::{REPORT_NAME, RESULT_NAME, WrittenRun, check_writable, write_run};
