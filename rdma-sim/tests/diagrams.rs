//! The diagrams of this crate's state machines in `docs/states` are what the tables say.
//!
//! `UPDATE_DIAGRAMS=1 cargo test -p rdma-sim --test diagrams` writes them anew.
#![cfg(not(any(daxlab_loom, daxlab_shuttle)))]

use std::path::Path;

use rdma_sim::engine::qp_state::QpState;
use rdma_sim::memory::region_state::RegionState;

/// Compares a page with its table, or writes it anew.
fn check(file: &str, subject: &str, source: &str, diagram: &str) {
    let page = format!(
        "# States of a {subject}\n\n\
         Generated from the table in `rdma-sim/src/{source}`; edit that table, not this page. Each\n\
         arrow is an event; an event without an arrow from a state is an error there and changes nothing.\n\n\
         ```mermaid\n{diagram}```\n"
    );
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/states").join(file);
    if std::env::var_os("UPDATE_DIAGRAMS").is_some() {
        std::fs::write(&path, &page).expect("the page can be written");
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(found, page, "docs/states/{file} is not the table: run with UPDATE_DIAGRAMS=1");
}

#[test]
fn the_page_of_the_memory_region_is_its_table() {
    check("memory-region.md", "memory region", "memory/region_state.rs", &RegionState::mermaid());
}

#[test]
fn the_page_of_the_queue_pair_is_its_table() {
    check("queue-pair.md", "queue pair", "engine/qp_state.rs", &QpState::mermaid());
}
