//! Turns the TOML parser's errors into [`InputError`]: the span stays, serde's wording becomes
//! ours.
//!
//! serde names an unknown field or variant, together with what it expected, in the text of its
//! message. The form of that text is part of serde's stable behaviour, and tests here pin it. A
//! message in another form is shown unchanged.

use serde::de::DeserializeOwned;

use super::source::{InputError, Source};
use super::words::HELP_MARK;

impl Source {
    /// Deserialises the text as TOML.
    ///
    /// For exact spans, give the types `#[serde(deny_unknown_fields)]` and wrap values that are
    /// checked later in `toml::Spanned`. Avoid `flatten`, `untagged` and internally tagged enums:
    /// serde buffers those and loses the spans.
    ///
    /// # Errors
    /// The text isn't TOML, or isn't a `T`.
    pub fn parse_toml<T: DeserializeOwned>(&self) -> Result<T, InputError> {
        toml::from_str(self.text()).map_err(|error| self.toml_error(&error))
    }

    /// Turns an error of the TOML parser over this text into an [`InputError`].
    pub fn toml_error(&self, error: &toml::de::Error) -> InputError {
        let message = error.message().trim_end();
        let (message, help) = match message.split_once(HELP_MARK) {
            Some((message, help)) => (message, Some(help)),
            None => (message, None),
        };
        let Some(span) = error.span() else {
            return with_help(self.error_overall(message), help);
        };
        if let Some((word, expected)) = unknown(message, "unknown field `") {
            return self.unknown_word(span, "key", word, expected);
        }
        if let Some((word, expected)) = unknown(message, "unknown variant `") {
            return self.unknown_word(span, "value", word, expected);
        }
        if let Some(key) = message.strip_prefix("missing field `").and_then(|rest| rest.strip_suffix('`')) {
            return self.error(span, format!("missing key `{key}`")).label("in this table");
        }
        with_help(self.error(span, message), help)
    }
}

fn with_help(error: InputError, help: Option<&str>) -> InputError {
    match help {
        Some(help) => error.help(help),
        None => error,
    }
}

/// Splits "unknown field `x`, expected one of `a`, `b`" into the word and the expected words. The
/// word comes from the user and may hold any text, so the split is at the last separator.
fn unknown<'m>(message: &'m str, prefix: &str) -> Option<(&'m str, Vec<&'m str>)> {
    let rest = message.strip_prefix(prefix)?;
    match rest.rsplit_once("`, expected ") {
        // The names stand between backticks: every second piece.
        Some((word, expected)) => Some((word, expected.split('`').skip(1).step_by(2).collect())),
        None => rest.rsplit_once("`, there are no ").map(|(word, _)| (word, Vec::new())),
    }
}
