//! `report.html`: the whole comparison on one page that opens offline.
//!
//! The page is one file with style sheet and plots inside. It has no script and makes no request.
//! The style sheet alone selects the calls that waited and hides a design's lines; a browser that
//! does not know `:has()` shows everything. Invariants: the template escapes all text from a
//! result, and only the SVG of [`crate::plot`] is inserted unescaped. Every list is bounded, so a
//! page with up to [`DESIGNS_DRAWN`] designs stays below [`MAX_PAGE_BYTES`]. A word names each
//! verdict; its colour only repeats it. There is no kernel counterpart.

use askama::Template;

use crate::figures::{self, FigureColumn, FigureGroup};
use crate::hdr::{Latency, OpLatencies, PercentileStep, percentile_walk};
use crate::human::{self, one_line};
use crate::plot::{self, Plot, PlotSeries};
use crate::result::{DesignResult, RaceVerdict, ReportedFinding, RunResult};

/// The largest page of up to [`DESIGNS_DRAWN`] designs and the usual operations, in bytes.
pub const MAX_PAGE_BYTES: usize = 300_000;

/// How many designs have lines in the plots: the first ones. The tables show all designs.
pub const DESIGNS_DRAWN: usize = 12;

/// How many operations are plotted, the usual five first.
const OPERATIONS_DRAWN: usize = 8;

/// How many findings of one design, newest trace lines of one finding, and violations of one design
/// are shown.
const FINDINGS_SHOWN: usize = 2;
const TRACE_SHOWN: usize = 20;
const VIOLATIONS_SHOWN: usize = 5;

/// Longest line of evidence, in characters.
const LINE_MAX: usize = 160;

#[derive(Template)]
#[template(path = "report.html")]
struct ReportPage {
    job: String,
    seed: u64,
    interrupted: bool,
    facts: Vec<(String, String)>,
    parameters: Vec<(String, String)>,
    verdicts: Vec<VerdictView>,
    expected: bool,
    star: &'static str,
    tables: Vec<TableView>,
    notes: Vec<(&'static str, &'static str)>,
    drawn: Vec<(usize, String)>,
    operations: Vec<OperationView>,
    evidence: Vec<EvidenceView>,
    axes: AxesView,
}

/// All designs with one verdict.
struct VerdictView {
    word: &'static str,
    designs: Vec<String>,
}

/// A table: a line of groups, a line of heads, then the rows.
struct TableView {
    caption: &'static str,
    groups: Vec<(String, usize)>,
    heads: Vec<HeadView>,
    rows: Vec<(String, Vec<CellView>)>,
}

struct HeadView {
    text: &'static str,
    note: &'static str,
    first: bool,
}

struct CellView {
    text: String,
    class: &'static str,
    first: bool,
    badge: bool,
}

/// One operation's plots.
struct OperationView {
    name: String,
    plots: Vec<PlotView>,
}

struct PlotView {
    /// The class name that says which calls.
    calls: &'static str,
    label: &'static str,
    /// The drawing; empty if no design had such a call.
    svg: String,
}

/// The violations and findings of one design.
struct EvidenceView {
    design: String,
    expected: bool,
    violations: Vec<String>,
    violations_all: String,
    violations_more: bool,
    findings: Vec<FindingView>,
    findings_all: String,
}

struct FindingView {
    kind: String,
    region: String,
    old_owner: String,
    new_owner: String,
    detail: String,
    older: usize,
    trace: Vec<String>,
}

/// One row per axis, one column per design.
struct AxesView {
    designs: Vec<String>,
    rows: Vec<(String, Vec<String>)>,
}

/// Makes the page. `latencies[i]` belongs to `run.designs[i]`. A design without latencies is in the
/// tables only.
///
/// # Errors
/// Errors of the template engine; none is known to occur.
pub fn page(run: &RunResult, latencies: &[OpLatencies]) -> Result<String, askama::Error> {
    let designs = &run.designs;
    let drawn = designs.iter().map(|design| one_line(&design.name, 24)).enumerate().take(DESIGNS_DRAWN);
    let verdicts = RaceVerdict::ALL.into_iter().map(|verdict| VerdictView {
        word: verdict.as_str(),
        designs: designs.iter().filter(|d| d.verdict == verdict).map(starred_name).collect(),
    });
    let outcomes = figures::outcomes(designs);
    let columns = outcomes.iter().flat_map(|group| &group.columns);
    let notes = columns.map(|column| (column.head, column.note)).chain([("p50 … max", figures::LATENCY_NOTE)]);
    let page = ReportPage {
        job: one_line(&run.job.name, 80),
        seed: run.seed,
        interrupted: run.interrupted,
        facts: facts(run),
        parameters: parameters(run),
        verdicts: verdicts.filter(|verdict| !verdict.designs.is_empty()).collect(),
        expected: designs.iter().any(|design| design.expected_corruption),
        star: figures::STAR_NOTE,
        tables: vec![
            table("Outcomes: what the actors tried, and what happened", &outcomes, designs),
            table("Latency of all calls, blocked time included", &figures::latencies(designs), designs),
        ],
        notes: notes.collect(),
        drawn: drawn.collect(),
        operations: operations(designs, latencies),
        evidence: designs.iter().filter_map(evidence).collect(),
        axes: axes(designs),
    };
    page.render()
}

fn starred_name(design: &DesignResult) -> String {
    let star = if design.expected_corruption { "*" } else { "" };
    format!("{}{star}", one_line(&design.name, 24))
}

/// How many of the job's parameters the page lists.
const PARAMETERS_MAX: usize = 200;

/// What ran, apart from seed and job name.
fn facts(run: &RunResult) -> Vec<(String, String)> {
    let job = &run.job;
    let operations: u64 = run.designs.iter().fold(0, |sum, design| sum.saturating_add(design.operations));
    vec![
        ("designs".to_owned(), run.designs.len().to_string()),
        ("time per design".to_owned(), human::nanoseconds(job.duration_ns)),
        ("threads".to_owned(), job.threads.to_string()),
        ("operations".to_owned(), human::count(operations)),
    ]
}

/// The job's parameters, spelled as in the job file.
fn parameters(run: &RunResult) -> Vec<(String, String)> {
    let parameters = run.job.parameters.iter().take(PARAMETERS_MAX);
    parameters.map(|(name, value)| (one_line(name, 40), one_line(value, 120))).collect()
}

fn table(caption: &'static str, groups: &[FigureGroup], designs: &[DesignResult]) -> TableView {
    let columns = || groups.iter().flat_map(|group| group.columns.iter().enumerate());
    let cell = |(place, column): (usize, &FigureColumn), row: usize| CellView {
        text: column.cells[row].text.clone(),
        class: column.cells[row].tone.class(),
        first: place == 0,
        badge: matches!(column.cells[row].tone, figures::FigureTone::Verdict(_)),
    };
    TableView {
        caption,
        groups: groups.iter().map(|group| (group.title.clone(), group.columns.len())).collect(),
        heads: columns()
            .map(|(place, column)| HeadView { text: column.head, note: column.note, first: place == 0 })
            .collect(),
        rows: designs
            .iter()
            .enumerate()
            .map(|(row, design)| (one_line(&design.name, 24), columns().map(|column| cell(column, row)).collect()))
            .collect(),
    }
}

/// A selection of calls: its class name, its label, and how to get its histogram's steps.
struct CallSelection {
    class: &'static str,
    label: &'static str,
    walk: fn(&Latency) -> Vec<PercentileStep>,
}

const CALLS: [CallSelection; 3] = [
    CallSelection { class: "all", label: "all calls", walk: |latency| percentile_walk(&latency.all()) },
    CallSelection {
        class: "unwaited",
        label: "calls that never waited",
        walk: |latency| percentile_walk(latency.unwaited()),
    },
    CallSelection { class: "waited", label: "calls that waited", walk: |latency| percentile_walk(latency.waited()) },
];

/// The plots of each operation that has calls: the usual five first, then others by name.
fn operations(designs: &[DesignResult], latencies: &[OpLatencies]) -> Vec<OperationView> {
    let called = |name: &str| latencies.iter().any(|l| l.get(name).is_some_and(|l| !l.all().is_empty()));
    let mut names: Vec<&str> = latencies.iter().flat_map(OpLatencies::iter).map(|(name, _)| name).collect();
    let rank = |name: &str| figures::OPERATIONS.iter().position(|usual| *usual == name);
    names.sort_by_key(|name| (rank(name).unwrap_or(usize::MAX), *name));
    names.dedup();
    names.retain(|name| called(name));
    let plots = |at, name| CALLS.iter().map(|calls| plot_of(at, name, calls, designs, latencies)).collect();
    let drawn = names.into_iter().take(OPERATIONS_DRAWN).enumerate();
    drawn.map(|(at, name)| OperationView { name: one_line(name, 40), plots: plots(at, name) }).collect()
}

fn plot_of(
    at: usize,
    operation: &str,
    calls: &CallSelection,
    designs: &[DesignResult],
    latencies: &[OpLatencies],
) -> PlotView {
    let lines = designs.iter().zip(latencies).enumerate().take(DESIGNS_DRAWN);
    let series = lines.filter_map(|(style, (design, latency))| {
        let steps = latency.get(operation).map(calls.walk).filter(|steps| !steps.is_empty())?;
        Some(PlotSeries { name: design.name.clone(), style, steps })
    });
    let plot = Plot {
        id: format!("p{at}-{}", calls.class),
        title: format!("{}: {}", one_line(operation, 40), calls.label),
        series: series.collect(),
    };
    let svg = if plot.series.is_empty() { String::new() } else { plot::svg(&plot) };
    PlotView { calls: calls.class, label: calls.label, svg }
}

fn evidence(design: &DesignResult) -> Option<EvidenceView> {
    if design.violation_count() == 0 && design.finding_count() == 0 {
        return None;
    }
    let violations: Vec<String> =
        design.violations.iter().take(VIOLATIONS_SHOWN).map(|line| one_line(line, 2 * LINE_MAX)).collect();
    let findings: Vec<FindingView> = design.findings.iter().take(FINDINGS_SHOWN).map(finding).collect();
    Some(EvidenceView {
        design: one_line(&design.name, 24),
        expected: design.expected_corruption,
        violations_all: human::count(design.violation_count()),
        violations_more: design.violation_count() > violations.len() as u64,
        findings_all: human::count(design.finding_count()),
        violations,
        findings,
    })
}

fn finding(finding: &ReportedFinding) -> FindingView {
    let older = finding.trace.len().saturating_sub(TRACE_SHOWN);
    FindingView {
        kind: one_line(&finding.kind, LINE_MAX),
        region: one_line(&finding.region, LINE_MAX),
        old_owner: one_line(&finding.old_owner, LINE_MAX),
        new_owner: one_line(&finding.new_owner, LINE_MAX),
        detail: one_line(&finding.detail, 2 * LINE_MAX),
        older,
        trace: finding.trace[older..].iter().map(|line| one_line(line, LINE_MAX)).collect(),
    }
}

fn axes(designs: &[DesignResult]) -> AxesView {
    let mut names: Vec<&String> = designs.iter().flat_map(|design| design.axes.keys()).collect();
    names.sort();
    names.dedup();
    let choice = |design: &DesignResult, axis: &str| {
        design.axes.get(axis).map_or_else(|| "–".to_owned(), |choice| one_line(choice, 40))
    };
    AxesView {
        designs: designs.iter().map(|design| one_line(&design.name, 24)).collect(),
        rows: names
            .into_iter()
            .take(40)
            .map(|axis| (one_line(axis, 40), designs.iter().map(|design| choice(design, axis)).collect()))
            .collect(),
    }
}

#[cfg(test)]
mod tests;
