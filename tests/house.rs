//! The house rules that no compiler checks: imports run down only, the concurrency facade is the only door to the
//! originals, every module says what it owns, and texts carry no trace of a machine.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// All files with one of `endings` below `dir`, without build output.
fn files(dir: &Path, endings: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && !name.starts_with("target") && name != ".git" {
                open.push(path);
            } else if endings.iter().any(|ending| name.ends_with(ending)) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The Rust sources of a crate.
fn sources(krate: &str) -> Vec<(PathBuf, String)> {
    let dir = root().join(krate);
    files(&dir, &[".rs"]).into_iter().map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

const CRATES: [&str; 5] = ["emulator", "fs-sim", "rdma-sim", "workloads", "reports"];

#[test]
fn imports_run_down_only() {
    let allowed: &[(&str, &[&str])] = &[
        ("emulator", &[]),
        ("fs-sim", &["emulator"]),
        ("rdma-sim", &["emulator", "fs_sim"]),
        ("workloads", &["emulator", "fs_sim", "rdma_sim", "reports"]),
        ("reports", &[]),
    ];
    for (krate, may) in allowed {
        for (path, text) in sources(krate) {
            for other in ["emulator", "fs_sim", "rdma_sim", "workloads", "reports", "daxlab"] {
                let own = krate.replace('-', "_");
                if other == own || may.contains(&other) {
                    continue;
                }
                let import = |line: &str| {
                    let line = line.trim_start();
                    !line.starts_with("//")
                        && (line.contains(&format!("use {other}::")) || line.contains(&format!(" {other}::")))
                };
                let found = text.lines().position(import);
                assert_eq!(found, None, "{}: {krate} must not import {other} (line index)", path.display());
            }
        }
    }
}

#[test]
fn only_the_facade_names_the_originals() {
    for krate in CRATES {
        for (path, text) in sources(krate) {
            let shown = path.strip_prefix(root()).unwrap().display().to_string();
            if shown.starts_with("emulator/src/runtime/sync")
                || shown.contains("/tests/")
                || shown.ends_with("tests.rs")
            {
                continue;
            }
            for (at, line) in text.lines().enumerate() {
                if line.contains("mod tests {") {
                    break;
                }
                for original in ["std::sync::atomic", "std::thread::", "loom::", "shuttle::"] {
                    let code = line.split("//").next().unwrap_or_default().replace("std::thread::panicking", "");
                    assert!(!code.contains(original), "{shown}:{}: {original} outside emulator::sync", at + 1);
                }
            }
        }
    }
}

#[test]
fn every_module_says_what_it_owns() {
    for krate in CRATES.iter().chain(&["src", "tests"]) {
        for (path, text) in sources(krate) {
            assert!(text.starts_with("//!"), "{} does not open with //!", path.display());
        }
    }
}

#[test]
fn files_stay_readable() {
    for krate in CRATES.iter().chain(&["src", "tests"]) {
        for (path, text) in sources(krate) {
            let lines = text.lines().count();
            assert!(lines <= 800, "{} has {lines} lines", path.display());
        }
    }
}

#[test]
fn no_behaviour_reads_a_designs_name() {
    // fs-sim, rdma-sim and the race get axes; the presets' names stand in the catalogue and in tests only.
    let presets =
        ["\"unsafe\"", "\"rfc-v2\"", "\"mainline\"", "\"kara\"", "\"gunthorpe\"", "\"odp\"", "\"chinner-2019\""];
    for krate in ["emulator", "fs-sim", "rdma-sim", "workloads"] {
        for (path, text) in sources(krate) {
            let shown = path.strip_prefix(root()).unwrap().display().to_string();
            if shown.starts_with("fs-sim/src/design/") || shown.contains("/tests/") || shown.ends_with("tests.rs") {
                continue;
            }
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            let code = code.split("#[cfg(all(test").next().unwrap_or_default();
            for (at, line) in code.lines().enumerate() {
                let code = line.split("//").next().unwrap_or_default();
                for preset in presets {
                    assert!(!code.contains(preset), "{shown}:{}: names the design {preset}", at + 1);
                }
            }
        }
    }
}

#[test]
fn texts_carry_no_trace_of_a_machine() {
    // Spelled in parts, so that this file does not find itself.
    let traces = [concat!("/ro", "ot/"), concat!("/wo", "rk/"), concat!("/ho", "me/"), concat!("/tmp/ta", "rget")];
    for path in files(&root(), &[".rs", ".md", ".toml", ".scn", ".json", "Makefile", ".html"]) {
        let text = fs::read_to_string(&path).unwrap();
        for trace in traces {
            assert!(!text.contains(trace), "{} contains {trace}", path.display());
        }
    }
}
