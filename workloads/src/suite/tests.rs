//! The language: what is wrong with a script is told at its line and column; what is right runs as
//! stated.

#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

use crate::input::designs::DesignCatalogue;
use crate::input::{InputError, Source};
use reports::scenarios::{CellVerdict, ScenarioReport};

use crate::language::Scenario;
use crate::suite::scenarios;

fn parse(text: &str) -> Result<Scenario, InputError> {
    Scenario::parse(&Source::new("test.scn", text), &["unsafe", "mainline", "odp", "kara"])
}

/// The scenario with `# T: title` and a data file in front: the body's first line is line 3.
fn with_body(body: &str) -> String {
    format!("# T1: a test\nfile data 64KiB\n{body}\n")
}

fn run(text: &str, designs: &str) -> Result<ScenarioReport, InputError> {
    let entries = DesignCatalogue::default().resolve(designs).unwrap();
    scenarios::run_simulated(&[parse(text)?], &entries)
}

#[track_caller]
fn wrong(text: &str, line: usize, column: usize, title: &str) {
    let error = parse(text).expect_err("it should not parse");
    assert_eq!((error.line(), error.column()), (Some(line), Some(column)), "{error}");
    assert!(error.title().contains(title), "{error}");
}

#[track_caller]
fn wrong_body(body: &str, column: usize, title: &str) {
    wrong(&with_body(body), 3, column, title);
}

#[test]
fn what_does_not_parse_is_shown_where_it_stands() {
    wrong("A: exit => ok\n", 1, 1, "begins with its title");
    wrong("# T: nothing\n", 1, 1, "nothing happens");
    wrong("# T: no question\nA: exit\n", 1, 1, "question");
    wrong_body("A: f = opn data rw", 8, "unknown operation `opn`");
    wrong_body("A: f = open data rx", 18, "unknown word `rx`");
    wrong_body("A: read f 0 4KiB", 9, "nothing above is called `f`");
    wrong_body("A: open data rw", 4, "needs a name");
    wrong_body("A: f = exit", 4, "makes nothing");
    wrong_body("A: F = open data rw", 4, "no such name");
    wrong_body("a: exit", 1, "no process's name");
    wrong_body("A.1: exit", 3, "further thread");
    wrong_body("A: truncate data", 4, "lacks an argument");
    wrong_body("A: truncate data 4", 18, "has no unit");
    wrong_body("A: truncate data 0 1KiB", 20, "one word too many");
    wrong_body("A: exit -> okay", 12, "unknown outcome `okay`");
    wrong_body("A: exit -> ok |", 12, "missing beside");
    wrong_body("A: exit -> ok | EIO", 17, "second outcome without a condition");
    wrong_body("A: exit ->", 9, "missing behind the arrow");
    wrong_body("A: exit -> ok @mainlin", 16, "unknown design `mainlin`");
    wrong_body("A: exit -> ok @pin_gat=open", 16, "unknown axis");
    wrong_body("A: exit -> ok @pin_gate=opne", 25, "unknown pin_gate `opne`");
    wrong_body("when @ A: exit", 7, "a condition is missing");
    wrong_body("kill B SIGTERM", 6, "unknown process `B`");
    wrong_body("Z: returns => ok", 1, "Z has done nothing yet");
    wrong_body("A: exit => ok @kara @odp", 15, "`@kara` in the middle");
    wrong_body("A: exit => ok -> EIO", 15, "`->` in the middle");
    wrong_body("A: exit => EIO EIO", 16, "one word too many");
    wrong_body("advance 45", 9, "has no unit");
    wrong_body("expect leases data", 1, "what must come of it is missing");
    wrong_body("expect leasez data -> none", 8, "unknown thing to look at");
    wrong_body("jump", 1, "begins no line");
    wrong_body("file data 4KiB", 6, "there is a file `data` already");
    wrong_body("file x 4KiB holes", 13, "no byte");
    wrong_body("volume sise=4MiB", 8, "unknown option `sise`");
    wrong_body("volume size=5KiB", 13, "no size for the device");
    wrong_body("A: f = open data rw \"x", 21, "a quote that is not closed");
    wrong(&with_body("A: exit\nvolume size=4MiB"), 4, 1, "before the first step");
    wrong(&with_body("A: f = open data rw\nA: munmap f"), 4, 11, "`f` is an open file");
    wrong("# T: x\nlinux\nA: c = rdma_open => ok\n", 3, 1, "real Linux");
    let long = format!("# T: long\n{}", "A: exit\n".repeat(5000));
    wrong(&long, 4097, 1, "at most 4096 lines");
    let many: String = (0..40).map(|n| format!("A{n}: exit\n")).collect();
    wrong(&format!("# T: many\n{many}"), 34, 1, "at most 32 processes");
    wrong(&with_body("A: f = open data rw\nA: read f 0 1GiB"), 4, 13, "moves at most 64MiB");
}

#[test]
fn near_words_are_suggested() {
    let error = parse(&with_body("A: trunkate data 0")).unwrap_err();
    assert_eq!(error.label_text(), Some("did you mean `truncate`?"));
    let error = parse(&with_body("A: mapping = mmap_anon 4KiB\nA: munmap maping")).unwrap_err();
    assert_eq!(error.label_text(), Some("did you mean `mapping`?"));
}

/// Every design has exactly one outcome, or nothing runs.
#[test]
fn outcomes_are_complete_and_exclusive() {
    let none = run(&with_body("A: truncate data 0 => ok @unsafe"), "unsafe,odp").unwrap_err();
    assert!(none.title().contains("no outcome is stated for odp") && none.line() == Some(3), "{none}");
    let two = run(&with_body("A: truncate data 0 => ok @unsafe | EIO @pin_gate=open"), "unsafe").unwrap_err();
    assert!(two.title().contains("a second outcome for unsafe") && two.column() == Some(36), "{two}");
    let unasked = run(&with_body("when @unsafe A: truncate data 0 => ok"), "unsafe,odp").unwrap_err();
    assert!(unasked.title().contains("asks nothing under odp"), "{unasked}");
    assert!(run(&with_body("A: truncate data 0 => ok @!odp | ok @odp"), "all").is_ok());
}

#[test]
fn the_scripts_own_mistakes_are_errors_at_their_line() {
    let at = |body: &str, line: usize, title: &str| {
        let error = run(&with_body(body), "kara").expect_err("a mistake");
        assert_eq!(error.line(), Some(line), "{error}");
        assert!(error.title().contains(title), "{error}");
    };
    at("A: exit => ok\nA: truncate data 0", 4, "A is dead");
    at("A: f = open nothing r => ENOENT\nA: read f 0 4KiB", 4, "`f` was not made");
    let blocked = "A: f = open data rw\nA: lease f read\nB: truncate data 0 => blocks";
    at(blocked, 5, "still blocked here");
    at(&format!("{blocked}\nB: exit"), 6, "still in the call of line 5");
    at(&format!("{blocked}\nA: unlock f"), 5, "no step states what came of B's call here: `ok`");
    at(&format!("{blocked}\nA: unlock f\nB: exit"), 7, "has come to `ok`");
    at(&format!("{blocked}\nA.2: exit\nA: exit"), 7, "is dead");
    at("A: exit => ok\nB.2: exit", 4, "does not exist yet");
}

#[test]
fn a_wrong_outcome_is_shown_with_the_state_of_leases_and_pins() {
    let report = run(&with_body("A: f = open data rw\nA: lease f read\nB: truncate data 0 => ok"), "kara").unwrap();
    let cell = &report.scenarios[0].cells[0];
    let failure = cell.failure.as_ref().unwrap();
    assert_eq!(cell.verdict, CellVerdict::Failed);
    assert_eq!((failure.line, failure.text.as_str()), (5, "B: truncate data 0 => ok"));
    assert_eq!((failure.expected.as_str(), failure.got.as_str()), ("ok", "blocks lease break"));
    assert!(failure.state.iter().any(|line| line.contains("A:read:breaking")), "{failure:?}");
    assert!(failure.state.iter().any(|line| line.contains("B is blocked: lease break")), "{failure:?}");
}

#[test]
fn time_is_moved_by_the_script_alone_and_returns_speaks_where_it_blocked() {
    let body = "A: f = open data rw\nA: lease f read -> ok | EINVAL @lease_rules=none\nB: truncate data 0 => blocks | ok @lease_rules=none
        advance 44s\nexpect size data -> 64KiB | 0B @lease_rules=none\nadvance 1s\nB: returns -> ok | blocks @break_timeout=never
        when @!break_timeout=kill kill A SIGKILL\nB: returns -> ok\nexpect size data -> 0B";
    let report = run(&with_body(body), "all").unwrap();
    assert_eq!(report.count(CellVerdict::Passed), 10, "{report:#?}");
}

#[test]
fn stale_dma_that_nobody_stated_fails() {
    let body =
        "A: f = open data rw\nA: m = mmap f 0 64KiB\nA: c = rdma_open\nA: mr = reg_mr c m 0 4KiB\nR: r = rdma_open
        R: q = connect r c\nB: truncate data 0 => ok\nR: rdma_write q mr 0 4KiB x";
    let report = run(&with_body(body), "unsafe").unwrap();
    let failure = report.scenarios[0].cells[0].failure.as_ref().unwrap();
    assert_eq!(failure.got, "stale DMA");
    let stated = run(&with_body(&format!("{body}\nexpect stale -> some")), "unsafe").unwrap();
    assert_eq!(stated.count(CellVerdict::Passed), 1, "{stated:#?}");
}

#[test]
fn an_axis_condition_holds_for_a_users_design() {
    let mut catalogue = DesignCatalogue::default();
    let text = "[[design]]\nname = \"mine\"\nbase = \"kara\"\nlease_rules = \"chinner\"\npin_gate = \"lease\"\n";
    let entries = catalogue.add(&Source::new("mine.toml", text)).unwrap().to_vec();
    let scenario = "# T: x\nfile data 4KiB\nA: f = open data rw\nA: lease f exclusive\nexpect leases data => A:read+U | A:write @lease_rules=chinner\n";
    let report = scenarios::run_simulated(&[parse(scenario).unwrap()], &entries).unwrap();
    assert_eq!(report.count(CellVerdict::Passed), 1, "{report:#?}");
}
