//! What everything else stands on: concurrency, waiting, time, randomness, traces.
//!
//! It owns the concurrency facade ([`sync`]), the only way to block ([`wait`]), the clock and the
//! generator of a [`world::World`], and small shared values. Invariant: nothing here has a static of
//! its own, so two worlds in one process do not disturb each other. Kernel counterpart:
//! kernel/locking, kernel/sched/wait.c, kernel/time.
//!
//! `wait` and `world` import each other: a sleep is registered with its world, and a world describes
//! its sleepers.

pub mod clock;
pub mod page_range;
pub mod registry;
pub mod rng;
pub mod state_table;
pub mod sync;
pub mod trace;
pub mod wait;
pub mod word_store;
pub mod world;
