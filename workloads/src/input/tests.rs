//! Errors in input: their position, their text, and values with units.

use std::time::Duration as StdDuration;

use proptest::prelude::*;
use serde::Deserialize;
use toml::Spanned;

use super::*;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
struct Job {
    length: Option<Duration>,
    file: Option<Spanned<Size>>,
    mode: Option<Mode>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Mode {
    Truncate,
    PunchHole,
}

fn place(error: &InputError) -> (usize, usize) {
    (error.line().expect("a line"), error.column().expect("a column"))
}

fn job_error(text: &str) -> InputError {
    Source::new("job.toml", text).parse_toml::<Job>().expect_err("the job is bad")
}

#[test]
fn an_error_is_one_paragraph_with_the_line_shown() {
    let error = job_error("length = \"50ms\"\nfil = \"4KiB\"\n");
    assert_eq!(
        error.to_string(),
        "unknown key `fil`
 --> job.toml:2:1
  |
2 | fil = \"4KiB\"
  | ^^^ did you mean `file`?
  |
  = help: it can be `length`, `file` or `mode`"
    );
    assert!(!error.to_string().contains('\u{1b}'));
    assert!(error.styled().contains('\u{1b}'));
}

#[test]
fn an_error_without_a_place_names_its_source_or_what_was_tried() {
    let overall = Source::new("job.toml", "").error_overall("nothing to do").help("add an actor");
    assert_eq!(overall.to_string(), "nothing to do\n--> job.toml\n = help: add an actor");
    assert_eq!((overall.line(), overall.column()), (None, None));
    assert_eq!(overall.source_name(), Some("job.toml"));
    assert_eq!(InputError::unplaced("cannot read").to_string(), "cannot read");
}

#[test]
fn files_that_cannot_be_read_say_why_and_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("none.toml");
    let error = Source::read(&missing).unwrap_err();
    assert!(error.title().contains("none.toml`: No such file"), "{error}");
    assert!(error.help_text().is_some());
    assert!(Source::read(dir.path()).is_err(), "a directory");
    let big = dir.path().join("big.toml");
    std::fs::write(&big, vec![b'#'; TEXT_BYTES_MAX + 1]).unwrap();
    assert!(Source::read(&big).unwrap_err().title().ends_with("is longer than 1MiB"));
    std::fs::write(&big, vec![b'#'; TEXT_BYTES_MAX]).unwrap();
    assert_eq!(Source::read(&big).unwrap().text().len(), TEXT_BYTES_MAX);
    let bytes = dir.path().join("bytes.toml");
    std::fs::write(&bytes, b"a = 1\nb = \"\xff\"\n").unwrap();
    let error = Source::read(&bytes).unwrap_err();
    assert_eq!((error.title(), place(&error)), ("the text is not UTF-8", (2, 6)));
    assert!(error.to_string().contains(r#"2 | b = "\xFF""#), "{error}");
    // The column counts characters of the text: neither bytes, nor a byte order mark.
    std::fs::write(&bytes, b"\xef\xbb\xbf\xc3\xa9 = \xe9\x80'\n\xe9").unwrap();
    let error = Source::read(&bytes).unwrap_err();
    assert_eq!(place(&error), (1, 5));
    assert!(error.to_string().contains(r"1 | \u{e9} = \xE9\x80'".replace(r"\u{e9}", "é").as_str()), "{error}");
}

#[test]
fn a_byte_order_mark_is_no_part_of_the_text() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("marked.toml");
    std::fs::write(&file, "\u{feff}a = 1\n").unwrap();
    let source = Source::read(&file).unwrap();
    assert_eq!((source.text(), source.line_column(0)), ("a = 1\n", (1, 1)));
    assert_eq!(Source::new("x", "a\u{feff}").text(), "a\u{feff}", "at the start alone");
}

#[test]
fn columns_count_characters_and_lines_may_end_either_way() {
    let source = Source::new("x", "äö = 1\r\nß = \"é\"\n");
    let at = source.text().find('é').unwrap();
    assert_eq!(source.line_column(at), (2, 6));
    assert_eq!(source.line_column(0), (1, 1));
    assert_eq!(source.line_column(usize::MAX), (3, 1));
    let error = source.error(at..at + 2, "t").label("here");
    assert_eq!(error.to_string(), "t\n --> x:2:6\n  |\n2 | ß = \"é\"\n  |      ^ here");
}

#[test]
fn a_very_long_line_is_shown_as_a_window() {
    let text = format!("{}BAD{}", "a".repeat(5000), "b".repeat(500_000));
    let error = Source::new("x", text).error(5000..5003, "t").label("here");
    let shown = error.to_string();
    assert!(shown.len() < 2000, "{} bytes", shown.len());
    assert!(shown.contains("x:1:5001") && shown.contains("BAD"), "{shown}");
}

#[test]
fn control_characters_of_the_user_do_not_reach_the_terminal() {
    let error = Source::new("a\u{1b}[31mb", "\u{1b}]0;x\u{7} = 1").unknown_word(0..3, "key", "\u{1b}[2J\n", ["a"]);
    assert!(!error.to_string().contains(['\u{1b}', '\u{7}']), "{:?}", error.to_string());
    assert_eq!(error.title(), "unknown key `\\u{1b}[2J\\n`");
    // U+009B is to some terminals what ESC and `[` are.
    let error = Source::new("a", "x = \u{9b}31m").error(4..6, "\u{9b}2J").help("\u{85}");
    assert!(!error.to_string().contains(['\u{9b}', '\u{85}']), "{:?}", error.to_string());
    assert!(!error.styled().contains(['\u{9b}', '\u{85}']));
}

#[test]
fn suggestions_are_near_or_absent() {
    let names = ["unsafe", "mainline", "rfc-v2", "man-page", "kara", "odp"];
    assert_eq!(nearest("rfc-v3", names), Some("rfc-v2"));
    assert_eq!(nearest("RFCv2", names), Some("rfc-v2"));
    assert_eq!(nearest("manpage", names), Some("man-page"));
    assert_eq!(nearest("kaar", names), Some("kara"));
    assert_eq!(nearest("opd", names), Some("odp"));
    assert_eq!(nearest("xyzzy", names), None);
    assert_eq!(nearest("", names), None);
    assert_eq!(nearest("q", ["r"]), None, "nothing in common");
    assert_eq!(nearest(&"a".repeat(10_000), names), None);
}

#[test]
fn serde_errors_keep_their_place_and_suggest() {
    let error = job_error("mode = \"punch-hol\"");
    assert_eq!((error.title(), place(&error)), ("unknown value `punch-hol`", (1, 8)));
    assert_eq!(error.label_text(), Some("did you mean `punch-hole`?"));
    let odd = job_error("\"a`, expected `b\" = 1");
    assert_eq!((odd.title(), place(&odd)), ("unknown key `a`, expected `b`", (1, 1)));

    #[derive(Debug, Deserialize)]
    struct Needs {
        #[expect(dead_code, reason = "only its absence matters")]
        seed: u64,
    }
    let error = Source::new("x", "[a]\n").parse_toml::<std::collections::BTreeMap<String, Needs>>().unwrap_err();
    assert_eq!((error.title(), place(&error)), ("missing key `seed`", (1, 1)));
    let error = job_error("length = \"5s\"\nlength = \"6s\"");
    assert_eq!((error.title(), place(&error)), ("duplicate key", (2, 1)));
    let error = job_error("length = \"5s");
    assert_eq!(place(&error).0, 1);
}

#[test]
fn values_need_their_unit_and_errors_mark_the_value() {
    for (text, title, column) in [
        ("length = 50", "the time `50` has no unit", 10),
        ("length = 0.5", "the time `0.5` has no unit", 10),
        ("length = \"50\"", "the time `50` has no unit", 10),
        ("length = \"0\"", "the time `0` has no unit", 10),
        ("length = \"\"", "a time is missing here", 10),
        ("length = \"50 parsecs\"", "unknown unit of time `parsecs`", 10),
        ("length = \"1h 30\"", "the number 30 in `1h 30` has no unit", 10),
        ("length = \"1 5s\"", "`1 5s` has a number without a unit", 10),
        ("length = \"0.5ns\"", "`0.5ns` is not a time", 10),
        ("length = \"-5s\"", "`-5s` is not a time", 10),
        ("file = 4096", "the size `4096` has no unit", 8),
        ("file = \"4096\"", "the size `4096` has no unit", 8),
        ("file = \"\"", "a size is missing here", 8),
        ("file = \"4KB\"", "the unit `KB` counts in thousands, and pages are counted in powers of two", 8),
        ("file = \"4xB\"", "unknown unit of size `xB`", 8),
        ("file = \"1.5MiB\"", "the size `1.5MiB` is not a whole number of one unit", 8),
        ("file = \"-1MiB\"", "`-1MiB` is not a size", 8),
        ("file = \"16EiB\"", "the size `16EiB` is beyond the largest, 18446744073709551615", 8),
    ] {
        let error = job_error(text);
        assert_eq!((error.title(), place(&error)), (title, (1, column)), "{text}");
        assert!(error.help_text().is_some_and(|help| help.contains("with its unit")), "{text}");
        assert_eq!(error.span(), Some(column - 1..text.len()), "{text}");
    }
    assert!(job_error("length = true").title().contains("expected a time with its unit"));
}

#[test]
fn values_with_units_are_exact() {
    for (text, nanos) in [
        ("50ms", 50_000_000),
        ("1h 30min", 5_400_000_000_000),
        ("1.5us", 1500),
        ("0s", 0),
        (" 7ns ", 7),
        ("1s 500ms", 1_500_000_000),
    ] {
        assert_eq!(text.parse::<Duration>().unwrap().0, StdDuration::from_nanos(nanos), "{text}");
    }
    for (text, bytes) in [
        ("0B", 0),
        ("512 B", 512),
        ("4KiB", 4096),
        ("2MiB", 2 << 20),
        ("1GiB", 1 << 30),
        ("3TiB", 3 << 40),
        ("15EiB", 15 << 60),
    ] {
        assert_eq!(text.parse::<Size>().unwrap().bytes(), bytes, "{text}");
    }
    let job: Job = Source::new("x", "length = \"50ms\"\nfile = \"2MiB\"\nmode = \"truncate\"").parse_toml().unwrap();
    assert_eq!(job.length.unwrap().0, StdDuration::from_millis(50));
    assert_eq!(job.file.unwrap().span(), 23..29);
    assert!(matches!(job.mode, Some(Mode::Truncate)) && !matches!(job.mode, Some(Mode::PunchHole)));
}

/// humantime panics on overflow when it adds these terms.
#[test]
fn times_at_the_edge_of_arithmetic_are_errors() {
    for text in ["18446744073709551615s 1000000000ns", "18446744073709551614s 1s 1000000000ns", "584554530872years"] {
        assert!(text.parse::<Duration>().is_err(), "{text}");
    }
    assert!("9999999999y".repeat(8).parse::<Duration>().is_ok(), "the longest sum there can be");
    assert!("9999999999y".repeat(9).parse::<Duration>().is_err());
}

proptest! {
    #[test]
    fn any_error_in_any_text_renders_and_agrees_with_its_place(
        text in "(?s)[ -~äß😀\u{1b}\t\r\n]{0,60}", start in 0usize..80, length in 0usize..80, name in "[a-z:\n]{0,8}"
    ) {
        let source = Source::new(name.as_str(), text.as_str());
        let error = source.error(start..start + length, "title").label("label").help("help");
        let (line, column) = place(&error);
        prop_assert!(error.to_string().contains(&format!("{}:{line}:{column}\n", shown(&name))), "{error}");
        prop_assert!(error.styled().contains("title"));
        let span = error.span().unwrap();
        prop_assert!(source.text().get(span.clone()).is_some());
        let before = &source.text()[..span.start];
        prop_assert_eq!(line, before.split('\n').count());
        let in_line = before.split('\n').next_back().unwrap().chars().count() + 1;
        let inside_line_end = before.ends_with('\r') && text[span.start..].starts_with('\n');
        prop_assert_eq!(column, in_line - usize::from(inside_line_end));
    }

    #[test]
    fn spans_backwards_and_beyond_are_clamped(text in "[aß\n]{0,6}", start: usize, end: usize) {
        let error = Source::new("x", text.as_str()).error(start..end, "t");
        prop_assert!(text.get(error.span().unwrap()).is_some());
        prop_assert!(error.to_string().starts_with('t'));
    }

    #[test]
    fn any_text_as_toml_or_unit_is_a_value_or_an_error(text in "(?s).{0,60}", number in "[0-9 .a-zµ]{0,96}") {
        if let Err(error) = Source::new("x", text.as_str()).parse_toml::<Job>() {
            prop_assert!(!error.to_string().is_empty());
        }
        for text in [text, number] {
            let _ = text.parse::<Duration>();
            let _ = text.parse::<Size>();
        }
    }

    #[test]
    fn sizes_and_times_read_back_what_they_write(bytes: u64, shift in 0u32..64, seconds in 0u64..10_000_000_000, nanos in 0u32..1_000_000_000) {
        for size in [Size(bytes), Size(bytes >> shift << shift), Size(1 << shift)] {
            prop_assert_eq!(size.to_string().parse::<Size>(), Ok(size));
        }
        let time = Duration(StdDuration::new(seconds, nanos));
        prop_assert_eq!(time.to_string().parse::<Duration>(), Ok(time));
    }
}
