//! No dependency is unused: what a `Cargo.toml` asks for is named by a path in the sources that it
//! serves.

use std::collections::BTreeSet;

use toml::Table;

use crate::source::{CrateSources, PathOrigin, paths};

/// The names below `key` of a manifest, also in its `[target.…]` tables.
fn dependencies(manifest: &Table, key: &str) -> BTreeSet<String> {
    let targets = manifest.get("target").and_then(toml::Value::as_table);
    let tables = targets.into_iter().flat_map(Table::values).filter_map(toml::Value::as_table);
    let lists = tables.chain([manifest]).filter_map(|table| table.get(key)?.as_table());
    lists.flat_map(Table::keys).cloned().collect()
}

/// The first parts of all paths in the sources, without (`shipped`) or with the tests, examples and
/// benches.
fn named(sources: &CrateSources, shipped: bool) -> BTreeSet<String> {
    let files =
        sources.files.iter().filter(|file| !shipped || file.path.starts_with("src/") && !sources.is_test_file(file));
    files
        .flat_map(|file| paths(file, !shipped))
        .filter(|path| path.segments.len() > 1 || matches!(path.origin, PathOrigin::Use { .. }))
        .filter_map(|path| path.segments.into_iter().next())
        .collect()
}

/// Whether a documentation test of the sources names a crate.
fn in_documentation(sources: &CrateSources, name: &str) -> bool {
    let path = format!("{name}::");
    let mut lines = sources.files.iter().flat_map(|file| file.text.lines()).map(str::trim_start);
    lines.any(|line| (line.starts_with("///") || line.starts_with("//!")) && line.contains(&path))
}

/// The dependencies of a crate that nothing names.
pub(crate) fn unused(manifest: &str, sources: &CrateSources) -> Vec<String> {
    let manifest: Table = manifest.parse().unwrap_or_else(|error| panic!("{}/Cargo.toml: {error}", sources.dir));
    let place = if sources.dir.is_empty() { "Cargo.toml".to_owned() } else { format!("{}/Cargo.toml", sources.dir) };
    let (shipped, all) = (named(sources, true), named(sources, false));
    let mut errors = Vec::new();
    for dependency in dependencies(&manifest, "dependencies") {
        if !shipped.contains(&dependency.replace('-', "_")) {
            errors.push(format!("{place}: no code of src/ names the dependency `{dependency}`. Remove it"));
        }
    }
    for dependency in dependencies(&manifest, "dev-dependencies") {
        let name = dependency.replace('-', "_");
        if !all.contains(&name) && !in_documentation(sources, &name) {
            errors
                .push(format!("{place}: no test, example or bench names the dev-dependency `{dependency}`. Remove it"));
        }
    }
    errors
}

/// The entries of `[workspace.dependencies]` that no member takes.
pub(crate) fn unused_in_workspace(root: &str, members: &[String]) -> Vec<String> {
    let manifests: Vec<Table> = members.iter().map(|text| text.parse().unwrap()).collect();
    let lists = ["dependencies", "dev-dependencies", "build-dependencies"];
    let taken: BTreeSet<String> =
        manifests.iter().flat_map(|table| lists.iter().flat_map(|key| dependencies(table, key))).collect();
    let root: Table = root.parse().unwrap();
    let workspace = root.get("workspace").and_then(toml::Value::as_table).cloned().unwrap_or_default();
    dependencies(&workspace, "dependencies")
        .difference(&taken)
        .map(|name| format!("Cargo.toml: no crate takes `{name}` of [workspace.dependencies]. Remove it"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = "[dependencies]\nused-one.workspace = true\n[target.'cfg(x)'.dependencies]\nother = \"1\"\n\
                            [dev-dependencies]\nchecker = \"1\"\n";

    fn sources(src: &str, test: &str) -> CrateSources {
        let files = [("src/lib.rs", src), ("tests/t.rs", test)];
        CrateSources::new("house", files.map(|(path, text)| (path.to_owned(), text.to_owned())))
    }

    #[test]
    fn an_unused_dependency_is_found() {
        let good = "use used_one::{a, b};\nfn f() { println!(\"{}\", other::g()); }";
        assert_eq!(unused(MANIFEST, &sources(good, "use checker::x;")), Vec::<String>::new());
        let more = MANIFEST.replace("[target", "idle-crate = \"1\"\n[target");
        assert_eq!(
            unused(&more, &sources(good, "use checker::x;")),
            ["house/Cargo.toml: no code of src/ names the dependency `idle-crate`. Remove it"]
        );
        let found = unused(MANIFEST, &sources("// used_one::a\nfn f(other: u8) -> u8 { other }", "fn checker() {}"));
        assert_eq!(found.len(), 3, "comments and variables are no use: {found:?}");
    }

    #[test]
    fn tests_do_not_serve_a_dependency_of_src() {
        let tests_only = "#[cfg(test)] mod tests { use used_one::a; }\n#[derive(other::Trait)] struct S;";
        assert_eq!(unused(MANIFEST, &sources(tests_only, "use checker::x; use used_one::b;")).len(), 1);
        let documented = "//! ```\n//! checker::check();\n//! ```\nuse used_one; fn f() -> other::T { }";
        assert_eq!(unused(MANIFEST, &sources(documented, "")), Vec::<String>::new());
    }

    #[test]
    fn the_workspace_lists_nothing_idle() {
        let root = "[workspace.dependencies]\nused-one = \"1\"\nidle = \"1\"\nother = \"1\"\nchecker = \"1\"\n";
        let found = unused_in_workspace(root, &[MANIFEST.to_owned()]);
        assert_eq!(found, ["Cargo.toml: no crate takes `idle` of [workspace.dependencies]. Remove it"]);
    }
}
