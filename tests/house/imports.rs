//! Imports run down only: between crates, and between the layers that a crate's `lib.rs` lists.
//!
//! The list is the numbered one at the head of `lib.rs`, bottom first: ``//! 1. [`runtime`]: what
//! it is for``. A layer is a folder beside `lib.rs`. It may name itself and the layers with a lower
//! number, and nothing of the crate in another way.

use std::collections::{BTreeMap, BTreeSet};

use crate::source::{CrateSources, NamedPath, PathOrigin, SourceFile, module_path, paths};

/// The layers that `lib.rs` lists, bottom first.
pub(crate) fn listed_layers(lib: &str) -> Vec<String> {
    let line = |line: &str| {
        let (number, rest) = line.strip_prefix("//! ")?.split_once(". [`")?;
        number.parse::<u32>().ok()?;
        let (name, what) = rest.split_once("`]")?;
        what.starts_with(':').then(|| name.to_owned())
    };
    lib.lines().filter_map(line).collect()
}

/// What is wrong with a crate's list: folders it does not name, names without a folder, files
/// beside `lib.rs`.
pub(crate) fn list_errors(sources: &CrateSources) -> Vec<String> {
    let dir = &sources.dir;
    let Some(lib) = sources.files.iter().find(|file| file.path == "src/lib.rs") else {
        return vec![format!("{dir}/src/lib.rs: missing")];
    };
    let listed = listed_layers(&lib.text);
    let mut errors = Vec::new();
    if listed.is_empty() {
        errors.push(format!("{dir}/src/lib.rs:1: lists no layers. Add lines like `//! 1. [`name`]: what it is for`"));
    }
    let numbers: Vec<&str> =
        lib.text.lines().filter_map(|line| line.strip_prefix("//! ")?.split(". [`").next()).collect();
    for (at, name) in listed.iter().enumerate() {
        if !numbers.contains(&(at + 1).to_string().as_str()) {
            errors.push(format!("{dir}/src/lib.rs:1: the list of layers has no number {}", at + 1));
        }
        if !sources.files.iter().any(|file| file.path == format!("src/{name}/mod.rs")) {
            errors.push(format!("{dir}/src/lib.rs:1: layer `{name}` has no src/{name}/mod.rs"));
        }
        if listed[..at].contains(name) {
            errors.push(format!("{dir}/src/lib.rs:1: layer `{name}` is listed twice"));
        }
    }
    let mut unlisted = BTreeSet::new();
    for file in sources.files.iter().filter(|file| file.path.starts_with("src/")) {
        let below = file.path.trim_start_matches("src/");
        match below.split_once('/') {
            Some((folder, _)) if !listed.iter().any(|name| name == folder) => {
                unlisted.insert(folder.to_owned());
            }
            None if !matches!(below, "lib.rs" | "main.rs") => {
                errors.push(format!(
                    "{}:1: stands beside lib.rs. Move it into the folder of a layer",
                    sources.shown(file)
                ));
            }
            _ => {}
        }
    }
    errors
        .extend(unlisted.iter().map(|name| format!("{dir}/src/{name}/: is no layer in the list of {dir}/src/lib.rs")));
    errors
}

/// Paths that run up, or past the layers, with the place, both layers, and what to do.
pub(crate) fn layer_errors(sources: &CrateSources) -> Vec<String> {
    let Some(lib) = sources.files.iter().find(|file| file.path == "src/lib.rs") else { return Vec::new() };
    let listed = listed_layers(&lib.text);
    let level = |name: &str| listed.iter().position(|listed| listed == name);
    let macros = exported_macros(sources);
    let folders: BTreeSet<String> =
        sources.shipped().filter_map(|file| module_path(&file.path).into_iter().next()).collect();
    let mut errors = Vec::new();
    for file in sources.shipped() {
        let module = module_path(&file.path);
        // The front page names all layers; a file beside it is reported by `list_errors`.
        let Some(from) = module.first().filter(|_| file.path.matches('/').count() > 1) else { continue };
        for path in paths(file, false) {
            let Some(target) = path.path_from_root() else { continue };
            let Some(to) = target.first() else { continue };
            if to == from || macros.contains(to) {
                continue;
            }
            let what = match (level(from), level(to)) {
                (Some(own), Some(other)) if other < own => continue,
                (Some(_), Some(_)) => format!(
                    "layer `{from}` imports layer `{to}`, which stands above it in {}/src/lib.rs. Move the item into `{from}` \
                     or below, or let `{to}` implement a trait of `{from}`",
                    sources.dir
                ),
                (Some(_), None) if folders.contains(to) => {
                    format!("layer `{from}` imports `{to}`, which {}/src/lib.rs does not list as a layer", sources.dir)
                }
                (Some(_), None) => {
                    format!(
                        "layer `{from}` imports `{to}` from the crate's root. Name it by its layer: `crate::<layer>::…`"
                    )
                }
                // `list_errors` says it once.
                (None, _) => continue,
            };
            errors.push(format!("{}:{}: `{}`: {what}", sources.shown(file), path.line, path.shown()));
        }
    }
    errors
}

/// Macros that `#[macro_export]` puts at the crate's root.
fn exported_macros(sources: &CrateSources) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let all = sources.files.iter().flat_map(|file| &file.ast.items);
    for item in all {
        if let syn::Item::Macro(item) = item
            && item.attrs.iter().any(|attribute| attribute.path().is_ident("macro_export"))
        {
            names.extend(item.ident.as_ref().map(ToString::to_string));
        }
    }
    names
}

type ModulePath = Vec<String>;

/// What the modules of a crate give: which there are, and what each re-exports or imports under
/// which name.
struct ModuleIndex {
    /// Each module with its folder: that of its `mod.rs` or of the files below it, else the one it
    /// stands in.
    modules: BTreeMap<ModulePath, ModulePath>,
    names: BTreeMap<ModulePath, ModulePath>,
    globs: BTreeMap<ModulePath, Vec<ModulePath>>,
}

impl ModuleIndex {
    fn new(sources: &CrateSources) -> ModuleIndex {
        let all: BTreeSet<ModulePath> = sources.shipped().map(|file| module_path(&file.path)).collect();
        let folder = |file: &SourceFile| {
            let module = module_path(&file.path);
            let has_children = all.iter().any(|other| other.len() > module.len() && other.starts_with(&module));
            let own = has_children || file.path.ends_with("/mod.rs");
            let len = if own { module.len() } else { module.len().saturating_sub(1) };
            (module.clone(), module[..len].to_vec())
        };
        let modules = sources.shipped().map(folder).collect();
        let mut index = ModuleIndex { modules, names: BTreeMap::new(), globs: BTreeMap::new() };
        for file in sources.shipped() {
            for path in paths(file, false) {
                let PathOrigin::Use { name, .. } = &path.origin else { continue };
                let Some(target) = index.absolute(&path) else { continue };
                if name == "*" {
                    let from = target[..target.len() - 1].to_vec();
                    index.globs.entry(path.module.clone()).or_default().push(from);
                } else {
                    let mut place = path.module.clone();
                    place.push(name.clone());
                    index.names.insert(place, target);
                }
            }
        }
        index
    }

    /// A path from the crate's root, if it leads into the crate: also one that begins with a module
    /// below the own one.
    fn absolute(&self, path: &NamedPath) -> Option<ModulePath> {
        path.path_from_root().or_else(|| {
            let mut child = path.module.clone();
            child.push(path.segments.first()?.clone());
            let found = self.modules.contains_key(&child) && path.segments.len() > 1;
            found.then(|| path.module.iter().chain(&path.segments).cloned().collect())
        })
    }

    /// The module where what a path names is defined, behind re-exports.
    fn defining(&self, mut path: ModulePath) -> ModulePath {
        for _ in 0..16 {
            let known = (1..=path.len()).find_map(|len| Some((len, self.names.get(&path[..len])?)));
            let Some((len, target)) = known.filter(|(len, target)| **target != path[..*len]) else { break };
            path = target.iter().chain(&path[len..]).cloned().collect();
        }
        let len = (0..=path.len()).rev().find(|len| self.modules.contains_key(&path[..*len])).unwrap_or(0);
        path.truncate(len);
        path
    }
}

/// Circles of imports between the folders of a crate, each with the imports that close it.
///
/// A folder's `mod.rs` that re-exports what a folder below it has does not count as an import: the
/// name leads to the folder where the item is defined.
pub(crate) fn circle_errors(sources: &CrateSources) -> Vec<String> {
    let index = ModuleIndex::new(sources);
    let mut edges: BTreeMap<(ModulePath, ModulePath), Vec<String>> = BTreeMap::new();
    for file in sources.shipped().filter(|file| file.path != "src/lib.rs") {
        for path in paths(file, false) {
            let Some(target) = index.absolute(&path) else { continue };
            let from = index.modules[&module_path(&file.path)].clone();
            let Some(to) = index.modules.get(&index.defining(target)).cloned() else { continue };
            let front_page = file.path.ends_with("/mod.rs") && to.starts_with(&from);
            let re_export = matches!(path.origin, PathOrigin::Use { public: true, .. });
            if from != to && !to.is_empty() && !(front_page && re_export) {
                let place = format!("{}:{}: `{}`", sources.shown(file), path.line, path.shown());
                edges.entry((from, to)).or_default().push(place);
            }
        }
    }
    circles(&edges)
        .iter()
        .map(|circle| {
            let names: Vec<String> = circle.iter().map(|folder| folder.join("/")).collect();
            let mut lines = vec![format!("{}: these folders import each other: {}", sources.dir, names.join(", "))];
            for ((from, to), places) in &edges {
                if circle.contains(from) && circle.contains(to) {
                    let (from, to) = (from.join("/"), to.join("/"));
                    lines.push(format!("  {from} -> {to}, {} times, first {}", places.len(), places[0]));
                }
            }
            lines.join("\n")
        })
        .collect()
}

/// The words in a folder's head that begin the reason why files of the folder import each other in
/// a circle.
pub(crate) const CIRCLES_SAID: &str = "import each other";

/// Circles of imports between the files of one folder whose `mod.rs` does not say why. A folder's
/// `mod.rs` counts as a file; what it re-exports does not count as an import.
pub(crate) fn file_circle_errors(sources: &CrateSources) -> Vec<String> {
    let index = ModuleIndex::new(sources);
    let mut edges: BTreeMap<(ModulePath, ModulePath), Vec<String>> = BTreeMap::new();
    for file in sources.shipped().filter(|file| file.path != "src/lib.rs") {
        let from = module_path(&file.path);
        for path in paths(file, false) {
            let Some(target) = index.absolute(&path) else { continue };
            let to = index.defining(target);
            let one_folder = index.modules.get(&to) == index.modules.get(&from);
            let re_export = matches!(path.origin, PathOrigin::Use { public: true, .. });
            if from != to && one_folder && !re_export {
                let place = format!("{}:{}: `{}`", sources.shown(file), path.line, path.shown());
                edges.entry((from.clone(), to)).or_default().push(place);
            }
        }
    }
    let says_why = |folder: &ModulePath| {
        sources.shipped().any(|file| {
            let head = file.text.lines().take_while(|line| line.starts_with("//!"));
            let head = head.map(|line| line.trim_start_matches("//!").trim()).collect::<Vec<_>>().join(" ");
            module_path(&file.path) == *folder && head.contains(CIRCLES_SAID)
        })
    };
    let unsaid =
        circles(&edges).into_iter().filter(|circle| circle.first().is_none_or(|file| !says_why(&index.modules[file])));
    unsaid
        .map(|circle| {
            let names: Vec<String> = circle.iter().map(|file| file.join("/")).collect();
            let mut lines = vec![format!(
                "{}: these files import each other: {}. Part them, or let the head of the folder say \"{CIRCLES_SAID}\" and why",
                sources.dir,
                names.join(", ")
            )];
            for ((from, to), places) in &edges {
                if circle.contains(from) && circle.contains(to) {
                    lines.push(format!("  {} -> {}, first {}", from.join("/"), to.join("/"), places[0]));
                }
            }
            lines.join("\n")
        })
        .collect()
}

/// The strongly connected components with more than one node.
fn circles(edges: &BTreeMap<(ModulePath, ModulePath), Vec<String>>) -> Vec<BTreeSet<ModulePath>> {
    let reach = |start: &ModulePath| {
        let mut seen = BTreeSet::new();
        let mut open = vec![start.clone()];
        while let Some(node) = open.pop() {
            let next = edges.keys().filter(|(from, _)| *from == node).map(|(_, to)| to.clone());
            open.extend(next.filter(|to| seen.insert(to.clone())));
        }
        seen
    };
    let nodes: BTreeSet<ModulePath> = edges.keys().map(|(from, _)| from.clone()).collect();
    let reached: BTreeMap<ModulePath, BTreeSet<ModulePath>> =
        nodes.iter().map(|node| (node.clone(), reach(node))).collect();
    let mut found: Vec<BTreeSet<ModulePath>> = Vec::new();
    for node in &nodes {
        let back = |other: &&ModulePath| reached.get(*other).is_some_and(|reached| reached.contains(node));
        let circle: BTreeSet<ModulePath> = reached[node].iter().filter(back).cloned().collect();
        if circle.len() > 1 && !found.contains(&circle) {
            found.push(circle);
        }
    }
    found
}

/// Paths of a crate into a crate that it must not import. `others` are all crates of the workspace,
/// `may` the permitted ones.
pub(crate) fn crate_errors(sources: &CrateSources, others: &[&str], may: &[&str]) -> Vec<String> {
    let own = sources.dir.replace('-', "_");
    let forbidden = |name: &str| name != own && others.contains(&name) && !may.contains(&name);
    let mut errors = Vec::new();
    for file in &sources.files {
        let modules: BTreeSet<String> = own_names(file);
        for path in paths(file, true) {
            let first = path.segments[0].as_str();
            let names_crate = path.segments.len() > 1 || matches!(path.origin, PathOrigin::Use { .. });
            if names_crate && forbidden(first) && !modules.contains(first) {
                let place = format!("{}:{}", sources.shown(file), path.line);
                errors.push(format!("{place}: `{}`: crate `{own}` must not import `{first}`", path.shown()));
            }
        }
    }
    errors
}

/// Modules and imported names of a file: a path that begins with one of them leads to no other
/// crate.
fn own_names(file: &SourceFile) -> BTreeSet<String> {
    let mut names: BTreeSet<String> = file
        .ast
        .items
        .iter()
        .filter_map(|item| if let syn::Item::Mod(module) = item { Some(module.ident.to_string()) } else { None })
        .collect();
    for path in paths(file, true) {
        if let PathOrigin::Use { name, .. } = path.origin
            && path.segments.len() > 1
        {
            names.insert(name);
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIB: &str = "//! A crate.\n//!\n//! 1. [`low`]: ground\n//! 2. [`high`]: above\n\
                       \x2f/! 3. [`top`]: roof\npub mod low; pub mod high; pub mod top;\npub use high::Thing;\n";

    fn tree(files: &[(&str, &str)]) -> CrateSources {
        let base = [
            ("src/lib.rs", LIB),
            ("src/low/mod.rs", "//! Low.\n#[cfg(test)] mod checks;\nmod deep;"),
            ("src/high/mod.rs", "//! High.\npub struct Thing;"),
            ("src/top/mod.rs", "//! Top."),
        ];
        let rest = base.iter().filter(|(path, _)| files.iter().all(|(other, _)| other != path));
        CrateSources::new("house", rest.chain(files).map(|(path, text)| ((*path).to_owned(), (*text).to_owned())))
    }

    /// The lines of `src/low/deep.rs` that run up.
    fn lines(text: &str) -> Vec<usize> {
        let errors = layer_errors(&tree(&[("src/low/deep.rs", text)]));
        errors.iter().map(|error| error.split(':').nth(1).unwrap().parse().unwrap()).collect()
    }

    #[test]
    fn a_wrong_use_is_found_with_place_and_layers() {
        let errors = layer_errors(&tree(&[("src/low/deep.rs", "//! Deep.\n\nuse crate::high::Thing;\n")]));
        assert_eq!(
            errors,
            [
                "house/src/low/deep.rs:3: `crate::high::Thing`: layer `low` imports layer `high`, which stands above it in \
              house/src/lib.rs. Move the item into `low` or below, or let `high` implement a trait of `low`"
            ]
        );
    }

    #[test]
    fn every_way_to_name_a_layer_above_is_found() {
        assert_eq!(lines("use crate::{low::deep, high::{Thing, *}};"), [1, 1]);
        assert_eq!(lines("use crate::{\n    low,\n    high::{\n        Thing as Other,\n    },\n};"), [4]);
        assert_eq!(lines("use crate::high;"), [1]);
        assert_eq!(lines("pub use crate::high::Thing;"), [1]);
        assert_eq!(lines("use super::super::high::Thing;"), [1]);
        assert_eq!(lines("mod inner { use super::super::super::high::Thing; }"), [1]);
        assert_eq!(lines("fn f() {\n    crate::high::f();\n    let _: Vec<crate::top::T>;\n}"), [2, 3]);
        assert_eq!(lines("fn f() {\n    println!(\"{}\", g(&[crate::high::f()]));\n}"), [2]);
        assert_eq!(lines("macro_rules! m {\n    () => { $crate::high::f() };\n}"), [2]);
        assert_eq!(lines("macro_rules! m { () => { use $crate::{low::x, high::y}; } }"), [1]);
        assert_eq!(lines("#[serde(with = \"crate::high::units\")]\nstruct S;"), [1]);
        assert_eq!(lines("#[derive(crate::high::Derive)]\nstruct S;"), [1]);
        assert_eq!(lines("impl crate::top::Trait for u8 {}"), [1]);
    }

    #[test]
    fn what_runs_down_or_stays_is_fine() {
        let high =
            "use crate::low::{self, deep}; use super::low::x; use self::part::y; use std::{fmt, crate_like::high};
                    pub(in crate::high) fn f() { crate::low::f(); super::high::g(); low::f(); }";
        assert_eq!(layer_errors(&tree(&[("src/high/mod.rs", high)])), Vec::<String>::new());
        assert_eq!(
            lines(
                "use super::*; use super::other; use crate::low::other; // crate::high\n/// [`crate::high`]\nfn f() {}"
            ),
            [0_usize; 0]
        );
    }

    #[test]
    fn the_root_is_no_way_around() {
        assert_eq!(lines("use crate::Thing;"), [1]);
        assert_eq!(lines("fn f() { let _ = super::super::Thing; }"), [1]);
        let lib = format!("{LIB}#[macro_export] macro_rules! shout {{ () => {{}} }}\n");
        assert_eq!(
            layer_errors(&tree(&[("src/lib.rs", &lib), ("src/low/deep.rs", "use crate::shout;")])),
            Vec::<String>::new()
        );
    }

    #[test]
    fn tests_may_import_what_they_test() {
        assert_eq!(lines("#[cfg(test)]\nmod tests { use crate::high::Thing; }"), [0_usize; 0]);
        assert_eq!(lines("#[cfg(all(test, not(daxlab_loom)))]\nuse crate::high::Thing;"), [0_usize; 0]);
        assert_eq!(lines("#[cfg(not(test))]\nuse crate::high::Thing;"), [2]);
        assert_eq!(lines("#[cfg(any(test, daxlab_loom))]\nuse crate::high::Thing;"), [2]);
        let upward = "use crate::high::Thing;";
        for path in ["src/low/tests.rs", "src/low/deep/tests.rs", "src/low/checks.rs", "src/low/checks/more.rs"] {
            assert_eq!(layer_errors(&tree(&[(path, upward)])), Vec::<String>::new(), "{path}");
        }
        assert_eq!(layer_errors(&tree(&[("src/low/other.rs", upward)])).len(), 1);
    }

    #[test]
    fn the_list_is_the_folder_list() {
        assert_eq!(list_errors(&tree(&[])), Vec::<String>::new());
        let errors = list_errors(&tree(&[("src/flat.rs", ""), ("src/cellar/mod.rs", ""), ("src/low/deep.rs", "")]));
        assert_eq!(
            errors,
            [
                "house/src/flat.rs:1: stands beside lib.rs. Move it into the folder of a layer",
                "house/src/cellar/: is no layer in the list of house/src/lib.rs"
            ]
        );
        let lib = LIB.replace("3. [`top`]", "4. [`roof`]");
        let errors = list_errors(&tree(&[("src/lib.rs", &lib)]));
        assert_eq!(errors.len(), 3, "{errors:?}");
        assert!(list_errors(&tree(&[("src/lib.rs", "//! No list.")]))[0].contains("lists no layers"));
    }

    #[test]
    fn folders_that_import_each_other_are_found() {
        let split = [
            ("src/high/mod.rs", "//! High.\npub mod one;\npub mod two;\npub use one::One;"),
            ("src/high/one/mod.rs", "//! One.\npub struct One;\nmod part;"),
            ("src/high/one/part.rs", "use crate::low::x;"),
            ("src/high/two/mod.rs", "//! Two.\nuse super::One;"),
        ];
        assert_eq!(circle_errors(&tree(&split)), Vec::<String>::new());
        let with = |path: &'static str, text: &'static str| {
            let mut split = split.to_vec();
            split.retain(|(other, _)| *other != path);
            split.push((path, text));
            circle_errors(&tree(&split))
        };
        let errors = with("src/high/one/part.rs", "//! Part.\nuse super::super::two::Two;");
        assert_eq!(errors.len(), 1);
        assert!(errors[0].contains("high/one, high/two"), "{}", errors[0]);
        assert!(errors[0].contains("house/src/high/one/part.rs:2: `super::super::two::Two`"), "{}", errors[0]);
        // The file beside the folder is of the parent's folder.
        let errors =
            with("src/high/mod.rs", "mod one;\nmod two;\nuse one::One;\npub struct Own;\nfn f(_: one::One) {}");
        assert_eq!(errors, Vec::<String>::new());
        let mut split = split.to_vec();
        split[2] = ("src/high/one/part.rs", "use crate::high::Own;");
        split[0] = ("src/high/mod.rs", "mod one;\nmod two;\nuse one::One;\npub struct Own;");
        assert_eq!(circle_errors(&tree(&split)).len(), 1);
    }

    #[test]
    fn files_that_import_each_other_are_found_unless_the_head_says_why() {
        let with = |head: &str| {
            let one = ("src/high/one.rs", "//! One.\nuse super::two::Two;\npub struct One;");
            let two = ("src/high/two.rs", "//! Two.\nuse crate::high::one::One;\npub struct Two;");
            file_circle_errors(&tree(&[("src/high/mod.rs", head), one, two]))
        };
        let errors = with("//! High.\nmod one;\nmod two;");
        assert!(errors.len() == 1 && errors[0].contains("high/one, high/two"), "{errors:?}");
        assert!(errors[0].contains("src/high/one.rs:2: `super::two::Two`"), "{errors:?}");
        assert!(with("//! High: `one` and `two` import each other: a reason.\nmod one;\nmod two;").is_empty());
    }

    #[test]
    fn crates_import_down_only() {
        let others = ["house", "above", "below"];
        let errors = |text: &str| crate_errors(&tree(&[("tests/t.rs", text)]), &others, &["below"]).len();
        assert_eq!(errors("use below::x; use house::y; fn f() { below::g(); }"), 0);
        assert_eq!(errors("use above::x;"), 1);
        assert_eq!(errors("use above as other;"), 1);
        assert_eq!(errors("fn f() { assert!(above::g()); }"), 1);
        assert_eq!(errors("mod above; use above::x; fn above(above: u8) { let above = above; }"), 0);
    }
}
