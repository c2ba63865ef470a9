//! The software RDMA NIC: verbs, queue pairs, protection, the in-process transport.
//!
//! It owns what stands between a posted work request and a copied byte: the objects a program makes ([`verbs`]), the checks and
//! the copying ([`engine`]), the way to the peer ([`transport`]), and the table of memory regions that all of them share
//! ([`Nic`]). It knows no workload, and of files only what `fs_sim::gup` hands out: a region's own list of pinned pages. A
//! device does not look at a file again once it has that list, so under a wrong design it really does write into freed
//! blocks. Kernel counterpart: `drivers/infiniband` (uverbs, core, `sw/rxe`).
//!
//! Start reading at [`verbs::context`] (objects and their teardown), [`engine::requester`] (the path of a work request) and
//! the table of regions in `regions` (how a revocation meets a copy in flight).
//!
//! # Locks
//! Every mutex of this crate is a leaf: none is taken with another one held, and none is held over a call into `fs_sim`, a
//! copy or a wait. What must happen exactly once (the end of a region's pins) is decided under one and done after it.

pub mod engine;
mod nic;
mod regions;
pub mod transport;
pub mod verbs;
mod windows;

pub use nic::{Counters, Nic};
pub use verbs::context::{AsyncEvent, Context};
pub use verbs::cq::Cq;
pub use verbs::mr::{AccessFlags, Mr};
pub use verbs::mw::{Bind, Mw, MwType, WindowAccess};
pub use verbs::pd::Pd;
pub use verbs::qp::{Qp, QpConfig};
pub use verbs::rereg::Rereg;
pub use verbs::state::{QpState, TransitionError};
pub use verbs::work::{
    Completion, Fault, FlushLevel, Op, Opcode, Placement, PostError, Receive, Sge, Status, WorkRequest,
};
