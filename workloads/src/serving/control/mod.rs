//! The control socket: questions about a running machine, and commands to one that serves guests.
//!
//! It owns the protocol (one line of JSON each way, [`protocol`] and [`request`]), the listening
//! side (`server`, `accept`) and the questions that any machine answers (`answers`); a [`Handler`]
//! carries out what changes a machine. Invariants: a question changes nothing; a request has a
//! bounded length; an answer whose asker has hung up is given up; one asker holds up no other.
//! Kernel counterpart: debugfs.

mod accept;
pub(crate) mod answers;
pub mod protocol;
pub mod request;
mod server;

pub use answers::Questions;
pub use protocol::{ControlError, ask};
pub use server::{Asker, ControlServer, Handler, Tell};
