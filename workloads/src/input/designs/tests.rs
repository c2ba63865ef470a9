//! Every way in which a design file can be wrong, and what the catalogue resolves.

use fs_sim::design::{
    Axes, Axis, BreakTimeout, BusyScope, BusyUnit, ChangeRule, EvictRule, LastCloseRule, LeaseLost, NAME_BYTES_MAX,
    NOT_APPLICABLE, PinGate, PinWaitHolds, RevokeScope, UnlockRule, presets,
};
use proptest::prelude::*;
use serde::Deserialize;

use super::*;
use crate::input::{InputError, Source};

#[test]
fn serde_spells_choices_as_the_document_does() {
    #[derive(Deserialize)]
    struct Both {
        gate: PinGate,
        close: LastCloseRule,
    }
    let both: Both = Source::new("x", "gate = \"unbreakable\"\nclose = \"wait-killable\"").parse_toml().unwrap();
    assert_eq!((both.gate, both.close), (PinGate::Unbreakable, LastCloseRule::WaitKillable));
    let mainline = presets()[1].design();
    let text = toml::to_string(&mainline).unwrap();
    assert!(text.starts_with("name = \"mainline\"\n\n[axes]\nlease_rules = \"none\"\n"), "{text}");
    assert!(text.contains("on_lease_lost = \"n/a\"\n"), "{text}");
}

fn read(text: &str) -> Result<Vec<Design>, InputError> {
    parse(&Source::new("my.toml", text))
}

fn preset(name: &str) -> Axes {
    presets().iter().find(|preset| preset.name == name).expect("a preset").axes
}

#[test]
fn a_base_is_overridden_axis_by_axis() {
    let designs =
        read("name = \"x\"\nbase = \"rfc-v2\"\nstranger_change = \"proceed\"\nmr_holds_lease = true\n").unwrap();
    let expected = Axes { stranger_change: ChangeRule::Proceed, mr_holds_lease: Some(true), ..preset("rfc-v2") };
    assert_eq!(designs, [Design { name: "x".into(), axes: expected }]);
}

#[test]
fn a_file_may_hold_several_and_build_on_those_above() {
    let text = "[[design]]\nname = \"a\"\nbase = \"kara\"\npin_gate = \"lease\"\n\n[[design]]\nname = \"b.2_x\"\nbase = \"a\"\nmr_holds_lease = \"no\"\n";
    let designs = read(text).unwrap();
    let a = Axes { pin_gate: PinGate::Lease, ..preset("kara") };
    assert_eq!(designs[0], Design { name: "a".into(), axes: a });
    assert_eq!(designs[1], Design { name: "b.2_x".into(), axes: Axes { mr_holds_lease: Some(false), ..a } });
}

#[test]
fn axes_that_mean_nothing_under_refuse_may_still_be_stated_there() {
    let designs = read("name = \"x\"\nbase = \"rfc-v2\"\npin_gate = \"refuse\"\nmr_holds_lease = \"n/a\"").unwrap();
    assert_eq!((designs[0].axes.mr_holds_lease, designs[0].axes.on_lease_lost), (None, Some(LeaseLost::Nothing)));
}

#[test]
fn chinner_rules_have_an_exclusive_lease_for_the_unbreakable_gate() {
    assert!(read("name = \"x\"\nbase = \"chinner-2019\"\npin_gate = \"unbreakable\"").is_ok());
}

/// Every way a file can be wrong: the text, the title, line and column, and words of label or help.
#[test]
fn every_error_points_at_its_place() {
    let long = "n".repeat(NAME_BYTES_MAX + 1);
    let long_title = format!("the name `{long}` is longer than 40 characters");
    let long = format!("name = \"{long}\"\nbase = \"kara\"");
    let x = "name = \"x\"\nbase = \"kara\"\n";
    let with = |line: &str| format!("{x}{line}\n");
    let cases: Vec<(String, &str, (usize, usize), &str)> = vec![
        // The document
        ("".into(), "no design in this file", (1, 1), "base = \"rfc-v2\""),
        ("# nothing\n".into(), "no design in this file", (1, 1), ""),
        ("name = ".into(), "string values must be quoted, expected literal string", (1, 8), ""),
        (with("base = \"odp\""), "duplicate key", (3, 1), ""),
        ("design = 3".into(), "`design` is not a list of tables", (1, 1), "[[design]]"),
        ("design = []".into(), "`design` is not a list of tables", (1, 1), ""),
        ("design = [1]".into(), "`design` is not a list of tables", (1, 1), ""),
        ("[design]\nname = \"x\"".into(), "`design` is not a list of tables", (1, 2), "double brackets"),
        (
            "name = \"x\"\n[[design]]\nname = \"y\"".into(),
            "`name` stands outside the `[[design]]` tables",
            (1, 1),
            "either one",
        ),
        ("[[desing]]\nname = \"y\"".into(), "unknown key `desing`", (1, 3), "`design`"),
        // Keys and values
        (with("pin_gat = \"open\""), "unknown key `pin_gat`", (3, 1), "did you mean `pin_gate`?"),
        (with("colour = 1"), "unknown key `colour`", (3, 1), "`name`, `base`, `design`, `lease_rules`"),
        ("[[design]]\nname = \"x\"\nwhy = 1".into(), "unknown key `why`", (3, 1), "`name`, `base`, `lease_rules`"),
        (with("pin_gate = \"opne\""), "unknown pin_gate `opne`", (3, 12), "did you mean `open`?"),
        (
            with("pin_gate = \"x\""),
            "unknown pin_gate `x`",
            (3, 12),
            "`open`, `refuse`, `lease`, `reference`, `unbreakable` or `fault`",
        ),
        (with("pin_gate = \"n/a\""), "unknown pin_gate `n/a`", (3, 12), ""),
        (with("pin_gate = 3"), "`pin_gate` is a string", (3, 12), "of type integer"),
        (with("gate_scope = true"), "`gate_scope` is a string", (3, 14), "`all` or `rdma-only`"),
        (with("mr_holds_lease = \"true\""), "unknown mr_holds_lease `true`", (3, 18), "`no`, `yes` or `n/a`"),
        (with("[pin_gate]"), "`pin_gate` is a string", (3, 1), "of type table"),
        // Names
        ("base = \"kara\"".into(), "a design without a name", (1, 1), "missing key `name`"),
        (
            "[[design]]\nname = \"x\"\nbase = \"odp\"\n[[design]]\nbase = \"kara\"".into(),
            "a design without a name",
            (4, 1),
            "",
        ),
        ("name = 1\nbase = \"kara\"".into(), "`name` is a string between quotes", (1, 8), ""),
        ("name = \"\"\nbase = \"kara\"".into(), "the name is empty", (1, 8), ""),
        ("name = \"a b\"\nbase = \"kara\"".into(), "the name `a b` holds ` `", (1, 8), "letters, digits"),
        ("name = \"a\\nb\"\nbase = \"kara\"".into(), "the name `a\\nb` holds `\\n`", (1, 8), ""),
        ("name = \"ü\"\nbase = \"kara\"".into(), "the name `ü` holds `ü`", (1, 8), ""),
        ("name = \"../x\"\nbase = \"kara\"".into(), "the name `../x` holds `/`", (1, 8), ""),
        ("name = \"..\"\nbase = \"kara\"".into(), "the name `..` starts with `.`", (1, 8), ""),
        (long, &long_title, (1, 8), "shorten"),
        ("name = \"all\"\nbase = \"kara\"".into(), "the name `all` means something else to `--design`", (1, 8), ""),
        (
            "name = \"x.toml\"\nbase = \"kara\"".into(),
            "the name `x.toml` means something else to `--design`",
            (1, 8),
            "",
        ),
        ("name = \"kara\"\nbase = \"kara\"".into(), "the name `kara` is a preset's", (1, 8), "base = \"kara\""),
        (
            "[[design]]\nname = \"x\"\nbase = \"odp\"\n[[design]]\nname = \"x\"\nbase = \"odp\"".into(),
            "the design `x` is defined twice in this file",
            (5, 8),
            "",
        ),
        // Bases
        ("name = \"x\"\nbase = \"rfcv2\"".into(), "unknown base `rfcv2`", (2, 8), "did you mean `rfc-v2`?"),
        ("name = \"x\"\nbase = \"x\"".into(), "the design `x` is its own base", (2, 8), ""),
        ("name = \"x\"\nbase = 2".into(), "`base` is a string between quotes", (2, 8), ""),
        (
            "[[design]]\nname = \"x\"\nbase = \"later\"\n[[design]]\nname = \"later\"\nbase = \"odp\"".into(),
            "unknown base `later`",
            (3, 8),
            "a preset or a design above in this file",
        ),
        (
            "name = \"x\"\npin_gate = \"open\"\nmr_holds_lease = false".into(),
            "the design `x` has no `base` and doesn't state every axis",
            (1, 8),
            "missing: lease_rules, gate_scope, stranger_change, holder_change, unlock_while_pinned, last_close_while_pinned, \
             pass_context, break_timeout, on_lease_lost",
        ),
        // Combinations
        (
            with("on_lease_lost = \"n/a\""),
            "`n/a` stands only with pin_gate = \"refuse\", and pin_gate is \"unbreakable\"",
            (3, 1),
            "`kara` brings pin_gate",
        ),
        (
            "name = \"x\"\nbase = \"mainline\"\npin_gate = \"open\"".into(),
            "`n/a` stands only with pin_gate = \"refuse\", and pin_gate is \"open\"",
            (3, 1),
            "unlock_while_pinned, last_close_while_pinned, mr_holds_lease, on_lease_lost, revoke_scope are `n/a`",
        ),
        (
            with("lease_rules = \"none\""),
            "pin_gate = \"unbreakable\" demands a lease, and lease_rules = \"none\" has none",
            (3, 1),
            "`kara` brings pin_gate",
        ),
        (
            "name = \"x\"\nbase = \"unsafe\"\npin_gate = \"lease\"\nlease_rules = \"none\"".into(),
            "pin_gate = \"lease\" demands a lease, and lease_rules = \"none\" has none",
            (3, 1),
            "",
        ),
        (
            "name = \"x\"\nbase = \"unsafe\"\nlease_rules = \"none\"\npass_context = \"receiver-lease\"".into(),
            "pass_context = \"receiver-lease\" demands a lease, and lease_rules = \"none\" has none",
            (3, 1),
            "choose another pass_context",
        ),
    ];
    for (text, title, (line, column), words) in cases {
        let error = read(&text).expect_err(&text);
        let shown = error.to_string();
        assert_eq!(error.title(), title, "{text}");
        assert_eq!((error.line(), error.column()), (Some(line), Some(column)), "{text}\n{shown}");
        assert!(shown.contains(&format!(" --> my.toml:{line}:{column}\n")) && shown.contains(words), "{shown}");
    }
}

#[test]
fn of_several_errors_the_first_in_the_file_is_told() {
    let error = read("name = \"x\"\nzzz = 1\naaa = 2").unwrap_err();
    assert_eq!((error.title(), error.line()), ("unknown key `zzz`", Some(2)));
}

#[test]
fn an_error_reads_as_one_paragraph() {
    let error = read("name = \"x\"\nbase = \"mainline\"\npin_gate = \"open\"").unwrap_err();
    assert_eq!(
        error.to_string(),
        "`n/a` stands only with pin_gate = \"refuse\", and pin_gate is \"open\"
 --> my.toml:3:1
  |
3 | pin_gate = \"open\"
  | ^^^^^^^^ `mainline` brings unlock_while_pinned, last_close_while_pinned, mr_holds_lease, on_lease_lost, revoke_scope
  |
  = help: unlock_while_pinned, last_close_while_pinned, mr_holds_lease, on_lease_lost, revoke_scope are `n/a`: choose a value, \
         or set pin_gate = \"refuse\""
    );
}

#[test]
fn the_documentation_page_says_what_the_code_does() {
    let page = include_str!("../../../../docs/designs.md");
    let mut blocks = page.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    assert_eq!(read(blocks.next().unwrap()).unwrap()[0].axes.stranger_change, ChangeRule::Wait);
    assert_eq!(read(blocks.next().unwrap()).unwrap()[1].axes.break_timeout, BreakTimeout::Kill);
    let unstated = Axes {
        revoke_scope: Some(RevokeScope::Context),
        busy_scope: BusyScope::Range,
        busy_unit: BusyUnit::Page,
        pin_wait_holds: PinWaitHolds::Range,
        evict_while_pinned: EvictRule::Orphan,
        ..preset("mainline")
    };
    assert_eq!(read(blocks.next().unwrap()).unwrap()[0].axes, unstated);
    assert_eq!(blocks.next(), None);
    for axis in Axis::ALL {
        let row = page.lines().find(|line| line.starts_with(&format!("| `{axis}` |"))).expect("a row for each axis");
        for choice in axis.choices().iter().filter(|&&choice| choice != NOT_APPLICABLE) {
            assert!(row.contains(&format!("`{choice}`")), "{axis}: {choice}");
        }
    }
    let shown = page.split("```text\n").nth(1).unwrap().split("\n```").next().unwrap();
    let text = "name = \"x\"\nbase = \"mainline\"\npin_gate = \"open\"";
    assert_eq!(parse(&Source::new("mine.toml", text)).unwrap_err().to_string(), shown);
}

mod catalogue {
    use super::*;

    struct Files(tempfile::TempDir);

    impl Files {
        fn new() -> Files {
            Files(tempfile::tempdir().unwrap())
        }

        fn write(&self, name: &str, text: &str) -> String {
            let path = self.0.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        }
    }

    fn chosen(entries: &[DesignEntry]) -> Vec<&str> {
        entries.iter().map(|entry| entry.design.name.as_str()).collect()
    }

    #[test]
    fn all_is_every_preset_and_files_stand_beside_it() {
        let files = Files::new();
        let mine = files
            .write("mine.toml", "[[design]]\nname = \"x\"\nbase = \"odp\"\n[[design]]\nname = \"y\"\nbase = \"x\"\n");
        let mut catalogue = DesignCatalogue::default();
        let designs = catalogue.resolve("all").unwrap();
        assert_eq!(chosen(&designs), presets().iter().map(|preset| preset.name).collect::<Vec<_>>());
        let controls = designs.iter().filter(|entry| entry.negative_control);
        assert_eq!(controls.map(|entry| entry.design.name.as_str()).collect::<Vec<_>>(), ["unsafe"]);
        let designs = catalogue.resolve(&format!("all, {mine}")).unwrap();
        assert!(!designs[10].negative_control, "a file's design never is the negative control");
        assert_eq!(designs.len(), 12);
        assert_eq!(chosen(&designs[10..]), ["x", "y"]);
        assert_eq!(catalogue.find("y").unwrap().about, format!("Defined in {mine}, from x."));
    }

    #[test]
    fn names_paths_and_repeats() {
        let files = Files::new();
        let mine = files.write("mine.toml", "name = \"x\"\nbase = \"odp\"\n");
        let mut catalogue = DesignCatalogue::default();
        let designs = catalogue.resolve(&format!("x , kara,{mine},kara,x,{mine}")).unwrap();
        assert_eq!(chosen(&designs), ["x", "kara"], "in the list's order, each once, a name before its file");
        assert_eq!(designs[0].design.axes, preset("odp"));
        assert_eq!(chosen(&catalogue.resolve(&mine).unwrap()), ["x"], "a file named again");
        assert_eq!(catalogue.entries().len(), 12);
    }

    #[test]
    fn a_name_of_two_files_is_an_error_that_names_the_first() {
        let files = Files::new();
        let one = files.write("one.toml", "name = \"x\"\nbase = \"odp\"\n");
        let two = files.write("two.toml", "name = \"x\"\nbase = \"kara\"\n");
        let mut catalogue = DesignCatalogue::default();
        let error = catalogue.resolve(&format!("{one},{two}")).unwrap_err();
        assert_eq!(error.title(), format!("the name `x` is taken: Defined in {one}, from odp."));
        assert_eq!((error.source_name(), error.line(), error.column()), (Some(two.as_str()), Some(1), Some(8)));
        assert_eq!(catalogue.find("x").unwrap().design.axes, preset("odp"), "the first stays");
    }

    #[test]
    fn unknown_empty_and_unreadable_items() {
        let mut catalogue = DesignCatalogue::default();
        let error = catalogue.resolve("kara, rfc-v3").unwrap_err();
        assert_eq!((error.title(), error.line(), error.column()), ("unknown design `rfc-v3`", Some(1), Some(7)));
        assert_eq!(error.label_text(), Some("did you mean `rfc-v2`?"));
        assert!(error.help_text().unwrap().contains("`unsafe`, `mainline`"));
        for (list, column) in [("", 1), ("kara,", 6), ("kara,,odp", 6), (" ", 2)] {
            let error = catalogue.resolve(list).unwrap_err();
            assert_eq!((error.title(), error.column()), ("a design's name is missing", Some(column)), "{list:?}");
        }
        for list in ["none.toml", "./none"] {
            let error = catalogue.resolve(list).unwrap_err();
            assert!(error.title().starts_with(&format!("cannot read `{list}`: No such file")), "{error}");
        }
        assert_eq!(catalogue.entries().len(), 11);
    }

    #[test]
    fn a_bad_file_adds_nothing() {
        let mut catalogue = DesignCatalogue::default();
        let text = "[[design]]\nname = \"x\"\nbase = \"odp\"\n[[design]]\nname = \"y\"\n";
        assert!(catalogue.add(&Source::new("t", text)).is_err());
        assert_eq!(catalogue.entries().len(), 11);
    }
}

/// Any axes without a conflict: every axis is drawn freely, and contradictory draws are discarded.
fn any_axes() -> impl Strategy<Value = Axes> {
    proptest::collection::vec(any::<proptest::sample::Index>(), Axis::ALL.len())
        .prop_map(|draws| {
            let mut axes = preset("unsafe");
            for (axis, draw) in Axis::ALL.into_iter().zip(draws) {
                let choices = axis.choices();
                axes.set(axis, choices[draw.index(choices.len())]).unwrap();
            }
            if axes.pin_gate != PinGate::Refuse {
                // Without this most draws would be discarded.
                axes.unlock_while_pinned.get_or_insert(UnlockRule::Busy);
                axes.last_close_while_pinned.get_or_insert(LastCloseRule::Zombie);
                axes.mr_holds_lease.get_or_insert(true);
                axes.on_lease_lost.get_or_insert(LeaseLost::Abort);
                axes.revoke_scope.get_or_insert(RevokeScope::Region);
            }
            axes
        })
        .prop_filter("cannot stand", |axes| axes.check().is_ok())
}

proptest! {
    #[test]
    fn a_design_reads_back_from_its_toml(axes in any_axes()) {
        let design = Design { name: "x".into(), axes };
        prop_assert_eq!(read(&to_toml(&design)).unwrap(), [design.clone()]);
        // The same axes, stated as overrides of any base.
        for preset in presets() {
            let text = to_toml(&design).replacen('\n', &format!("\nbase = \"{}\"\n", preset.name), 1);
            prop_assert_eq!(read(&text).unwrap(), [design.clone()]);
        }
    }

    #[test]
    fn any_text_is_designs_or_an_error_with_a_rendering(text in "(?s).{0,80}") {
        if let Err(error) = read(&text) {
            prop_assert!(!error.to_string().is_empty());
        }
        let _ = DesignCatalogue::default().add(&Source::new("x", text.as_str()));
    }

    /// Texts similar to valid ones reach deeper into the parser than random ones.
    #[test]
    fn a_design_with_bytes_changed_never_panics(axes in any_axes(), edits in proptest::collection::vec((any::<proptest::sample::Index>(), "[ -~\n]{0,3}"), 1..4)) {
        let mut text: Vec<char> = to_toml(&Design { name: "x".into(), axes }).chars().collect();
        for (at, new) in edits {
            let at = at.index(text.len());
            text.splice(at..at + 1, new.chars());
            text.push(' ');
        }
        match read(&text.into_iter().collect::<String>()) {
            Ok(designs) => prop_assert!(designs.iter().all(|design| design.axes.check().is_ok())),
            Err(error) => prop_assert!(error.line().is_some(), "{error}"),
        }
    }

    #[test]
    fn any_list_resolves_or_is_an_error(list in "[a-z0-9, -]{0,30}") {
        match DesignCatalogue::default().resolve(&list) {
            Ok(designs) => prop_assert!(!designs.is_empty()),
            Err(error) => prop_assert!(error.column().is_some()),
        }
    }
}
