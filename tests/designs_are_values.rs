//! No code reads a design's name: what corrupts is an axis, whatever the design is called.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

mod common;

use std::collections::BTreeMap;
use std::fs;

use common::{counter, designs, race, result, slow};
use fs_sim::design::{Axis, further_presets, presets};
use serde_json::Value;

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

/// A design file for each preset and each value of an axis that the preset doesn't have, where the
/// axes can stand together: its text, and what each design changes, by name.
fn presets_with_one_axis_changed(axes: &[Axis]) -> (String, BTreeMap<String, String>) {
    let mut text = String::new();
    let mut variants = BTreeMap::new();
    for preset in presets().iter().chain(further_presets()) {
        for (&axis, choice) in axes.iter().flat_map(|axis| axis.choices().into_iter().map(move |choice| (axis, choice)))
        {
            let mut changed = preset.axes;
            changed.set(axis, choice).unwrap();
            if choice == preset.axes.get(axis) || changed.check().is_err() {
                continue;
            }
            let name = format!("{}.{}", preset.name, variants.len());
            text += &format!("[[design]]\nname = \"{name}\"\nbase = \"{}\"\n{axis} = \"{choice}\"\n", preset.name);
            variants.insert(name, format!("{} with {axis} = {choice}", preset.name));
        }
    }
    (text, variants)
}

/// The outcomes of scenarios are stated by axis values: they hold for every preset in which one
/// axis has another value, and for the further presets. `cargo test` changes the axes that a design
/// file may leave out, `make test` each of the sixteen.
#[test]
fn the_suite_passes_where_one_axis_differs() {
    let later = |axis: &Axis| axis.choice_if_unstated().is_some();
    let axes: Vec<Axis> = Axis::ALL.into_iter().filter(|axis| slow() || later(axis)).collect();
    let (text, variants) = presets_with_one_axis_changed(&axes);
    let at_least = if slow() { 350 } else { 60 };
    assert!(variants.len() >= at_least, "{} designs", variants.len());
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("variants.toml");
    fs::write(&file, text).unwrap();
    let list = format!("mainline-6.12,{}", file.to_str().unwrap());
    let args = ["scenario", "run", "--format", "json", "-j", "2", "--design", &list];
    let run = common::daxlab().args(args).output().unwrap();
    let stderr = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.code().is_some_and(|code| code <= 1), "{stderr}\n{variants:#?}");
    let report: Value = serde_json::from_slice(&run.stdout).unwrap();
    let mut failed = Vec::new();
    for row in report["scenarios"].as_array().unwrap() {
        let cells = row["cells"].as_array().unwrap();
        assert_eq!(cells.len(), variants.len() + 1);
        for cell in cells.iter().filter(|cell| cell["verdict"] != "passed" && cell["verdict"] != "not_applicable") {
            let name = cell["design"].as_str().unwrap();
            failed.push(format!("{} under {}: {cell}", row["id"], variants.get(name).map_or(name, String::as_str)));
        }
    }
    assert!(failed.is_empty() && run.status.success(), "{failed:#?}");
}
