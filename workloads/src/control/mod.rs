//! The control socket: asking a running machine who leases, who pins, who blocks.
//!
//! It owns the protocol (one line of JSON each way, [`protocol`]) and the server's thread (`server`). Invariants: a question
//! changes nothing; a request has a bounded length and a bounded time; whoever connects can't hold up the machine, only the next
//! one who asks. Kernel counterpart: debugfs.

mod answers;
pub mod protocol;
mod server;

pub use protocol::{ControlError, ask};
pub use server::Server;
