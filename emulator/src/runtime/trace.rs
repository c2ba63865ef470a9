//! What led to a finding: the newest events of every thread, in bounded memory.
//!
//! It owns one ring of events for each of the first [`RINGS`] threads that record (more share
//! them). Invariants: recording takes one uncontended leaf mutex and, after a thread's first event,
//! no memory; a ring keeps its thread's newest [`RING_EVENTS`] events; events carry numbers of one
//! counter, so what is collected from several rings is in one order, on whatever clock. Kernel
//! counterpart: the per-CPU ring buffers of ftrace.
#![allow(clippy::missing_const_for_thread_local, reason = "loom's thread_local! takes no const initialiser")]

use std::cell::Cell;
use std::fmt;

use crossbeam_utils::CachePadded;

use crate::runtime::clock::Nanos;
use crate::runtime::pages::PageRange;
use crate::runtime::sync::Mutex;
use crate::runtime::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Rings of one trace. One ring costs nothing before its first event, 288 KiB after.
pub const RINGS: usize = 32;
/// RingEvents that a ring keeps.
pub const RING_EVENTS: usize = 4096;

const _: () = assert!(size_of::<TraceEvent>() <= 72, "a ring keeps thousands of these");

/// One thing that happened. What actor and object stand for is decided above this crate, by `kind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceEvent {
    /// Its place in the order of all events of the trace, from 0.
    pub number: u64,
    /// When.
    pub at: Nanos,
    /// What happened, such as `"pinned"`.
    pub kind: &'static str,
    /// The actor, or the one affected.
    pub actor: u64,
    /// What it happened to, besides pages.
    pub object: u64,
    /// The device pages concerned, if any.
    pub pages: Option<PageRange>,
}

impl fmt::Display for TraceEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = self.at.0 as f64 / 1e3;
        write!(f, "#{} {micros:.3} us: {} by {} on {}", self.number, self.kind, self.actor, self.object)?;
        match self.pages {
            Some(pages) => write!(f, ", {pages}"),
            None => Ok(()),
        }
    }
}

/// Alone in its cache lines: rings of different threads don't meet.
#[derive(Debug, Default)]
struct TraceRing(CachePadded<Mutex<RingEvents>>);

#[derive(Debug, Default)]
struct RingEvents {
    kept: Vec<TraceEvent>,
    /// Where the next event goes once `kept` is full: the oldest one's place.
    next: usize,
}

impl RingEvents {
    fn push(&mut self, event: TraceEvent) {
        if self.kept.len() < RING_EVENTS {
            self.kept.reserve_exact(RING_EVENTS - self.kept.len());
            self.kept.push(event);
        } else {
            self.kept[self.next] = event;
            self.next = (self.next + 1) % RING_EVENTS;
        }
    }
}

crate::runtime::sync::thread_local! {
    /// Which ring this thread has in the trace (by address) that it last recorded in. A trace that
    /// comes to stand at the address of a dead one inherits the choice, which is as good as any.
    static RING: Cell<(usize, usize)> = Cell::new((0, 0));
}

/// See the module.
#[derive(Debug)]
pub struct Trace {
    rings: Box<[TraceRing]>,
    /// Rings given out.
    threads: AtomicUsize,
    /// The number of the next event.
    next: AtomicU64,
}

impl Default for Trace {
    fn default() -> Self {
        Trace::new()
    }
}

impl Trace {
    /// A trace without events.
    pub fn new() -> Trace {
        let rings = (0..RINGS).map(|_| TraceRing::default()).collect();
        Trace { rings, threads: AtomicUsize::new(0), next: AtomicU64::new(0) }
    }

    fn ring(&self) -> &TraceRing {
        let me = self.rings.as_ptr().addr();
        let index = RING.with(|ring| {
            if ring.get().0 != me {
                // ORDERING: Relaxed: any ring is right, this only spreads the threads.
                ring.set((me, self.threads.fetch_add(1, Ordering::Relaxed)));
            }
            ring.get().1
        });
        &self.rings[index % RINGS]
    }

    /// Records an event of this thread.
    pub fn record(&self, at: Nanos, kind: &'static str, actor: u64, object: u64, pages: Option<PageRange>) {
        // ORDERING: Relaxed: of two events ordered by anything (a mutex, a pin word), the later one
        // also draws the later number, because both draws are of this one counter.
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.ring().0.lock().push(TraceEvent { number, at, kind, actor, object, pages });
    }

    /// The newest `limit` of the events kept whose pages meet `pages`, oldest first. Looks at one
    /// ring after the other: events recorded meanwhile may be among them or not.
    pub fn about(&self, pages: PageRange, limit: usize) -> Vec<TraceEvent> {
        let meets = |event: &TraceEvent| {
            event.pages.is_some_and(|its| its.start().max(pages.start()) < its.end().min(pages.end()))
        };
        let mut found: Vec<TraceEvent> = Vec::new();
        for ring in &self.rings {
            found.extend(ring.0.lock().kept.iter().copied().filter(meets));
        }
        found.sort_unstable_by_key(|event| event.number);
        found.drain(..found.len().saturating_sub(limit));
        found
    }

    /// How many events were recorded, kept or not.
    pub fn recorded(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }
}

#[cfg(all(test, not(any(daxlab_loom, daxlab_shuttle))))]
mod tests {
    use super::*;
    use crate::runtime::sync::thread;

    fn pages(start: u64, len: u64) -> Option<PageRange> {
        Some(PageRange::new(start, len))
    }

    #[test]
    fn about_finds_what_meets_the_pages_newest_last() {
        let trace = Trace::new();
        trace.record(Nanos(5), "pinned", 1, 10, pages(0, 4));
        trace.record(Nanos(5), "broken", 2, 10, None);
        trace.record(Nanos(5), "freed", 2, 10, pages(4, 4));
        trace.record(Nanos(5), "allocated", 3, 11, pages(3, 2));
        let kinds = |range: (u64, u64), limit| -> Vec<&str> {
            let found = trace.about(PageRange::new(range.0, range.1), limit);
            assert!(found.is_sorted_by_key(|event| event.number));
            found.iter().map(|event| event.kind).collect()
        };
        assert_eq!(kinds((3, 1), 9), ["pinned", "allocated"]);
        assert_eq!(kinds((4, 1), 9), ["freed", "allocated"]);
        assert_eq!(kinds((4, 1), 1), ["allocated"], "the newest");
        assert_eq!(kinds((0, 9), 0), [""; 0]);
        assert_eq!(kinds((8, 9), 9), [""; 0]);
        assert_eq!(kinds((3, 0), 9), [""; 0], "no page is met by nothing");
        let shown = trace.about(PageRange::new(0, 1), 1)[0].to_string();
        assert_eq!(shown, "#0 0.005 us: pinned by 1 on 10, pages 0..4");
    }

    #[test]
    fn a_full_ring_forgets_its_oldest_events_and_takes_no_more_memory() {
        let trace = Trace::new();
        let total = RING_EVENTS as u64 * 2 + 7;
        let mut place = None;
        for n in 0..total {
            trace.record(Nanos(n), "event", 0, n, pages(n % 2, 1));
            let now = trace.ring().0.lock().kept.as_ptr();
            assert_eq!(*place.get_or_insert(now), now, "the ring moved");
        }
        let all = trace.about(PageRange::new(0, 2), usize::MAX);
        let numbers: Vec<u64> = all.iter().map(|event| event.number).collect();
        assert_eq!(numbers, (total - RING_EVENTS as u64..total).collect::<Vec<_>>());
        assert_eq!(trace.recorded(), total);
    }

    #[test]
    fn every_thread_has_its_ring_and_nobodys_events_push_out_anothers() {
        let trace = Trace::new();
        trace.record(Nanos(0), "first", 99, 0, pages(7, 1));
        thread::scope(|scope| {
            for actor in 0..4 {
                let trace = &trace;
                scope.spawn(move || {
                    for n in 0..RING_EVENTS as u64 + 100 {
                        trace.record(Nanos(n), "noise", actor, n, pages(100 + actor, 1));
                    }
                });
            }
        });
        assert_eq!(trace.about(PageRange::new(7, 1), 9).len(), 1);
        for actor in 0..4 {
            let found = trace.about(PageRange::new(100 + actor, 1), usize::MAX);
            assert_eq!(found.len(), RING_EVENTS);
            assert!(found.iter().all(|event| event.actor == actor));
            assert!(found.is_sorted_by_key(|event| event.object), "a thread's events are in its order");
        }
    }
}
