//! Whole numbers of the command line.
//!
//! It owns their parser. Invariant: a text that is no number of the range is refused with the range
//! and with how such a number is had. Counterpart: clap's own parsers, whose message is the
//! standard library's (`invalid digit found in string`).

use std::ops::RangeInclusive;

/// A whole number of `range`. `hint` says how one is had, for who gave another text.
pub(crate) fn within<T>(
    range: RangeInclusive<T>,
    hint: &'static str,
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static
where
    T: std::str::FromStr + PartialOrd + std::fmt::Display + Clone + Send + Sync + 'static,
{
    move |text| match text.parse() {
        Ok(number) if range.contains(&number) => Ok(number),
        _ => Err(format!("a whole number from {} to {} is needed ({hint})", range.start(), range.end())),
    }
}

/// Any number of 64 bits.
pub(crate) fn any(text: &str) -> Result<u64, String> {
    within(0..=u64::MAX, "in decimal digits, without a unit")(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_is_no_number_of_the_range_is_told_the_range() {
        let uid = within(0_u32..=7, "`id -u` prints one");
        assert_eq!((uid("0"), uid("7")), (Ok(0), Ok(7)));
        for wrong in ["8", "-1", "", "x", "1.5", "0x1", " 1", "99999999999999999999"] {
            assert_eq!(uid(wrong).unwrap_err(), "a whole number from 0 to 7 is needed (`id -u` prints one)", "{wrong}");
        }
        assert_eq!(any("18446744073709551615"), Ok(u64::MAX));
        assert!(any("18446744073709551616").unwrap_err().contains("to 18446744073709551615"));
    }
}
