//! `daxlab designs`: the designs and their axes, to read, to save and edit, or as JSON.
//!
//! Without an argument: all presets side by side. With a name: that design as a TOML file that can
//! be saved, edited and given back to `--design`. With a file: the designs it defines, side by
//! side. `--json`: the same selection as an array of `{name, axes{…}, about}`, axes spelled as in
//! TOML.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use comfy_table::{ContentArrangement, LineStyle, Table, TableStyle};
use fs_sim::design::{Axis, Design};
use workloads::input::InputError;
use workloads::input::designs::{DesignCatalogue, DesignEntry, to_toml};

use crate::exit;

/// The width that tables are laid out for, in columns.
const WIDTH: usize = 120;

/// Longest line of a comment in the TOML that is printed.
const COMMENT_WIDTH: usize = 96;

/// Show the designs and their axes
#[derive(clap::Args, Debug)]
pub(crate) struct DesignsArgs {
    /// One design, printed as TOML to save and edit; or a TOML file, whose designs are compared.
    /// Without: the presets
    #[arg(value_name = "NAME|FILE.toml")]
    what: Option<String>,
    /// Print an array of {name, axes, about}
    #[arg(long)]
    json: bool,
}

/// Prints what `args` ask for to standard output.
///
/// # Errors
/// An unknown design or a bad file ([`InputError`]); standard output can't be written. A closed
/// pipe is no error.
pub(crate) fn run(args: DesignsArgs) -> anyhow::Result<ExitCode> {
    exit::print(&render(&args)?)?;
    Ok(ExitCode::SUCCESS)
}

fn render(args: &DesignsArgs) -> anyhow::Result<String> {
    let mut catalogue = DesignCatalogue::default();
    let (entries, one) = select(&mut catalogue, args.what.as_deref())?;
    if args.json {
        return Ok(serde_json::to_string_pretty(&entries)? + "\n");
    }
    Ok(match (one, &entries[..]) {
        (true, [entry]) => document(entry),
        _ => comparison(&entries),
    })
}

/// The entries asked for, and whether they were asked for as one design by name.
fn select(catalogue: &mut DesignCatalogue, what: Option<&str>) -> Result<(Vec<DesignEntry>, bool), InputError> {
    match what {
        None => Ok((catalogue.entries().to_vec(), false)),
        Some(path) if DesignCatalogue::is_path(path) => Ok((catalogue.load(Path::new(path))?.to_vec(), false)),
        Some(list) => {
            let entries = catalogue.resolve(list)?;
            let one = entries.len() == 1;
            Ok((entries, one))
        }
    }
}

/// One design as TOML. A preset's name is taken, so the copy is called after it.
fn document(entry: &DesignEntry) -> String {
    let copy = Design { name: format!("my-{}", entry.design.name), axes: entry.design.axes };
    let about = format!("{}: {}", entry.design.name, entry.about);
    let how = "A copy to save and edit; `--design FILE.toml` runs it. Axes can be left out beside a `base`.";
    let mut text = String::new();
    for line in wrapped(&about).into_iter().chain(wrapped(how)) {
        let _ = writeln!(text, "# {line}");
    }
    text + &to_toml(&copy)
}

fn wrapped(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("never emptied");
        if line.is_empty() {
            line.push_str(word);
        } else if line.len() + 1 + word.len() <= COMMENT_WIDTH {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

/// Axes down, designs across; as many tables below each other as the width asks for, of about equal
/// width.
fn comparison(entries: &[DesignEntry]) -> String {
    let mut text = String::new();
    for entries in blocks(entries) {
        if !text.is_empty() {
            text.push('\n');
        }
        // Writing to a String never fails.
        let _ = writeln!(text, "{}", table(entries).trim_fmt());
    }
    text
}

fn table(entries: &[DesignEntry]) -> Table {
    let mut table = Table::new();
    let underlined = TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─'));
    table.load_style(underlined).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(std::iter::once("axis").chain(entries.iter().map(|entry| entry.design.name.as_str())));
    let mut columns: Vec<_> = entries.iter().map(|entry| entry.design.axes.rows()).collect();
    for axis in Axis::ALL {
        let values = columns.iter_mut().filter_map(Iterator::next).map(|(_, value)| value);
        table.add_row(std::iter::once(axis.name()).chain(values));
    }
    table
}

/// Columns shared out in order, in the fewest blocks that fit, then as evenly as those blocks
/// allow.
fn blocks(entries: &[DesignEntry]) -> impl Iterator<Item = &[DesignEntry]> {
    let fits = |size: usize| entries.chunks(size).all(|block| block.len() == 1 || width(block) <= WIDTH);
    let size = (1..=entries.len()).rev().find(|&size| fits(size)).unwrap_or(1);
    let count = entries.len().div_ceil(size);
    let even = entries.len().div_ceil(count.max(1)).max(1);
    entries.chunks(if fits(even) { even } else { size })
}

/// What `table` will need: each column as wide as its longest cell, and a blank on both sides.
fn width(entries: &[DesignEntry]) -> usize {
    let axis = Axis::ALL.iter().map(|axis| axis.name().len()).max().unwrap_or(0);
    let column = |entry: &DesignEntry| {
        let values = entry.design.axes.rows().map(|(_, value)| value.chars().count());
        values.chain([entry.design.name.len()]).max().unwrap_or(0)
    };
    axis + 2 + entries.iter().map(|entry| column(entry) + 2).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use fs_sim::design::{further_presets, preset, presets};
    use workloads::input::Source;
    use workloads::input::designs::parse;

    use super::*;

    fn shown(what: Option<&str>, json: bool) -> anyhow::Result<String> {
        render(&DesignsArgs { what: what.map(str::to_owned), json })
    }

    #[test]
    fn the_comparison_holds_every_cell_within_the_width() {
        let text = shown(None, false).unwrap();
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        let mut cells = 0;
        let mut header: Vec<&str> = Vec::new();
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.first() {
                Some(&"axis") => header = words,
                Some(axis) if Axis::from_name(axis).is_some() => {
                    for (design, value) in header.iter().zip(&words).skip(1) {
                        let preset = preset(design).unwrap();
                        assert!(preset.axes.rows().any(|row| row == (axis, value)), "{axis} of {design}: {value}");
                        cells += 1;
                    }
                }
                _ => {}
            }
        }
        assert_eq!(cells, 11 * 16, "{text}");
    }

    #[test]
    fn a_design_is_shown_as_a_file_that_reads_back() {
        for preset in presets().iter().chain(further_presets()) {
            let text = shown(Some(preset.name), false).unwrap();
            assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
            let designs = parse(&Source::new("saved", text.as_str())).unwrap();
            assert_eq!(designs, [Design { name: format!("my-{}", preset.name), axes: preset.axes }]);
        }
        assert!(shown(Some("kara"), false).unwrap().starts_with("# kara: List mail of 2019-08-14"));
    }

    #[test]
    fn json_is_an_array_of_name_axes_and_about() {
        let value: serde_json::Value = serde_json::from_str(&shown(None, true).unwrap()).unwrap();
        assert_eq!(value.as_array().map(Vec::len), Some(11));
        assert_eq!(value[1]["name"], "mainline");
        assert_eq!(value[1]["axes"]["mr_holds_lease"], "n/a");
        assert_eq!(value[1]["axes"].as_object().map(serde_json::Map::len), Some(16));
        assert_eq!(value[1]["about"], presets()[1].about);
        let text = shown(Some("kara"), true).unwrap();
        assert!(
            text.find("lease_rules") < text.find("pin_gate") && text.find("on_lease_lost") < text.find("about"),
            "{text}"
        );
        let one: serde_json::Value = serde_json::from_str(&shown(Some("odp"), true).unwrap()).unwrap();
        assert_eq!((one.as_array().map(Vec::len), &one[0]["axes"]["pin_gate"]), (Some(1), &"fault".into()));
    }

    #[test]
    fn a_file_is_compared_whatever_it_holds() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mine.toml");
        let mut text = String::new();
        for n in 0..30 {
            text += &format!("[[design]]\nname = \"{}-{n}\"\nbase = \"odp\"\n", "n".repeat(30));
        }
        std::fs::write(&path, text).unwrap();
        let path = path.to_str().unwrap();
        let text = shown(Some(path), false).unwrap();
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        assert_eq!(text.matches("nnn-").count(), 30);
        let value: serde_json::Value = serde_json::from_str(&shown(Some(path), true).unwrap()).unwrap();
        assert_eq!(value[0]["about"], format!("Defined in {path}, from odp."));
    }

    #[test]
    fn an_unknown_name_suggests_the_nearest() {
        let error = shown(Some("rfcv2"), false).unwrap_err();
        let error = error.downcast_ref::<InputError>().unwrap();
        assert_eq!(error.label_text(), Some("did you mean `rfc-v2`?"));
    }
}
