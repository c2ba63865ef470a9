//! Which figures are compared, in which order, under which headings.
//!
//! The terminal's tables and the page's tables are both made from these groups. Invariant: every
//! column has a head of at most ten characters, a note of one line, and one cell per design; a
//! title is one line of at most [`TITLE_MAX`] characters, whatever an operation is called. There is
//! no kernel counterpart.

use crate::human;
use crate::result::{DesignResult, LatencySummary, RaceCounters, RaceVerdict};

/// Operations that every comparison lists, in this order. Other operations follow, sorted by name.
pub(crate) const OPERATIONS: [&str; 5] = ["truncate", "punch", "register", "deregister", "dma"];

/// The longest title, in characters.
const TITLE_MAX: usize = 24;

/// Columns that belong under one heading.
pub(crate) struct FigureGroup {
    pub(crate) title: String,
    pub(crate) columns: Vec<FigureColumn>,
}

/// One figure of every design.
pub(crate) struct FigureColumn {
    pub(crate) head: &'static str,
    pub(crate) note: &'static str,
    pub(crate) cells: Vec<FigureCell>,
}

/// One figure of one design.
pub(crate) struct FigureCell {
    pub(crate) text: String,
    pub(crate) tone: FigureTone,
}

/// How a figure is highlighted. The figure's text carries the whole meaning; the highlight only
/// repeats it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FigureTone {
    Plain,
    /// The figure is zero: nothing happened.
    Faint,
    /// It must not happen, and it happened.
    Alarm,
    Verdict(RaceVerdict),
}

impl FigureTone {
    /// The tone as a class name of the page's style sheet.
    pub(crate) fn class(self) -> &'static str {
        match self {
            FigureTone::Plain => "plain",
            FigureTone::Faint => "faint",
            FigureTone::Alarm => "alarm",
            FigureTone::Verdict(verdict) => verdict.as_str(),
        }
    }
}

/// A column's head and note, its counter, how it is written, and its tone if it is not zero.
type Figure = (&'static str, &'static str, fn(&RaceCounters) -> u64, fn(u64) -> String, FigureTone);

const fn count(head: &'static str, note: &'static str, get: fn(&RaceCounters) -> u64) -> Figure {
    (head, note, get, human::count, FigureTone::Plain)
}

const fn alarm(head: &'static str, note: &'static str, get: fn(&RaceCounters) -> u64) -> Figure {
    (head, note, get, human::count, FigureTone::Alarm)
}

const TRUNCATE: &[Figure] = &[
    count("tried", "truncate calls made", |c| c.truncate_attempts),
    count("done", "truncate calls that succeeded", |c| c.truncate_done),
    count("ETXTBSY", "truncate calls refused because of a pin or a lease", |c| c.truncate_etxtbsy),
    count("EINTR", "truncate calls that a signal ended while they waited", |c| c.truncate_eintr),
    count("waited", "truncate calls that waited at least once, whatever their outcome", |c| c.truncate_waited),
];

const REGISTRATION: &[Figure] = &[
    count("granted", "memory regions registered", |c| c.registrations_granted),
    count("refused", "registrations refused, with any errno", |c| c.registrations_refused),
];

const DMA: &[Figure] = &[
    count("DMAs", "DMA accesses carried out", |c| c.dma_operations),
    ("bytes", "bytes moved by DMA", |c| c.dma_bytes, human::bytes, FigureTone::Plain),
    alarm(
        "stale",
        "DMAs into blocks that no longer belong to the file and offset they were registered for: corruption",
        |c| c.stale_dma,
    ),
    count("orphan", "DMAs into orphaned blocks (removed from the file, not reused until unpinned): harmless", |c| {
        c.orphan_dma
    }),
];

const LEFT_BEHIND: &[Figure] = &[
    count("orphans", "orphaned blocks: the most at one moment", |c| c.orphaned_blocks_peak),
    count("zombies", "zombie leases (the owner is gone, pins are left): the most at one moment", |c| {
        c.zombie_leases_peak
    }),
];

const KERNEL: &[Figure] = &[
    count("SIGIO", "signals sent to lease holders", |c| c.sigio_sent),
    count(
        "killed",
        "processes killed: because a lease break timed out, or by the administrator because close() hung",
        |c| c.processes_killed,
    ),
    count("aborted", "memory regions aborted by revocation or a lost lease", |c| c.mrs_aborted),
    count("EDEADLK", "calls refused because their wait would have completed a cycle of waits", |c| c.deadlocks),
    count("stuck", "tasks in a cycle of waits that nothing ends, because the design has such waits", |c| c.stuck_tasks),
];

fn columns(figures: &[Figure], designs: &[DesignResult]) -> Vec<FigureColumn> {
    let cell = |value: u64, write: fn(u64) -> String, tone| FigureCell {
        text: write(value),
        tone: if value == 0 { FigureTone::Faint } else { tone },
    };
    figures
        .iter()
        .map(|&(head, note, get, write, tone)| FigureColumn {
            head,
            note,
            cells: designs.iter().map(|design| cell(get(&design.counters), write, tone)).collect(),
        })
        .collect()
}

/// The verdict as it is shown. An expected corruption has a star, which the notes explain.
pub(crate) fn verdict_text(design: &DesignResult) -> String {
    let star = if design.expected_corruption { "*" } else { "" };
    format!("{}{star}", design.verdict)
}

/// What the star means.
pub(crate) const STAR_NOTE: &str =
    "the negative control: corruption is expected here and proves that the detector works";

const VERDICT_NOTE: &str = "safe: no data damaged, no wait for a long-term pin · refuses: no region was registered · \
     stalls: a call waited for a long-term pin · corrupts: data damaged";

/// Verdict, counters and, if there are any, broken invariants of each design.
pub(crate) fn outcomes(designs: &[DesignResult]) -> Vec<FigureGroup> {
    let verdicts = designs
        .iter()
        .map(|design| FigureCell { text: verdict_text(design), tone: FigureTone::Verdict(design.verdict) });
    let rates = designs
        .iter()
        .map(|design| FigureCell { text: human::count(design.operations_per_second), tone: FigureTone::Plain });
    let broken = designs.iter().map(|design| {
        let violations = design.violation_count();
        FigureCell {
            text: human::count(violations),
            tone: if violations == 0 { FigureTone::Faint } else { FigureTone::Alarm },
        }
    });
    let mut run = vec![
        FigureColumn { head: "verdict", note: VERDICT_NOTE, cells: verdicts.collect() },
        FigureColumn {
            head: "ops/s",
            note: "system calls and work requests finished per second, without refusals",
            cells: rates.collect(),
        },
    ];
    if designs.iter().any(|design| design.violation_count() > 0) {
        let note = "broken invariants, listed below";
        run.push(FigureColumn { head: "broken", note, cells: broken.collect() });
    }
    let group = |title: &str, columns| FigureGroup { title: title.to_owned(), columns };
    vec![
        group("", run),
        group("truncate", columns(TRUNCATE, designs)),
        group("registration", columns(REGISTRATION, designs)),
        group("DMA", columns(DMA, designs)),
        group("left behind", columns(LEFT_BEHIND, designs)),
        group("kernel", columns(KERNEL, designs)),
    ]
}

/// The operations to list: the five of [`OPERATIONS`], then those that any design has times of,
/// sorted by name.
pub(crate) fn operations(designs: &[DesignResult]) -> Vec<String> {
    let mut others: Vec<&String> = designs.iter().flat_map(|design| design.latency_ns.keys()).collect();
    others.retain(|key| !key.ends_with(crate::hdr::WAITED) && !key.ends_with(crate::hdr::UNWAITED));
    others.retain(|key| !OPERATIONS.contains(&key.as_str()));
    others.sort();
    others.dedup();
    OPERATIONS.iter().map(|&name| name.to_owned()).chain(others.into_iter().cloned()).collect()
}

/// Reads one figure of a summary.
type Percentile = fn(&LatencySummary) -> u64;

/// What the four columns of [`latencies`] mean.
pub(crate) const LATENCY_NOTE: &str =
    "50%, 99%, 99.9% and 100% of the calls took at most this long, blocked time included";

/// One group per operation: p50, p99, p99.9 and max over all calls, for each design.
pub(crate) fn latencies(designs: &[DesignResult]) -> Vec<FigureGroup> {
    let of = |operation: &str| -> Vec<FigureColumn> {
        let heads: [(&'static str, Percentile); 4] =
            [("p50", |l| l.p50), ("p99", |l| l.p99), ("p99.9", |l| l.p999), ("max", |l| l.max)];
        heads
            .into_iter()
            .map(|(head, get)| {
                let cell = |design: &DesignResult| match design.latency_ns.get(operation).filter(|l| l.count > 0) {
                    Some(latency) => FigureCell { text: human::nanoseconds(get(latency)), tone: FigureTone::Plain },
                    None => FigureCell { text: "–".to_owned(), tone: FigureTone::Faint },
                };
                FigureColumn { head, note: LATENCY_NOTE, cells: designs.iter().map(cell).collect() }
            })
            .collect()
    };
    let group = |name: String| FigureGroup { columns: of(&name), title: human::one_line(&name, TITLE_MAX) };
    operations(designs).into_iter().map(group).collect()
}
