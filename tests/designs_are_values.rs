//! No code reads a design's name: what corrupts is an axis, whatever the design is called.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

mod common;

use std::fs;

use common::{counter, designs, race, result};
use fs_sim::design::{Axis, NOT_APPLICABLE, further_presets, presets};

fn corrupts(toml: &str) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("mine.toml");
    fs::write(&file, toml).unwrap();
    let out = dir.path().join("out");
    let run = race(&out, &["--quick", "--design", file.to_str().unwrap()]);
    assert_eq!(run.status.code(), Some(1), "a user's design that corrupts fails the run");
    let result = result(&out);
    let designs = designs(&result);
    assert_eq!(designs.len(), 1);
    assert_eq!(designs[0].1["verdict"], "corrupts");
    assert!(counter(designs[0].1, "stale_dma") > 0);
}

#[test]
fn a_copy_of_the_negative_control_corrupts_under_any_name() {
    let shown = common::daxlab().args(["designs", "unsafe"]).output().unwrap();
    let copy = String::from_utf8(shown.stdout).unwrap();
    corrupts(&copy.replace("my-unsafe", "x"));
}

#[test]
fn one_axis_alone_corrupts() {
    corrupts("name = \"almost\"\nbase = \"rfc-v2\"\nstranger_change = \"proceed\"\n");
}

/// The outcomes of scenarios are stated by axis values: they hold for every preset in which one of
/// the axes that a design file may leave out has another value, and for the further presets.
#[test]
fn the_suite_passes_where_one_later_axis_differs() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("variants.toml");
    let mut text = String::new();
    let mut variants = 0;
    for preset in presets().iter().chain(further_presets()) {
        for axis in Axis::ALL.into_iter().filter(|axis| axis.choice_if_unstated().is_some()) {
            let others = axis.choices().into_iter().filter(|&choice| choice != preset.axes.get(axis));
            for choice in others.filter(|&choice| choice != NOT_APPLICABLE) {
                variants += 1;
                text += &format!("[[design]]\nname = \"{}.{variants}\"\n", preset.name);
                text += &format!("base = \"{}\"\n{axis} = \"{choice}\"\n", preset.name);
            }
        }
    }
    assert!(variants > 60, "{variants}");
    fs::write(&file, &text).unwrap();
    let list = format!("mainline-6.12,{}", file.to_str().unwrap());
    let run = common::daxlab().args(["scenario", "run", "--format", "json", "-j", "2", "--design", &list]).output();
    let report: serde_json::Value = serde_json::from_slice(&run.unwrap().stdout).unwrap();
    let mut failed = Vec::new();
    for row in report["scenarios"].as_array().unwrap() {
        let cells = row["cells"].as_array().unwrap();
        assert_eq!(cells.len(), variants + 1);
        let bad =
            |cell: &&serde_json::Value| !["passed", "not_applicable"].contains(&cell["verdict"].as_str().unwrap());
        failed.extend(cells.iter().filter(bad).map(|cell| format!("{}: {cell}", row["id"])));
    }
    assert!(failed.is_empty(), "{failed:#?}\n{text}");
}
