//! A type name says what the value is without its path: each struct, enum and trait has a name of
//! its own in the workspace.

use std::collections::BTreeMap;

use syn::visit::{self, Visit};

use crate::source::{CrateSources, attributes, is_test};

/// The concurrency facade has one variant of a type for each of its backends.
const FACADE: &str = "emulator/src/runtime/sync/";

/// Where a type is defined.
struct TypePlace {
    file: String,
    line: usize,
}

/// Type names that are defined in more than one file, with the places. Tests are left out;
/// alternatives by `cfg` in one file, and in the folder of the facade, are one definition.
pub(crate) fn repeated_types(crates: &[CrateSources]) -> Vec<String> {
    let mut places: BTreeMap<String, Vec<TypePlace>> = BTreeMap::new();
    for sources in crates {
        for file in sources.shipped() {
            let mut types = TypeNames(Vec::new());
            types.visit_file(&file.ast);
            for (line, name) in types.0 {
                places.entry(name).or_default().push(TypePlace { file: sources.shown(file), line });
            }
        }
    }
    let same = |one: &TypePlace, other: &TypePlace| {
        one.file == other.file || one.file.starts_with(FACADE) && other.file.starts_with(FACADE)
    };
    places
        .iter()
        .filter(|(_, places)| places.iter().any(|place| !same(&places[0], place)))
        .map(|(name, places)| {
            let places: Vec<String> = places.iter().map(|place| format!("{}:{}", place.file, place.line)).collect();
            format!("`{name}` names {} types: {}. Say of what each is", places.len(), places.join(" "))
        })
        .collect()
}

struct TypeNames(Vec<(usize, String)>);

impl<'ast> Visit<'ast> for TypeNames {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        if is_test(attributes(item)) {
            return;
        }
        let name = match item {
            syn::Item::Struct(item) => Some(&item.ident),
            syn::Item::Enum(item) => Some(&item.ident),
            syn::Item::Trait(item) => Some(&item.ident),
            _ => None,
        };
        self.0.extend(name.map(|name| (name.span().start().line, name.to_string())));
        visit::visit_item(self, item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn krate(dir: &str, files: &[(&str, &str)]) -> CrateSources {
        CrateSources::new(dir, files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())))
    }

    #[test]
    fn a_name_for_two_types_is_found_across_crates() {
        let one = krate("one", &[("src/a.rs", "//! A.\nstruct Verdict;"), ("src/b.rs", "enum Other {}")]);
        let two = krate("two", &[("src/c.rs", "fn f() { enum Verdict {} }"), ("src/d.rs", "trait Third {}")]);
        let found = repeated_types(&[one, two]);
        assert_eq!(found, ["`Verdict` names 2 types: one/src/a.rs:2 two/src/c.rs:1. Say of what each is"]);
    }

    #[test]
    fn aliases_tests_and_alternatives_are_no_second_type() {
        let files = [
            ("src/a.rs", "#[cfg(x)] struct A; #[cfg(not(x))] struct A; struct B; type C = u8;"),
            ("src/b.rs", "#[cfg(test)] mod tests { struct B; } type C = u8; struct C;"),
            ("src/tests.rs", "struct B;"),
            ("tests/b.rs", "struct B;"),
            ("src/runtime/sync/std.rs", "struct Lock;"),
            ("src/runtime/sync/loom.rs", "struct Lock;"),
        ];
        assert_eq!(repeated_types(&[krate("emulator", &files)]), Vec::<String>::new());
        assert_eq!(repeated_types(&[krate("other", &files)]).len(), 1);
    }
}
