//! The ledger: which event last changed the owner of each page.
//!
//! It owns the stamps by which a stale access is found. Invariant: a page's newest stamp never
//! decreases. Kernel counterpart: none; real hardware does not notice.

mod owner_ledger;

pub use owner_ledger::{Access, Ledger, Ownership, Stamp};
