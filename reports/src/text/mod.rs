//! The comparison on a terminal: rows are designs, columns are figures, in as many tables as the
//! width requires.
//!
//! A group of columns is never split. A group that does not fit beside the others starts the next
//! table, which repeats the designs' names. At 100 columns ten designs take four tables, at 160
//! columns two. Invariant: no line of a table is wider than asked, unless a single group is wider.
//! Without `ansi` the text contains no escape sequence, and no control character except line ends,
//! whatever a design is called. There is no kernel counterpart.

use comfy_table::{CellAlignment, Color, ContentArrangement, Table, presets};

use crate::figures::{self, FigureColumn, FigureGroup, FigureTone};
use crate::human;
use crate::result::{DesignResult, RaceVerdict, RunResult};

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableOptions {
    /// Columns of the terminal.
    pub width: usize,
    /// Colour the text by escape sequences; for terminals only. Colours repeat what the text says.
    pub ansi: bool,
}

impl Default for TableOptions {
    /// 100 columns, no escape sequences: for files and pipes.
    fn default() -> Self {
        TableOptions { width: 100, ansi: false }
    }
}

/// The longest part of a design's name that is shown, in characters.
const NAME_MAX: usize = 24;

/// Blanks between two columns, and before a group.
const GAP: usize = 1;
const GROUP_GAP: usize = 2;

/// Violations printed for one design; the rest is in result.json.
const VIOLATIONS_SHOWN: usize = 5;

/// The whole comparison: what ran, the tables, broken invariants, notes on the columns. Ends with a
/// line end.
pub fn tables(run: &RunResult, options: &TableOptions) -> String {
    let mut out = header(run);
    if run.designs.is_empty() {
        out.push_str("no design ran\n");
        return out;
    }
    let outcomes = figures::outcomes(&run.designs);
    let latencies = figures::latencies(&run.designs);
    for groups in [&outcomes, &latencies] {
        for part in pack(groups, &run.designs, options.width) {
            out.push('\n');
            out.push_str(&table(&part, &run.designs, options.ansi));
        }
    }
    out.push_str(&violations(&run.designs));
    out.push_str(&notes(&outcomes, &run.designs));
    out
}

/// What ran: `race default: seed 42, 10.0s a design, 2 threads`.
fn header(run: &RunResult) -> String {
    let job = &run.job;
    let ended = if run.interrupted { " · interrupted: figures are of the part that ran" } else { "" };
    format!(
        "race {}: seed {} · {} a design · {} threads{ended}\n",
        human::one_line(&job.name, 60),
        run.seed,
        human::nanoseconds(job.duration_ns),
        job.threads
    )
}

fn column_width(column: &FigureColumn) -> usize {
    let cells = column.cells.iter().map(|cell| cell.text.chars().count());
    cells.chain([column.head.chars().count()]).max().unwrap_or(0)
}

/// The width of a group with the gap before it, in columns. A long title widens the group.
fn group_width(group: &FigureGroup) -> usize {
    let columns: usize = group.columns.iter().map(column_width).sum();
    let gaps = GAP * group.columns.len().saturating_sub(1);
    GROUP_GAP + (columns + gaps).max(group.title.chars().count())
}

fn name(design: &DesignResult) -> String {
    human::one_line(&design.name, NAME_MAX)
}

/// Distributes groups over tables, in order, as many per table as fit.
fn pack<'a>(groups: &'a [FigureGroup], designs: &[DesignResult], width: usize) -> Vec<Vec<&'a FigureGroup>> {
    let names = designs.iter().map(|design| name(design).chars().count()).chain([6]).max().unwrap_or(6);
    let mut tables: Vec<Vec<&FigureGroup>> = Vec::new();
    let mut used = 0;
    for group in groups {
        let wanted = group_width(group);
        match tables.last_mut() {
            Some(table) if used + wanted <= width => table.push(group),
            _ => {
                tables.push(vec![group]);
                used = names;
            }
        }
        used += wanted;
    }
    tables
}

/// One table with a line of group titles above it.
fn table(groups: &[&FigureGroup], designs: &[DesignResult], ansi: bool) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    if ansi {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    let columns: Vec<&FigureColumn> = groups.iter().flat_map(|group| &group.columns).collect();
    table.set_header(["design"].into_iter().chain(columns.iter().map(|column| column.head)));
    for (index, design) in designs.iter().enumerate() {
        let mut row = vec![comfy_table::Cell::new(name(design))];
        row.extend(columns.iter().map(|column| styled(&column.cells[index])));
        table.add_row(row);
    }

    let mut titles = String::new();
    let widths = table.column_max_content_widths();
    let mut widths = widths.into_iter().map(usize::from);
    let mut at = widths.next().unwrap_or(0);
    let mut paddings = vec![0];
    for group in groups {
        let width = group.columns.iter().map(|_| widths.next().unwrap_or(0)).sum::<usize>()
            + GAP * group.columns.len().saturating_sub(1);
        let title_width = group.title.chars().count();
        let slack = title_width.saturating_sub(width);
        paddings.extend(group.columns.iter().enumerate().map(|(i, _)| if i == 0 { GROUP_GAP + slack } else { GAP }));
        if !group.title.is_empty() {
            let missing = (at + GROUP_GAP).saturating_sub(titles.chars().count());
            titles.extend(std::iter::repeat_n(' ', missing));
            titles.push_str(&group.title);
            if width > title_width + 1 {
                titles.push(' ');
                titles.extend(std::iter::repeat_n('─', width - title_width - 1));
            }
        }
        at += GROUP_GAP + slack + width;
    }
    for (index, (column, padding)) in table.column_iter_mut().zip(paddings).enumerate() {
        column.set_padding((u16::try_from(padding).unwrap_or(u16::MAX), 0));
        column.set_cell_alignment(if index == 0 { CellAlignment::Left } else { CellAlignment::Right });
    }
    let mut out = String::new();
    if !titles.is_empty() {
        out.push_str(&titles);
        out.push('\n');
    }
    for line in table.lines() {
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

fn styled(cell: &figures::FigureCell) -> comfy_table::Cell {
    let shown = comfy_table::Cell::new(&cell.text);
    match cell.tone {
        FigureTone::Plain => shown,
        FigureTone::Faint => shown.fg(Color::DarkGrey),
        FigureTone::Alarm | FigureTone::Verdict(RaceVerdict::Corrupts) => shown.fg(Color::Red),
        FigureTone::Verdict(RaceVerdict::Safe) => shown.fg(Color::Green),
        FigureTone::Verdict(RaceVerdict::Refuses) => shown.fg(Color::Yellow),
        FigureTone::Verdict(RaceVerdict::Stalls) => shown.fg(Color::Magenta),
    }
}

/// Broken invariants, the first few of each design; empty if there are none.
fn violations(designs: &[DesignResult]) -> String {
    let mut out = String::new();
    for design in designs.iter().filter(|design| design.violation_count() > 0) {
        out.push_str(&format!("\n{}: {} broken\n", name(design), human::count(design.violation_count())));
        let shown = design.violations.iter().take(VIOLATIONS_SHOWN);
        for violation in shown {
            out.push_str(&format!("  {}\n", human::one_line(violation, 400)));
        }
        let more = design.violation_count().saturating_sub(design.violations.len().min(VIOLATIONS_SHOWN) as u64);
        if more > 0 {
            out.push_str(&format!("  … and {} more\n", human::count(more)));
        }
    }
    out
}

/// One line about each column.
fn notes(outcomes: &[FigureGroup], designs: &[DesignResult]) -> String {
    let mut out = String::from("\n");
    let mut note = |head: &str, note: &str| out.push_str(&format!("  {head:<8} {note}\n"));
    for column in outcomes.iter().flat_map(|group| &group.columns) {
        note(column.head, column.note);
    }
    note("p50…max", figures::LATENCY_NOTE);
    if designs.iter().any(|design| design.expected_corruption) {
        note("*", figures::STAR_NOTE);
    }
    out
}

#[cfg(test)]
mod tests;
