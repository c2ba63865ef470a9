//! Stated outcomes: `ok | ETXTBSY @stranger_change=fail | EOPNOTSUPP n/a @pin_gate=refuse`.
//!
//! It owns the words that an outcome can be. Invariant: at most one alternative of a step is
//! without a condition; an outcome that no machine could ever report is an error.

use std::ops::Range;

use crate::input::InputError;

use super::super::condition::Condition;
use super::super::lex::Token;
use super::super::{Action, Alternative, STUCK};
use super::Parser;

/// What an operation can come to besides `ok`, a completion's status and an errno.
const WORDS: [&str; 4] = ["blocks", "killed", "MSG_CTRUNC", "SIGBUS"];

/// The completions that fail.
pub(crate) const STATUSES: [&str; 10] = [
    "flushed",
    "local_length_error",
    "local_operation_error",
    "local_protection_error",
    "memory_window_bind_error",
    "remote_access_error",
    "remote_invalid_request",
    "remote_operation_error",
    "retry_exceeded",
    "rnr_retry_exceeded",
];

/// The errors that operations end with.
pub(crate) const ERRNOS: [&str; 34] = [
    "E2BIG",
    "EACCES",
    "EAGAIN",
    "EBADF",
    "EBUSY",
    "ECANCELED",
    "ECONNREFUSED",
    "EDEADLK",
    "EEXIST",
    "EFAULT",
    "EFBIG",
    "EINTR",
    "EINVAL",
    "EIO",
    "EISDIR",
    "EMFILE",
    "ENODEV",
    "ENOENT",
    "ENOEXEC",
    "ENOMEM",
    "ENOBUFS",
    "ENOSPC",
    "ENOTCONN",
    "ENOTTY",
    "ENXIO",
    "EOPNOTSUPP",
    "EPERM",
    "EPIPE",
    "ERANGE",
    "EROFS",
    "ESRCH",
    "ETXTBSY",
    "EXDEV",
    "SIGSEGV",
];

impl<'a> Parser<'a> {
    /// The alternatives behind an arrow; `ok` alone if there is none.
    pub(super) fn alternatives(
        &self,
        action: &Action,
        tokens: &[Token<'a>],
        line: &Range<usize>,
    ) -> Result<Vec<Alternative>, InputError> {
        if tokens.is_empty() {
            let outcome = if matches!(action, Action::Stuck(_)) { STUCK } else { "ok" }.to_owned();
            return Ok(vec![Alternative { span: line.clone(), outcome, ends: false, condition: None }]);
        }
        let mut alternatives: Vec<Alternative> = Vec::new();
        for part in tokens.split(|token| !token.quoted && token.text == "|") {
            let Some((first, last)) = part.first().zip(part.last()) else {
                let at = tokens[0].span.start..tokens[tokens.len() - 1].span.end;
                return Err(self.source.error(at, "an outcome is missing beside a `|`"));
            };
            let span = first.span.start..last.span.end;
            let alternative = self.alternative(action, part, span.clone())?;
            if alternative.condition.is_none() && alternatives.iter().any(|other| other.condition.is_none()) {
                return Err(self
                    .source
                    .error(span, "a second outcome without a condition")
                    .help("say for which designs: `@unsafe`, `@stranger_change=wait`"));
            }
            alternatives.push(alternative);
        }
        Ok(alternatives)
    }

    fn alternative(&self, action: &Action, part: &[Token<'a>], span: Range<usize>) -> Result<Alternative, InputError> {
        let (condition, part) = match part {
            [rest @ .., last] if !last.quoted && last.text.starts_with('@') => {
                let at = last.span.start + 1..last.span.end;
                (Some(Condition::parse(self.source, at, self.designs)?), rest)
            }
            all => (None, all),
        };
        let (ends, part) = match part {
            [rest @ .., last] if last.text == "n/a" => (true, rest),
            all => (false, all),
        };
        let Some(first) = part.first() else {
            return Err(self.source.error(span, "an outcome is missing here"));
        };
        // Linux has one number under two names.
        let first_word = match (first.text, action) {
            (text, Action::Expect(_)) => text,
            ("EWOULDBLOCK", _) => "EAGAIN",
            (text, _) => text,
        };
        if !matches!(action, Action::Expect(_)) {
            let statuses = STATUSES.iter().chain(&ERRNOS).chain(&WORDS).copied();
            let mut known = std::iter::once("ok").chain(statuses);
            if !known.any(|word| word == first_word) {
                let words = ["ok"].into_iter().chain(WORDS).chain(ERRNOS).chain(STATUSES);
                return Err(self
                    .source
                    .unknown_word(first.span.clone(), "outcome", first.text, words)
                    .help("`ok`, `blocks`, `killed`, an errno, or the status of a completion"));
            }
        }
        let stray = |token: &&Token<'a>| {
            !token.quoted && (matches!(token.text, "->" | "=>" | "n/a") || token.text.starts_with('@'))
        };
        if let Some(stray) = part.iter().find(stray) {
            return Err(self
                .source
                .error(stray.span.clone(), format!("`{}` in the middle of an outcome", stray.text))
                .help(
                    "an outcome is `OUTCOME [n/a] [@CONDITION]`; `|` stands between outcomes, `,` is or in a condition",
                ));
        }
        let has_value = matches!(first.text, "ok" | "blocks") || matches!(action, Action::Expect(_));
        if let (false, Some(extra)) = (has_value, part.get(1)) {
            return Err(self.extra(extra).help("only `ok` and `blocks` say more"));
        }
        let words = std::iter::once(first_word).chain(part[1..].iter().map(|token| token.text));
        let outcome = words.collect::<Vec<_>>().join(" ");
        Ok(Alternative { span, outcome, ends, condition })
    }
}
