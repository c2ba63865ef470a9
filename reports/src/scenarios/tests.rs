//! The three formats of one small report.

use super::*;

fn report() -> ScenarioReport {
    let mut report = ScenarioReport::new("simulation", vec!["kara".into(), "odp".into(), "mainline".into()]);
    let cell = |design: &str, verdict, outcome: &str, failure| ScenarioCell {
        design: design.into(),
        verdict,
        outcome: outcome.into(),
        failure,
    };
    let failure = CellFailure {
        line: 7,
        text: "B: truncate data 0 => ok".into(),
        expected: "ok".into(),
        got: "ETXTBSY <&>".into(),
        state: vec!["inode 1: leases A:read+U".into()],
    };
    report.scenarios.push(ScenarioRow {
        id: "S14".into(),
        title: "truncate a pinned page".into(),
        file: "s14.scn".into(),
        cells: vec![
            cell("kara", CellVerdict::Failed, "", Some(failure)),
            cell("odp", CellVerdict::Passed, "ok", None),
            cell("mainline", CellVerdict::NotApplicable, "EOPNOTSUPP", None),
        ],
    });
    report
}

#[test]
fn text_shows_line_failure_matrix_and_sum() {
    let text = text(&report(), 100);
    assert!(text.starts_with("S14      FAIL  truncate a pinned page (1 passed, 1 n/a, 1 failed)\n"), "{text}");
    for part in ["s14.scn:7: B: truncate", "expected ok", "got      ETXTBSY", "inode 1: leases", "n/a", "1 scenarios"] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
}

#[test]
fn junit_counts_failures_and_skips_and_escapes() {
    let xml = junit(&report()).unwrap();
    assert!(xml.contains("tests=\"3\"") && xml.contains("failures=\"1\""), "{xml}");
    assert!(xml.contains("<skipped") && xml.contains("ETXTBSY &lt;&amp;&gt;"), "{xml}");
}

#[test]
fn json_names_every_verdict_in_words() {
    let json = serde_json::to_value(report()).unwrap();
    assert_eq!(json["scenarios"][0]["cells"][2]["verdict"], "not_applicable");
    assert_eq!(json["scenarios"][0]["cells"][0]["failure"]["line"], 7);
    assert_eq!(json["schema"], "daxlab-scenarios");
}

#[test]
fn designs_are_ranked_by_what_differs_then_by_what_agrees() {
    let ranking = KernelRanking::of("7.3.4 xfs", report());
    let order: Vec<&str> = ranking.designs.iter().map(|ranked| ranked.design.as_str()).collect();
    assert_eq!(order, ["odp", "mainline", "kara"], "n/a, as stated, agrees");
    assert_eq!(ranking.nearest().count(), 2);
    let kara = &ranking.designs[2];
    assert_eq!((kara.agreed, kara.untold, kara.differences[0].line), (0, 0, 7));
    let not_run = KernelRanking::not_run("6.12 xfs", "no QEMU".into());
    let text = DesignRanking::new(vec![ranking, not_run]).text();
    for part in ["7.3.4 xfs behaves most like odp, mainline", "no scenario that ran", "6.12 xfs: not run: no QEMU"] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
}

#[test]
fn what_did_not_run_counts_for_no_design() {
    let mut report = report();
    for cell in &mut report.scenarios[0].cells {
        cell.verdict = CellVerdict::NotRun;
    }
    report.scenarios[0].cells[0].failure.as_mut().unwrap().got = "no verbs".to_owned();
    let ranking = DesignRanking::new(vec![KernelRanking::of("7.3.4 xfs", report)]);
    assert!(!ranking.told() && ranking.text() == "7.3.4 xfs: not run: no verbs\n", "{}", ranking.text());
}
