//! Designs ranked by how far a real kernel does what scenarios state for them.
//!
//! Serialised, [`DesignRanking`] is its JSON format. Invariant: a cell that did not run counts
//! neither for nor against a design.

use std::fmt::Write as _;

use comfy_table::Table;
use serde::Serialize;

use super::report::{CellVerdict, ScenarioReport};
use super::text;

/// The most scenarios of a design that the text names.
const NAMED_MAX: usize = 12;

/// The designs, ranked for each kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DesignRanking {
    /// The name of the format: `daxlab-which-design`.
    pub schema: &'static str,
    /// The version of the format.
    pub version: u32,
    /// One for each kernel and file system.
    pub kernels: Vec<KernelRanking>,
}

/// The designs, ranked for one kernel on one file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KernelRanking {
    /// Kernel and file system.
    pub kernel: String,
    /// Why nothing ran there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_run: Option<String>,
    /// The designs, those that the kernel agrees with most first.
    pub designs: Vec<RankedDesign>,
    /// What each scenario came to, with a column for each design.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub report: Option<ScenarioReport>,
}

/// How far a kernel does what scenarios state for a design.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RankedDesign {
    /// Its name.
    pub design: String,
    /// In how many scenarios the kernel did all that is stated.
    pub agreed: usize,
    /// How many could not be run, or told nothing.
    pub untold: usize,
    /// Where the kernel did something else: one for each scenario, its first difference.
    pub differences: Vec<DesignDifference>,
}

/// The first difference in a scenario.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DesignDifference {
    /// The scenario's id.
    pub scenario: String,
    /// Its file, and the line from 1.
    pub file: String,
    /// See `file`.
    pub line: usize,
    /// The text of that line.
    pub text: String,
    /// What is stated for the design.
    pub expected: String,
    /// What the kernel did.
    pub got: String,
}

impl DesignRanking {
    /// A ranking for these kernels.
    pub fn new(kernels: Vec<KernelRanking>) -> DesignRanking {
        DesignRanking { schema: "daxlab-which-design", version: 1, kernels }
    }

    /// Whether a scenario said something about a design somewhere.
    pub fn told(&self) -> bool {
        self.kernels.iter().any(|kernel| kernel.not_run.is_none())
    }

    /// The ranking for people: the nearest design, a table, and the nearest design's differences.
    pub fn text(&self) -> String {
        self.kernels.iter().map(KernelRanking::text).collect::<Vec<_>>().join("\n")
    }
}

impl KernelRanking {
    /// Ranks the columns of a report, which are designs.
    pub fn of(kernel: &str, report: ScenarioReport) -> KernelRanking {
        let mut designs: Vec<RankedDesign> = Vec::new();
        for (n, name) in report.designs.iter().enumerate() {
            let mut ranked = RankedDesign { design: name.clone(), ..RankedDesign::default() };
            for row in &report.scenarios {
                let Some(cell) = row.cells.get(n) else { continue };
                match (cell.verdict, &cell.failure) {
                    (CellVerdict::Passed | CellVerdict::NotApplicable, _) => ranked.agreed += 1,
                    (CellVerdict::Failed, Some(failure)) => ranked.differences.push(DesignDifference {
                        scenario: row.id.clone(),
                        file: row.file.clone(),
                        line: failure.line,
                        text: failure.text.clone(),
                        expected: failure.expected.clone(),
                        got: failure.got.clone(),
                    }),
                    _ => ranked.untold += 1,
                }
            }
            designs.push(ranked);
        }
        if designs.iter().all(|ranked| ranked.agreed + ranked.differences.len() == 0) {
            let told = report.scenarios.iter().flat_map(|row| &row.cells).filter_map(|cell| cell.failure.as_ref());
            let why = told.map(|failure| failure.got.clone()).next();
            let why = why.unwrap_or_else(|| "no scenario was asked for".to_owned());
            return KernelRanking { report: Some(report), ..KernelRanking::not_run(kernel, why) };
        }
        // The order of the report stays among equals.
        designs.sort_by_key(|ranked| (ranked.differences.len(), std::cmp::Reverse(ranked.agreed)));
        KernelRanking { kernel: kernel.to_owned(), not_run: None, designs, report: Some(report) }
    }

    /// A kernel on which nothing ran.
    pub fn not_run(kernel: &str, why: String) -> KernelRanking {
        KernelRanking { kernel: kernel.to_owned(), not_run: Some(why), designs: Vec::new(), report: None }
    }

    /// The designs that no scenario has less against than against the others.
    pub fn nearest(&self) -> impl Iterator<Item = &RankedDesign> {
        let same =
            |a: &RankedDesign, b: &RankedDesign| (a.differences.len(), a.agreed) == (b.differences.len(), b.agreed);
        self.designs.iter().take_while(move |ranked| same(ranked, &self.designs[0]))
    }

    fn text(&self) -> String {
        if let Some(why) = &self.not_run {
            return format!("{}: not run: {why}\n", self.kernel);
        }
        let nearest: Vec<&str> = self.nearest().map(|ranked| ranked.design.as_str()).collect();
        let mut out = format!("{} behaves most like {}\n", self.kernel, nearest.join(", "));
        if nearest.len() > 1 {
            out += "(no scenario that ran tells these apart)\n";
        }
        let mut table = Table::new();
        text::underline(&mut table);
        table.set_header(["design", "agrees", "differs", "not run", "differs in"]);
        for ranked in &self.designs {
            let counts = [ranked.agreed, ranked.differences.len(), ranked.untold].map(|count| count.to_string());
            table.add_row([ranked.design.clone()].into_iter().chain(counts).chain([ranked.named()]));
        }
        let _ = writeln!(out, "{}", table.trim_fmt());
        for ranked in self.nearest().take(1).filter(|ranked| !ranked.differences.is_empty()) {
            let _ = writeln!(out, "what {} would do otherwise:", ranked.design);
            for difference in &ranked.differences {
                let DesignDifference { file, line, text, expected, got, .. } = difference;
                let _ = writeln!(out, "  {file}:{line}: {text}\n    expected {expected}\n    got      {got}");
            }
        }
        out
    }
}

impl RankedDesign {
    fn named(&self) -> String {
        let named: Vec<&str> = self.differences.iter().take(NAMED_MAX).map(|one| one.scenario.as_str()).collect();
        match self.differences.len().checked_sub(NAMED_MAX + 1) {
            Some(more) => format!("{} and {} more", named.join(" "), more + 1),
            None => named.join(" "),
        }
    }
}
