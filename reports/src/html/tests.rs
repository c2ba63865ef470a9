//! The page is complete, escaped, self-contained and small.

use super::*;
use crate::hdr::sample;
use crate::result::JobSummary;
use crate::result::sample::finding;

/// Checks that every element is closed, in the right order.
fn assert_well_formed(page: &str) {
    const VOID: [&str; 3] = ["meta", "input", "br"];
    let style = page.find("<style>").unwrap()..page.find("</style>").unwrap();
    let mut open: Vec<String> = Vec::new();
    for (at, _) in page.match_indices('<').filter(|(at, _)| !style.contains(at)) {
        let tag = &page[at + 1..at + page[at..].find('>').unwrap()];
        let name: String = tag.trim_start_matches('/').chars().take_while(char::is_ascii_alphanumeric).collect();
        if tag.starts_with('!') || tag.ends_with('/') || VOID.contains(&name.as_str()) {
            continue;
        }
        if tag.starts_with('/') {
            let last = open.pop();
            // The start tag of the style element was skipped together with its contents.
            if name != "style" {
                assert_eq!(last.as_deref(), Some(name.as_str()), "near {}", &page[at.saturating_sub(80)..at]);
            } else {
                open.extend(last);
            }
        } else {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "left open: {open:?}");
}

#[test]
fn the_page_is_complete_and_small() {
    let (run, latencies) = sample::run();
    let page = page(&run, &latencies).unwrap();
    assert_well_formed(&page);
    assert!(page.len() < MAX_PAGE_BYTES, "{} bytes", page.len());
    assert_eq!(page.matches("<svg").count(), 5 + 5 + 3, "all, unwaited, and waited of three operations");
    assert_eq!(page.matches("<desc").count(), 13);
    for design in &run.designs {
        assert!(page.contains(&format!("<th scope=\"row\">{}</th>", design.name)), "{}", design.name);
    }
    for verdict in RaceVerdict::ALL {
        assert!(page.contains(&format!("<li class=\"{verdict}\"><b>{verdict}</b>")), "{verdict} in words");
    }
    assert!(
        page.contains("unsafe (negative control, expected): 0 invariant(s) broken, 200 finding(s), the first 2 shown")
    );
    assert!(page.contains("… 20 older lines in result.json"));
}

#[test]
fn the_page_makes_no_request() {
    let (run, latencies) = sample::run();
    let page = page(&run, &latencies).unwrap();
    let namespaces = page.replace("http://www.w3.org/2000/svg", "");
    for forbidden in
        ["http:", "https:", "<script", "<link", "<img", "<iframe", "@import", "url(", "src=", "href=", "javascript:"]
    {
        assert!(!namespaces.contains(forbidden), "{forbidden}");
    }
}

#[test]
fn everything_from_a_result_is_escaped() {
    let evil = "</style><script>alert('x')</script>&\"";
    let (mut run, mut latencies) = sample::run();
    run.job.name = evil.to_owned();
    run.job.parameters.insert(evil.to_owned(), evil.to_owned());
    for design in &mut run.designs {
        design.name = evil.to_owned();
        design.axes.insert(evil.to_owned(), evil.to_owned());
        design.push_violation(evil);
        let mut finding = finding(1);
        finding.kind = evil.to_owned();
        finding.region = evil.to_owned();
        finding.old_owner = evil.to_owned();
        finding.new_owner = evil.to_owned();
        finding.detail = evil.to_owned();
        finding.trace = vec![evil.to_owned()];
        design.findings = vec![finding];
    }
    latencies[0].record(evil, 5, true);
    run.designs[0].latency_ns = latencies[0].summaries();
    let page = page(&run, &latencies).unwrap();
    assert!(!page.contains("<script"), "a name became an element");
    assert_eq!(page.matches("</style>").count(), 1);
    assert_well_formed(&page);
}

#[test]
fn a_page_full_of_evidence_stays_small() {
    let (mut run, latencies) = sample::run();
    let long = "w".repeat(5_000);
    for design in &mut run.designs {
        (0..1_000).for_each(|_| design.push_violation(long.clone()));
        for number in 0..1_000 {
            let mut finding = finding(number);
            finding.trace = vec![long.clone(); 500];
            design.push_finding(finding);
        }
    }
    let page = page(&run, &latencies).unwrap();
    assert!(page.len() < MAX_PAGE_BYTES, "{} bytes", page.len());
}

#[test]
fn a_run_without_designs_has_a_page() {
    let mut run = RunResult::new(1, JobSummary::new("none", 0, 1));
    run.interrupted = true;
    let empty = page(&run, &[]).unwrap();
    assert_well_formed(&empty);
    assert!(empty.contains("The run was interrupted") && empty.contains("No call times were recorded."));
    run.designs.push(DesignResult::new("idle", RaceVerdict::Safe));
    assert_well_formed(&page(&run, &[]).unwrap());
}
