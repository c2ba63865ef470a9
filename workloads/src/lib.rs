//! Races between registrations and layout changes, the jobs that describe them, and the oracle.
//!
//! | module | gives |
//! |---|---|
//! | [`input`] | text from users: TOML with positions, units, design files, error excerpts |
//! | [`race::job`] | job files: read, checked, the built-in one |
//! | [`race::op_stream`] | what every actor is going to do, from one seed |
//! | [`race`] | the race itself |
//! | [`scenario`] | scenarios: the language, the suite, runs on simulated machines |
//! | [`linux`] | the real kernel as a machine for scenarios |
//! | [`control`] | asking a running machine who blocks whom |
//! | [`serve`] | files and images as guests' persistent memory |
//! | [`suite::agreement`] | random sequences on the real kernel and on the simulated machine, compared |
//! | [`race::oracle`] | payloads that prove where they belong, and the reading back of everything |
//!
//! Imports run down only: this crate drives `rdma-sim` and `fs-sim` and hands numbers to `reports`.

pub mod control;
pub mod input;
pub mod linux;
mod messages;
pub mod ops;
pub mod race;
pub mod scenario;
#[cfg(not(any(daxlab_loom, daxlab_shuttle)))]
pub mod serve;
pub mod socket;
pub mod suite;
