//! Completion queues.
//!
//! It owns a bounded ring of completions. Invariants: completions come out in the order they went in, each once; one that
//! finds the ring full is never lost silently: it puts the queue into error for good, raises an event, is counted, and puts
//! its queue pair into error. Kernel counterpart: `struct ib_cq`, `rxe_cq_post`.

use std::collections::VecDeque;

use emulator::sync::atomic::{AtomicBool, Ordering};
use emulator::sync::{Arc, Mutex};

use super::context::{AsyncEvent, Context};
use super::work::Completion;

/// The deepest completion queue.
pub const DEPTH_MAX: u32 = 1 << 20;

/// The queue has no room, or had none before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Overrun;

/// See the module.
pub struct Cq {
    number: u32,
    depth: u32,
    context: Arc<Context>,
    ring: Mutex<VecDeque<Completion>>,
    overrun: AtomicBool,
}

impl Cq {
    pub(crate) fn new(number: u32, depth: u32, context: Arc<Context>) -> Cq {
        // Room for a usual burst; a deep queue grows to what is really outstanding.
        let room = depth.min(64) as usize;
        Cq { number, depth, context, ring: Mutex::new(VecDeque::with_capacity(room)), overrun: AtomicBool::new(false) }
    }

    /// Its number, unique on the NIC.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// How many completions it holds at most.
    pub fn depth(&self) -> u32 {
        self.depth
    }

    /// Whether a completion found it full: it takes no more, and its queue pairs go to error.
    pub fn is_in_error(&self) -> bool {
        self.overrun.load(Ordering::SeqCst)
    }

    /// Takes the oldest completion.
    pub fn poll_one(&self) -> Option<Completion> {
        self.ring.lock().pop_front()
    }

    /// Takes the oldest completions, as many as `into` holds; how many there were. `ibv_poll_cq`.
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

    /// Puts a completion in.
    pub(crate) fn push(&self, completion: Completion) -> Result<(), Overrun> {
        let first = {
            let mut ring = self.ring.lock();
            if ring.len() < self.depth as usize && !self.overrun.load(Ordering::Relaxed) {
                ring.push_back(completion);
                return Ok(());
            }
            !self.overrun.swap(true, Ordering::SeqCst)
        };
        self.context.nic().counters.completions_lost.add(1);
        if first {
            self.context.raise(AsyncEvent::CqError { cq: self.number });
        }
        Err(Overrun)
    }
}
