//! The NIC, tested as a protocol dialogue: two programs post, expect completions, expect nothing,
//! and name the state of their queue pairs afterwards.
#![cfg(not(any(daxlab_loom, daxlab_shuttle)))]
#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

mod data_path;
mod errors;
mod events;
mod flush;
mod guest;
mod harness;
mod held;
mod objects;
mod odp;
mod passing;
mod removal;
mod rereg;
mod revocation;
mod storm;
mod teardown;
mod windows;
