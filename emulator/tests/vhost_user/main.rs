//! The vhost-user device against the vhost crate's frontend: every message order, and every hostile
//! one.
#![cfg(not(any(daxlab_loom, daxlab_shuttle)))]
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]
#![allow(unreachable_pub, dead_code, reason = "a helper of one file is no interface")]

mod guest;
mod hostile;
mod medium;
mod orders;
mod queue;
mod refused;
mod trace;
