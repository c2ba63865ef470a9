//! [`Source`], a named text, and [`InputError`], an error that points into it.
//!
//! It owns the position arithmetic. Invariant: an error can be built from any text and any span
//! without a panic.

use std::fmt;
use std::io::Read;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use annotate_snippets::{Group, Level, Origin, Renderer, normalize_untrusted_str};

use super::snippet::snippet;
use super::units::Size;
use super::words::{nearest, or_list, shown};

/// The longest text that [`Source::read`] accepts, in bytes. Designs, jobs and scenarios have a few
/// KiB. The bound keeps a mistaken path (a disk image, `/dev/zero`) from being read whole.
pub const TEXT_BYTES_MAX: usize = 1 << 20;

/// A named piece of input text. Cloning shares the text.
#[derive(Clone, Debug)]
pub struct Source {
    name: Arc<str>,
    text: Arc<str>,
}

impl Source {
    /// Wraps `text`. Errors call it `name`: a path as the user gave it, or a word in angle brackets
    /// for text that is not in a file (`<designs>`). A UTF-8 byte order mark at the start is no
    /// part of the text.
    pub fn new(name: impl Into<Arc<str>>, text: impl Into<Arc<str>>) -> Self {
        let text: Arc<str> = text.into();
        let text = text.strip_prefix('\u{feff}').map(Arc::from).unwrap_or(text);
        Source { name: name.into(), text }
    }

    /// Reads a whole file.
    ///
    /// # Errors
    /// The file can't be read, is longer than [`TEXT_BYTES_MAX`], or isn't UTF-8. The error points
    /// at the first bytes that aren't, and shows bytes as `\xE9`.
    pub fn read(path: &Path) -> Result<Self, InputError> {
        let name = path.display().to_string();
        let mut bytes = Vec::new();
        std::fs::File::open(path)
            .and_then(|file| file.take(TEXT_BYTES_MAX as u64 + 1).read_to_end(&mut bytes))
            .map_err(|error| {
                InputError::unplaced(format!("cannot read `{name}`: {error}"))
                    .help("give the path of a text file that exists and may be read")
            })?;
        if bytes.len() > TEXT_BYTES_MAX {
            return Err(InputError::unplaced(format!("`{name}` is longer than {}", Size(TEXT_BYTES_MAX as u64)))
                .help("this doesn't look like a text written for daxlab: check the path"));
        }
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Source::new(name, text)),
            Err(error) => Err(not_utf8(name, error.as_bytes())),
        }
    }

    /// The name of this text in errors.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The text itself.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// An error at `span` (bytes of [`text`](Self::text)). A span that goes beyond the text or cuts
    /// a character is clamped.
    ///
    /// # Example
    /// ```
    /// use workloads::input::Source;
    ///
    /// let error = Source::new("my.toml", "pin_gat = 1").error(0..7, "unknown key `pin_gat`");
    /// assert_eq!((error.line(), error.column()), (Some(1), Some(1)));
    /// assert!(error.to_string().starts_with("unknown key `pin_gat`\n --> my.toml:1:1\n"));
    /// ```
    pub fn error(&self, span: Range<usize>, title: impl Into<String>) -> InputError {
        let start = self.boundary_at_or_before(span.start);
        let end = span.end.clamp(start, self.text.len());
        let end = (end..self.text.len()).find(|&at| self.text.is_char_boundary(at)).unwrap_or(self.text.len());
        InputError::new(ErrorParts {
            title: title.into(),
            source: Some(self.clone()),
            place: Some(self.place(start..end)),
            label: None,
            help: None,
        })
    }

    /// An error about the whole text. It shows no line.
    pub fn error_overall(&self, title: impl Into<String>) -> InputError {
        InputError::new(ErrorParts {
            title: title.into(),
            source: Some(self.clone()),
            place: None,
            label: None,
            help: None,
        })
    }

    /// An error about a word that isn't one of `candidates`. `what` names the word's role: "key",
    /// "design", "gate".
    ///
    /// The label suggests the nearest candidate if one is near. The help line lists all candidates.
    pub fn unknown_word<'a>(
        &self,
        span: Range<usize>,
        what: &str,
        word: &str,
        candidates: impl IntoIterator<Item = &'a str>,
    ) -> InputError {
        let candidates: Vec<&str> = candidates.into_iter().collect();
        let mut error = self.error(span, format!("unknown {what} `{}`", shown(word)));
        if let Some(near) = nearest(word, candidates.iter().copied()) {
            error = error.label(format!("did you mean `{near}`?"));
        }
        match candidates.is_empty() {
            true => error.help("nothing is expected here"),
            false => error.help(format!("it can be {}", or_list(candidates))),
        }
    }

    /// 1-based line and column of a byte offset. Columns count characters; an offset past the end
    /// is the end.
    pub fn line_column(&self, offset: usize) -> (usize, usize) {
        let offset = self.boundary_at_or_before(offset);
        let before = &self.text[..offset];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = before.bytes().filter(|&byte| byte == b'\n').count() + 1;
        let mut in_line = &before[line_start..];
        if self.text[offset..].starts_with('\n') {
            // The offset is inside a CR LF, which is the end of the line and has no column of its
            // own.
            in_line = in_line.strip_suffix('\r').unwrap_or(in_line);
        }
        (line, in_line.chars().count() + 1)
    }

    fn boundary_at_or_before(&self, offset: usize) -> usize {
        let mut offset = offset.min(self.text.len());
        while !self.text.is_char_boundary(offset) {
            offset -= 1;
        }
        offset
    }

    /// `span` must lie on character boundaries inside the text.
    fn place(&self, span: Range<usize>) -> ErrorPlace {
        let (line, column) = self.line_column(span.start);
        let line_start = self.text[..span.start].rfind('\n').map_or(0, |newline| newline + 1);
        let line_end = self.text[span.start..].find('\n').map_or(self.text.len(), |newline| span.start + newline);
        ErrorPlace { line, column, line_bytes: line_start..line_end, span }
    }
}

/// The error for a text that is not UTF-8. It shows the text with each bad byte as `\xE9`.
fn not_utf8(name: String, bytes: &[u8]) -> InputError {
    let mut readable = String::with_capacity(bytes.len());
    let mut first = None;
    for chunk in bytes.utf8_chunks() {
        readable.push_str(chunk.valid());
        let start = readable.len();
        for byte in chunk.invalid() {
            readable.push_str(&format!("\\x{byte:02X}"));
        }
        if !chunk.invalid().is_empty() && first.is_none() {
            first = Some(start..readable.len());
        }
    }
    // A byte order mark is no part of the text, and has three bytes.
    let mark = if readable.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
    let at = first.unwrap_or_default();
    Source::new(name, readable)
        .error(at.start.saturating_sub(mark)..at.end.saturating_sub(mark), "the text is not UTF-8")
        .label("the first bytes that aren't")
        .help("save the file as UTF-8")
}

/// An error in input text, or a text that could not be read.
///
/// `Display` is one paragraph without colour and without a leading `error:`, the title first:
///
/// ```text
/// unknown key `pin_gat`
///  --> my.toml:3:1
///   |
/// 3 | pin_gat = "open"
///   | ^^^^^^^ did you mean `pin_gate`?
///   |
///   = help: it can be `name`, `base` or `pin_gate`
/// ```
///
/// The value is one machine word, so parsers can return it by value everywhere.
#[derive(Debug, thiserror::Error)]
pub struct InputError(Box<ErrorParts>);

#[derive(Debug)]
struct ErrorParts {
    title: String,
    source: Option<Source>,
    place: Option<ErrorPlace>,
    label: Option<String>,
    help: Option<String>,
}

/// Where in its source an error points.
#[derive(Debug)]
struct ErrorPlace {
    line: usize,
    column: usize,
    span: Range<usize>,
    line_bytes: Range<usize>,
}

impl InputError {
    fn new(parts: ErrorParts) -> Self {
        InputError(Box::new(parts))
    }

    /// An error without a text to point into, such as a file that can't be read.
    pub fn unplaced(title: impl Into<String>) -> Self {
        InputError::new(ErrorParts { title: title.into(), source: None, place: None, label: None, help: None })
    }

    /// Sets the text under the marked span.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.0.label = Some(label.into());
        self
    }

    /// Sets the help line: what the user can do.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.0.help = Some(help.into());
        self
    }

    /// What is wrong, in one sentence.
    pub fn title(&self) -> &str {
        &self.0.title
    }

    /// The text under the marked span.
    pub fn label_text(&self) -> Option<&str> {
        self.0.label.as_deref()
    }

    /// The help line: what the user can do.
    pub fn help_text(&self) -> Option<&str> {
        self.0.help.as_deref()
    }

    /// The name of the source, if there is a source.
    pub fn source_name(&self) -> Option<&str> {
        self.0.source.as_ref().map(Source::name)
    }

    /// 1-based line, if the error has a place.
    pub fn line(&self) -> Option<usize> {
        self.0.place.as_ref().map(|place| place.line)
    }

    /// 1-based column in characters, if the error has a place.
    pub fn column(&self) -> Option<usize> {
        self.0.place.as_ref().map(|place| place.column)
    }

    /// The bytes of the source the error marks, if it has a place.
    pub fn span(&self) -> Option<Range<usize>> {
        self.0.place.as_ref().map(|place| place.span.clone())
    }

    /// The same paragraph as `Display`, with ANSI colours for a terminal.
    pub fn styled(&self) -> String {
        self.render(&Renderer::styled())
    }

    fn render(&self, renderer: &Renderer) -> String {
        let parts = &*self.0;
        let title = Level::ERROR.no_name().primary_title(parts.title.as_str());
        let mut group = Group::with_title(title);
        if let Some(source) = &parts.source {
            group = match &parts.place {
                Some(place) => group.element(snippet(
                    &source.name,
                    &source.text,
                    place.line,
                    place.line_bytes.clone(),
                    place.span.clone(),
                    parts.label.as_deref(),
                )),
                None => group.element(Origin::path(shown(&source.name))),
            };
        }
        if let Some(help) = &parts.help {
            group = group.element(Level::HELP.message(normalize_untrusted_str(help)));
        }
        // The renderer replaces the control characters of ASCII, and leaves the others: U+009B
        // begins a command to some terminals.
        renderer.render(&[group]).replace(|c| matches!(c, '\u{80}'..='\u{9f}'), "\u{fffd}")
    }
}

impl fmt::Display for InputError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(&Renderer::plain()))
    }
}
