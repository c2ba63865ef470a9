//! Completion queues.
//!
//! It owns a bounded ring of completions. Invariants: completions come out in the order in which
//! they went in, each once; a completion that finds the ring full is never lost silently: it puts
//! the queue into error for good, raises an event, is counted, and puts its queue pair into error.
//! Kernel counterpart: `struct ib_cq`, `rxe_cq_post`.

use std::collections::VecDeque;

use emulator::sync::atomic::{AtomicBool, Ordering};
use emulator::sync::{Arc, Mutex};

use super::event::AsyncEvent;
use super::owner::QueueOwner;
use super::work::Completion;

/// The most completions that a queue can be made for.
pub const DEPTH_MAX: u32 = 1 << 20;

/// The completion queue has no room, or is in error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CqOverrun;

/// A completion queue.
pub struct Cq {
    number: u32,
    depth: u32,
    owner: Arc<dyn QueueOwner>,
    ring: Mutex<VecDeque<Completion>>,
    overrun: AtomicBool,
}

impl Cq {
    pub(crate) fn new(number: u32, depth: u32, owner: Arc<dyn QueueOwner>) -> Cq {
        // Room for a usual burst. A deeper queue grows as completions arrive.
        let room = depth.min(64) as usize;
        Cq { number, depth, owner, ring: Mutex::new(VecDeque::with_capacity(room)), overrun: AtomicBool::new(false) }
    }

    /// Its number, unique on the NIC.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// The most completions that it holds.
    pub fn depth(&self) -> u32 {
        self.depth
    }

    /// Whether a completion found it full. Such a queue accepts no completion, and its queue pairs
    /// go to error.
    pub fn is_in_error(&self) -> bool {
        self.overrun.load(Ordering::SeqCst)
    }

    /// Takes the oldest completion, if there is one.
    pub fn poll_one(&self) -> Option<Completion> {
        self.ring.lock().pop_front()
    }

    /// Takes the oldest completions, at most `into.len()`, and returns their number. `ibv_poll_cq`.
    pub fn poll_into(&self, into: &mut [Completion]) -> usize {
        let mut ring = self.ring.lock();
        let found = ring.len().min(into.len());
        for (place, completion) in into.iter_mut().zip(ring.drain(..found)) {
            *place = completion;
        }
        found
    }

    /// Takes up to `max` completions, oldest first.
    pub fn poll(&self, max: usize) -> Vec<Completion> {
        let mut ring = self.ring.lock();
        let found = ring.len().min(max);
        ring.drain(..found).collect()
    }

    /// Adds a completion.
    ///
    /// # Errors
    /// [`CqOverrun`]: the completion is lost.
    pub(crate) fn push(&self, completion: Completion) -> Result<(), CqOverrun> {
        let first = {
            let mut ring = self.ring.lock();
            if ring.len() < self.depth as usize && !self.overrun.load(Ordering::Relaxed) {
                ring.push_back(completion);
                return Ok(());
            }
            !self.overrun.swap(true, Ordering::SeqCst)
        };
        self.owner.nic().counters.completions_lost.add(1);
        if first {
            self.owner.raise(AsyncEvent::CqError { cq: self.number });
        }
        Err(CqOverrun)
    }
}
