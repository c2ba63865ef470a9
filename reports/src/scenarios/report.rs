//! The types of a scenario report, which are also its JSON.

use serde::Serialize;

/// How a scenario ended under one design.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CellVerdict {
    /// Every outcome was as stated.
    Passed,
    /// The design refuses the setup, as stated.
    NotApplicable,
    /// An outcome was not as stated, or an invariant was broken.
    Failed,
    /// The machine can't run it.
    NotRun,
    /// Whether a call was blocked could not be told.
    Inconclusive,
}

/// One scenario under one design.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ScenarioCell {
    /// The design.
    pub design: String,
    /// How it ended.
    pub verdict: CellVerdict,
    /// The outcome of its question; for what is not applicable the refusal.
    pub outcome: String,
    /// What failed, or why it was not run: the line, expected, got, and the machine's state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<CellFailure>,
}

/// What failed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CellFailure {
    /// 1-based line of the scenario; 0 if no line is to blame.
    pub line: usize,
    /// The line.
    pub text: String,
    /// What was stated.
    pub expected: String,
    /// What came out; or why it was not run.
    pub got: String,
    /// Leases, pins and blocked calls at that moment.
    pub state: Vec<String>,
}

/// One scenario under all designs asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ScenarioRow {
    /// `S18`.
    pub id: String,
    /// Its title.
    pub title: String,
    /// Where it was read from.
    pub file: String,
    /// In the order of [`ScenarioReport::designs`].
    pub cells: Vec<ScenarioCell>,
}

/// All of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ScenarioReport {
    /// `daxlab-scenarios`.
    pub schema: &'static str,
    /// The version of the schema.
    pub version: u32,
    /// `simulation` or `linux`.
    pub machine: String,
    /// The designs, in order.
    pub designs: Vec<String>,
    /// The scenarios, in order.
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

    /// Whether anything failed.
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
