//! What daxlab runs: scenarios, races, and servers for guests.
//!
//! It owns everything that drives the simulated kernel and the NIC: the language of scenarios, the
//! machines they run on, races with their oracle, and the serving of files to QEMU guests. It hands
//! numbers to `reports` and draws nothing itself.
//!
//! # Layers, bottom first
//! 1. [`input`]: text from users: TOML with positions, units, design files, error excerpts.
//! 2. [`messages`]: packets with descriptors between processes; sockets at a path.
//! 3. [`ops`]: the operations of scripts and of ctl, each a typed value made from one table.
//! 4. [`language`]: scenario files: lexer, parser, conditions, the parsed script.
//! 5. [`machines`]: where a scenario runs: the simulated kernel, or the real one.
//! 6. [`race`]: races between registrations and layout changes: jobs, actors, oracle.
//! 7. [`suite`]: sets of scenarios, run and judged; random sequences on both machines, compared.
//! 8. [`serving`]: files and images as guests' persistent memory; the control socket.

pub mod input;
pub mod language;
pub mod machines;
pub mod messages;
pub mod ops;
pub mod race;
pub mod serving;
pub mod suite;
