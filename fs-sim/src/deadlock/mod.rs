//! Deadlocks of tasks that sleep in system calls: found, refused with EDEADLK, and reported.
//!
//! It owns the wait graph: one node for every blocked task, which names what the task needs and
//! which processes can provide it. Invariant: a wait that would close a cycle never begins; the
//! task that would close it gets EDEADLK (`graph::WaitGraph::record` decides it). The layers
//! above say, by a closure, which tasks can act for a process. Kernel counterpart:
//! `posix_locks_deadlock` (fs/locks.c).

pub mod graph;
pub mod need;
