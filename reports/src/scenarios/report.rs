//! The types of a scenario report. Serialised, they are its JSON format.

use serde::{Deserialize, Serialize};

/// How a scenario ended under one design.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CellVerdict {
    /// Every outcome was the expected one.
    Passed,
    /// The design refuses the setup, and the scenario expects this.
    NotApplicable,
    /// An outcome was not the expected one, or an invariant was broken.
    Failed,
    /// The machine cannot run the scenario.
    NotRun,
    /// The machine could not determine whether a call was blocked.
    Inconclusive,
}

/// One scenario under one design.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScenarioCell {
    /// The design's name.
    pub design: String,
    /// How the scenario ended.
    pub verdict: CellVerdict,
    /// The outcome of the scenario's question; if the scenario is not applicable, the design's
    /// refusal.
    pub outcome: String,
    /// What failed, or why the scenario did not run: the line, expected, got, and the machine's
    /// state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<CellFailure>,
}

/// What failed, or why a scenario did not run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CellFailure {
    /// The line of the scenario, from 1; 0 if the failure belongs to no line.
    pub line: usize,
    /// The text of that line.
    pub text: String,
    /// The expected outcome.
    pub expected: String,
    /// The actual outcome, or why the scenario did not run.
    pub got: String,
    /// Leases, pins and blocked calls at that moment.
    pub state: Vec<String>,
}

/// One scenario under all requested designs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ScenarioRow {
    /// The scenario's id, such as `S18`.
    pub id: String,
    /// The scenario's title.
    pub title: String,
    /// The file it was read from.
    pub file: String,
    /// One cell per design, in the order of [`ScenarioReport::designs`].
    pub cells: Vec<ScenarioCell>,
}

/// The results of all scenarios that ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ScenarioReport {
    /// The name of the format: `daxlab-scenarios`.
    pub schema: &'static str,
    /// The version of the format.
    pub version: u32,
    /// The machine that ran the scenarios: `simulation` or `linux`.
    pub machine: String,
    /// The designs' names, in the order of the cells.
    pub designs: Vec<String>,
    /// The scenarios, in the order they were given.
    pub scenarios: Vec<ScenarioRow>,
}

impl ScenarioReport {
    /// A report without scenarios.
    pub fn new(machine: &str, designs: Vec<String>) -> ScenarioReport {
        ScenarioReport {
            schema: "daxlab-scenarios",
            version: 1,
            machine: machine.to_owned(),
            designs,
            scenarios: Vec::new(),
        }
    }

    /// How many cells have this verdict.
    pub fn count(&self, verdict: CellVerdict) -> usize {
        self.scenarios.iter().map(|row| row.count(verdict)).sum()
    }

    /// True if any cell failed.
    pub fn failed(&self) -> bool {
        self.count(CellVerdict::Failed) > 0
    }
}

impl ScenarioRow {
    /// How many cells have this verdict.
    pub fn count(&self, verdict: CellVerdict) -> usize {
        self.cells.iter().filter(|cell| cell.verdict == verdict).count()
    }
}
