//! Lines into words, each with its place.
//!
//! It owns comments, quotes and nothing else. Invariant: every token's span lies in its line.

use std::ops::Range;

use crate::input::{InputError, Source};

/// A word of a line. The span includes quotes, the text does not.
#[derive(Clone, Debug)]
pub(super) struct Token<'a> {
    pub(super) text: &'a str,
    pub(super) span: Range<usize>,
    pub(super) quoted: bool,
}

/// The words of the line at `line` (bytes of the source), up to a `#` that begins a word.
///
/// # Errors
/// A quote that is not closed.
pub(super) fn words<'a>(source: &'a Source, line: Range<usize>) -> Result<Vec<Token<'a>>, InputError> {
    let text = source.text();
    let mut tokens = Vec::new();
    let mut at = line.start;
    while at < line.end {
        let rest = &text[at..line.end];
        let first = rest.chars().next().unwrap_or(' ');
        if first.is_whitespace() {
            at += first.len_utf8();
            continue;
        }
        if first == '#' {
            break;
        }
        if first == '"' {
            let Some(len) = rest[1..].find('"') else {
                return Err(source.error(at..line.end, "a quote that is not closed").help("end it with `\"`"));
            };
            let span = at..at + len + 2;
            tokens.push(Token { text: &text[at + 1..at + 1 + len], span: span.clone(), quoted: true });
            at = span.end;
            continue;
        }
        let len = rest.find(|c: char| c.is_whitespace()).unwrap_or(rest.len());
        tokens.push(Token { text: &rest[..len], span: at..at + len, quoted: false });
        at += len;
    }
    Ok(tokens)
}
