//! The request over a control socket: one operation as one line of JSON,
//! `{"command":"truncate","file":"data","size":4096}`.
//!
//! It owns the way from an [`Op`] to that line and back. Invariant: exactly the operations that the
//! table lists for servers have a line; [`decode`] gives back what [`encode`] was given.

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::input;
use crate::ops::{Arg, Argument, FlushRule, Op, Param, Verb, WrongArguments};

/// The key of the operation's name.
const COMMAND: &str = "command";

/// Why a line is no request. Sizes and offsets are numbers of bytes.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// It is no JSON object.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// It does not say which request it is.
    #[error("the key `{COMMAND}` is missing, which names the request; the requests are {}", names())]
    NoCommand,
    /// No operation of a server is called that.
    #[error("there is no request `{name}`; the requests are {}", names())]
    Unknown {
        /// The name, or a part of it.
        name: String,
    },
    /// A key is missing.
    #[error("`{request}` lacks the key `{key}`")]
    Missing {
        /// The request.
        request: String,
        /// The key.
        key: &'static str,
    },
    /// A key does not belong to the request.
    #[error("`{request}` has no key `{key}`")]
    Extra {
        /// The request.
        request: String,
        /// The key, or a part of it.
        key: String,
    },
    /// A key's value has the wrong type.
    #[error("`{key}` of `{request}` is {found}, where {wanted} is needed")]
    Type {
        /// The request.
        request: String,
        /// The key.
        key: &'static str,
        /// What was found, in words.
        found: String,
        /// What is needed, in words.
        wanted: &'static str,
    },
    /// The values do not fit the operation.
    #[error(transparent)]
    Arguments(#[from] WrongArguments),
}

fn names() -> String {
    let names = Verb::ALL.iter().filter(|verb| verb.is_for_servers()).map(|verb| verb.name());
    names.collect::<Vec<_>>().join(", ")
}

/// The line for `op`, without the line end.
pub fn encode(op: &Op) -> String {
    let mut line = Map::from_iter([(COMMAND.to_owned(), op.verb().name().into())]);
    for (arg, parameter) in op.args().into_iter().zip(op.verb().params()) {
        let value = match arg {
            Arg::Number(number) => number.into(),
            Arg::Byte(byte) => byte.into(),
            // Programs may write, and older ones know, `true` and `false`.
            Arg::Name(rule) if parameter.syntax == Param::FlushRule && rule == "on" => true.into(),
            Arg::Name(rule) if parameter.syntax == Param::FlushRule && rule == "off" => false.into(),
            Arg::Name(text) => text.into(),
            Arg::Word(word) => word.into(),
            Arg::Words(words) => words.into(),
            Arg::Range(range) => Value::Array(vec![range.offset.into(), range.len.into()]),
            Arg::Absent => Value::Null,
        };
        line.insert(parameter.name.to_owned(), value);
    }
    Value::Object(line).to_string()
}

/// The operation that a line asks for. A key of an optional argument may be missing or `null`.
///
/// # Errors
/// [`RequestError`].
pub fn decode(line: &str) -> Result<Op, RequestError> {
    let KeysOnce(mut line) = serde_json::from_str(line)?;
    let name = match line.remove(COMMAND) {
        Some(Value::String(name)) => name,
        Some(other) => other.to_string(),
        None => return Err(RequestError::NoCommand),
    };
    let Some(verb) = Verb::of_server(&name) else {
        return Err(RequestError::Unknown { name: input::shown(&name) });
    };
    let request = || name.clone();
    let mut args = Vec::new();
    for parameter in verb.params() {
        let key = parameter.name;
        let value = line.remove(key);
        args.push(match (parameter.syntax, value) {
            (Param::Optional(_), None | Some(Value::Null)) => Arg::Absent,
            (Param::Optional(syntax), Some(value)) => typed(&name, key, *syntax, value)?,
            (syntax, Some(value)) => typed(&name, key, syntax, value)?,
            (_, None) => return Err(RequestError::Missing { request: request(), key }),
        });
    }
    // A request without arguments may carry keys: programs send `file` with every request.
    if let Some(extra) = line.keys().next().filter(|_| !verb.params().is_empty()) {
        return Err(RequestError::Extra { request: request(), key: input::shown(extra) });
    }
    Ok(Op::from_args(verb, &args)?)
}

/// An object none of whose keys is given twice.
struct KeysOnce(Map<String, Value>);

impl<'de> Deserialize<'de> for KeysOnce {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<KeysOnce, D::Error> {
        struct Keys;

        impl<'de> Visitor<'de> for Keys {
            type Value = KeysOnce;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut pairs: A) -> Result<KeysOnce, A::Error> {
                let mut object = Map::new();
                while let Some((key, value)) = pairs.next_entry::<String, Value>()? {
                    if object.contains_key(&key) {
                        return Err(A::Error::custom(format!("the key `{}` is given twice", input::shown(&key))));
                    }
                    object.insert(key, value);
                }
                Ok(KeysOnce(object))
            }
        }

        deserializer.deserialize_map(Keys)
    }
}

fn typed(request: &str, key: &'static str, syntax: Param, value: Value) -> Result<Arg, RequestError> {
    let (arg, wanted) = match syntax {
        Param::Size | Param::Span | Param::Delay | Param::Number => {
            (value.as_u64().map(Arg::Number), "a whole number from 0 to 2^64 - 1")
        }
        Param::FlushRule => (flush_rule(&value), "`true`, `false`, `\"nth=3\"` or `\"every=3\"`"),
        _ => (value.as_str().map(|text| Arg::Name(text.to_owned())), "a text"),
    };
    arg.ok_or_else(|| {
        let found = input::shown(&value.to_string());
        RequestError::Type { request: request.to_owned(), key, found, wanted }
    })
}

fn flush_rule(value: &Value) -> Option<Arg> {
    let rule = match value.as_bool() {
        Some(on) => {
            if on {
                FlushRule::On
            } else {
                FlushRule::Off
            }
        }
        None => value.as_str()?.parse().ok()?,
    };
    Some(rule.to_arg())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use crate::ops::{Bytes, Delay, FileName};

    fn example(syntax: Param) -> Arg {
        match syntax {
            Param::Optional(inner) => example(*inner),
            Param::Size | Param::Span | Param::Delay | Param::Number => Arg::Number(4096),
            Param::FlushRule => Arg::Name("every=3".to_owned()),
            _ => Arg::Name("data".to_owned()),
        }
    }

    #[test]
    fn every_request_of_the_table_is_read_back() {
        for verb in Verb::ALL.iter().filter(|verb| verb.is_for_servers()) {
            let full: Vec<Arg> = verb.params().iter().map(|parameter| example(parameter.syntax)).collect();
            let absent = |(arg, optional): (&Arg, bool)| if optional { Arg::Absent } else { arg.clone() };
            let optional = verb.params().iter().map(|parameter| matches!(parameter.syntax, Param::Optional(_)));
            let least: Vec<Arg> = full.iter().zip(optional).map(absent).collect();
            for args in [full, least] {
                let op = Op::from_args(*verb, &args).unwrap();
                assert_eq!(decode(&encode(&op)).unwrap(), op);
            }
        }
    }

    /// Programs write these lines themselves, so their form stays.
    #[test]
    fn lines_as_programs_write_them() {
        let data = || FileName("data".to_owned());
        for (line, op) in [
            (r#"{"command":"truncate","file":"data","size":4096}"#, Op::Truncate { file: data(), size: Bytes(4096) }),
            (
                r#"{"command":"punch","file":"data","len":8192,"offset":0}"#,
                Op::PunchByPath { file: data(), offset: Bytes(0), len: Bytes(8192) },
            ),
            (r#"{"command":"pins","file":null}"#, Op::Pins { file: None }),
            (r#"{"command":"fail-flush","on":true}"#, Op::FailFlush { on: FlushRule::On }),
            (r#"{"command":"fail-flush","on":false}"#, Op::FailFlush { on: FlushRule::Off }),
            (r#"{"command":"fail-flush","on":"nth=3"}"#, Op::FailFlush { on: FlushRule::Nth(3) }),
            (r#"{"command":"flush-delay","delay":5000000}"#, Op::DelayFlush { delay: Delay(Duration::from_millis(5)) }),
            (r#"{"command":"power-cut","seed":7}"#, Op::CutGuestPower { seed: Some(7) }),
        ] {
            assert_eq!(decode(line).unwrap(), op);
            assert_eq!(
                serde_json::from_str::<Value>(&encode(&op)).unwrap(),
                serde_json::from_str::<Value>(line).unwrap()
            );
        }
        assert_eq!(decode(r#"{"command":"pins"}"#).unwrap(), Op::Pins { file: None });
        assert_eq!(decode(r#"{"command":"guests","file":null}"#).unwrap(), Op::Guests {});
    }

    #[test]
    fn lines_that_are_no_request() {
        for (line, says) in [
            (r#"{"command":"reg_mr"}"#, "there is no request `reg_mr`; the requests are truncate, blockers, "),
            (r#"{"command":7}"#, "there is no request `7`"),
            (r#"{"file":"data"}"#, "the key `command` is missing"),
            (r#"{"command":"pins","file":null,"file":"data"}"#, "the key `file` is given twice"),
            (r#"{"command":"guests","command":"stale"}"#, "the key `command` is given twice"),
            (r#"{"command":"truncate","file":"data"}"#, "`truncate` lacks the key `size`"),
            (r#"{"command":"pins","files":"data"}"#, "`pins` has no key `files`"),
            (
                r#"{"command":"truncate","file":"data","size":-1}"#,
                "`size` of `truncate` is -1, where a whole number from 0 to 2^64 - 1 is needed",
            ),
            (r#"{"command":"blockers","file":["a"]}"#, "`file` of `blockers` is [\"a\"], where a text is needed"),
            (
                r#"{"command":"fail-flush","on":"yes"}"#,
                "is \"yes\", where `true`, `false`, `\"nth=3\"` or `\"every=3\"` is needed",
            ),
            (r#"{"command":"fail-flush","on":"nth=0"}"#, "is needed"),
            (r#"{"command":"flush-delay","delay":"5ms"}"#, "where a whole number from 0 to 2^64 - 1 is needed"),
            ("[]", "expected a JSON object"),
            ("", "EOF"),
        ] {
            let error = decode(line).unwrap_err().to_string();
            assert!(error.contains(says), "{line}: {error}");
        }
    }
}
