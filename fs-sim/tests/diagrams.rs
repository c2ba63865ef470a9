//! The diagrams of this crate's state machines in `docs/states` are what the tables say.
//!
//! `UPDATE_DIAGRAMS=1 cargo test -p fs-sim --test diagrams` writes them anew.

use std::path::Path;

use fs_sim::leases::layout::state::LeaseState;

const INTRODUCTION: &str = "\
# States of a layout lease

Generated from the table in `fs-sim/src/leases/layout/state.rs`; edit that table, not this page. Each
arrow is an event; an event without an arrow from a state is an error there and changes nothing.
";

#[test]
fn the_page_of_the_layout_lease_is_its_table() {
    let page = format!("{INTRODUCTION}\n```mermaid\n{}```\n", LeaseState::mermaid());
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/states/layout-lease.md");
    if std::env::var_os("UPDATE_DIAGRAMS").is_some() {
        std::fs::write(&path, &page).expect("the page can be written");
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(found, page, "docs/states/layout-lease.md is not the table: run with UPDATE_DIAGRAMS=1");
}
