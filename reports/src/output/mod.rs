//! A run's output folder: `result.json`, one `.hlog` a design, one `.hgrm` a design and operation, `report.html`.
//!
//! Invariant: under its own name a file is either absent, the old one, or complete. Everything is first written and synced
//! under temporary names; only when all of it is on disk are the files renamed, `result.json` last, so that a folder with a
//! new `result.json` has all the rest. A failure removes what this call has made. Files of an earlier run that this one
//! doesn't replace stay: they are not ours to delete.

mod names;
mod staged;
#[cfg(test)]
mod tests;
mod write;

pub use staged::RunWriteError;
pub use write::{REPORT_NAME, RESULT_NAME, WrittenRun, check_writable, write_run};
