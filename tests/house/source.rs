//! A crate's sources as the checks read them: parsed files, with every path that the code names and
//! where.
//!
//! Owns the parsing. Invariant: a path is reported with the file and line where it stands, whether
//! it stands in a `use`, in an expression, in an attribute or in the body of a macro; code that is
//! compiled for tests only is marked as such.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, Spacing, TokenStream, TokenTree};
use syn::spanned::Spanned as _;
use syn::visit::{self, Visit};

/// All files with one of `endings` below `dir`, in order, without build output and `.git`.
pub(crate) fn files(dir: &Path, endings: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries {
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

/// One source file of a crate.
pub(crate) struct SourceFile {
    /// Relative to the crate's folder: `src/pin/mod.rs`.
    pub(crate) path: String,
    pub(crate) text: String,
    pub(crate) ast: syn::File,
}

/// One crate: its folder's name, as printed, and its files.
pub(crate) struct CrateSources {
    pub(crate) dir: String,
    pub(crate) files: Vec<SourceFile>,
    /// The modules that are compiled for tests only, with all below them.
    test_modules: BTreeSet<Vec<String>>,
}

impl CrateSources {
    /// Reads the crate whose folder is `dir` below `root`.
    pub(crate) fn read(root: &Path, dir: &str) -> CrateSources {
        let base = root.join(dir);
        // The root package's folder holds the other crates too.
        let own = ["src/", "tests/", "examples/", "benches/"];
        let mut texts: Vec<(String, String)> = files(&base, &[".rs"])
            .into_iter()
            .map(|path| (path.strip_prefix(&base).unwrap().to_string_lossy().into_owned(), path))
            .filter(|(shown, _)| own.iter().any(|folder| shown.starts_with(folder)))
            .map(|(shown, path)| (shown, fs::read_to_string(path).unwrap()))
            .collect();
        let included: Vec<String> = texts.iter().flat_map(|(path, text)| included(path, text)).collect();
        for path in included {
            let from = base.join(&path).canonicalize().unwrap_or_else(|error| panic!("{dir}/{path}: {error}"));
            if !own.iter().any(|folder| from.starts_with(base.join(folder))) {
                texts.push((path, fs::read_to_string(from).unwrap()));
            }
        }
        CrateSources::new(dir, texts)
    }

    /// A crate of these files: paths relative to the crate's folder, and texts.
    pub(crate) fn new(dir: &str, texts: impl IntoIterator<Item = (String, String)>) -> CrateSources {
        let files: Vec<SourceFile> = texts
            .into_iter()
            .map(|(path, text)| {
                let ast = syn::parse_file(&text).unwrap_or_else(|error| panic!("{dir}/{path}: {error}"));
                SourceFile { path, text, ast }
            })
            .collect();
        let mut test_modules = BTreeSet::new();
        for file in files.iter().filter(|file| file.path.starts_with("src/")) {
            for item in &file.ast.items {
                if let syn::Item::Mod(module) = item
                    && is_test(&module.attrs)
                {
                    let mut path = module_path(&file.path);
                    path.push(module.ident.to_string());
                    test_modules.insert(path);
                }
            }
        }
        CrateSources { dir: dir.to_owned(), files, test_modules }
    }

    /// The files of `src/` that are compiled outside tests too.
    pub(crate) fn shipped(&self) -> impl Iterator<Item = &SourceFile> {
        self.files.iter().filter(|file| file.path.starts_with("src/") && !self.is_test_file(file))
    }

    /// Whether a file is compiled for tests, examples or benches only.
    pub(crate) fn is_test_file(&self, file: &SourceFile) -> bool {
        let module = module_path(&file.path);
        !file.path.starts_with("src/")
            || file.path.ends_with("/tests.rs")
            || file.path.contains("/tests/")
            || (1..=module.len()).any(|len| self.test_modules.contains(&module[..len]))
    }

    /// `dir/path` of a file, as printed.
    pub(crate) fn shown(&self, file: &SourceFile) -> String {
        if self.dir.is_empty() { file.path.clone() } else { format!("{}/{}", self.dir, file.path) }
    }
}

/// The module that a file of `src/` is: `src/a/b.rs` and `src/a/b/mod.rs` are `[a, b]`,
/// `src/lib.rs` is `[]`.
pub(crate) fn module_path(path: &str) -> Vec<String> {
    let path = path.strip_prefix("src/").unwrap_or(path).trim_end_matches(".rs");
    let mut parts: Vec<String> = path.split('/').map(str::to_owned).collect();
    if parts.last().is_some_and(|last| last == "mod") || matches!(path, "lib" | "main") {
        parts.pop();
    }
    parts
}

/// Whether these attributes let an item be compiled in tests only: `#[test]`, `#[cfg(test)]`,
/// `#[cfg(all(test, …))]`.
pub(crate) fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let cfg = || attribute.parse_args::<syn::Meta>().is_ok_and(|meta| needs_test(&meta));
        attribute.path().is_ident("test") || attribute.path().is_ident("cfg") && cfg()
    })
}

fn needs_test(meta: &syn::Meta) -> bool {
    let inner = |list: &syn::MetaList| {
        let parse = syn::punctuated::Punctuated::<syn::Meta, syn::Token![,]>::parse_terminated;
        list.parse_args_with(parse).map(|metas| metas.into_iter().collect::<Vec<_>>()).unwrap_or_default()
    };
    match meta {
        syn::Meta::Path(path) => path.is_ident("test"),
        syn::Meta::List(list) if list.path.is_ident("all") => inner(list).iter().any(needs_test),
        syn::Meta::List(list) if list.path.is_ident("any") => {
            let inner = inner(list);
            !inner.is_empty() && inner.iter().all(needs_test)
        }
        _ => false,
    }
}

/// A path that code names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NamedPath {
    pub(crate) line: usize,
    /// As written, without generic arguments: `crate`, `super` and `self` stand as they are, a glob
    /// is `*`.
    pub(crate) segments: Vec<String>,
    /// The module in which it stands, inline modules included.
    pub(crate) module: Vec<String>,
    pub(crate) origin: PathOrigin,
}

/// Where a path stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PathOrigin {
    /// In `use …`; the name that it gets in the module, `*` for a glob; whether it is re-exported.
    Use {
        name: String,
        public: bool,
    },
    Code,
}

impl NamedPath {
    /// The path from the root of its crate: `None` for a path into another crate, or of a name in
    /// scope.
    pub(crate) fn path_from_root(&self) -> Option<Vec<String>> {
        let mut rest = self.segments.as_slice();
        let mut base = match rest.first()?.as_str() {
            "crate" => Vec::new(),
            "self" | "super" => self.module.clone(),
            _ => return None,
        };
        if rest[0] != "super" {
            rest = &rest[1..];
        }
        while rest.first().is_some_and(|first| first == "super") {
            base.pop();
            rest = &rest[1..];
        }
        base.extend(rest.iter().filter(|segment| *segment != "self").cloned());
        Some(base)
    }

    pub(crate) fn shown(&self) -> String {
        self.segments.join("::")
    }
}

/// All paths in a file. Without `tests`, those of code that is compiled for tests only are left
/// out.
pub(crate) fn paths(file: &SourceFile, tests: bool) -> Vec<NamedPath> {
    let mut collector = PathCollector { module: module_path(&file.path), tests, found: Vec::new() };
    collector.visit_file(&file.ast);
    collector.found
}

struct PathCollector {
    module: Vec<String>,
    tests: bool,
    found: Vec<NamedPath>,
}

impl PathCollector {
    fn add(&mut self, line: usize, segments: Vec<String>, origin: PathOrigin) {
        self.found.push(NamedPath { line, segments, module: self.module.clone(), origin });
    }

    fn skips(&self, attributes: &[syn::Attribute]) -> bool {
        !self.tests && is_test(attributes)
    }

    fn use_tree(&mut self, tree: &syn::UseTree, before: &[String], public: bool) {
        let with = |last: String| before.iter().cloned().chain([last]).collect::<Vec<_>>();
        let (line, segments, name) = match tree {
            syn::UseTree::Path(path) => return self.use_tree(&path.tree, &with(path.ident.to_string()), public),
            syn::UseTree::Group(group) => {
                return group.items.iter().for_each(|tree| self.use_tree(tree, before, public));
            }
            syn::UseTree::Name(name) => (name.ident.span(), with(name.ident.to_string()), name.ident.to_string()),
            syn::UseTree::Rename(to) => (to.ident.span(), with(to.ident.to_string()), to.rename.to_string()),
            syn::UseTree::Glob(glob) => (glob.span(), with("*".to_owned()), "*".to_owned()),
        };
        // `use a::b::{self}` gives the name `b`.
        let name = if name == "self" { before.last().cloned().unwrap_or_default() } else { name };
        self.add(line.start().line, segments, PathOrigin::Use { name, public });
    }

    /// Paths in tokens that the parser does not look into: macros, and arguments of attributes.
    fn tokens(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut at = 0;
        while at < tokens.len() {
            match &tokens[at] {
                TokenTree::Ident(first) if separator(&tokens, at + 1) => {
                    let line = first.span().start().line;
                    at = self.token_path(&tokens, at, Vec::new(), line);
                }
                TokenTree::Group(group) => {
                    self.tokens(group.stream());
                    at += 1;
                }
                TokenTree::Literal(literal) => {
                    // serde names functions in text: `#[serde(with = "crate::units")]`.
                    let text = literal.to_string();
                    let text = text.trim_matches('"');
                    if (text.starts_with("crate::") || text.starts_with("super::"))
                        && let Ok(path) = syn::parse_str::<syn::Path>(text)
                    {
                        self.add(literal.span().start().line, segments(&path), PathOrigin::Code);
                    }
                    at += 1;
                }
                _ => at += 1,
            }
        }
    }

    /// The path that begins at `at`; gives where it ends.
    fn token_path(&mut self, tokens: &[TokenTree], at: usize, before: Vec<String>, line: usize) -> usize {
        let (mut at, mut path) = (at, before);
        loop {
            match tokens.get(at) {
                Some(TokenTree::Ident(part)) => path.push(part.to_string()),
                Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                    let inner: Vec<TokenTree> = group.stream().into_iter().collect();
                    let comma = |token: &TokenTree| matches!(token, TokenTree::Punct(comma) if comma.as_char() == ',');
                    for tree in inner.split(comma).filter(|tree| !tree.is_empty()) {
                        let line = tree[0].span().start().line;
                        self.token_path(tree, 0, path.clone(), line);
                    }
                    return at + 1;
                }
                _ => break,
            }
            at += 1;
            if !separator(tokens, at) {
                break;
            }
            at += 2;
        }
        self.add(line, path, PathOrigin::Code);
        at
    }
}

/// Whether `::` stands at `at`.
fn separator(tokens: &[TokenTree], at: usize) -> bool {
    matches!(
        (tokens.get(at), tokens.get(at + 1)),
        (Some(TokenTree::Punct(one)), Some(TokenTree::Punct(two)))
            if one.as_char() == ':' && one.spacing() == Spacing::Joint && two.as_char() == ':'
    )
}

fn segments(path: &syn::Path) -> Vec<String> {
    path.segments.iter().map(|segment| segment.ident.to_string()).collect()
}

impl<'ast> Visit<'ast> for PathCollector {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        if !self.skips(attributes(item)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if !self.skips(&item.attrs) {
            visit::visit_impl_item_fn(self, item);
        }
    }

    fn visit_field(&mut self, field: &'ast syn::Field) {
        if !self.skips(&field.attrs) {
            visit::visit_field(self, field);
        }
    }

    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        self.module.push(module.ident.to_string());
        visit::visit_item_mod(self, module);
        self.module.pop();
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.use_tree(&item.tree, &[], !matches!(item.vis, syn::Visibility::Inherited));
    }

    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {
        // `pub(in crate::a)` is no import.
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.add(path.span().start().line, segments(path), PathOrigin::Code);
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, found: &'ast syn::Macro) {
        visit::visit_macro(self, found);
        self.tokens(found.tokens.clone());
    }

    fn visit_attribute(&mut self, attribute: &'ast syn::Attribute) {
        self.visit_path(attribute.path());
        if let syn::Meta::List(list) = &attribute.meta {
            self.tokens(list.tokens.clone());
        }
    }
}

/// The files that `#[path = "…"]` names in the file at `path`, from the crate's folder on.
fn included(path: &str, text: &str) -> Vec<String> {
    let (folder, _) = path.rsplit_once('/').unwrap_or_default();
    let name = |line: &str| Some(line.trim().strip_prefix("#[path = \"")?.strip_suffix("\"]")?.to_owned());
    text.lines().filter_map(name).map(|name| format!("{folder}/{name}")).collect()
}

/// The attributes of an item, if it can have any.
pub(crate) fn attributes(item: &syn::Item) -> &[syn::Attribute] {
    match item {
        syn::Item::Const(item) => &item.attrs,
        syn::Item::Enum(item) => &item.attrs,
        syn::Item::Fn(item) => &item.attrs,
        syn::Item::Impl(item) => &item.attrs,
        syn::Item::Macro(item) => &item.attrs,
        syn::Item::Mod(item) => &item.attrs,
        syn::Item::Static(item) => &item.attrs,
        syn::Item::Struct(item) => &item.attrs,
        syn::Item::Trait(item) => &item.attrs,
        syn::Item::Type(item) => &item.attrs,
        syn::Item::Union(item) => &item.attrs,
        syn::Item::Use(item) => &item.attrs,
        _ => &[],
    }
}
