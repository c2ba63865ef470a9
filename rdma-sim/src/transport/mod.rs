//! Transports: how a message reaches the peer and how its outcome comes back.
//!
//! It owns the trait of a transport, the trait of the peer's responder, and the values that cross
//! them. Invariant: a transport changes nothing in what the responder decides: it carries the
//! message, or the peer is silent. Kernel counterpart: `rxe_net.c`, and the packet formats for a
//! transport over a wire.

mod in_process;
mod local_memory;
mod message;
pub mod operation;

pub use in_process::InProcess;
pub use local_memory::LocalMemory;
pub use message::{RdmaMessage, Responder, Transport, WaitingSender};
pub use operation::WorkFailure;
