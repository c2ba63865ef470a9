//! The diagrams of this crate's state machines in `docs/states` are what the tables say.
//!
//! `UPDATE_DIAGRAMS=1 cargo test -p fs-sim --test diagrams` writes them anew.

use std::path::Path;

use fs_sim::leases::layout::state::LeaseState;
use fs_sim::vfs::change_state::ChangeState;

fn introduction(title: &str, table: &str) -> String {
    format!(
        "# States of {title}\n\nGenerated from the table in `{table}`; edit that table, not this page. Each\n\
         arrow is an event; an event without an arrow from a state is an error there and changes nothing.\n"
    )
}

fn is_the_table(file: &str, introduction: &str, mermaid: &str) {
    let page = format!("{introduction}\n```mermaid\n{mermaid}```\n");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/states").join(file);
    if std::env::var_os("UPDATE_DIAGRAMS").is_some() {
        std::fs::write(&path, &page).expect("the page can be written");
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(found, page, "docs/states/{file} is not the table: run with UPDATE_DIAGRAMS=1");
}

#[test]
fn the_page_of_the_layout_lease_is_its_table() {
    let introduction = introduction("a layout lease", "fs-sim/src/leases/layout/state.rs");
    is_the_table("layout-lease.md", &introduction, &LeaseState::mermaid());
}

#[test]
fn the_page_of_the_layout_change_is_its_table() {
    let introduction = introduction("a layout change in one file", "fs-sim/src/vfs/change_state.rs");
    is_the_table("layout-change.md", &introduction, &ChangeState::mermaid());
}
