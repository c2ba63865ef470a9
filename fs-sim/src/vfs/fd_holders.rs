//! Which processes, and how many socket queues, hold an open file; and the queues themselves.
//!
//! It owns the answer to "which process could still close this?", which the passing rules and
//! `blockers` need and a bare reference count can't give. Invariant: every descriptor in a table
//! and every one unread in a queue is counted in exactly one place. Kernel counterpart: SCM_RIGHTS
//! and its in-flight accounting (net/core/scm.c, net/unix/garbage.c).

use std::collections::{BTreeMap, VecDeque};

use emulator::sync::{Arc, Mutex};

use crate::base::errno::Errno;
use crate::base::numbers::Pid;
use crate::vfs::open_file::Description;

/// The processes and queues that hold one open file.
#[derive(Debug, Default)]
pub struct FdHolders(Mutex<FdHolderCounts>);

#[derive(Debug, Default)]
struct FdHolderCounts {
    by: BTreeMap<Pid, u32>,
    queued: u32,
    /// How often a process or a queue was added.
    arrivals: u64,
}

impl FdHolders {
    /// The processes that have it in their descriptor table, sorted.
    pub fn processes(&self) -> Vec<Pid> {
        self.0.lock().by.keys().copied().collect()
    }

    /// How many socket queues hold it unread.
    pub fn queued(&self) -> u32 {
        self.0.lock().queued
    }

    /// Whether a process other than `pid`, or a queue, holds it.
    pub fn shared_beyond(&self, pid: Pid) -> bool {
        let held = self.0.lock();
        held.queued > 0 || held.by.keys().any(|other| *other != pid)
    }

    /// Whether it is unread in some queue.
    pub(crate) fn is_queued(&self) -> bool {
        self.0.lock().queued > 0
    }

    /// How often it came to a process or a queue. While the number stays the same, it is nowhere
    /// where it was not before.
    pub(crate) fn arrivals(&self) -> u64 {
        self.0.lock().arrivals
    }

    pub(crate) fn held_by(&self, pid: Pid) {
        let mut held = self.0.lock();
        *held.by.entry(pid).or_insert(0) += 1;
        held.arrivals += 1;
    }

    pub(crate) fn gone_from(&self, pid: Pid) {
        let mut held = self.0.lock();
        if let Some(count) = held.by.get_mut(&pid) {
            *count -= 1;
            if *count == 0 {
                held.by.remove(&pid);
            }
        }
    }

    pub(crate) fn entered_queue(&self) {
        let mut held = self.0.lock();
        held.queued += 1;
        held.arrivals += 1;
    }

    pub(crate) fn left_queue(&self) {
        self.0.lock().queued -= 1;
    }
}

/// How many messages a process's inbox holds; a sender gets EAGAIN when it is full.
pub const INBOX_MAX: usize = 64;

/// The datagram socket on which a process receives descriptors.
#[derive(Debug, Default)]
pub(crate) struct Inbox(Mutex<InboxQueue>);

#[derive(Debug, Default)]
struct InboxQueue {
    closed: bool,
    messages: VecDeque<Arc<Description>>,
}

impl Inbox {
    /// Queues an open file for which the caller holds a reference; on failure the reference stays
    /// the caller's.
    pub(crate) fn push(&self, description: &Arc<Description>) -> Result<(), Errno> {
        let mut queue = self.0.lock();
        if queue.closed {
            return Err(Errno::ECONNREFUSED);
        }
        if queue.messages.len() >= INBOX_MAX {
            return Err(Errno::EAGAIN);
        }
        queue.messages.push_back(Arc::clone(description));
        Ok(())
    }

    /// The oldest unread description, counted as a descriptor of `pid` from before it leaves the
    /// queue: at every moment the receiver counts as one that can close it.
    pub(crate) fn pop(&self, pid: Pid) -> Option<Arc<Description>> {
        let mut queue = self.0.lock();
        queue.messages.front()?.fd_holders().held_by(pid);
        queue.messages.pop_front()
    }

    /// Whether the open file that `fd_holders` counts is among those unread.
    pub(crate) fn holds(&self, fd_holders: &Arc<FdHolders>) -> bool {
        self.0.lock().messages.iter().any(|description| Arc::ptr_eq(description.fd_holders(), fd_holders))
    }

    /// Refuses further messages and hands out those unread.
    pub(crate) fn close(&self) -> Vec<Arc<Description>> {
        let mut queue = self.0.lock();
        queue.closed = true;
        queue.messages.drain(..).collect()
    }
}
