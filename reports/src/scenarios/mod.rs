//! Results of scenarios: the expected and the actual outcome under each design.
//!
//! This layer owns three formats: text for people ([`text()`]), JSON ([`ScenarioReport`],
//! serialised) and JUnit XML ([`junit()`]); and the ranking of designs by a kernel's agreement
//! ([`DesignRanking`]). Invariant: a cell has exactly one verdict, and a cell
//! that did not run is never counted as passed. Kernel counterpart: kselftest's TAP.

mod junit;
mod ranking;
mod report;
#[cfg(test)]
mod tests;
mod text;

pub use junit::junit;
pub use ranking::{DesignDifference, DesignRanking, KernelRanking, RankedDesign};
pub use report::{CellFailure, CellVerdict, ScenarioCell, ScenarioReport, ScenarioRow};
pub use text::{line, text};
