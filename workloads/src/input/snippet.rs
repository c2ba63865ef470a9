//! The excerpt of a text that an error shows.
//!
//! Invariant: it shows one line, however long the text is.

use std::ops::Range;

use annotate_snippets::{Annotation, AnnotationKind, Snippet};

use super::words::shown;

/// The marked line alone. The renderer cuts it to the width of a terminal.
pub(super) fn snippet<'a>(
    name: &str,
    text: &'a str,
    line_number: usize,
    line_bytes: Range<usize>,
    span: Range<usize>,
    label: Option<&'a str>,
) -> Snippet<'a, Annotation<'a>> {
    let line = &text[line_bytes.clone()];
    let line = match text[line_bytes.end..].starts_with('\n') {
        true => line.strip_suffix('\r').unwrap_or(line),
        false => line,
    };
    // A span over several lines is marked on its first line.
    let mark = |at: usize| (at - line_bytes.start).min(line.len());
    Snippet::source(line)
        .path(shown(name))
        .line_start(line_number)
        .annotation(AnnotationKind::Primary.span(mark(span.start)..mark(span.end)).label(label))
}
