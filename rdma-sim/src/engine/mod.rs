//! The engine: what happens to a request between its posting and its completion.
//!
//! It owns the order of checks and the copying. `requester` looks at the local side and completes, `responder` at the
//! remote side and refuses, `local` does what never leaves this side; all reach memory through `protection`, which is the only way to a region. Kernel counterpart:
//! `rxe_req.c`, `rxe_resp.c`, `rxe_comp.c`, `rxe_mr.c`.

pub(crate) mod local;
pub(crate) mod protection;
pub mod requester;
pub(crate) mod responder;
pub(crate) mod turns;
