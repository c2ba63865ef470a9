//! The software RDMA NIC: memory regions, queue pairs, verbs, and the in-process transport.
//!
//! It owns everything between a posted work request and a copied byte. It knows no workload. Of
//! files it knows only what `fs_sim` returns for a registration: the region's own list of pinned
//! pages. A device does not look at a file again once it has that list, so under a wrong design it
//! really writes into freed blocks. Kernel counterpart: `drivers/infiniband` (uverbs, core,
//! `sw/rxe`).
//!
//! Start reading at [`verbs::context`] (objects and their teardown), at `engine::requester` (the
//! path of a work request), or at `memory::region_table` (how a revocation meets a copy in flight).
//!
//! # Layers, bottom first
//! 1. [`memory`]: regions, windows, their keys, and the check that every access passes.
//! 2. [`transport`]: the operations of messages, and how a message reaches the peer.
//! 3. [`engine`]: queue pairs and completion queues: executes and completes work requests.
//! 4. [`verbs`]: contexts and domains: the calls that make and destroy objects.
//!
//! # Locks
//! Every mutex of this crate is a leaf: a thread that holds one takes no other, and holds none over
//! a call into `fs_sim`, a copy or a wait. What must happen exactly once (the release of a region's
//! pins) is decided under a mutex and executed after it.

pub mod engine;
pub mod memory;
pub mod transport;
pub mod verbs;

pub use engine::cq::Cq;
pub use engine::event::AsyncEvent;
pub use engine::qp::{Qp, QpConfig, RnrRetry};
pub use engine::qp_state::{QpState, QpTransitionError};
pub use engine::work::{Completion, PostError, ReceiveRequest, WorkRequest};
pub use memory::access::{AccessFlags, FlushLevel, Sge, WindowAccess};
pub use memory::fault::WorkFault;
pub use memory::mr::Mr;
pub use memory::mw::{Mw, MwType, WindowBind};
pub use memory::nic::{Nic, NicCounters};
pub use transport::operation::{FlushPlacement, WorkOpcode, WorkOperation, WorkStatus};
pub use verbs::context::Context;
pub use verbs::pd::Pd;
pub use verbs::rereg::Rereg;
