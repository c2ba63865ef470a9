//! Verbs: the objects that a program makes on a NIC, and the calls on them.
//!
//! It owns the lives of the objects: a context exists as an open description in descriptor tables;
//! every other object belongs to a context and ends with it at the latest. Queue pairs, completion
//! queues and regions themselves are in the layers below; here are the calls that make and destroy
//! them. Kernel counterpart: `ib_uverbs` and libibverbs.

pub mod advise;
pub mod context;
pub mod pd;
pub mod region;
pub mod rereg;
pub mod window;
