//! Numbers and lines of text as people read them: `12.3k`, `1.20M`, `840ns`, `12.4µs`, `3.41GiB`.
//!
//! Invariant: a count or a size has three significant digits and at most seven characters, up to
//! the largest `u64`. A number just under a unit boundary rounds into the next unit: `999_999` is
//! `1.00M`, never `1000k`. There is no kernel counterpart: the kernel prints exact numbers.

/// Divides `value` by `step` until it prints as less than 1000, and appends the unit.
fn scaled(value: u64, step: f64, units: &[&str]) -> String {
    let mut scaled = value as f64;
    let mut index = 0;
    // 999.5 would print as "1000": show such a value in the next unit.
    while scaled >= 999.5 && index + 1 < units.len() {
        scaled /= step;
        index += 1;
    }
    let unit = units[index];
    if index == 0 {
        format!("{value}{unit}")
    } else if scaled >= 99.95 {
        format!("{scaled:.0}{unit}")
    } else if scaled >= 9.995 {
        format!("{scaled:.1}{unit}")
    } else {
        format!("{scaled:.2}{unit}")
    }
}

/// A plain count: exact below 1000, then `k`, `M`, `G`, `T`, `P`, `E` (powers of 1000).
///
/// ```
/// # use reports::human::count;
/// assert_eq!(count(999), "999");
/// assert_eq!(count(12_345), "12.3k");
/// assert_eq!(count(1_200_000), "1.20M");
/// ```
pub fn count(value: u64) -> String {
    scaled(value, 1000.0, &["", "k", "M", "G", "T", "P", "E"])
}

/// A number of bytes in powers of 1024.
///
/// ```
/// # use reports::human::bytes;
/// assert_eq!(bytes(512), "512B");
/// assert_eq!(bytes(2 << 20), "2.00MiB");
/// ```
pub fn bytes(value: u64) -> String {
    scaled(value, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"])
}

/// A duration given in nanoseconds, up to minutes and hours.
///
/// ```
/// # use reports::human::nanoseconds;
/// assert_eq!(nanoseconds(840), "840ns");
/// assert_eq!(nanoseconds(12_400), "12.4µs");
/// assert_eq!(nanoseconds(3_100_000), "3.10ms");
/// assert_eq!(nanoseconds(90_000_000_000), "90.0s");
/// assert_eq!(nanoseconds(3_600_000_000_000), "60.0m");
/// ```
pub fn nanoseconds(value: u64) -> String {
    // From 120 s on, minutes and hours are easier to read than thousands of seconds.
    const SECOND: u64 = 1_000_000_000;
    match value {
        0..=119_999_999_999 => scaled(value, 1000.0, &["ns", "µs", "ms", "s"]),
        120_000_000_000..=7_199_999_999_999 => format!("{:.1}m", value as f64 / (60 * SECOND) as f64),
        _ => format!("{:.1}h", value as f64 / (3600 * SECOND) as f64),
    }
}

/// The label of a tick of a latency axis. `value` is a power of ten, in nanoseconds: `1ns`,
/// `10µs`, `100ms`, `1000s`.
pub(crate) fn tick(value: u64) -> String {
    let (divisor, unit) = match value {
        0..=999 => (1, "ns"),
        1_000..=999_999 => (1_000, "µs"),
        1_000_000..=999_999_999 => (1_000_000, "ms"),
        _ => (1_000_000_000, "s"),
    };
    format!("{}{unit}", value / divisor)
}

/// Text for one line of a page or a terminal: replaces control characters, and cuts the text to
/// `most` characters, the last of which is then an ellipsis.
pub(crate) fn one_line(text: &str, most: usize) -> String {
    let clean = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    let mut chars = text.chars();
    let mut line: String = chars.by_ref().take(most).map(clean).collect();
    if chars.next().is_some() {
        line.pop();
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unit_boundaries_round_up_into_the_next_unit() {
        for (value, want) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1.00k"),
            (9_994, "9.99k"),
            (9_996, "10.0k"),
            (99_949, "99.9k"),
            (99_951, "100k"),
            (999_499, "999k"),
            (999_501, "1.00M"),
            (u64::MAX, "18.4E"),
        ] {
            assert_eq!(count(value), want, "{value}");
        }
        assert_eq!(bytes(1023), "1.00KiB");
        assert_eq!(bytes(1 << 30), "1.00GiB");
        assert_eq!(bytes(u64::MAX), "16.0EiB");
    }

    #[test]
    fn durations_span_nanoseconds_to_hours() {
        for (value, want) in [
            (0, "0ns"),
            (999, "999ns"),
            (1_000, "1.00µs"),
            (999_600, "1.00ms"),
            (119_000_000_000, "119s"),
            (120_000_000_000, "2.0m"),
            (7_200_000_000_000, "2.0h"),
        ] {
            assert_eq!(nanoseconds(value), want, "{value}");
        }
    }

    #[test]
    fn nothing_is_wider_than_a_column() {
        let mut value = 1_u64;
        while let Some(next) = value.checked_mul(3) {
            assert!(count(value).chars().count() <= 5, "{}", count(value));
            assert!(bytes(value).chars().count() <= 7, "{}", bytes(value));
            if value < 3_600_000_000_000 {
                assert!(nanoseconds(value).chars().count() <= 6, "{}", nanoseconds(value));
            }
            value = next;
        }
    }
}
