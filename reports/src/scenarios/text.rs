//! Results of scenarios as text for people: one line per scenario, failures in full, and the matrix
//! of scenarios and designs.

use std::fmt::Write as _;

use comfy_table::{ContentArrangement, LineStyle, Table, TableStyle};

use super::report::{CellVerdict, ScenarioCell, ScenarioReport, ScenarioRow};

/// One line about a scenario: `S18   pass  munmap and close with live pins (7 passed, 3 n/a)`.
pub fn line(row: &ScenarioRow) -> String {
    let count = |verdict| row.count(verdict);
    let (failed, passed) = (count(CellVerdict::Failed), count(CellVerdict::Passed));
    let (inconclusive, not_run) = (count(CellVerdict::Inconclusive), count(CellVerdict::NotRun));
    let word = match () {
        () if failed > 0 => "FAIL",
        () if inconclusive > 0 => "inconclusive",
        () if not_run == row.cells.len() => "not run",
        () => "pass",
    };
    let counts = [
        (passed, "passed"),
        (count(CellVerdict::NotApplicable), "n/a"),
        (failed, "failed"),
        (not_run, "not run"),
        (inconclusive, "inconclusive"),
    ];
    let counts: Vec<String> = counts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
    format!("{:<8} {word:<5} {} ({})", row.id, row.title, counts.join(", "))
}

/// The whole report: lines, failures, the matrix, the totals. The matrix is at most `width` columns
/// wide.
pub fn text(report: &ScenarioReport, width: usize) -> String {
    let mut out = String::new();
    for row in &report.scenarios {
        let _ = writeln!(out, "{}", line(row));
        for cell in &row.cells {
            failure(&mut out, row, cell);
        }
    }
    if report.scenarios.len() > 1 || report.designs.len() > 1 {
        let _ = writeln!(out, "\n{}", matrix(report, width));
    }
    let count = |verdict| report.count(verdict);
    let _ = writeln!(
        out,
        "{} scenarios on {}: {} cells passed, {} n/a, {} failed, {} not run, {} inconclusive",
        report.scenarios.len(),
        report.machine,
        count(CellVerdict::Passed),
        count(CellVerdict::NotApplicable),
        count(CellVerdict::Failed),
        count(CellVerdict::NotRun),
        count(CellVerdict::Inconclusive),
    );
    out
}

fn failure(out: &mut String, row: &ScenarioRow, cell: &ScenarioCell) {
    let Some(failure) = &cell.failure else { return };
    match cell.verdict {
        CellVerdict::Failed => {
            let _ = writeln!(out, "  {} under {}", row.id, cell.design);
            let _ = writeln!(out, "    {}:{}: {}", row.file, failure.line, failure.text);
            let _ = writeln!(out, "    expected {}", failure.expected);
            let _ = writeln!(out, "    got      {}", failure.got);
            for line in &failure.state {
                let _ = writeln!(out, "      {line}");
            }
        }
        _ => {
            let _ = writeln!(out, "  {} under {}: {}", row.id, cell.design, failure.got);
        }
    }
}

/// One row per scenario, one column per design.
fn matrix(report: &ScenarioReport, width: usize) -> String {
    let mut table = Table::new();
    underline(&mut table);
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table.set_width(u16::try_from(width).unwrap_or(u16::MAX));
    table.set_header(std::iter::once("scenario").chain(report.designs.iter().map(String::as_str)));
    for row in &report.scenarios {
        table.add_row(std::iter::once(row.id.clone()).chain(row.cells.iter().map(shown)));
    }
    table.trim_fmt()
}

/// Gives a table a line below its header, and no other.
pub(super) fn underline(table: &mut Table) {
    table.load_style(TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─')));
}

/// The short text of a cell.
fn shown(cell: &ScenarioCell) -> String {
    match cell.verdict {
        // Statuses are long words; spaces let the table wrap them.
        CellVerdict::Passed => cell.outcome.replace('_', " "),
        CellVerdict::NotApplicable => "n/a".to_owned(),
        CellVerdict::Failed => "FAIL".to_owned(),
        CellVerdict::NotRun => "not run".to_owned(),
        CellVerdict::Inconclusive => "?".to_owned(),
    }
}
