//! Comments are plain and narrow: no comment line beyond column 100, and words that hide the actor
//! are rare.

use crate::source::SourceFile;

/// The last column of a comment line.
pub(crate) const COMMENT_COLUMNS: usize = 100;

/// How often the workspace may use one of [`hidden_actors`]: each must truly mean any process.
pub(crate) const HIDDEN_ACTORS_MAX: usize = 40;

/// Words that do not say which task, process or guest acts. Spelled in parts, so that this file
/// does not find itself.
pub(crate) fn hidden_actors() -> Vec<String> {
    let mut words: Vec<String> = ["some", "no", "any", "every"].iter().map(|start| format!("{start}body")).collect();
    words.push(["who", "ever"].concat());
    words
}

/// The comment lines of a text that end beyond column 100: line numbers from 1, and columns.
pub(crate) fn wide_comments(text: &str) -> Vec<(usize, usize)> {
    let wide = |(at, line): (usize, &str)| {
        let columns = line.trim_end().chars().count();
        (line.trim_start().starts_with("//") && columns > COMMENT_COLUMNS).then_some((at + 1, columns))
    };
    text.lines().enumerate().filter_map(wide).collect()
}

/// Where one of `words` stands as a whole word: line numbers from 1, and the word.
pub(crate) fn word_places(text: &str, words: &[String]) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.to_lowercase();
        let parts = line.split(|letter: char| !letter.is_alphanumeric());
        found.extend(parts.filter(|part| words.iter().any(|word| word == part)).map(|part| (at + 1, part.to_owned())));
    }
    found
}

/// Functions longer than `max` lines, from `fn` to the closing brace: line, name and length.
pub(crate) fn long_functions(file: &SourceFile, max: usize) -> Vec<(usize, String, usize)> {
    use syn::spanned::Spanned as _;
    use syn::visit::{self, Visit};

    struct Functions(usize, Vec<(usize, String, usize)>);
    impl Functions {
        fn add(&mut self, signature: &syn::Signature, block: &syn::Block) {
            let from = signature.span().start().line;
            let lines = block.span().end().line + 1 - from;
            if lines > self.0 {
                self.1.push((from, signature.ident.to_string(), lines));
            }
        }
    }
    impl<'ast> Visit<'ast> for Functions {
        fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
            if !crate::source::is_test(&module.attrs) {
                visit::visit_item_mod(self, module);
            }
        }
        fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
            self.add(&item.sig, &item.block);
            visit::visit_item_fn(self, item);
        }
        fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
            self.add(&item.sig, &item.block);
            visit::visit_impl_item_fn(self, item);
        }
    }
    let mut functions = Functions(max, Vec::new());
    functions.visit_file(&file.ast);
    functions.1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wide_comment_line_is_found() {
        let line = |start: &str, columns: usize| format!("{start}{}", "x".repeat(columns - start.chars().count()));
        for start in ["// ", "    /// ", "//! "] {
            assert_eq!(wide_comments(&line(start, 100)), []);
            assert_eq!(wide_comments(&format!("\n{}\n", line(start, 101))), [(2, 101)]);
        }
        assert_eq!(wide_comments(&line("let x = 1; // ", 110)), [], "code may be wider");
        assert_eq!(wide_comments(&format!("// {}", "é".repeat(97))), [], "columns, not bytes");
    }

    #[test]
    fn words_are_found_whole_and_in_any_case() {
        let words = hidden_actors();
        let text = format!("a {} b\n// {}!\n{}s {}_x", words[0], words[4].to_uppercase(), words[1], words[2]);
        assert_eq!(word_places(&text, &words), [(1, words[0].clone()), (2, words[4].clone()), (3, words[2].clone())]);
    }

    #[test]
    fn long_functions_are_found() {
        let text = "fn a() {\n\n}\nstruct S;\nimpl S {\n    fn b() {\n    }\n}\n#[cfg(test)]\nmod tests {\n    fn c() {\n\n    }\n}";
        let ast = syn::parse_file(text).unwrap();
        let file = SourceFile { path: "src/a.rs".to_owned(), text: text.to_owned(), ast };
        assert_eq!(long_functions(&file, 2), [(1, "a".to_owned(), 3)]);
        assert_eq!(long_functions(&file, 3), []);
    }
}
