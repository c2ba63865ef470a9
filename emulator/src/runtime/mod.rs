//! The runtime: the few parts of a machine that every layer above shares.
//!
//! It owns the choice of the concurrency backend ([`sync`]), the only way to block ([`wait`]), time
//! ([`clock`]), random streams ([`rng`]) and the [`world::World`] that ties them to one run.
//! Invariant: with a virtual clock and turns, a run depends on its seed alone. Kernel counterpart:
//! `<linux/atomic.h>`, `<linux/wait.h>`, `ktime_get`, ftrace.
//!
//! `wait` and `world` import each other: a sleeper registers with its world, and the world wakes
//! the sleepers whose deadline has come.

pub mod clock;
pub mod pages;
pub mod registry;
pub mod rng;
pub mod shortage;
pub mod state_table;
pub mod sync;
pub mod trace;
pub mod wait;
pub mod world;
