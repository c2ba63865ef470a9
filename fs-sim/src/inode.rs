//! Inodes: a file's layout, its generation, its ticket for layout changes, and who leases and pins it.
//!
//! It owns the order of a file's layout changes. Invariants: the layout is published as one value ([`Rcu`]), by the ticket's
//! holder or under `map_lock`; the generation changes whenever a block joins, leaves or moves, before a block that left
//! can be reused, and never takes a value twice; nobody waits with an inode's mutex held. Kernel counterpart: `struct
//! inode`, with the ticket in the place of `i_rwsem` and `invalidate_lock`, minus being held across waits.

use std::collections::VecDeque;

use emulator::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use emulator::sync::{Arc, Mutex, Rcu};
use emulator::wait::{WaitFor, WaitQueue, WaiterId};

use crate::base_lease::table::BaseLeases;
use crate::errno::Errno;
use crate::extent_map::Layout;
use crate::holders::block_layout::BlockLayouts;
use crate::holders::{Holder, HolderId, Holders};
use crate::lease::table::LeaseTable;
use crate::process::Credentials;
use crate::process::task::Task;
use crate::range::BlockRanges;
use crate::waits::{Ended, Look, Need};

/// An inode's number. Never reused within a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ino(pub u64);

/// See the module.
#[derive(Debug)]
pub struct Inode {
    ino: Ino,
    /// The user that created it.
    uid: u32,
    /// Its permission bits.
    mode: AtomicU32,
    /// Never takes a value twice; see the module.
    generation: AtomicU64,
    layout: Rcu<Layout>,
    /// Serialises publications of the layout with each other (unwritten turns written without a ticket), each together with
    /// its commit to the journal.
    pub(crate) map_lock: Mutex<()>,
    pub(crate) life: Mutex<Life>,
    pub(crate) ticket: Ticket,
    pub(crate) leases: LeaseTable,
    pub(crate) holders: Holders,
    /// Holders that pin nothing, and are told before their pages change; listed and unlisted with the ticket held, or on the
    /// way out.
    pub(crate) mapped: Holders,
    pub(crate) base: BaseLeases,
    pub(crate) block_layouts: BlockLayouts,
}

/// The permission bits of a new file: everything to everybody **\[chosen\]**.
const MODE_NEW: u32 = 0o777;

/// What keeps an inode from being evicted.
#[derive(Debug)]
pub(crate) struct Life {
    pub(crate) links: u32,
    pub(crate) opens: u64,
    pub(crate) evicted: bool,
}

impl Inode {
    pub(crate) fn new(ino: Ino, uid: u32) -> Inode {
        Inode {
            ino,
            uid,
            mode: AtomicU32::new(MODE_NEW),
            generation: AtomicU64::new(1),
            layout: Rcu::new(Layout::default()),
            map_lock: Mutex::new(()),
            life: Mutex::new(Life { links: 1, opens: 0, evicted: false }),
            ticket: Ticket::default(),
            leases: LeaseTable::default(),
            holders: Holders::default(),
            mapped: Holders::default(),
            base: BaseLeases::default(),
            block_layouts: BlockLayouts::default(),
        }
    }

    /// The list that a holder is on.
    pub(crate) fn list_of(&self, holder: &Holder) -> &Holders {
        if holder.told { &self.mapped } else { &self.holders }
    }

    /// Counts one open file (or call by path) more. False if it was evicted.
    pub(crate) fn count_open(&self) -> bool {
        let mut life = self.life.lock();
        if life.evicted {
            return false;
        }
        life.opens += 1;
        true
    }

    /// Its number.
    pub fn ino(&self) -> Ino {
        self.ino
    }

    /// The user that owns it.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// Its permission bits.
    pub fn mode(&self) -> u32 {
        self.mode.load(Ordering::Relaxed)
    }

    pub(crate) fn set_mode(&self, mode: u32) {
        self.mode.store(mode & 0o7777, Ordering::Relaxed);
    }

    /// Whether the mode allows all of `wanted` (4 read, 2 write, 1 execute). Root reads and writes anything, and executes what
    /// anybody may. Kernel: `inode_permission`, `generic_permission`; there are no groups here.
    pub(crate) fn permits(&self, credentials: Credentials, wanted: u32) -> bool {
        let mode = self.mode();
        let allowed = match credentials.uid {
            0 => 6 | u32::from(mode & 0o111 != 0),
            uid if uid == self.uid => mode >> 6,
            _ => mode,
        };
        wanted & !allowed == 0
    }

    /// Runs `look` on the current layout, without a lock. `look` must not block.
    pub fn layout<R>(&self, look: impl FnOnce(&Layout) -> R) -> R {
        self.layout.read(look)
    }

    /// The current generation.
    pub(crate) fn generation(&self) -> u64 {
        // ORDERING: SeqCst. A pinner reads it before the map and again after its pin; the second read must not be
        // satisfied from before the pin's read-modify-write.
        self.generation.load(Ordering::SeqCst)
    }

    /// Publishes a layout with other blocks than before. What leaves is shut, or its loss is the design's will. Serialised by
    /// `map_lock`.
    pub(crate) fn publish(&self, layout: Layout) {
        // ORDERING: SeqCst, both. The first, before the map: whoever reads the new map with a generation (and a read point)
        // from before it is caught by the recheck, so a block that just joined is never pinned with a read point older than
        // its last departure. The second, after the map and before the pages reopen: whoever read the old map is caught.
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.layout.replace(layout);
        self.generation.fetch_add(1, Ordering::SeqCst);
    }

    /// Marks the change that holds `ticket`, and that has met `pins`, as waiting on `ranges`; lease requests that wait for it look
    /// again.
    pub(crate) fn set_waiting(&self, ticket: &TicketGuard<'_>, ranges: &BlockRanges, pins: &[Arc<Holder>]) {
        ticket.set_waiting(ranges.clone(), pins.iter().map(|holder| holder.id).collect());
        self.leases.changed.wake_all();
    }

    /// Publishes a layout with the same blocks in the same places: generation unchanged. Serialised by `map_lock`.
    pub(crate) fn publish_same_blocks(&self, layout: Layout) {
        self.layout.replace(layout);
    }
}

/// The queue for layout changes of one inode: a state, not a lock. Its holder may wait for leases and pins; the next change
/// waits for the ticket, interruptibly and first come first served. Unlock, close, deregistration never need it.
#[derive(Debug, Default)]
pub(crate) struct Ticket {
    state: Mutex<TicketState>,
    changed: WaitQueue,
    /// Whether the holder is waiting for leases or long-term pins: a look before taking the lock.
    waiting_hint: AtomicBool,
    /// How many doors (closings of pages) the holder has shut: pinners that meet one wait until there is none.
    doors: AtomicU32,
    /// How often a door was reopened: who waits at one goes on then, even if the next is shut already.
    reopenings: AtomicU64,
    reopened: WaitQueue,
}

#[derive(Debug, Default)]
struct TicketState {
    holder: Option<WaiterId>,
    queue: VecDeque<WaiterId>,
    waiting: Option<BlockRanges>,
    /// The range in which it last shut doors and found pins behind them: for questions, nobody is refused for it.
    draining: Option<BlockRanges>,
    /// The pins that a waiting change met.
    pins: Vec<HolderId>,
}

/// A ticket as seen from outside.
pub(crate) struct Line {
    pub(crate) holder: Option<WaiterId>,
    /// The range on which the holder's change waits for others, if it does.
    pub(crate) waiting: Option<BlockRanges>,
    /// The pins that it met.
    pub(crate) pins: Vec<HolderId>,
    pub(crate) queue: Vec<WaiterId>,
}

/// Holds an inode's ticket; dropping it lets the next change in.
pub(crate) struct TicketGuard<'a>(&'a Ticket);

impl Ticket {
    /// Takes the ticket, waiting interruptibly behind those who came first.
    ///
    /// # Errors
    /// EINTR, or EDEADLK if the wait would close a cycle.
    pub(crate) fn take(&self, task: &Task) -> Result<TicketGuard<'_>, Errno> {
        self.take_or_give_up(task, false)
    }

    /// As [`Ticket::take`], but not behind a change that waits for leases or long-term pins: for faults and pins that must
    /// allocate.
    ///
    /// # Errors
    /// ETXTBSY in that case.
    pub(crate) fn take_unless_waiting(&self, task: &Task) -> Result<TicketGuard<'_>, Errno> {
        self.take_or_give_up(task, true)
    }

    /// Takes the ticket if nobody has it or waits for it: for work of the kernel's own, which has no process.
    pub(crate) fn try_take(&self, waiter: WaiterId) -> Option<TicketGuard<'_>> {
        let mut state = self.state.lock();
        if state.holder.is_some() || !state.queue.is_empty() {
            return None;
        }
        state.holder = Some(waiter);
        Some(TicketGuard(self))
    }

    fn take_or_give_up(&self, task: &Task, unless_waiting: bool) -> Result<TicketGuard<'_>, Errno> {
        let me = task.waiter().id();
        {
            let mut state = self.state.lock();
            if state.holder.is_none() && state.queue.is_empty() {
                state.holder = Some(me);
                return Ok(TicketGuard(self));
            }
            state.queue.push_back(me);
        }
        // A fault waits only for what is about to finish, and has no way to report an interruption.
        let reason = "layout change ahead";
        let how = if unless_waiting { WaitFor::killable(reason) } else { WaitFor::interruptible(reason) };
        let outcome = task.block_on(&self.changed, how, || {
            let mut state = self.state.lock();
            match state.holder {
                Some(_) if unless_waiting && state.waiting.is_some() => Look::Ready(Err(Errno::ETXTBSY)),
                Some(waiter) => Look::Blocked(vec![Need::task(waiter)]),
                // Somebody is before us, awake and about to take it.
                None if state.queue.front() != Some(&me) => Look::Blocked(Vec::new()),
                None => {
                    state.queue.pop_front();
                    state.holder = Some(me);
                    Look::Ready(Ok(()))
                }
            }
        });
        let failure = match outcome {
            Ok(Ok(())) => return Ok(TicketGuard(self)),
            Ok(Err(errno)) => errno,
            Err(Ended::Deadlock) => Errno::EDEADLK,
            Err(Ended::Interrupted | Ended::TimedOut) => Errno::EINTR,
        };
        self.state.lock().queue.retain(|waiter| *waiter != me);
        self.changed.wake_all();
        Err(failure)
    }

    /// The range on which the present change waits for leases or long-term pins, if it does.
    pub(crate) fn waiting_on(&self) -> Option<BlockRanges> {
        // ORDERING: Acquire pairs with the Release in `set_waiting`; a look that comes too early is as good as a request
        // that came too early: the change finds its result committed and judges it.
        if !self.waiting_hint.load(Ordering::Acquire) {
            return None;
        }
        self.state.lock().waiting.clone()
    }

    /// Who changes, on what the change waits, and who queues behind it.
    pub(crate) fn line(&self) -> Line {
        let state = self.state.lock();
        let queue = state.queue.iter().copied().collect();
        let waiting = state.waiting.clone().or_else(|| state.draining.clone());
        Line { holder: state.holder, waiting, pins: state.pins.clone(), queue }
    }

    /// The task whose change is under way.
    pub(crate) fn holder(&self) -> Option<WaiterId> {
        self.state.lock().holder
    }

    /// Where those wait who wait for the present change to finish.
    pub(crate) fn changed(&self) -> &WaitQueue {
        &self.changed
    }

    pub(crate) fn shut_door(&self) {
        self.doors.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn door_reopened(&self) {
        self.reopenings.fetch_add(1, Ordering::SeqCst);
        self.doors.fetch_sub(1, Ordering::SeqCst);
        self.reopened.wake_all();
    }

    /// How often doors were reopened so far.
    pub(crate) fn reopenings(&self) -> u64 {
        self.reopenings.load(Ordering::SeqCst)
    }

    /// Whether any of this inode's pages may be shut, and where to wait until none is.
    pub(crate) fn doors(&self) -> (bool, &WaitQueue) {
        (self.doors.load(Ordering::SeqCst) > 0, &self.reopened)
    }
}

impl TicketGuard<'_> {
    /// Says that this change waits behind shut doors in `ranges`.
    pub(crate) fn set_draining(&self, ranges: BlockRanges) {
        self.0.state.lock().draining = Some(ranges);
    }

    /// Says that this change waits for leases or long-term pins in `range`: new ones there are refused meanwhile.
    fn set_waiting(&self, ranges: BlockRanges, pins: Vec<HolderId>) {
        {
            let mut state = self.0.state.lock();
            state.waiting = Some(ranges);
            state.pins = pins;
            // With the lock held: the hint never lags behind a later holder's.
            self.0.waiting_hint.store(true, Ordering::Release);
        }
        self.0.changed.wake_all();
    }
}

impl Drop for TicketGuard<'_> {
    fn drop(&mut self) {
        {
            let mut state = self.0.state.lock();
            state.holder = None;
            state.waiting = None;
            state.draining = None;
            state.pins.clear();
            self.0.waiting_hint.store(false, Ordering::Release);
        }
        self.0.changed.wake_all();
    }
}

/// How [`Inode`]s are shared.
pub type InodeRef = Arc<Inode>;
