//! The language: what is wrong with a script is told at its line and column; what is right runs as
//! stated.

#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

use fs_sim::design::{Preset, further_presets, presets};

use crate::input::designs::DesignCatalogue;
use crate::input::{InputError, Source};
use reports::scenarios::{CellVerdict, ScenarioReport};

use crate::language::Scenario;
use crate::language::condition::{DesignSubject, LinuxSubject, PmemKind};
use crate::suite::{run, scenarios};

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
    // The last line of the body is wrong.
    wrong(&with_body(body), 2 + body.lines().count(), column, title);
}

/// A kernel that is held against every preset needs one outcome for each, whatever Linux it is.
#[test]
fn scenarios_for_linux_state_one_outcome_for_every_preset_on_every_linux() {
    let names: Vec<&str> = presets().iter().chain(further_presets()).map(|preset| preset.name).collect();
    let all = scenarios::built_in(&names).unwrap();
    let mut checked = 0;
    for scenario in all.iter().filter(|scenario| scenario.setup.linux) {
        let (nvdimm, virtio) = (Some(PmemKind::Nvdimm), Some(PmemKind::VirtioPmem));
        for (file_system, memory, version) in
            [("xfs", nvdimm, (7, 3)), ("ext4", virtio, (7, 3)), ("xfs", nvdimm, (6, 12)), ("ext4", virtio, (6, 12))]
        {
            let linux = LinuxSubject { file_system: file_system.to_owned(), version, memory };
            let subject = |preset: &Preset| {
                let (name, axes) = (preset.name.to_owned(), preset.axes);
                DesignSubject { name, axes, linux: Some(linux.clone()) }
            };
            let subjects: Vec<DesignSubject> = presets().iter().chain(further_presets()).map(subject).collect();
            run::check(scenario, &subjects).unwrap_or_else(|error| panic!("{file_system} {version:?}: {error}"));
            checked += subjects.len();
        }
    }
    assert!(checked > 1000, "{checked}");
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
    wrong_body("A: exit => ok\nexpect stuck", 8, "who is stuck is missing");
    wrong_body("A: exit => ok\nexpect stuck B", 14, "B has begun no call");
    wrong_body("A: exit => ok\nexpect stuck A -> ok", 16, "one word too many");
    wrong_body("A: exit => ok @kara @odp", 15, "`@kara` in the middle");
    wrong_body("A: exit => ok -> EIO", 15, "`->` in the middle");
    wrong_body("A: exit => EIO EIO", 16, "one word too many");
    wrong_body("A: d = ram_disk 1MiB 5", 22, "has no unit");
    wrong_body("A: d = ram_disk 1MiB -5ms", 22, "");
    wrong_body("A: d = ram_disk 1MiB 5ms 6ms", 26, "one word too many");
    wrong_body("A: d = ram_disk 1MiB\nA: x = submit_read_into d 0 4KiB d 0", 34, "`d` is a disk");
    wrong_body("A: acknowledge f", 16, "nothing above is called `f`");
    wrong_body("advance 45", 9, "has no unit");
    wrong_body("expect leases data", 1, "what must come of it is missing");
    wrong_body("expect leasez data -> none", 8, "unknown thing to look at");
    wrong_body("jump", 1, "begins no line");
    wrong_body("file data 4KiB", 6, "there is a file `data` already");
    wrong_body("file x 4KiB holes", 13, "no byte");
    wrong_body("volume sise=4MiB", 8, "unknown option `sise`");
    wrong_body("volume size=5KiB", 13, "no size for the device");
    wrong_body("volume size=3MiB", 13, "no size for the device");
    wrong_body("A: f = open data rw \"x", 21, "a quote that is not closed");
    wrong(&with_body("A: exit\nvolume size=4MiB"), 4, 1, "before the first step");
    wrong(&with_body("A: f = open data rw\nA: munmap f"), 4, 11, "`f` is an open file");
    wrong("# T: x\nlinux\nA: remove_nic => ok\n", 3, 1, "real Linux");
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
    at("A: f = open nothing r => ENOENT\nA: read f 0 4KiB", 4, "`f` is not there: the step that makes it failed");
    let blocked = "A: f = open data rw\nA: lease f read\nB: truncate data 0 => blocks";
    at(&format!("{blocked}\nB: exit"), 6, "still in the call of line 5");
    at(&format!("{blocked}\nA: unlock f\nB: exit"), 7, "has come to `ok`");
    at(&format!("{blocked}\nA.2: exit\nA: exit"), 7, "is dead");
    at("A: exit => ok\nB.2: exit", 4, "does not exist yet");
}

/// A file whose last step leaves a call without a stated end fails alone: others are run.
#[test]
fn a_call_that_is_left_over_fails_its_scenario_alone() {
    let entries = DesignCatalogue::default().resolve("kara").unwrap();
    let blocked = "A: f = open data rw\nA: lease f read\nB: truncate data 0 => blocks";
    let texts = [
        with_body(blocked),
        with_body(&format!("{blocked}\nA: unlock f")).replace("T1", "T2"),
        with_body("A: truncate data 0 => ok").replace("T1", "T3"),
    ];
    let all: Vec<Scenario> = texts.iter().map(|text| parse(text).unwrap()).collect();
    let report = scenarios::run_simulated(&all, &entries).unwrap();
    let verdicts: Vec<CellVerdict> = report.scenarios.iter().map(|row| row.cells[0].verdict).collect();
    assert_eq!(verdicts, [CellVerdict::Failed, CellVerdict::Failed, CellVerdict::Passed]);
    let failure = |n: usize| report.scenarios[n].cells[0].failure.clone().unwrap();
    assert_eq!((failure(0).line, failure(0).got.as_str()), (5, "blocks lease break"));
    assert!(failure(0).expected.contains("`expect stuck B`"), "{:?}", failure(0));
    assert_eq!((failure(1).line, failure(1).got.as_str()), (5, "ok"));
    assert!(failure(1).expected.contains("`returns`"), "{:?}", failure(1));
}

/// `expect stuck` is about for ever: a wait with an end, however late, is none.
#[test]
fn a_call_can_be_stated_to_be_blocked_for_ever() {
    let body = "A: f = open data rw\nA: lease f read -> ok | EINVAL n/a @lease_rules=none\nB: truncate data 0 => blocks
        expect stuck B\nexpect size data -> 64KiB";
    let report = run(&with_body(body), "all").unwrap();
    let cell = |name: &str| report.scenarios[0].cells.iter().find(|cell| cell.design == name).unwrap();
    assert_eq!(cell("mainline").verdict, CellVerdict::NotApplicable);
    let timed_out = cell("kara").failure.as_ref().unwrap();
    assert_eq!((timed_out.line, timed_out.expected.as_str(), timed_out.got.as_str()), (6, "stuck", "ok"));
    let mut catalogue = DesignCatalogue::default();
    let text = "[[design]]\nname = \"mine\"\nbase = \"kara\"\nbreak_timeout = \"never\"\n";
    let never = catalogue.add(&Source::new("mine.toml", text)).unwrap().to_vec();
    let report = scenarios::run_simulated(&[parse(&with_body(body)).unwrap()], &never).unwrap();
    assert_eq!(report.count(CellVerdict::Passed), 1, "{report:#?}");
    let later = with_body(&format!("{body}\nA: unlock f\nB: returns -> ok"));
    let report = scenarios::run_simulated(&[parse(&later).unwrap()], &never).unwrap();
    let failure = report.scenarios[0].cells[0].failure.as_ref().unwrap();
    assert_eq!((failure.line, failure.got.as_str()), (6, "its call returned later"));
    let report = run(&with_body("A: truncate data 0 => ok\nexpect stuck A"), "kara").unwrap();
    assert_eq!(report.scenarios[0].cells[0].failure.as_ref().unwrap().got, "no call in progress");
}

#[test]
fn an_id_is_given_once() {
    let named = |name: &str, id: &str| {
        let text = format!("# {id}: x\nA: exit => ok\n");
        Scenario::parse(&Source::new(name, text), &[]).unwrap()
    };
    let error = scenarios::check_ids(&[named("a.scn", "T1"), named("b.scn", "T2"), named("c.scn", "t1")]).unwrap_err();
    assert_eq!((error.source_name(), error.line(), error.column()), (Some("c.scn"), Some(1), Some(3)), "{error}");
    assert!(error.help_text().unwrap().contains("the first is at a.scn:1:3"), "{error}");
    assert!(scenarios::check_ids(&[named("a.scn", "T1"), named("b.scn", "T2")]).is_ok());
}

#[test]
fn an_option_of_the_volume_is_set_once() {
    wrong(&with_body("volume size=4MiB\nvolume memlock=4KiB size=8MiB"), 4, 21, "`size` is set a second time");
    wrong(&with_body("volume size=4MiB size=8MiB"), 3, 18, "`size` is set a second time");
    let error = parse(&with_body("volume size=4MiB\nvolume size=8MiB")).unwrap_err();
    assert!(error.help_text().unwrap().contains("line 3, column 8"), "{error}");
}

/// The words about power: each wrong one is shown where it stands, with what could stand there.
#[test]
fn wrong_words_about_power_are_shown_where_they_stand() {
    let told = |body: &str, line: usize, column: usize, words: &str| {
        let error = parse(&with_body(body)).unwrap_err();
        assert_eq!((error.line(), error.column()), (Some(line), Some(column)), "{error}");
        assert!(error.to_string().contains(words), "{words}: {error}");
    };
    told("volume platform=ard", 3, 17, "adr");
    told("volume platfrom=adr", 3, 8, "platform");
    told("volume platform=adr platform=adr", 3, 21, "set a second time");
    let mapped = "A: f = open data rw\nA: m = mmap f 0 64KiB\n";
    told(&format!("{mapped}A: persist_map f 0 64B"), 5, 16, "mapping");
    told(&format!("{mapped}A: persist_mr m 0 64B"), 5, 15, "region");
    told(&format!("{mapped}A: fsync m"), 5, 10, "an open file is needed here");
    told(&format!("{mapped}A: msync m -1 4KiB"), 5, 12, "-1");
    told("system: persist data 0 -> ok", 3, 9, "LENGTH");
    told("system: persist data 0 4KiB 1 -> ok", 3, 29, "1");
    told("expect unfulshed data => 0", 3, 8, "unflushed");
    let huge =
        "system: persist data 0 18446744073709551615B -> ok\nsystem: persist data 18446744073709551615B 2B => EINVAL";
    let report = run(&with_body(huge), "kara").unwrap();
    assert_eq!(report.count(CellVerdict::Passed), 1, "{report:#?}");
}

#[test]
fn a_file_without_room_is_shown_where_its_size_stands() {
    let text = "# T: x\nfile a 3MiB\nfile hole 512MiB hole\nfile b 2MiB unwritten\nvolume size=4MiB\nA: exit => ok\n";
    wrong(text, 4, 8, "the file `b` does not fit");
    assert!(parse(&text.replace("4MiB", "6MiB")).is_ok());
    // All of the device can be used.
    let whole = run("# T: x\nvolume size=4MiB\nfile a 4MiB\nA: stat a => ok 4MiB\n", "kara").unwrap();
    assert_eq!(whole.count(CellVerdict::Passed), 1, "{whole:#?}");
}

#[test]
fn a_return_from_a_call_that_blocks_under_no_design_is_an_error() {
    wrong_body("A: truncate data 0 => ok\nA: returns -> ok", 1, "A's call of line 3 blocks under no design");
    let twice = "A: truncate data 0 => blocks @kara | ok\nA: returns -> ok\nA: returns -> ok";
    wrong_body(twice, 1, "A's call of line 4 blocks under no design");
    let guarded = "when @kara A: truncate data 0 => blocks\nwhen @!kara A: stat data => ok\nA: returns -> ok";
    assert!(parse(&with_body(guarded)).is_ok());
    let still = "A: truncate data 0 => blocks\nA: returns -> blocks\nA: returns -> ok";
    assert!(parse(&with_body(still)).is_ok());
}

/// As docs/scenarios.md says: by process, kind and range, all of them as text.
#[test]
fn leases_are_listed_in_the_order_of_their_words() {
    let lease = |who: &str, kind: &str, at: &str| format!("{who}: lease f{} {kind} {at} 16KiB\n", who.to_lowercase());
    let opens = "B: fb = open data rw\nA: fa = open data rw\n".to_owned();
    let leases =
        [("B", "read", "32KiB"), ("A", "read", "16KiB"), ("A", "read unbreakable", "48KiB"), ("A", "read", "0")];
    let body = opens + &leases.map(|(who, kind, at)| lease(who, kind, at)).concat();
    let listed = "expect leases data => A:read+U[12..16) A:read[0..4) A:read[4..8) B:read[8..12)";
    let report = run(&with_body(&(body.clone() + listed)), "kara").unwrap();
    let seen = report.scenarios[0].cells[0].failure.as_ref().map(|failure| failure.got.clone());
    assert_eq!(seen, None);
    let other = listed.replace("A:read[0..4) A:read[4..8)", "A:read[4..8) A:read[0..4)");
    let report = run(&with_body(&(body + &other)), "kara").unwrap();
    assert_eq!(report.count(CellVerdict::Failed), 1, "the order counts");
}

/// Linux has one number under two names.
#[test]
fn ewouldblock_is_eagain() {
    let body = "A: f = open data rw\nA: setlease f read => EWOULDBLOCK";
    let report = run(&with_body(body), "kara").unwrap();
    assert_eq!(report.count(CellVerdict::Passed), 1, "{report:#?}");
}

#[test]
fn a_process_starts_when_it_is_first_named() {
    let body =
        "A: f = open data r\nA: send D f\nA: close f\nD: g = recv\nD: read g 0 4KiB => ok a\nexpect process D -> alive";
    let report = run(&with_body(body), "kara").unwrap();
    assert_eq!(report.count(CellVerdict::Passed), 1, "{report:#?}");
    wrong_body("A: f = open data r\nA: send d f", 9, "unknown process `d`");
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

/// The tables of docs/semantics.md, section 6, list every built-in scenario by its title.
#[test]
fn the_tables_of_scenarios_are_those_of_the_files() {
    const HEAD: &str = "| id | what it plays |\n|---|---|\n";
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/semantics.md");
    let page = std::fs::read_to_string(path).unwrap();
    let names: Vec<&str> = presets().iter().map(|preset| preset.name).collect();
    let all = scenarios::built_in(&names).unwrap();
    let mut rewritten = page.clone();
    let mut listed = 0;
    for (at, _) in page.match_indices(HEAD) {
        let letter = page[..at].trim_end().rsplit("\n**").next().unwrap().chars().next().unwrap();
        let mine = all.iter().filter(|scenario| scenario.id.starts_with(letter));
        let rows: String =
            mine.map(|scenario| format!("| {} | {} |\n", scenario.id, scenario.title.replace('|', "\\|"))).collect();
        listed += rows.lines().count();
        let old: String =
            page[at + HEAD.len()..].split_inclusive('\n').take_while(|line| line.starts_with('|')).collect();
        rewritten = rewritten.replacen(&format!("{HEAD}{old}"), &format!("{HEAD}{rows}"), 1);
    }
    if std::env::var_os("DAXLAB_WRITE_REFERENCE").is_some() {
        std::fs::write(path, rewritten).unwrap();
        return;
    }
    assert_eq!(listed, all.len(), "each scenario stands in one table");
    assert!(rewritten == page, "docs/semantics.md is out of date: run this test with DAXLAB_WRITE_REFERENCE=1");
}
