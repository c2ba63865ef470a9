//! Values written with units: times (`50ms`, `1h 30min`) and sizes (`4KiB`, `2MiB`).
//!
//! humantime reads times and bytesize reads the units of sizes; this module refuses what they would
//! guess. A bare number is an error, because its unit would be a guess. No value is rounded: a
//! value without an exact representation (nanoseconds, bytes) is an error. Both types read from a
//! TOML string and from `FromStr` (command line), and write text that they read back.

use std::fmt;
use std::str::FromStr;

use bytesize::Unit;
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use super::words::{HELP_MARK, shown};

/// The longest text of one value, in bytes, and the most digits of one number. Within these bounds
/// a sum of terms stays far below `std::time::Duration::MAX`. Beyond them humantime 2.4 overflows
/// with a panic for some texts (`18446744073709551615s 1000000000ns`).
const VALUE_BYTES_MAX: usize = 96;
const DIGITS_MAX: usize = 10;

const TIME_HELP: &str = "write a time with its unit, like `50ms`, `10s` or `1h 30min` (ns, us, ms, s, min, h, days)";
const SIZE_HELP: &str =
    "write a size as a whole number with its unit, like `4KiB`, `2MiB` or `1GiB` (B, KiB, MiB, GiB, TiB, PiB, EiB)";

/// A value with a unit that could not be read: what is wrong, and how to write it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}; {help}")]
pub struct UnitError {
    problem: String,
    help: String,
}

impl UnitError {
    fn new(problem: impl Into<String>, help: impl Into<String>) -> Self {
        UnitError { problem: problem.into(), help: help.into() }
    }

    /// What is wrong.
    pub fn problem(&self) -> &str {
        &self.problem
    }

    /// How to write it.
    pub fn help(&self) -> &str {
        &self.help
    }

    fn into_serde<E: de::Error>(self) -> E {
        E::custom(format_args!("{}{HELP_MARK}{}", self.problem, self.help))
    }
}

/// A length of time, written with its unit; nanosecond precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration(pub std::time::Duration);

impl From<Duration> for std::time::Duration {
    fn from(duration: Duration) -> Self {
        duration.0
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

impl FromStr for Duration {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        if text.trim().is_empty() {
            return Err(UnitError::new("a time is missing here", TIME_HELP));
        }
        // humantime accepts a lone "0" as a time.
        if text.trim().parse::<f64>().is_ok() {
            return Err(UnitError::new(format!("the time `{}` has no unit", shown(text.trim())), TIME_HELP));
        }
        let text = text.trim();
        if text.len() > VALUE_BYTES_MAX || digit_runs(text).any(|run| run.len() > DIGITS_MAX) {
            return Err(UnitError::new(
                format!("the time `{}` has too many digits to be meant", shown(text)),
                TIME_HELP,
            ));
        }
        // humantime reads `1 5s` as 15 seconds.
        let ends_in_digit = |word: &str| word.ends_with(|c: char| c.is_ascii_digit());
        let starts_with_digit = |word: &str| word.starts_with(|c: char| c.is_ascii_digit());
        let words: Vec<&str> = text.split_whitespace().collect();
        if words.windows(2).any(|pair| ends_in_digit(pair[0]) && starts_with_digit(pair[1])) {
            return Err(UnitError::new(format!("`{text}` has a number without a unit"), TIME_HELP));
        }
        match humantime::parse_duration(text) {
            Ok(duration) => Ok(Duration(duration)),
            Err(humantime::DurationError::UnknownUnit { unit, .. }) if !unit.is_empty() => {
                Err(UnitError::new(format!("unknown unit of time `{unit}`"), TIME_HELP))
            }
            Err(humantime::DurationError::UnknownUnit { value, .. }) => {
                Err(UnitError::new(format!("the number {value} in `{text}` has no unit"), TIME_HELP))
            }
            Err(_) => Err(UnitError::new(format!("`{text}` is not a time"), TIME_HELP)),
        }
    }
}

fn digit_runs(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_digit())
}

/// A number of bytes, written with an IEC unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(pub u64);

impl Size {
    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl From<Size> for u64 {
    fn from(size: Size) -> Self {
        size.0
    }
}

/// Uses the largest unit that divides the size exactly, so the text reads back as the same number
/// of bytes.
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        let step = if self.0 == 0 { 0 } else { (self.0.trailing_zeros() / 10) as usize };
        write!(f, "{}{}", self.0 >> (10 * step), UNITS[step])
    }
}

impl FromStr for Size {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let text = text.trim();
        let fail = |problem: String| Err(UnitError::new(problem, SIZE_HELP));
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = (&text[..digits], text[digits..].trim_start());
        if text.is_empty() {
            return fail("a size is missing here".into());
        }
        if text.len() > VALUE_BYTES_MAX {
            return fail("this size is too long to be meant".into());
        }
        if number.is_empty() {
            return fail(format!("`{text}` is not a size"));
        }
        if unit.starts_with(['.', ',', '_']) {
            return fail(format!("the size `{text}` is not a whole number of one unit"));
        }
        let factor = match unit.parse::<Unit>() {
            _ if unit.is_empty() => return fail(format!("the size `{text}` has no unit")),
            Ok(Unit::Byte) => 1,
            Ok(Unit::KibiByte) => bytesize::KIB,
            Ok(Unit::MebiByte) => bytesize::MIB,
            Ok(Unit::GibiByte) => bytesize::GIB,
            Ok(Unit::TebiByte) => bytesize::TIB,
            Ok(Unit::PebiByte) => bytesize::PIB,
            Ok(Unit::ExbiByte) => bytesize::EIB,
            // kB and k mean 1000 to some readers and 1024 to others.
            Ok(_) => {
                return fail(format!("the unit `{unit}` counts in thousands, and pages are counted in powers of two"));
            }
            Err(_) => return fail(format!("unknown unit of size `{unit}`")),
        };
        match number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor)) {
            Some(bytes) => Ok(Size(bytes)),
            None => fail(format!("the size `{text}` is beyond the largest, {}", u64::MAX)),
        }
    }
}

/// Reads a string. A bare number is an error that names the missing unit.
struct WithUnit {
    what: &'static str,
    help: &'static str,
}

impl WithUnit {
    fn bare<E: de::Error>(&self, number: impl fmt::Display) -> E {
        UnitError::new(format!("the {} `{number}` has no unit", self.what), format!("{}, between quotes", self.help))
            .into_serde()
    }
}

impl Visitor<'_> for WithUnit {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a {} with its unit, as a string", self.what)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<String, E> {
        Err(self.bare(number))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<String, E> {
        Err(self.bare(number))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<String, E> {
        Err(self.bare(number))
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = deserializer.deserialize_str(WithUnit { what: "time", help: TIME_HELP })?;
        text.parse().map_err(UnitError::into_serde)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = deserializer.deserialize_str(WithUnit { what: "size", help: SIZE_HELP })?;
        text.parse().map_err(UnitError::into_serde)
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
