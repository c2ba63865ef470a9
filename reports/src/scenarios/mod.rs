//! Results of scenarios: what was stated, what came out, under each design.
//!
//! It owns the three formats: text for people ([`text`]), JSON (these types, serialised), JUnit XML ([`junit`]). Invariant: a
//! cell has exactly one verdict; what was not run is never counted as passed. Kernel counterpart: kselftest's TAP.

mod junit;
mod report;
#[cfg(test)]
mod tests;
mod text;

pub use junit::junit;
pub use report::{CellFailure, CellVerdict, ScenarioCell, ScenarioReport, ScenarioRow};
pub use text::{line, text};
