//! The turns for layout changes of one inode, by range.
//!
//! It owns the order of a file's layout changes: changes whose ranges overlap are served in the
//! order of arrival, others proceed side by side. Invariants: a turn is a state, not a lock: a
//! change that waits for leases or pins keeps only its place, and unlock, close and deregistration
//! never need a turn; changes that have the turn at one moment do not overlap; a change never
//! stands behind one that waits, directly or not, for the caller's own process: it passes it.
//! Kernel counterpart: `i_rwsem`, which Linux drops while it waits for a lease and keeps while it
//! waits for pins: where the design says so (`pin_wait_holds = inode`), such a change *holds the
//! inode*, and reads, writes and changes of the file by other tasks wait for it. At most one change
//! holds an inode.

use std::cell::Cell;

use emulator::pin::PageRange;
use emulator::runtime::clock::Nanos;
use emulator::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use emulator::sync::{Mutex, MutexGuard};
use emulator::wait::{WaitFor, WaitQueue, WaiterId};

use crate::base::errno::Errno;
use crate::base::numbers::{HolderId, Pid};
use crate::base::range::{BlockRange, BlockRanges};
use crate::deadlock::graph::{WaitEnd, WaitFailure, WaitPoll};
use crate::deadlock::need::{Awaited, Need};
use crate::vfs::change_state::{ChangeEvent, ChangeState};
use crate::vfs::kernel::Kernel;
use crate::vfs::task::Task;

/// The queue for layout changes of one inode.
#[derive(Debug, Default)]
pub(crate) struct LayoutTurn {
    /// In the order of arrival.
    places: Mutex<Vec<Place>>,
    changed: WaitQueue,
    /// How many changes wait for leases or long-term pins: a check before the lock is taken.
    waiting_hint: AtomicU32,
    /// How many changes hold the inode, one at most: a check before the lock is taken.
    held_hint: AtomicU32,
    /// How many times changes have closed pages: a pinner that meets a closed page waits until this
    /// is zero.
    closings: AtomicU32,
    /// How often pages were reopened: a pinner that waits continues then, even if the next pages
    /// are closed already.
    reopenings: AtomicU64,
    reopened: WaitQueue,
}

/// The pins that a change has met, and waits for.
#[derive(Clone, Debug, Default)]
pub(crate) struct MetPins {
    /// Long-term pins.
    pub(crate) holders: Vec<HolderId>,
    /// Pages with I/O in flight that it waits for with its pages open, sorted.
    pub(crate) io_pages: Vec<PageRange>,
}

/// The place of one change in the queue of one file.
#[derive(Debug)]
struct Place {
    waiter: WaiterId,
    /// When it took its place, and when it came into its state.
    times: ChangeTimes,
    /// What the change touches, by its last plan.
    ranges: BlockRanges,
    state: ChangeState,
    /// Where new leases and long-term pins are refused, because the change waits, or has waited,
    /// for those that are there.
    refuses: Option<BlockRanges>,
    /// Where the change last closed pages and found pins: for questions only, nothing is refused
    /// for it.
    draining: Option<BlockRanges>,
    /// The pins that a waiting change has met.
    pins: MetPins,
    /// Its pages are closed.
    pages_closed: bool,
    /// It waits behind a lease request, or in another file.
    stands_back: bool,
    /// It waits for pins, or has waited for them, and keeps reads, writes and changes by other
    /// tasks waiting.
    holds_inode: bool,
}

impl Place {
    fn new(kernel: &Kernel, waiter: WaiterId, ranges: BlockRanges) -> Place {
        let now = kernel.world.now();
        Place {
            waiter,
            times: ChangeTimes { arrived: now, since: now },
            ranges,
            state: ChangeState::START,
            refuses: None,
            draining: None,
            pins: MetPins::default(),
            pages_closed: false,
            stands_back: false,
            holds_inode: false,
        }
    }
}

/// When a change took its place in the queue, and when it came into the state that it is in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChangeTimes {
    pub(crate) arrived: Nanos,
    pub(crate) since: Nanos,
}

/// A change in the queue, as other tasks see it.
pub(crate) struct ChangeView {
    pub(crate) task: WaiterId,
    pub(crate) times: ChangeTimes,
    /// What it touches, by its last plan.
    pub(crate) ranges: BlockRanges,
    pub(crate) state: ChangeState,
    /// It keeps reads, writes and changes by other tasks waiting.
    pub(crate) holds_inode: bool,
    /// The range on which the change waits, if it does.
    pub(crate) waiting: Option<BlockRanges>,
    /// The pins that it has met.
    pub(crate) pins: MetPins,
}

/// A change in the queue of an inode, with or without the turn. Dropping it lets the next change
/// in.
#[derive(Debug)]
pub(crate) struct TurnGuard<'a> {
    turn: &'a LayoutTurn,
    kernel: &'a Kernel,
    waiter: WaiterId,
    /// How often it gave up its place because its change waited in another file.
    aside: Cell<u32>,
    /// It keeps its place then.
    keeps: Cell<bool>,
}

/// What stands before a change: the tasks whose changes come first, those with the turn apart, and
/// whether one of them waits for more than a turn that is about to end.
#[derive(Default)]
struct Ahead {
    with_turn: Vec<WaiterId>,
    without: Vec<WaiterId>,
    waits: bool,
}

impl Ahead {
    /// See [`TurnGuard::ahead`].
    fn of(waiter: WaiterId, places: &[Place], passed: &[WaiterId], fault: bool) -> Ahead {
        let mut ahead = Ahead::default();
        let Some(mine) = places.iter().position(|place| place.waiter == waiter) else { return ahead };
        let overlap = |a: &Place, b: &Place| a.ranges.iter().any(|range| b.ranges.overlaps(range));
        let passes_queue = fault && places.iter().any(|place| place.holds_inode);
        // Whether each place waits for more than turns that are about to end, also indirectly.
        let mut waits: Vec<bool> = Vec::with_capacity(places.len());
        for (n, place) in places.iter().enumerate() {
            let behind = |(before, waits): (&Place, &bool)| *waits && overlap(before, place);
            let queued = place.state == ChangeState::Queued && places.iter().zip(&waits).any(behind);
            waits.push(place.refuses.is_some() || place.stands_back || queued);
            let first = place.state.has_turn() || (n < mine && !passed.contains(&place.waiter));
            let lets_faults_in = !place.state.has_turn() && (place.holds_inode || place.state == ChangeState::Queued);
            if n == mine || !first || (passes_queue && lets_faults_in) || !overlap(place, &places[mine]) {
                continue;
            }
            let list = if place.state.has_turn() { &mut ahead.with_turn } else { &mut ahead.without };
            list.push(place.waiter);
            ahead.waits |= waits[n] && !place.holds_inode;
        }
        ahead
    }

    fn is_empty(&self) -> bool {
        self.with_turn.is_empty() && self.without.is_empty()
    }

    /// What a change behind them waits for. A change that has the turn can't be passed.
    fn awaited(self) -> Vec<Awaited> {
        let with_turn = self.with_turn.into_iter().map(|task| Awaited::from(Need::task(task)));
        with_turn.chain(self.without.into_iter().map(Awaited::behind)).collect()
    }
}

impl LayoutTurn {
    /// A change without a place yet.
    pub(crate) fn change<'a>(&'a self, kernel: &'a Kernel, waiter: WaiterId) -> TurnGuard<'a> {
        TurnGuard { turn: self, kernel, waiter, aside: Cell::new(0), keeps: Cell::new(false) }
    }

    /// Takes the turn for `range` if no change that overlaps it is under way: for the kernel's own
    /// work, which has no process.
    pub(crate) fn try_take<'a>(
        &'a self,
        kernel: &'a Kernel,
        waiter: WaiterId,
        range: BlockRange,
    ) -> Option<TurnGuard<'a>> {
        let mut places = self.places.lock();
        if places.iter().any(|place| place.ranges.overlaps(range)) {
            return None;
        }
        let mut place = Place::new(kernel, waiter, range.into());
        place.state = ChangeState::Judging;
        places.push(place);
        Some(self.change(kernel, waiter))
    }

    /// Whether a change waits for leases or long-term pins in `range`: new ones are refused there.
    pub(crate) fn refuses_in(&self, range: BlockRange) -> bool {
        !self.refusing_in(range).is_empty()
    }

    /// The tasks whose changes wait for leases or long-term pins in `range`.
    pub(crate) fn refusing_in(&self, range: BlockRange) -> Vec<WaiterId> {
        // ORDERING: Acquire pairs with the Release in `count_waiting`. A check that comes too early
        // is as good as a request that came too early: the change finds its result committed and
        // judges it.
        if self.waiting_hint.load(Ordering::Acquire) == 0 {
            return Vec::new();
        }
        let refuses = |place: &&Place| place.refuses.as_ref().is_some_and(|ranges| ranges.overlaps(range));
        self.places.lock().iter().filter(refuses).map(|place| place.waiter).collect()
    }

    /// Where changes that wait in `range` refuse new leases and pins.
    pub(crate) fn refused_in(&self, range: BlockRange) -> BlockRanges {
        let places = self.places.lock();
        let refused = places.iter().filter_map(|place| place.refuses.as_ref());
        refused.filter(|ranges| ranges.overlaps(range)).flat_map(BlockRanges::iter).collect()
    }

    /// Every change that is under way or queued, in the order of arrival.
    pub(crate) fn line(&self) -> Vec<ChangeView> {
        let places = self.places.lock();
        let view = |place: &Place| ChangeView {
            task: place.waiter,
            times: place.times,
            ranges: place.ranges.clone(),
            state: place.state,
            holds_inode: place.holds_inode,
            waiting: place.refuses.clone().or_else(|| place.draining.clone()),
            pins: place.pins.clone(),
        };
        places.iter().map(view).collect()
    }

    /// The tasks whose changes come before that of `task`, a task of process `pid` that waits for
    /// its turn as a system call does. A fault passes some of them (see [`TurnGuard::ahead`]).
    pub(crate) fn before(&self, kernel: &Kernel, task: WaiterId, pid: Pid) -> Vec<WaiterId> {
        let mut passed = Ahead::of(task, &self.places.lock(), &[], false).without;
        passed.retain(|ahead| kernel.waits_for(*ahead, pid));
        let ahead = Ahead::of(task, &self.places.lock(), &passed, false);
        ahead.with_turn.into_iter().chain(ahead.without).collect()
    }

    /// Where tasks wait for changes to finish or to wait.
    pub(crate) fn changed(&self) -> &WaitQueue {
        &self.changed
    }

    pub(crate) fn pages_closed(&self) {
        self.closings.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn pages_reopened(&self) {
        self.reopenings.fetch_add(1, Ordering::SeqCst);
        self.closings.fetch_sub(1, Ordering::SeqCst);
        self.reopened.wake_all();
    }

    /// How often pages were reopened so far.
    pub(crate) fn reopenings(&self) -> u64 {
        self.reopenings.load(Ordering::SeqCst)
    }

    /// Whether any of this inode's pages may be closed: a check without the lock of the places.
    pub(crate) fn has_closed_pages(&self) -> bool {
        self.closings.load(Ordering::SeqCst) > 0
    }

    /// The tasks whose changes have closed pages in `range`.
    pub(crate) fn closed_in(&self, range: BlockRange) -> Vec<WaiterId> {
        if !self.has_closed_pages() {
            return Vec::new();
        }
        let places = self.places.lock();
        let closed = places.iter().filter(|place| place.pages_closed && place.ranges.overlaps(range));
        closed.map(|place| place.waiter).collect()
    }

    /// Where tasks wait until closed pages are open again.
    pub(crate) fn reopened(&self) -> &WaitQueue {
        &self.reopened
    }

    fn count_waiting(&self, places: &MutexGuard<'_, Vec<Place>>) {
        let waiting = places.iter().filter(|place| place.refuses.is_some()).count();
        let held = places.iter().filter(|place| place.holds_inode).count();
        // ORDERING: with the lock held, so that the hints never lag behind a later change's.
        self.waiting_hint.store(waiting as u32, Ordering::Release);
        self.held_hint.store(held as u32, Ordering::Release);
    }

    /// The task whose change holds the inode, unless it is `task`.
    pub(crate) fn held_by_other(&self, task: WaiterId) -> Option<WaiterId> {
        // ORDERING: Acquire pairs with the Release in `count_waiting`. A check that comes too early
        // is as good as a call that came before the change.
        if self.held_hint.load(Ordering::Acquire) == 0 {
            return None;
        }
        let places = self.places.lock();
        places.iter().find(|place| place.holds_inode && place.waiter != task).map(|place| place.waiter)
    }

    /// Waits, uninterruptibly, until no change of another task holds the inode. True if one did.
    pub(crate) fn wait_until_unheld(&self, task: &Task) -> bool {
        if self.held_by_other(task.waiter().id()).is_none() {
            return false;
        }
        let how = WaitFor::uninterruptible("inode locked by a change that waits for pins");
        let _ended = task.block_on(&self.changed, how, || match self.held_by_other(task.waiter().id()) {
            Some(holder) => WaitPoll::Blocked(vec![Need::task(holder).into()]),
            None => WaitPoll::Ready(()),
        });
        true
    }
}

impl TurnGuard<'_> {
    /// The task whose change this is.
    pub(crate) fn task(&self) -> WaiterId {
        self.waiter
    }

    /// Whether the pages that it takes are closed.
    pub(crate) fn has_closed_pages(&self) -> bool {
        self.place(&mut self.turn.places.lock()).is_some_and(|place| place.pages_closed)
    }

    fn place<'p>(&self, places: &'p mut [Place]) -> Option<&'p mut Place> {
        places.iter_mut().find(|place| place.waiter == self.waiter)
    }

    /// Changes the state: the only place that does. An event that the table has no row for is
    /// recorded as a broken invariant, and changes nothing.
    fn happens(&self, place: &mut Place, event: ChangeEvent) {
        match place.state.next(event) {
            Ok(next) if next == place.state => {}
            Ok(next) => {
                place.state = next;
                place.times.since = self.kernel.world.now();
            }
            Err(invalid) => self.kernel.violated(format!("layout change: {invalid}")),
        }
        place.draining = None;
    }

    /// Which changes come before this one, which has a place: earlier ones that overlap it, and
    /// later ones that have the turn. It passes those of `passed` that have no turn.
    /// A `fault` passes the change that holds the inode while it waits for pins, and what queues
    /// behind that, as page faults do in Linux; a change that has waited so and has the turn again
    /// is about to finish, or to wait for pins again.
    fn ahead(&self, places: &[Place], passed: &[WaiterId], fault: bool) -> Ahead {
        Ahead::of(self.waiter, places, passed, fault)
    }

    /// The tasks whose changes wait, directly or not, for this task's process. The wait graph is
    /// asked without the lock of the places: a change that has stopped waiting meanwhile, and has
    /// no turn yet, may be passed all the same.
    fn passed(&self, task: &Task) -> Vec<WaiterId> {
        let mut passed = self.ahead(&self.turn.places.lock(), &[], false).without;
        passed.retain(|ahead| task.kernel().waits_for(*ahead, task.pid()));
        passed
    }

    /// Joins the queue at its end for `ranges`, or keeps its place in it for them.
    pub(crate) fn queue_for(&self, ranges: &BlockRanges) {
        let mut places = self.turn.places.lock();
        match self.place(&mut places) {
            Some(place) => {
                if matches!(place.state, ChangeState::Judging | ChangeState::Waiting) {
                    self.happens(place, ChangeEvent::StandBack);
                }
                place.ranges = ranges.clone();
                place.stands_back = false;
            }
            None => places.push(Place::new(self.kernel, self.waiter, ranges.clone())),
        }
        self.turn.count_waiting(&places);
        drop(places);
        self.turn.changed.wake_all();
    }

    /// Takes the turn if no change comes before this one; `may_wait` is false for a fault or a pin
    /// that must allocate.
    pub(crate) fn try_turn(&self, task: &Task, may_wait: bool) -> bool {
        let passed = self.passed(task);
        let mut places = self.turn.places.lock();
        let first = self.ahead(&places, &passed, !may_wait).is_empty();
        if first && let Some(place) = self.place(&mut places) {
            self.happens(place, ChangeEvent::TakeTurn);
            place.stands_back = false;
        }
        drop(places);
        if first {
            // What stands behind it can't pass it any more.
            self.turn.changed.wake_all();
        }
        first
    }

    /// Waits, interruptibly, until no change comes before this one. For a fault or a pin that must
    /// allocate (`may_wait` false), only behind changes that are about to finish.
    ///
    /// # Errors
    /// EINTR, or EDEADLK if the wait would close a cycle; ETXTBSY for a fault behind a change that
    /// waits for leases or long-term pins.
    pub(crate) fn wait_until_first(&self, task: &Task, may_wait: bool) -> Result<(), Errno> {
        // A fault has no way to report an interruption.
        let reason = "layout change ahead";
        let how = if may_wait { WaitFor::interruptible(reason) } else { WaitFor::killable(reason) };
        let outcome = task.block_until(&self.turn.changed, how, WaitEnd::Refusable, || {
            let passed = self.passed(task);
            let ahead = self.ahead(&self.turn.places.lock(), &passed, !may_wait);
            match (ahead.is_empty(), ahead.waits && !may_wait) {
                (true, _) => WaitPoll::Ready(Ok(())),
                (false, true) => WaitPoll::Ready(Err(Errno::ETXTBSY)),
                (false, false) => WaitPoll::Blocked(ahead.awaited()),
            }
        });
        match outcome {
            Ok(done) => done,
            // A fault has no way to report EDEADLK either.
            Err(WaitFailure::Deadlock) if !may_wait => Err(Errno::ETXTBSY),
            Err(WaitFailure::Deadlock) => Err(Errno::EDEADLK),
            Err(WaitFailure::Interrupted | WaitFailure::TimedOut) => Err(Errno::EINTR),
        }
    }

    /// Takes the turn for `ranges`, behind the changes that come before; see
    /// [`TurnGuard::wait_until_first`].
    ///
    /// # Errors
    /// As there.
    pub(crate) fn take(&self, task: &Task, ranges: &BlockRanges, may_wait: bool) -> Result<(), Errno> {
        if self.has_turn_for(ranges) {
            return Ok(());
        }
        self.queue_for(ranges);
        while !self.try_turn(task, may_wait) {
            self.wait_until_first(task, may_wait)?;
        }
        Ok(())
    }

    /// Whether it has the turn for all of `ranges`.
    pub(crate) fn has_turn_for(&self, ranges: &BlockRanges) -> bool {
        let mut places = self.turn.places.lock();
        let has = |place: &mut Place| place.state.has_turn() && ranges.iter().all(|range| place.ranges.covers(range));
        self.place(&mut places).is_some_and(has)
    }

    /// Gives its place up; [`TurnGuard::queue_for`] takes a new one.
    pub(crate) fn withdraw(&self) {
        {
            let mut places = self.turn.places.lock();
            if let Some(place) = self.place(&mut places) {
                self.happens(place, ChangeEvent::Finish);
            }
            places.retain(|place| place.waiter != self.waiter);
            self.turn.count_waiting(&places);
        }
        self.turn.changed.wake_all();
    }

    /// Its change waits in another file, or behind a lease request: it gives up its turn here. A
    /// change of one file keeps its place, one of two files gives it up in the first rounds.
    pub(crate) fn stand_aside(&self) {
        if !self.keeps.get() {
            self.aside.set(self.aside.get() + 1);
            return self.withdraw();
        }
        self.stand_back();
    }

    /// Gives up its turn, keeps its place, and refuses no lease and no pin any more.
    pub(crate) fn stand_back(&self) {
        {
            let mut places = self.turn.places.lock();
            if let Some(place) = self.place(&mut places)
                && matches!(place.state, ChangeState::Judging | ChangeState::Waiting)
            {
                self.happens(place, ChangeEvent::StandBack);
                place.refuses = None;
                place.pins = MetPins::default();
                place.stands_back = true;
                place.holds_inode = false;
            }
            self.turn.count_waiting(&places);
        }
        self.turn.changed.wake_all();
    }

    /// Whether it keeps its place while its change waits in another file.
    pub(crate) fn keeps_place(&self) -> bool {
        self.keeps.get()
    }

    /// How often it gave up its place.
    pub(crate) fn rounds_aside(&self) -> u32 {
        self.aside.get()
    }

    /// Records that this change waits for pins on closed pages in `ranges`.
    pub(crate) fn set_draining(&self, ranges: BlockRanges) {
        if let Some(place) = self.place(&mut self.turn.places.lock()) {
            place.draining = Some(ranges);
        }
    }

    /// Records that this change waits for leases or long-term pins in `ranges`: new ones there are
    /// refused meanwhile. With all pages open it has no turn while it waits; with pages closed it
    /// keeps the turn.
    pub(crate) fn set_waiting(&self, ranges: BlockRanges, pins: MetPins) {
        self.wait_on(ranges, pins, false);
    }

    /// As [`TurnGuard::set_waiting`], for pins, with all pages open. At the same moment it takes
    /// the inode, until the change is over or waits for something else than pins: no fault ever
    /// sees it waiting without. False: the change of another task holds the inode.
    pub(crate) fn hold_and_wait(&self, ranges: BlockRanges, pins: MetPins) -> bool {
        self.wait_on(ranges, pins, true)
    }

    fn wait_on(&self, ranges: BlockRanges, pins: MetPins, hold: bool) -> bool {
        let taken = {
            let mut places = self.turn.places.lock();
            let taken = places.iter().any(|place| place.holds_inode && place.waiter != self.waiter);
            if let Some(place) = self.place(&mut places) {
                if place.state != ChangeState::Closed {
                    self.happens(place, ChangeEvent::Wait);
                    place.holds_inode = hold && !taken;
                }
                place.refuses = Some(ranges);
                place.pins = pins;
            }
            self.turn.count_waiting(&places);
            taken
        };
        self.turn.changed.wake_all();
        !taken
    }

    /// Records that it closes pages.
    pub(crate) fn pages_closed(&self) {
        self.turn.pages_closed();
        if let Some(place) = self.place(&mut self.turn.places.lock()) {
            self.happens(place, ChangeEvent::Close);
            place.pages_closed = true;
        }
    }

    /// Records that the pages which it closed are open again.
    pub(crate) fn pages_reopened(&self) {
        {
            let mut places = self.turn.places.lock();
            if let Some(place) = self.place(&mut places) {
                place.pages_closed = false;
                if place.state == ChangeState::Closed {
                    self.happens(place, ChangeEvent::Reopen);
                }
            }
        }
        self.turn.pages_reopened();
    }

    /// Records that the change is visible.
    pub(crate) fn published(&self) {
        if let Some(place) = self.place(&mut self.turn.places.lock()) {
            self.happens(place, ChangeEvent::Publish);
        }
    }

    /// Whether the change is visible.
    pub(crate) fn is_published(&self) -> bool {
        self.place(&mut self.turn.places.lock()).is_some_and(|place| place.state == ChangeState::Published)
    }
}

impl Drop for TurnGuard<'_> {
    fn drop(&mut self) {
        self.withdraw();
    }
}

/// Gives two changes of two files new places at the ends of both queues at one moment, so that all
/// changes that keep a place in two queues stand in the same order in both. `a` is the change of
/// the file with the smaller number. Both keep their places from now on.
pub(crate) fn queue_for_both(a: (&TurnGuard<'_>, &BlockRanges), b: (&TurnGuard<'_>, &BlockRanges)) {
    a.0.withdraw();
    b.0.withdraw();
    {
        let mut first = a.0.turn.places.lock();
        let mut second = b.0.turn.places.lock();
        first.push(Place::new(a.0.kernel, a.0.waiter, a.1.clone()));
        second.push(Place::new(b.0.kernel, b.0.waiter, b.1.clone()));
    }
    for guard in [a.0, b.0] {
        guard.keeps.set(true);
        guard.turn.changed.wake_all();
    }
}

#[cfg(all(test, not(any(daxlab_loom, daxlab_shuttle))))]
mod tests;
