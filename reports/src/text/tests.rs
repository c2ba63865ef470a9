//! What the tables say, and how wide they are.

use super::*;
use crate::hdr::sample;
use crate::result::{JobSummary, LatencySummary, RaceCounters};

/// The words of the line of `text` that starts with `name` and has `columns` words.
fn row<'a>(text: &'a str, name: &str, columns: usize) -> Vec<&'a str> {
    text.lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .find(|words| words.first() == Some(&name) && words.len() == columns)
        .unwrap_or_else(|| panic!("no row of {columns} words for {name} in\n{text}"))
}

#[test]
fn every_figure_of_a_design_is_in_its_rows() {
    let mut run = RunResult::new(9, JobSummary::new("j", 1_000_000_000, 2));
    let mut design = DesignResult::new("mine", RaceVerdict::Stalls);
    let mut next = 100;
    let mut number = || {
        next += 1;
        next
    };
    design.counters = RaceCounters {
        truncate_attempts: number(),
        truncate_done: number(),
        truncate_etxtbsy: number(),
        truncate_eintr: number(),
        truncate_waited: number(),
        registrations_granted: number(),
        registrations_refused: number(),
        dma_operations: number(),
        dma_bytes: number(),
        stale_dma: number(),
        orphan_dma: number(),
        orphaned_blocks_peak: number(),
        zombie_leases_peak: number(),
        sigio_sent: number(),
        processes_killed: number(),
        mrs_aborted: number(),
        deadlocks: number(),
        stuck_tasks: number(),
        ..RaceCounters::default()
    };
    for operation in figures::OPERATIONS {
        let latency = LatencySummary { count: 1, p50: number(), p99: number(), p999: number(), max: number() };
        design.latency_ns.insert(operation.to_owned(), latency);
    }
    run.designs.push(design);
    let text = tables(&run, &TableOptions { width: 1000, ansi: false });
    let want: Vec<String> = (101..=118).map(|n| if n == 109 { format!("{n}B") } else { n.to_string() }).collect();
    assert_eq!(
        row(&text, "mine", 21),
        [&["mine", "stalls", "0"], &want.iter().map(String::as_str).collect::<Vec<_>>()[..]].concat()
    );
    let want: Vec<String> = (119..=138).map(|n| format!("{n}ns")).collect();
    let latencies = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let latencies = latencies.filter(|words| words.first() == Some(&"mine") && words.len() == 21).nth(1).unwrap();
    assert_eq!(latencies[1..], want);
}

#[test]
fn tables_stay_within_the_width_and_lose_no_column() {
    let (run, _) = sample::run();
    for width in [60, 80, 100, 120, 160, 240] {
        let text = tables(&run, &TableOptions { width, ansi: false });
        let body = text.split("\n  verdict ").next().unwrap();
        let widest = body.lines().map(|line| line.chars().count()).max().unwrap();
        assert!(widest <= width, "{widest} columns instead of {width}:\n{body}");
        for head in ["ETXTBSY", "granted", "stale", "zombies", "EDEADLK"] {
            assert_eq!(body.split_whitespace().filter(|word| *word == head).count(), 1, "{head} at {width}");
        }
        assert_eq!(body.split_whitespace().filter(|word| *word == "p99.9").count(), 5, "at {width}");
    }
    let tables_at = |width| tables(&run, &TableOptions { width, ansi: false }).matches("\ndesign ").count();
    assert_eq!((tables_at(100), tables_at(160)), (4, 3));
}

#[test]
fn titles_stand_over_their_columns() {
    let (run, _) = sample::run();
    let text = tables(&run, &TableOptions { width: 1000, ansi: false });
    let lines: Vec<Vec<char>> = text.lines().map(|line| line.chars().collect()).collect();
    for (titles, heads) in lines.iter().zip(&lines[1..]).filter(|(_, heads)| heads.starts_with(&['d', 'e', 's', 'i'])) {
        let starts = (1..titles.len()).filter(|&i| titles[i - 1] == ' ' && titles[i].is_alphabetic());
        for start in starts.filter(|&i| titles[i - 2] == ' ') {
            assert_eq!(heads[start - 1], ' ', "a column begins left of its title:\n{text}");
            assert!(heads[start..start + 7].iter().any(|c| *c != ' '), "no column under a title:\n{text}");
        }
    }
}

#[test]
fn escapes_appear_only_when_asked_for() {
    let (mut run, _) = sample::run();
    run.designs[1].name = "evil\u{1b}[2J\nname".to_owned();
    let operation = "odd\u{1b}[2J\u{9b}2J\noperation".to_owned();
    run.designs[1].latency_ns.insert(operation, crate::result::LatencySummary::default());
    run.designs[1].push_violation("line\u{7}\nbreak");
    let plain = tables(&run, &TableOptions { width: 160, ansi: false });
    assert!(plain.chars().all(|c| c == '\n' || !c.is_control()), "{plain:?}");
    assert!(plain.contains("evil\u{fffd}[2J\u{fffd}name"), "{plain}");
    let coloured = tables(&run, &TableOptions { width: 160, ansi: true });
    assert!(coloured.contains("\u{1b}["));
    let mut stripped = String::new();
    let mut parts = coloured.split('\u{1b}');
    stripped.push_str(parts.next().unwrap());
    parts.for_each(|part| stripped.push_str(part.split_once('m').unwrap().1));
    assert_eq!(stripped, plain, "colour must not change the text");
}

#[test]
fn broken_invariants_are_listed_and_counted() {
    let (mut run, _) = sample::run();
    assert!(!tables(&run, &TableOptions::default()).contains("broken"));
    (0..300).for_each(|n| run.designs[2].push_violation(format!("page {n} freed while pinned")));
    let text = tables(&run, &TableOptions::default());
    assert!(text.contains("rfc-v2: 300 broken\n  page 0 freed while pinned\n"), "{text}");
    assert!(text.contains("  … and 295 more\n"), "{text}");
    assert!(text.contains("  broken   broken invariants"), "{text}");
}

#[test]
fn a_run_without_designs_and_calls_without_times_are_shown() {
    let mut run = RunResult::new(1, JobSummary::new("none", 0, 1));
    run.interrupted = true;
    let text = tables(&run, &TableOptions::default());
    assert!(text.contains("interrupted") && text.ends_with("no design ran\n"), "{text}");
    run.designs.push(DesignResult::new("idle", RaceVerdict::Safe));
    let text = tables(&run, &TableOptions::default());
    assert!(text.contains('–') && text.contains("safe"), "{text}");
}
