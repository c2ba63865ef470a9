//! Reports one scenario under three designs, as text for people and as JUnit XML for a CI system.

use reports::scenarios::{self, CellFailure, CellVerdict, ScenarioCell, ScenarioReport, ScenarioRow};

fn cell(design: &str, verdict: CellVerdict, outcome: &str, failure: Option<CellFailure>) -> ScenarioCell {
    ScenarioCell { design: design.to_owned(), verdict, outcome: outcome.to_owned(), failure }
}

fn main() -> Result<(), std::fmt::Error> {
    let designs = ["rfc-v2", "mainline", "odp"].map(str::to_owned).to_vec();
    let mut report = ScenarioReport::new("simulation", designs);
    let failure = CellFailure {
        line: 7,
        text: "B: truncate data 0 => ok".to_owned(),
        expected: "ok".to_owned(),
        got: "ETXTBSY".to_owned(),
        state: vec!["inode 1: lease A read+U, 1 pin".to_owned()],
    };
    report.scenarios.push(ScenarioRow {
        id: "S14".to_owned(),
        title: "truncate a pinned page".to_owned(),
        file: "s14.scn".to_owned(),
        cells: vec![
            cell("rfc-v2", CellVerdict::Passed, "ETXTBSY", None),
            cell("mainline", CellVerdict::NotApplicable, "EOPNOTSUPP", None),
            cell("odp", CellVerdict::Failed, "", Some(failure)),
        ],
    });
    println!("{}", scenarios::text(&report, 100));
    println!("{}", scenarios::junit(&report)?);
    Ok(())
}
