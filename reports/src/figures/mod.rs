//! Which figures are compared, in which order, under which headings.
//!
//! The terminal's tables and the page's tables are both made from these groups. Invariant: every column has a head of at most
//! ten characters and a note of one line, and as many cells as there are designs.

use crate::human;
use crate::result::{DesignResult, LatencySummary, RaceCounters, RaceVerdict};

/// Operations every comparison lists, in this order; others follow by name.
pub(crate) const OPERATIONS: [&str; 5] = ["truncate", "punch", "register", "deregister", "dma"];

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

/// How a figure asks to be seen. Never the only carrier of a meaning: the text says it too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FigureTone {
    Plain,
    /// Nothing happened.
    Faint,
    /// Must not happen, and did.
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

/// The figure behind a column and how it is written.
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
    count("EINTR", "truncate calls ended by a signal while they waited", |c| c.truncate_eintr),
    count("waited", "truncate calls that waited at least once, whatever their end", |c| c.truncate_waited),
];

const REGISTRATION: &[Figure] = &[
    count("granted", "memory regions registered", |c| c.registrations_granted),
    count("refused", "registrations refused, with any errno", |c| c.registrations_refused),
];

const DMA: &[Figure] = &[
    count("DMAs", "DMA accesses carried out", |c| c.dma_operations),
    ("bytes", "bytes moved by DMA", |c| c.dma_bytes, human::bytes, FigureTone::Plain),
    alarm("stale", "DMAs into blocks that had left the file or offset they were registered for: corruption", |c| {
        c.stale_dma
    }),
    count("orphan", "DMAs into orphaned blocks: gone from the file, not reused until unpinned: harmless", |c| {
        c.orphan_dma
    }),
];

const LEFT_BEHIND: &[Figure] = &[
    count("orphans", "orphaned blocks, most at one moment", |c| c.orphaned_blocks_peak),
    count("zombies", "zombie leases (owner gone, pins left), most at one moment", |c| c.zombie_leases_peak),
];

const KERNEL: &[Figure] = &[
    count("SIGIO", "signals sent to lease holders", |c| c.sigio_sent),
    count("killed", "processes killed: a lease break timed out, or an administrator ended a close that hung", |c| {
        c.processes_killed
    }),
    count("aborted", "memory regions aborted by revocation or a lost lease", |c| c.mrs_aborted),
    count("EDEADLK", "calls refused because their wait would have closed a cycle of waits", |c| c.deadlocks),
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

/// The verdict as it is shown: an expected corruption carries a star that the notes explain.
pub(crate) fn verdict_text(design: &DesignResult) -> String {
    let star = if design.expected_corruption { "*" } else { "" };
    format!("{}{star}", design.verdict)
}

/// What the star says.
pub(crate) const STAR_NOTE: &str =
    "the negative control: corruption is expected here and proves that the detector sees it";

const VERDICT_NOTE: &str = "safe: no harm, no wait for a long-term pin · refuses: no region was registered · stalls: a call waited for a long-term pin \
     · corrupts: data damaged";

/// Verdict, counters and, where there are any, broken invariants of each design.
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
            note: "finished system calls and work requests a second, refusals not counted",
            cells: rates.collect(),
        },
    ];
    if designs.iter().any(|design| design.violation_count() > 0) {
        let note = "broken invariants; listed below";
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

/// The operations that any design has times of: the listed five first, then others by name.
pub(crate) fn operations(designs: &[DesignResult]) -> Vec<String> {
    let mut others: Vec<&String> = designs.iter().flat_map(|design| design.latency_ns.keys()).collect();
    others.retain(|key| !key.ends_with(crate::hdr::WAITED) && !key.ends_with(crate::hdr::UNWAITED));
    others.retain(|key| !OPERATIONS.contains(&key.as_str()));
    others.sort();
    others.dedup();
    OPERATIONS.iter().map(|&name| name.to_owned()).chain(others.into_iter().cloned()).collect()
}

/// One of a summary's figures.
type Percentile = fn(&LatencySummary) -> u64;

/// What the four columns of [`latencies`] are.
pub(crate) const LATENCY_NOTE: &str =
    "half, 99%, 99.9% and all of the calls took at most this long, blocked time included";

/// One group an operation: p50, p99, p99.9, max of each design, over all calls.
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
    operations(designs).into_iter().map(|title| FigureGroup { columns: of(&title), title }).collect()
}
