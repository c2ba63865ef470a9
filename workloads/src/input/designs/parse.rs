//! Reads designs from TOML.
//!
//! A file holds one design at top level, or several as `[[design]]`. A design has a name, may start
//! from a `base` (a preset, or a design above it in the same file), and states axes; without a base
//! it states all of them, but for those with a default ([`Axis::choice_if_unstated`]). The code
//! walks the tables itself, without serde, because an error must be able to point at keys and at
//! values.
//!
//! Invariant: every returned design has a legal, unique name, and axes that passed [`Axes::check`].

use std::ops::Range;

use fs_sim::design::{Axes, Axis, Design, NAME_BYTES_MAX, further_presets, preset, presets};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::entry::{ALL, DesignEntry, all_preset_entries};
use crate::input::{InputError, Source, or_list, shown};

/// Reads the designs of one file on its own: bases and names are checked against the presets and
/// the file itself.
///
/// # Errors
/// The text isn't TOML, a key or value isn't known, axes are missing or contradict each other, or a
/// name is illegal or taken.
pub fn parse(source: &Source) -> Result<Vec<Design>, InputError> {
    let entries = parse_beside(source, &all_preset_entries())?;
    Ok(entries.into_iter().map(|entry| entry.design).collect())
}

/// The same beside the designs in `taken`, whose names are taken.
pub(super) fn parse_beside(source: &Source, taken: &[DesignEntry]) -> Result<Vec<DesignEntry>, InputError> {
    let document = DeTable::parse(source.text()).map_err(|error| source.toml_error(&error))?;
    let top = document.get_ref();
    let mut reader = DesignReader { source, taken, read: Vec::new() };
    match in_file_order(top).find(|(key, _)| key.get_ref() == "design") {
        None if top.is_empty() => {
            return Err(source.error(0..0, "no design in this file").help(
                "start with `name = \"…\"` and `base = \"rfc-v2\"`; `daxlab designs rfc-v2` prints a design to copy",
            ));
        }
        None => reader.design(top, document.span(), &["name", "base", "design"])?,
        Some((design_key, designs)) => {
            if let Some((key, _)) = in_file_order(top).find(|(key, _)| key.get_ref() != "design") {
                return Err(source
                    .error(key.span(), format!("`{}` stands outside the `[[design]]` tables", shown(key.get_ref())))
                    .help("a file holds either one design at top level, or only `[[design]]` tables"));
            }
            let many = || {
                source
                    .error(design_key.span(), "`design` is not a list of tables")
                    .help("write each design under its own `[[design]]`, with double brackets")
            };
            for table in designs.get_ref().as_array().ok_or_else(many)?.iter() {
                reader.design(table.get_ref().as_table().ok_or_else(many)?, table.span(), &["name", "base"])?;
            }
            if reader.read.is_empty() {
                return Err(many());
            }
        }
    }
    Ok(reader.read)
}

type TomlKey<'a, 't> = &'a Spanned<std::borrow::Cow<'t, str>>;
type TomlItem<'a, 't> = &'a Spanned<DeValue<'t>>;

/// The TOML parser sorts tables by key. The first error reported should be the first in the file.
fn in_file_order<'a, 't>(table: &'a DeTable<'t>) -> impl Iterator<Item = (TomlKey<'a, 't>, TomlItem<'a, 't>)> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries.into_iter()
}

struct DesignReader<'s> {
    source: &'s Source,
    taken: &'s [DesignEntry],
    /// The designs above in the file.
    read: Vec<DesignEntry>,
}

/// What one table states, with positions.
#[derive(Default)]
struct StatedDesign<'t> {
    name: Option<(&'t str, Range<usize>)>,
    base: Option<(&'t str, Range<usize>)>,
    axes: Vec<(Axis, &'static str, Range<usize>)>,
}

impl DesignReader<'_> {
    /// Reads one design. `keys` are the keys that this table may hold besides the axes.
    fn design(&mut self, table: &DeTable<'_>, table_span: Range<usize>, keys: &[&str]) -> Result<(), InputError> {
        let stated = self.stated(table, keys)?;
        let Some((name, name_span)) = stated.name.clone() else {
            return Err(self
                .source
                .error(table_span, "a design without a name")
                .label("missing key `name`")
                .help("add `name = \"…\"`"));
        };
        self.check_name(name, name_span.clone())?;
        let base = match &stated.base {
            Some((base, span)) => Some(self.base(base, name, span.clone())?),
            None => None,
        };
        if base.is_none() {
            self.check_complete(&stated.axes, name, name_span)?;
        }
        // Without a base every axis is overwritten below, so the starting value does not matter.
        let mut axes = base.unwrap_or(presets()[0].axes);
        let unstated = |axis: Axis| Some((axis, axis.choice_if_unstated().filter(|_| base.is_none())?));
        let stated_axes = stated.axes.iter().map(|&(axis, choice, _)| (axis, choice));
        for (axis, choice) in Axis::ALL.into_iter().filter_map(unstated).chain(stated_axes) {
            axes.set(axis, choice).expect("`stated` kept only choices of this axis, and defaults are choices");
        }
        self.check_axes(&axes, &stated)?;
        let about = match stated.base {
            Some((base, _)) => format!("Defined in {}, from {base}.", self.source.name()),
            None => format!("Defined in {}.", self.source.name()),
        };
        self.read.push(DesignEntry { design: Design { name: name.to_owned(), axes }, about, negative_control: false });
        Ok(())
    }

    fn stated<'t>(&self, table: &'t DeTable<'_>, keys: &[&str]) -> Result<StatedDesign<'t>, InputError> {
        let mut stated = StatedDesign::default();
        for (key, value) in in_file_order(table) {
            match &**key.get_ref() {
                "name" => stated.name = Some((self.string("name", value)?, value.span())),
                "base" => stated.base = Some((self.string("base", value)?, value.span())),
                word => {
                    let axis = Axis::from_name(word).ok_or_else(|| {
                        let known = keys.iter().copied().chain(Axis::ALL.map(Axis::name));
                        self.source.unknown_word(key.span(), "key", word, known)
                    })?;
                    stated.axes.push((axis, self.choice(axis, value)?, key.span()));
                }
            }
        }
        Ok(stated)
    }

    fn string<'t>(&self, key: &str, value: &'t Spanned<DeValue<'_>>) -> Result<&'t str, InputError> {
        value.get_ref().as_str().ok_or_else(|| self.wrong_type(key, value, "a string between quotes"))
    }

    fn wrong_type(&self, key: &str, value: &Spanned<DeValue<'_>>, wanted: &str) -> InputError {
        self.source
            .error(value.span(), format!("`{key}` is {wanted}"))
            .label(format!("this is of type {}", value.get_ref().type_str()))
    }

    /// The choice that a value states, as the axis spells it.
    fn choice(&self, axis: Axis, value: &Spanned<DeValue<'_>>) -> Result<&'static str, InputError> {
        let choices = axis.choices();
        let word = match value.get_ref() {
            // TOML booleans are accepted for the axis whose choices are yes and no.
            DeValue::Boolean(yes) if choices.contains(&"yes") => match yes {
                true => "yes",
                false => "no",
            },
            other => other.as_str().ok_or_else(|| {
                self.wrong_type(axis.name(), value, "a string")
                    .help(format!("it can be {}", or_list(choices.iter().copied())))
            })?,
        };
        match choices.iter().find(|&&choice| choice == word) {
            Some(choice) => Ok(choice),
            None => Err(self.source.unknown_word(value.span(), axis.name(), word, choices)),
        }
    }

    fn check_name(&self, name: &str, span: Range<usize>) -> Result<(), InputError> {
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let bad = |title: String, help: &str| Err(self.source.error(span.clone(), title).help(help));
        const HOW: &str = "a name starts with a letter or a digit and goes on with letters, digits, `.`, `_` and `-`";
        if name.is_empty() {
            return bad("the name is empty".into(), HOW);
        }
        if let Some(c) = name.chars().find(|&c| !legal(c)) {
            return bad(format!("the name `{}` holds `{}`", shown(name), c.escape_debug()), HOW);
        }
        if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            return bad(format!("the name `{}` starts with `{}`", shown(name), &name[..1]), HOW);
        }
        if name.len() > NAME_BYTES_MAX {
            return bad(
                format!("the name `{}` is longer than {NAME_BYTES_MAX} characters", shown(name)),
                "names head columns: shorten it",
            );
        }
        if name == ALL || name.ends_with(".toml") {
            return bad(format!("the name `{name}` means something else to `--design`"), "choose another name");
        }
        if self.read.iter().any(|entry| entry.design.name == name) {
            return bad(
                format!("the design `{name}` is defined twice in this file"),
                "choose another name for one of them",
            );
        }
        match self.taken.iter().find(|entry| entry.design.name == name) {
            None => Ok(()),
            Some(_) if preset(name).is_some() => bad(
                format!("the name `{name}` is a preset's"),
                &format!("choose another name; `base = \"{name}\"` starts from the preset"),
            ),
            Some(entry) => {
                bad(format!("the name `{name}` is taken: {}", entry.about), "choose another name for one of them")
            }
        }
    }

    fn base(&self, base: &str, own_name: &str, span: Range<usize>) -> Result<Axes, InputError> {
        let above =
            self.read.iter().map(|entry| &entry.design).find(|design| design.name == base).map(|design| design.axes);
        let preset = || preset(base).map(|preset| preset.axes);
        above.or_else(preset).ok_or_else(|| {
            if base == own_name {
                return self.source.error(span.clone(), format!("the design `{own_name}` is its own base"));
            }
            let above = self.read.iter().map(|entry| entry.design.name.as_str());
            let presets = presets().iter().chain(further_presets());
            let known: Vec<&str> = presets.map(|preset| preset.name).chain(above).collect();
            let help = format!("a preset or a design above in this file: {}", or_list(known.iter().copied()));
            self.source.unknown_word(span.clone(), "base", base, known).help(help)
        })
    }

    fn check_complete(
        &self,
        stated: &[(Axis, &str, Range<usize>)],
        name: &str,
        span: Range<usize>,
    ) -> Result<(), InputError> {
        let missing: Vec<&str> = Axis::ALL
            .into_iter()
            .filter(|axis| axis.choice_if_unstated().is_none() && stated.iter().all(|(stated, ..)| stated != axis))
            .map(Axis::name)
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(self
            .source
            .error(span, format!("the design `{name}` has no `base` and doesn't state every axis"))
            .label(format!("missing: {}", missing.join(", ")))
            .help("state them, or start from a preset: `base = \"rfc-v2\"`"))
    }

    /// Points a conflict at the first of its axes that this table states. There is always one,
    /// because the base alone has no conflict.
    fn check_axes(&self, axes: &Axes, stated: &StatedDesign<'_>) -> Result<(), InputError> {
        axes.check().map_err(|conflict| {
            let culprit = stated.axes.iter().find(|(axis, ..)| conflict.axes.contains(axis));
            let span = culprit.map_or(0..0, |(.., span)| span.clone());
            let inherited: Vec<&str> = conflict
                .axes
                .iter()
                .filter(|axis| stated.axes.iter().all(|(stated, ..)| stated != *axis))
                .map(|axis| axis.name())
                .collect();
            let error = self.source.error(span, conflict.reason).help(conflict.remedy);
            match &stated.base {
                Some((base, _)) if !inherited.is_empty() => {
                    error.label(format!("`{base}` brings {}", inherited.join(", ")))
                }
                _ => error,
            }
        })
    }
}
