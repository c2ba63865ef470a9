//! Results of scenarios as JUnit XML, for CI systems.
//!
//! Each scenario is a test suite and each design a test case. A cell that is not applicable or did
//! not run is `skipped`; an inconclusive cell is an `error`.

use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};

use super::report::{CellVerdict, ScenarioCell, ScenarioReport};

/// The report as a JUnit document.
///
/// # Errors
/// Only if the text contains characters that XML cannot represent.
pub fn junit(report: &ScenarioReport) -> Result<String, std::fmt::Error> {
    let mut document = Report::new("daxlab scenarios");
    for row in &report.scenarios {
        let mut suite = TestSuite::new(format!("{}: {}", row.id, row.title));
        for cell in &row.cells {
            let mut case = TestCase::new(cell.design.as_str(), status(cell));
            case.set_classname(row.id.as_str());
            suite.add_test_case(case);
        }
        document.add_test_suite(suite);
    }
    document.to_string().map_err(|_| std::fmt::Error)
}

fn status(cell: &ScenarioCell) -> TestCaseStatus {
    let why = cell.failure.as_ref();
    match cell.verdict {
        CellVerdict::Passed => TestCaseStatus::success(),
        CellVerdict::NotApplicable | CellVerdict::NotRun => {
            let mut status = TestCaseStatus::skipped();
            status.set_message(why.map_or(cell.outcome.clone(), |why| why.got.clone()));
            status
        }
        CellVerdict::Failed | CellVerdict::Inconclusive => {
            let kind = match cell.verdict {
                CellVerdict::Failed => NonSuccessKind::Failure,
                _ => NonSuccessKind::Error,
            };
            let mut status = TestCaseStatus::non_success(kind);
            if let Some(why) = why {
                status.set_message(format!("line {}: expected {}, got {}", why.line, why.expected, why.got));
                status.set_description(format!("{}\n{}", why.text, why.state.join("\n")));
            }
            status
        }
    }
}
