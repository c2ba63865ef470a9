//! The engine: what happens to a request between its posting and its completion.
//!
//! It owns queue pairs and completion queues, the order of the checks, and the copying.
//! `requester` checks the local side and completes; `responder` checks the remote side and
//! refuses; `local` executes operations that stay on this side. Invariant: all of them reach
//! memory only through `memory::protection`. Kernel counterpart: `rxe_req.c`, `rxe_resp.c`,
//! `rxe_comp.c`, `rxe_qp.c`.
//!
//! `qp`, `requester` and `local` import each other: posting to a queue pair runs the requester, and
//! the requester completes and fails the queue pair. `qp` and `responder` do not: a queue pair
//! implements [`Responder`](crate::transport::Responder) in `responder`.

pub(crate) mod combining_queue;
pub mod cq;
pub mod event;
pub(crate) mod local;
pub(crate) mod owner;
pub mod qp;
pub mod qp_state;
pub(crate) mod requester;
pub(crate) mod responder;
pub mod work;
