//! Verbs: the objects a program makes on a NIC, and what it asks of them.
//!
//! It owns the objects' lives: a context lives as an open description in descriptor tables, everything else belongs to a
//! context and ends with it at the latest. Kernel counterpart: `ib_uverbs` and libibverbs.

pub mod advise;
pub mod context;
pub mod cq;
pub mod mr;
pub mod mw;
pub mod pd;
pub mod qp;
pub mod rereg;
pub mod state;
pub mod work;
