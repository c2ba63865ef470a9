//! Deadlocks of tasks that sleep in system calls: found, refused with EDEADLK, and reported.
//!
//! It owns the wait graph: one node for every blocked task, which names what the task needs and
//! which processes can provide it. Invariant: a wait that would close a cycle never begins; the
//! task that would close it gets EDEADLK (`graph::WaitGraph::record` decides it). A wait that only
//! the caller's own process could end needs no graph: the code that would wait refuses it and
//! reports it with `Task::note_self_deadlock`. The layers above say, by a closure, which tasks can
//! act for a process. Kernel counterpart:
//! `posix_locks_deadlock` (fs/locks.c).

pub mod graph;
pub mod need;
