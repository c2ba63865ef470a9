//! What the tests of the command share: running it, and reading the result it wrote.

#![allow(dead_code, reason = "each test file uses its part")]

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

/// The built command.
pub(crate) fn daxlab() -> Command {
    Command::new(env!("CARGO_BIN_EXE_daxlab"))
}

/// Runs `daxlab race` with `args`, writing into `out`.
pub(crate) fn race(out: &Path, args: &[&str]) -> Output {
    daxlab().arg("race").args(args).arg("--out").arg(out).output().expect("the command starts")
}

/// The result in `out`.
pub(crate) fn result(out: &Path) -> Value {
    let text = std::fs::read_to_string(out.join("result.json")).expect("a result was written");
    serde_json::from_str(&text).expect("the result is JSON")
}

/// The designs of a result, by name.
pub(crate) fn designs(result: &Value) -> Vec<(String, &Value)> {
    let designs = result["designs"].as_array().expect("designs[]");
    designs.iter().map(|design| (design["name"].as_str().expect("a name").to_owned(), design)).collect()
}

/// One counter of a design.
pub(crate) fn counter(design: &Value, name: &str) -> u64 {
    design["counters"][name].as_u64().unwrap_or_else(|| panic!("no counter {name} in {design}"))
}

/// Whether the long tiers run: in `make test`, with optimised code.
pub(crate) fn slow() -> bool {
    std::env::var_os("DAXLAB_SLOW").is_some()
}
