//! The arguments of an operation, by its signature.
//!
//! It owns the reading of sizes, ranges, bytes, names and flags. Invariant: what it returns fits
//! the verb's signature.

use std::ops::Range;

use crate::input::{self, InputError, Size, UnitError};

use super::super::lex::Token;
use super::{Bound, Parser};
use crate::ops::{Arg, BindingKind, ByteRange, DATA_MAX, Param, SignalName, Verb};

/// The flags among `flags` with which `tokens` begin, and what follows.
fn given_flags<'t, 'a>(flags: &'static [&'static str], tokens: &'t [Token<'a>]) -> (Arg, &'t [Token<'a>]) {
    let given = tokens.iter().take_while(|token| flags.contains(&token.text)).count();
    let words = flags.iter().copied().filter(|flag| tokens[..given].iter().any(|token| token.text == *flag));
    (Arg::Words(words.collect()), &tokens[given..])
}

impl<'a> Parser<'a> {
    /// Reads `tokens` by the signature of `verb`.
    pub(super) fn arguments(
        &self,
        verb: Verb,
        verb_at: &Token<'a>,
        mut tokens: &[Token<'a>],
    ) -> Result<Vec<Arg>, InputError> {
        let mut args = Vec::new();
        for parameter in verb.params() {
            let (arg, rest) = match (parameter.syntax, tokens) {
                (Param::Flags(flags), _) => given_flags(flags, tokens),
                (Param::Optional(_), []) => (Arg::Absent, tokens),
                (Param::Optional(syntax), _) => self.argument(verb, verb_at, *syntax, tokens)?,
                (syntax, _) => self.argument(verb, verb_at, syntax, tokens)?,
            };
            args.push(arg);
            tokens = rest;
        }
        match tokens.first() {
            None => Ok(args),
            Some(extra) => Err(self.extra(extra).help(format!("write `{}`", verb.usage()))),
        }
    }

    fn argument<'t>(
        &self,
        verb: Verb,
        verb_at: &Token<'a>,
        param: Param,
        tokens: &'t [Token<'a>],
    ) -> Result<(Arg, &'t [Token<'a>]), InputError> {
        let Some((token, rest)) = tokens.split_first() else {
            let title = format!("`{verb}` lacks an argument");
            return Err(self.source.error(verb_at.span.clone(), title).help(format!("write `{}`", verb.usage())));
        };
        let arg = match param {
            Param::File | Param::Text | Param::FlushRule => Arg::Name(token.text.to_owned()),
            Param::Process => Arg::Name(self.named_process(token)?),
            Param::Bound(kinds) => Arg::Name(self.bound_name(token, kinds)?),
            Param::Size => Arg::Number(self.size(token.text, token.span.clone())?),
            Param::Delay if token.text == "off" => Arg::Number(0),
            Param::Span | Param::Delay => {
                let span: input::Duration =
                    token.text.parse().map_err(|error| self.unit(token.span.clone(), &error))?;
                Arg::Number(u64::try_from(span.0.as_nanos()).unwrap_or(u64::MAX))
            }
            Param::Length => Arg::Number(self.length(verb, token)?),
            Param::Number => Arg::Number(self.number(token)?),
            Param::Byte => Arg::Byte(self.byte(token)?),
            Param::Signal => Arg::Word(self.choice(token, "signal", SignalName::WORDS)?),
            Param::Choice(words) => Arg::Word(self.choice(token, "word", words)?),
            Param::Range | Param::Data => {
                let Some((len, rest)) = rest.split_first() else {
                    let title = "a length is missing behind the offset";
                    return Err(self.source.error(token.span.clone(), title).help(format!("write `{}`", verb.usage())));
                };
                let most = if param == Param::Data { DATA_MAX } else { u64::MAX };
                return Ok((Arg::Range(self.range(verb, token, len, most)?), rest));
            }
            // Arguments that may have no word at all are read by the caller; no row nests them.
            Param::Flags(_) | Param::Optional(_) => return Ok((Arg::Absent, tokens)),
        };
        Ok((arg, rest))
    }

    fn length(&self, verb: Verb, len: &Token<'a>) -> Result<u64, InputError> {
        match self.size(len.text, len.span.clone())? {
            len if len <= DATA_MAX => Ok(len),
            _ => Err(self.too_much(verb, len.span.clone(), DATA_MAX)),
        }
    }

    fn too_much(&self, verb: Verb, at: Range<usize>, most: u64) -> InputError {
        self.source.error(at, format!("`{verb}` moves at most {} at once", Size(most)))
    }

    fn range(&self, verb: Verb, offset: &Token<'a>, len: &Token<'a>, most: u64) -> Result<ByteRange, InputError> {
        let offset = self.size(offset.text, offset.span.clone())?;
        let at = len.span.clone();
        let len = match len.text {
            "inf" => u64::MAX,
            text => self.size(text, at.clone())?,
        };
        if len > most {
            return Err(self.too_much(verb, at, most));
        }
        Ok(ByteRange { offset, len })
    }

    fn bound_name(&self, token: &Token<'a>, kinds: &[BindingKind]) -> Result<String, InputError> {
        let fits = |bound: &Bound| match bound {
            Bound::Known(kind) => kinds.contains(kind),
            Bound::AnyDescriptor => kinds.iter().any(|kind| kind.is_descriptor()),
        };
        let wanted = || kinds.iter().map(|kind| kind.words()).collect::<Vec<_>>().join(" or ");
        match self.bound.get(token.text) {
            Some(bound) if fits(bound) => Ok(token.text.to_owned()),
            Some(Bound::Known(kind)) => Err(self
                .source
                .error(token.span.clone(), format!("`{}` is {}", token.text, kind.words()))
                .help(format!("{} is needed here", wanted()))),
            Some(Bound::AnyDescriptor) => Err(self
                .source
                .error(token.span.clone(), format!("`{}` is a descriptor", token.text))
                .help(format!("{} is needed here", wanted()))),
            None => {
                let fitting = self.bound.iter().filter(|(_, bound)| fits(bound)).map(|(name, _)| name.as_str());
                let title = format!("nothing above is called `{}`", input::shown(token.text));
                let mut error = self.source.error(token.span.clone(), title);
                let fitting: Vec<&str> = fitting.collect();
                if let Some(near) = input::nearest(token.text, fitting.iter().copied()) {
                    error = error.label(format!("did you mean `{near}`?"));
                }
                Err(error.help(match fitting.is_empty() {
                    true => format!("{} is needed here, and no line above makes one", wanted()),
                    false => format!("{} is needed here: {}", wanted(), input::or_list(fitting)),
                }))
            }
        }
    }

    pub(super) fn size(&self, text: &str, at: Range<usize>) -> Result<u64, InputError> {
        match text {
            "0" => Ok(0),
            text => text.parse::<Size>().map(|size| size.0).map_err(|error| self.unit(at, &error)),
        }
    }

    pub(super) fn unit(&self, at: Range<usize>, error: &UnitError) -> InputError {
        self.source.error(at, error.problem()).help(error.help())
    }

    fn number(&self, token: &Token<'a>) -> Result<u64, InputError> {
        let title = || format!("`{}` is no whole number", input::shown(token.text));
        token.text.parse().map_err(|_| self.source.error(token.span.clone(), title()))
    }

    pub(super) fn byte(&self, token: &Token<'a>) -> Result<u8, InputError> {
        match (token.text, token.text.as_bytes()) {
            ("zeros", _) => Ok(0),
            (_, [byte]) if byte.is_ascii_graphic() => Ok(*byte),
            _ => Err(self
                .source
                .error(token.span.clone(), format!("`{}` is no byte", input::shown(token.text)))
                .help("write one printable character, or `zeros`")),
        }
    }

    pub(super) fn choice(
        &self,
        token: &Token<'a>,
        what: &str,
        words: &'static [&'static str],
    ) -> Result<&'static str, InputError> {
        let found = words.iter().copied().find(|word| *word == token.text);
        found.ok_or_else(|| self.source.unknown_word(token.span.clone(), what, token.text, words.iter().copied()))
    }

    pub(super) fn extra(&self, token: &Token<'a>) -> InputError {
        self.source.error(token.span.clone(), format!("`{}` is one word too many", input::shown(token.text)))
    }
}
