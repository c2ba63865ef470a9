//! Designs against the table of the rules, and what the axes spell.

use proptest::prelude::*;

use super::*;

/// The table of docs/semantics.md, section 5, copied: the contract the presets are held to.
const TABLE: &str = "
| axis | unsafe | mainline | rfc-v2 | man-page | chinner-2019 | chinner-2025 | kara | gunthorpe | odp | revoke |
|---|---|---|---|---|---|---|---|---|---|---|
| lease_rules | man-page | none | man-page | man-page | chinner | chinner | man-page | man-page | man-page | man-page |
| pin_gate | open | refuse | unbreakable | unbreakable | lease | lease | unbreakable | unbreakable | fault | unbreakable |
| gate_scope | all | all | rdma-only | all | all | all | all | all | all | all |
| stranger_change | proceed | wait | fail | fail | fail | wait | fail | fail | fail | revoke |
| holder_change | proceed | wait | fail | fail | orphan | orphan | fail | fail | fail | revoke |
| unlock_while_pinned | release | – | release | busy | busy | busy | wait | release | release | release |
| last_close_while_pinned | release | – | zombie | zombie | wait-killable | wait-killable | zombie | zombie | release | revoke |
| pass_context | allow | allow | allow | deny | receiver-lease | receiver-lease | allow | allow | allow | allow |
| break_timeout | force | force | force | force | kill | never | force | force | force | force |
| mr_holds_lease | no | – | no | no | no | no | yes | yes | no | no |
| on_lease_lost | nothing | – | nothing | nothing | nothing | nothing | nothing | abort | nothing | abort |
| revoke_scope | context | – | context | context | context | context | context | context | context | region |
| busy_scope | range | file | range | range | range | range | range | range | range | range |
| busy_unit | page | entry | page | page | page | page | page | page | page | page |
| pin_wait_holds | range | inode | range | range | range | range | range | range | range | range |
| evict_while_pinned | proceed | wait | orphan | orphan | orphan | orphan | orphan | orphan | orphan | orphan |
";

/// The choices of docs/semantics.md, section 5, copied.
const CHOICES: [(&str, &[&str]); 16] = [
    ("lease_rules", &["none", "man-page", "chinner"]),
    ("pin_gate", &["open", "refuse", "lease", "reference", "unbreakable", "fault"]),
    ("gate_scope", &["all", "rdma-only"]),
    ("stranger_change", &["proceed", "orphan", "fail", "wait", "revoke"]),
    ("holder_change", &["proceed", "orphan", "fail", "wait", "revoke"]),
    ("unlock_while_pinned", &["release", "busy", "wait", "n/a"]),
    ("last_close_while_pinned", &["release", "zombie", "wait-killable", "revoke", "n/a"]),
    ("pass_context", &["allow", "deny", "receiver-lease"]),
    ("break_timeout", &["force", "kill", "never"]),
    ("mr_holds_lease", &["no", "yes", "n/a"]),
    ("on_lease_lost", &["nothing", "abort", "n/a"]),
    ("revoke_scope", &["context", "region", "n/a"]),
    ("busy_scope", &["range", "file"]),
    ("busy_unit", &["page", "entry"]),
    ("pin_wait_holds", &["range", "inode"]),
    ("evict_while_pinned", &["orphan", "wait", "proceed"]),
];

fn cells(line: &str) -> Vec<&str> {
    line.trim().trim_matches('|').split('|').map(str::trim).collect()
}

#[test]
fn presets_equal_the_documents_table() {
    let mut lines = TABLE.trim().lines();
    let header = cells(lines.next().unwrap());
    assert_eq!(header[1..], presets().iter().map(|preset| preset.name).collect::<Vec<_>>());
    let mut columns: Vec<_> = presets().iter().map(|preset| preset.axes.rows()).collect();
    let mut compared = 0;
    for line in lines.skip(1) {
        let row = cells(line);
        for (column, (preset, expected)) in columns.iter_mut().zip(presets().iter().zip(&row[1..])) {
            assert_eq!(column.next(), Some((row[0], *expected)), "{} of {}", row[0], preset.name);
            compared += 1;
        }
    }
    assert!(columns.iter_mut().all(|column| column.next().is_none()), "axes the document doesn't have");
    assert_eq!(compared, 160);
}

#[test]
fn every_preset_can_stand_and_says_where_it_comes_from() {
    for preset in presets().iter().chain(further_presets()) {
        assert_eq!(preset.axes.check(), Ok(()), "{}", preset.name);
        assert!(preset.about.len() > 20 && preset.about.ends_with('.'), "{}", preset.name);
    }
}

#[test]
fn axes_and_choices_are_the_documents() {
    let ours: Vec<(&str, Vec<&str>)> = Axis::ALL.into_iter().map(|axis| (axis.name(), axis.choices())).collect();
    let theirs: Vec<(&str, Vec<&str>)> = CHOICES.iter().map(|&(axis, choices)| (axis, choices.to_vec())).collect();
    assert_eq!(ours, theirs);
    for axis in Axis::ALL {
        assert_eq!(Axis::from_name(axis.name()), Some(axis));
        let mut axes = presets()[0].axes;
        for choice in axis.choices() {
            axes.set(axis, choice).unwrap();
            assert_eq!(axes.get(axis), choice);
        }
        let before = axes;
        assert_eq!(axes.set(axis, "nonsense"), None);
        assert_eq!(axes, before);
    }
    assert_eq!(Axis::from_name("pin-gate"), None);
}

#[test]
fn a_further_preset_is_found_by_name_and_not_among_the_ten() {
    let (now, before) = (preset("mainline").unwrap(), preset("mainline-6.12").unwrap());
    assert_eq!(before.axes, Axes { evict_while_pinned: EvictRule::Proceed, ..now.axes });
    assert!(presets().iter().all(|preset| preset.name != before.name));
    assert!(preset("mainline-5.4").is_none());
}

#[test]
fn a_file_without_a_base_may_leave_out_the_later_axes_only() {
    let may: Vec<_> =
        Axis::ALL.into_iter().filter_map(|axis| Some((axis.name(), axis.choice_if_unstated()?))).collect();
    let expected = [
        ("revoke_scope", "context"),
        ("busy_scope", "range"),
        ("busy_unit", "page"),
        ("pin_wait_holds", "range"),
        ("evict_while_pinned", "orphan"),
    ];
    assert_eq!(may, expected);
}

/// Any axes that can stand: every axis drawn freely, those that can't stand left out.
fn any_axes() -> impl Strategy<Value = Axes> {
    proptest::collection::vec(any::<proptest::sample::Index>(), Axis::ALL.len())
        .prop_map(|draws| {
            let mut axes = presets()[0].axes;
            for (axis, draw) in Axis::ALL.into_iter().zip(draws) {
                let choices = axis.choices();
                axes.set(axis, choices[draw.index(choices.len())]).unwrap();
            }
            if axes.pin_gate != PinGate::Refuse {
                // Most draws would fall here and be thrown away.
                axes.unlock_while_pinned.get_or_insert(UnlockRule::Busy);
                axes.last_close_while_pinned.get_or_insert(LastCloseRule::Zombie);
                axes.mr_holds_lease.get_or_insert(true);
                axes.on_lease_lost.get_or_insert(LeaseLost::Abort);
                axes.revoke_scope.get_or_insert(RevokeScope::Context);
            }
            axes
        })
        .prop_filter("cannot stand", |axes| axes.check().is_ok())
}

proptest! {
    #[test]
    fn rows_show_every_axis_and_a_dash_for_none(axes in any_axes()) {
        for ((name, shown), axis) in axes.rows().zip(Axis::ALL) {
            prop_assert_eq!(name, axis.name());
            prop_assert_eq!(shown, if axes.get(axis) == "n/a" { "–" } else { axes.get(axis) });
        }
    }
}
