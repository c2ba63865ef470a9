//! The house rules that no compiler checks: imports run down only, only the concurrency facade
//! names the originals, each module says what it owns, comments are plain, type names are unique,
//! and no dependency is unused.
//!
//! Each check is a function over a crate's sources, with unit tests on small trees beside it; this
//! file runs them on the real tree. An error names the file, the line and what to do.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

mod dependencies;
mod imports;
mod names;
mod prose;
mod source;

use std::fs;
use std::path::PathBuf;

use source::{CrateSources, SourceFile, files, paths};

/// The library crates, each with the crates that it may import.
const CRATES: [(&str, &[&str]); 6] = [
    ("emulator", &[]),
    ("fs-sim", &["emulator"]),
    ("rdma-sim", &["emulator", "fs_sim"]),
    ("guests", &["emulator"]),
    ("reports", &[]),
    ("workloads", &["emulator", "fs_sim", "rdma_sim", "guests", "reports"]),
];

/// The longest file, in lines.
const FILE_LINES_MAX: usize = 800;

/// The longest function, in lines: about one screen.
const FUNCTION_LINES_MAX: usize = 75;

/// The folder of the workspace. A test program that is run by hand checks the tree that
/// `CARGO_MANIFEST_DIR` names.
fn root() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into()).into()
}

/// The library crates.
fn libraries() -> impl Iterator<Item = CrateSources> {
    CRATES.iter().map(|(dir, _)| CrateSources::read(&root(), dir))
}

/// The library crates and the package of the command.
fn packages() -> impl Iterator<Item = CrateSources> {
    libraries().chain([CrateSources::read(&root(), "")])
}

/// Fails with all errors, one a line.
fn assert_none(rule: &str, errors: &[String]) {
    assert!(errors.is_empty(), "{rule}; errors: {}\n{}\n", errors.len(), errors.join("\n"));
}

#[test]
fn crates_import_down_only() {
    let others: Vec<String> =
        CRATES.iter().map(|(dir, _)| dir.replace('-', "_")).chain(["daxlab".to_owned()]).collect();
    let others: Vec<&str> = others.iter().map(String::as_str).collect();
    let errors: Vec<String> =
        libraries().zip(CRATES).flat_map(|(sources, (_, may))| imports::crate_errors(&sources, &others, may)).collect();
    assert_none("crates import the crates below them only", &errors);
}

#[test]
fn layers_are_listed_in_lib_rs() {
    let errors: Vec<String> = libraries().flat_map(|sources| imports::list_errors(&sources)).collect();
    assert_none("lib.rs lists the crate's folders, bottom first", &errors);
}

#[test]
fn layers_import_down_only() {
    let errors: Vec<String> = libraries().flat_map(|sources| imports::layer_errors(&sources)).collect();
    assert_none("a layer imports the layers below it only", &errors);
}

#[test]
fn folders_do_not_import_each_other() {
    let errors: Vec<String> = libraries().flat_map(|sources| imports::circle_errors(&sources)).collect();
    assert_none("folders do not import each other in a circle", &errors);
}

#[test]
fn files_of_a_folder_import_each_other_only_where_its_head_says_why() {
    let errors: Vec<String> = libraries().flat_map(|sources| imports::file_circle_errors(&sources)).collect();
    assert_none("files of a folder do not import each other in a circle", &errors);
}

/// The places of a file that name what only the facade may name.
fn originals(shown: &str, file: &SourceFile) -> Vec<String> {
    let named = |segments: &[String]| {
        let part = |at: usize| segments.get(at).map_or("", String::as_str);
        match (part(0), part(1)) {
            ("std", "sync") => part(2) == "atomic",
            ("std", "thread") => part(2) != "panicking",
            (first, _) => first == "loom" || first == "shuttle",
        }
    };
    let outside = paths(file, false).into_iter().filter(|path| path.segments.len() > 1 && named(&path.segments));
    outside.map(|path| format!("{shown}:{}: `{}`: use emulator::runtime::sync", path.line, path.shown())).collect()
}

#[test]
fn only_the_facade_names_the_originals() {
    let mut errors = Vec::new();
    for sources in libraries() {
        for file in sources.shipped() {
            let shown = sources.shown(file);
            if !shown.starts_with("emulator/src/runtime/sync") {
                errors.extend(originals(&shown, file));
            }
        }
    }
    assert_none("only emulator::runtime::sync names atomics, threads, loom and shuttle", &errors);
}

#[test]
fn an_original_outside_the_facade_is_found() {
    let lines = |text: &str| {
        let sources = CrateSources::new("house", [("src/a.rs".to_owned(), text.to_owned())]);
        originals("a", &sources.files[0]).len()
    };
    assert_eq!(lines("use std::{sync::{atomic::AtomicU64, Arc}, thread};"), 2);
    assert_eq!(lines("fn f() { std::thread::spawn(g); assert!(loom::x() && std::thread::panicking()); }"), 2);
    assert_eq!(lines("use crate::runtime::sync::thread; fn f() { thread::spawn(g); }"), 0);
    assert_eq!(lines("#[cfg(test)] mod tests { use std::thread; }"), 0);
}

#[test]
fn every_module_says_what_it_owns() {
    let mut errors = Vec::new();
    for sources in packages() {
        let silent = sources.files.iter().filter(|file| !file.text.starts_with("//!"));
        errors.extend(silent.map(|file| format!("{}:1: does not open with //!", sources.shown(file))));
    }
    assert_none("every module says what it owns", &errors);
}

#[test]
fn files_stay_readable() {
    let mut errors = Vec::new();
    for sources in packages() {
        for file in &sources.files {
            let lines = file.text.lines().count();
            if lines > FILE_LINES_MAX {
                errors.push(format!("{}:{lines}: more than {FILE_LINES_MAX} lines. Split it", sources.shown(file)));
            }
        }
    }
    assert_none("files stay readable", &errors);
}

#[test]
fn functions_fit_a_screen() {
    let mut errors = Vec::new();
    for sources in packages() {
        for file in sources.shipped() {
            for (line, name, lines) in prose::long_functions(file, FUNCTION_LINES_MAX) {
                errors.push(format!("{}:{line}: `{name}` has {lines} lines. Split it", sources.shown(file)));
            }
        }
    }
    assert_none("functions have at most 75 lines", &errors);
}

#[test]
fn comments_end_by_column_100() {
    let mut errors = Vec::new();
    for path in files(&root(), &[".rs"]) {
        let text = fs::read_to_string(&path).unwrap();
        let shown = path.strip_prefix(root()).unwrap().display();
        let wide = prose::wide_comments(&text);
        errors.extend(wide.iter().map(|(line, columns)| format!("{shown}:{line}: ends at column {columns}")));
    }
    assert_none("comment lines end by column 100", &errors);
}

#[test]
fn comments_name_the_actor() {
    let words = prose::hidden_actors();
    let mut places = Vec::new();
    for path in files(&root(), &[".rs"]) {
        let text = fs::read_to_string(&path).unwrap();
        let shown = path.strip_prefix(root()).unwrap().display();
        let found = prose::word_places(&text, &words);
        places.extend(
            found.iter().map(|(line, word)| format!("{shown}:{line}: {word}: name the task, process or guest")),
        );
    }
    if places.len() > prose::HIDDEN_ACTORS_MAX {
        assert_none("comments say who acts (at most 40 exceptions in all)", &places);
    }
}

#[test]
fn each_type_name_is_used_once() {
    let crates: Vec<CrateSources> = packages().collect();
    assert_none("a type name says what the value is without its path", &names::repeated_types(&crates));
}

#[test]
fn no_dependency_is_unused() {
    let mut errors = Vec::new();
    let mut manifests = Vec::new();
    for sources in packages() {
        let manifest = fs::read_to_string(root().join(&sources.dir).join("Cargo.toml")).unwrap();
        errors.extend(dependencies::unused(&manifest, &sources));
        manifests.push(manifest);
    }
    let workspace = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    errors.extend(dependencies::unused_in_workspace(&workspace, &manifests));
    assert_none("no dependency is unused", &errors);
}

#[test]
fn each_library_has_a_readme_and_three_examples() {
    let mut errors = Vec::new();
    for (dir, _) in CRATES {
        if !root().join(dir).join("README.md").exists() {
            errors.push(format!("{dir}/README.md: missing"));
        }
        let examples = files(&root().join(dir).join("examples"), &[".rs"]).len();
        if examples < 3 {
            errors.push(format!("{dir}/examples/: {examples} of at least 3 examples"));
        }
    }
    assert_none("each library has a README and three examples", &errors);
}

#[test]
fn no_behaviour_reads_a_designs_name() {
    // fs-sim, rdma-sim and the race get axes; the presets' names stand in the catalogue and in
    // tests only.
    // `revoke` is also a request of `daxlab ctl`.
    let presets = fs_sim::design::presets().iter().filter(|preset| preset.name != "revoke");
    let presets: Vec<String> = presets.map(|preset| format!("{:?}", preset.name)).collect();
    let mut errors = Vec::new();
    for sources in libraries().filter(|sources| sources.dir != "reports") {
        for file in sources.shipped() {
            let shown = sources.shown(file);
            if shown.starts_with("fs-sim/src/design/") {
                continue;
            }
            let code = file.text.split("#[cfg(test)]").next().unwrap_or_default();
            let code = code.split("#[cfg(all(test").next().unwrap_or_default();
            for (at, line) in code.lines().enumerate() {
                let code = line.split("//").next().unwrap_or_default();
                let named = presets.iter().filter(|preset| code.contains(preset.as_str()));
                errors.extend(named.map(|preset| format!("{shown}:{}: names the design {preset}", at + 1)));
            }
        }
    }
    assert_none("behaviour comes from axes, not from a design's name", &errors);
}

#[test]
fn texts_carry_no_trace_of_a_machine() {
    // Spelled in parts, so that this file does not find itself.
    let traces = [concat!("/ro", "ot/"), concat!("/wo", "rk/"), concat!("/ho", "me/"), concat!("/tmp/ta", "rget")];
    let mut errors = Vec::new();
    for path in files(&root(), &[".rs", ".md", ".toml", ".scn", ".json", "Makefile", ".html"]) {
        let text = fs::read_to_string(&path).unwrap();
        let found = traces.iter().filter(|trace| text.contains(**trace));
        errors.extend(found.map(|trace| format!("{} contains {trace}", path.strip_prefix(root()).unwrap().display())));
    }
    assert_none("texts carry no trace of a machine", &errors);
}
