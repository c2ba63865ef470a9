//! The control socket: asking a running machine who leases, who pins, who blocks, and steering one that serves guests.
//!
//! It owns the protocol (one line of JSON each way, [`protocol`]), the listening side (`server`) and the questions that any
//! machine answers (`answers`); what can be done to a machine is its [`Handler`]'s business. Invariants: a question changes
//! nothing; a request has a bounded length, and an answer that nobody waits for any more is given up; whoever connects holds up
//! nobody else. Kernel counterpart: debugfs.

pub(crate) mod answers;
pub mod protocol;
mod server;

pub use answers::Questions;
pub use protocol::{ControlError, ask};
pub use server::{Asker, Handler, Server};
