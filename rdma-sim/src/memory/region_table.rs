//! The table of memory regions: finds the region of a 32-bit key without a lock, and ends each
//! region exactly once.
//!
//! It owns every registered region's backing memory (above all its pinned pages) from the
//! registration to the release. Invariant: the backing memory is taken out once, when no access is
//! inside and none can enter. Kernel counterpart: the memory translation and protection table of a
//! NIC; `rxe_pool.c` with `rxe_mr.c`; `percpu_ref` for the drain.
//!
//! # Keys
//! A key is the 24-bit index of a slot and 8 bits that change with each use of the slot (see
//! [`super::key`]). A stale key is therefore refused until the slot has been used 256 times more.
//! Free slots are reused in the order in which they became free. Slot 0 is never used: no key is 0.
//!
//! # How a revocation meets a copy in flight
//! Each slot has a [`Gate`] and a [`RegionState`]. An access *enters* the gate by one atomic add,
//! compares the key, checks, copies, and *leaves*. A task that ends the region (by deregistration,
//! revocation or the close of the context, which a process's death causes) *closes* the gate. From
//! then on no access enters. The task that finds the closed gate empty *drains* the slot: it takes
//! the backing memory out and releases it. That task is the closer or the last access to leave.
//!
//! Several tasks can believe that they are the last one: an entry that is refused counts itself for
//! a moment, and its undo can be the last leave, even in the slot's next use. So the drainer takes
//! the slot's mutex and checks again that the present region is draining and that its gate is
//! empty. Hence:
//!
//! * the backing memory is taken out once, whichever task comes first;
//! * no access is inside when it is taken out, and none enters afterwards;
//! * a closed gate is always drained: after the last add or subtract that leaves it empty, either
//!   its author (told by [`Gate::leave`]) or the closer checks, and at that time the state says
//!   `Draining`.
//!
//! `rereg_mr` changes a registration in the same way: it closes the gate, waits until the last
//! access has left, stores another region under the same key, and opens the gate. A task that ends
//! the region meanwhile also ends the change.
//!
//! A slot is free again when its region is drained and its owner has given up the key. So the key
//! of a revoked region names nothing else while a program still holds it.

use std::cell::UnsafeCell;
use std::collections::VecDeque;
use std::ops::Deref;
use std::task::Poll;

use emulator::pin::gate::Gate;
use emulator::race_point;
use emulator::runtime::state_table::InvalidTransition;
use emulator::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use emulator::sync::{Arc, Mutex, OnceLock};
use fs_sim::Errno;
use fs_sim::holders::holder::PinHolder;
use fs_sim::pinning::registration::Registration;
use fs_sim::vfs::open_file::Deferred;

use super::fault::WorkFault;
use super::key;
use super::mr::Mr;
use super::region_state::{RegionEvent, RegionState};

/// Slots in a leaf, leaves in a branch, branches in the table: 2^23 slots. A leaf has memory only
/// once one of its slots is used.
const LEAF: usize = 64;
const BRANCH: usize = 512;
const ROOT: usize = 256;
/// How many regions can exist at once.
const SLOTS: u32 = (LEAF * BRANCH * ROOT) as u32;
const _: () = assert!(SLOTS == key::FIRST_WINDOW, "windows have the upper half of the indices");

type Leaf = Box<[MrSlot]>;
type Branch = Box<[OnceLock<Leaf>]>;

/// A registered region.
pub(crate) struct RegisteredRegion {
    pub(crate) mr: Arc<Mr>,
    pub(crate) memory: Registration,
}

struct MrSlot {
    gate: Gate,
    /// The key of the slot's present or last use.
    key: AtomicU32,
    state: Mutex<RegionState>,
    /// Written only with the gate closed and no access inside; read only from inside.
    region: UnsafeCell<Option<RegisteredRegion>>,
}

// SAFETY: `region` is the only part that is not Sync by itself. It is written in three places:
// `install` (state Free, by the task that reserved the slot), `exchange` (state Changing, gate
// closed and seen empty) and `drain` (state Draining or DrainingUnowned, gate closed and empty).
// All three hold `state`, and the gate lets no access in meanwhile. It is read only through
// `RegionEntry`, which exists between a successful `Gate::enter` and its `Gate::leave`, and under
// `state` in `holds`, `revoke` and `drain`. `install` and `exchange` open the gate after they
// write. The SeqCst add of an entry comes later in the order of that word, so the entry sees the
// write. `drain` reads a count of zero, which every release subtract of a leave went into, so every
// read is over.
unsafe impl Sync for MrSlot where RegisteredRegion: Send + Sync {}

impl MrSlot {
    fn new() -> MrSlot {
        let slot = MrSlot {
            gate: Gate::new(),
            // The first use increments the lowest 8 bits to 0.
            key: AtomicU32::new(u32::MAX),
            state: Mutex::new(RegionState::START),
            region: UnsafeCell::new(None),
        };
        let _empty = slot.gate.close();
        slot
    }

    /// Whether the slot is in `wanted` and holds the region of `mr`. `state` is the slot's, locked.
    fn holds(&self, state: RegionState, wanted: RegionState, mr: &Arc<Mr>) -> bool {
        // SAFETY: every write happens under the lock that `state` was read under; see `MrSlot`.
        let region = || unsafe { (*self.region.get()).as_ref() };
        state == wanted && region().is_some_and(|region| Arc::ptr_eq(&region.mr, mr))
    }
}

/// Moves a slot's state, which the caller has locked, by the table. The only way to change it.
///
/// # Errors
/// The table has no such transition; the state stays.
fn advance(state: &mut RegionState, event: RegionEvent) -> Result<(), InvalidTransition> {
    *state = state.next(event)?;
    Ok(())
}

struct FreeSlots {
    /// Indices that were used before, in the order in which they became free.
    used: VecDeque<u32>,
    /// The lowest index that was never used.
    fresh: u32,
}

/// See the module.
pub(crate) struct RegionTable {
    root: Box<[OnceLock<Branch>]>,
    free: Mutex<FreeSlots>,
    live: AtomicU64,
}

/// An access inside a region. Dropping it leaves the region.
pub(crate) struct RegionEntry<'a> {
    regions: &'a RegionTable,
    slot: &'a MrSlot,
}

impl Deref for RegionEntry<'_> {
    type Target = RegisteredRegion;

    fn deref(&self) -> &RegisteredRegion {
        // SAFETY: the gate was open when this access entered, so the slot holds a region; no task
        // writes it before this access has left. See `MrSlot`.
        let region = unsafe { &*self.slot.region.get() };
        region.as_ref().expect("a gate opens only over a region, which stays until the last access has left")
    }
}

impl Drop for RegionEntry<'_> {
    fn drop(&mut self) {
        if self.slot.gate.leave() {
            self.regions.last_out(self.slot);
        }
    }
}

impl RegionTable {
    pub(crate) fn new() -> RegionTable {
        RegionTable {
            root: (0..ROOT).map(|_| OnceLock::new()).collect(),
            free: Mutex::new(FreeSlots { used: VecDeque::new(), fresh: 1 }),
            live: AtomicU64::new(0),
        }
    }

    /// The number of regions that are installed and not drained.
    pub(crate) fn live(&self) -> u64 {
        self.live.load(Ordering::SeqCst)
    }

    fn slot(&self, index: u32) -> Option<&MrSlot> {
        let index = index as usize;
        let branch = self.root.get(index / (LEAF * BRANCH))?.get()?;
        branch.get(index / LEAF % BRANCH)?.get()?.get(index % LEAF)
    }

    /// The slot of a reserved key.
    fn slot_of(&self, key: u32) -> &MrSlot {
        self.slot(key::index(key)).expect("a reserved key has a slot, and slots are never removed")
    }

    /// Reserves a key for a registration under way. The caller then calls [`RegionTable::install`]
    /// or [`RegionTable::cancel`].
    ///
    /// # Errors
    /// ENOMEM: 2^23 regions exist.
    pub(crate) fn reserve(&self) -> Result<u32, Errno> {
        let index = {
            let mut free = self.free.lock();
            match free.used.pop_front() {
                Some(index) => index,
                None if free.fresh < SLOTS => {
                    let index = free.fresh;
                    free.fresh += 1;
                    self.grow(index as usize);
                    index
                }
                None => return Err(Errno::ENOMEM),
            }
        };
        let slot = self.slot_of(index << 8);
        let rotation = slot.key.load(Ordering::Relaxed).wrapping_add(1) & 0xff;
        let key = index << 8 | rotation;
        slot.key.store(key, Ordering::Relaxed);
        Ok(key)
    }

    /// Makes the slot at `index`. The caller holds `free`, so no two calls make the same slot.
    fn grow(&self, index: usize) {
        let branch = self.root[index / (LEAF * BRANCH)].get_or_init(|| (0..BRANCH).map(|_| OnceLock::new()).collect());
        branch[index / LEAF % BRANCH].get_or_init(|| (0..LEAF).map(|_| MrSlot::new()).collect());
    }

    /// Gives back a key that was reserved and not installed.
    pub(crate) fn cancel(&self, key: u32) {
        self.free.lock().used.push_back(key::index(key));
    }

    /// Stores the region under its key, which the caller has reserved, and opens its gate.
    pub(crate) fn install(&self, key: u32, region: RegisteredRegion) {
        let slot = self.slot_of(key);
        let mut state = slot.state.lock();
        advance(&mut state, RegionEvent::Install).expect("the slot of a reserved key is free");
        // SAFETY: the state was Free: the gate is closed and was empty when the last use was
        // drained; see `MrSlot`.
        unsafe { *slot.region.get() = Some(region) };
        self.live.fetch_add(1, Ordering::SeqCst);
        slot.gate.reopen();
    }

    /// Enters the region of `key`.
    ///
    /// # Errors
    /// [`WorkFault::UnknownKey`]; or [`WorkFault::Revoked`] if the key is right and its region has
    /// ended or is being changed.
    pub(crate) fn enter(&self, key: u32) -> Result<RegionEntry<'_>, WorkFault> {
        let slot = self.slot(key::index(key)).ok_or(WorkFault::UnknownKey)?;
        match slot.gate.enter() {
            Ok(()) => {
                let entry = RegionEntry { regions: self, slot };
                race_point!("region: entered");
                if entry.mr.key() == key { Ok(entry) } else { Err(WorkFault::UnknownKey) }
            }
            Err(closed) => {
                if closed.last {
                    self.last_out(slot);
                }
                Err(if slot.key.load(Ordering::Relaxed) == key { WorkFault::Revoked } else { WorkFault::UnknownKey })
            }
        }
    }

    /// Ends the region of a key that its owner still holds, and releases it if no access is inside.
    /// Returns true if this call ended it, false if another call did before. Adds the files that
    /// the region referred to to `deferred`.
    pub(crate) fn close(&self, key: u32, deferred: &mut Deferred) -> bool {
        let slot = self.slot_of(key);
        let closed = {
            let mut state = slot.state.lock();
            let closed = advance(&mut state, RegionEvent::Close).is_ok();
            if closed {
                let _checked_in_drain = slot.gate.close();
            }
            closed
        };
        race_point!("region: shut, not drained");
        if closed {
            self.drain(slot, deferred);
        }
        closed
    }

    /// Ends the region of `key` if `holder` answers for its pins, and releases it if no access is
    /// inside; marks its handle as revoked first. Returns the handle. A registration under way is
    /// not there yet, and looks for its own revocation once it is.
    pub(crate) fn revoke(&self, key: u32, holder: &dyn PinHolder, deferred: &mut Deferred) -> Option<Arc<Mr>> {
        let slot = self.slot_of(key);
        let revoked = {
            let mut state = slot.state.lock();
            // SAFETY: every write happens under the lock that is held; see `MrSlot`.
            let region = unsafe { (*slot.region.get()).as_ref() };
            let pins = |region: &&RegisteredRegion| match &region.memory {
                Registration::Pinned(pinned) => pinned.is_of(holder),
                Registration::OnDemand(_) | Registration::Anonymous(_) => false,
            };
            let mr = Arc::clone(&region.filter(pins)?.mr);
            advance(&mut state, RegionEvent::Close).ok()?;
            // Before the gate closes: a program whose key is refused can read why.
            mr.set_revoked();
            let _checked_in_drain = slot.gate.close();
            mr
        };
        race_point!("region: shut, not drained");
        self.drain(slot, deferred);
        Some(revoked)
    }

    /// Closes the gate of `old` for a change of its registration. Returns false if the region has
    /// ended; the slot may then belong to any other region.
    pub(crate) fn begin_change(&self, old: &Arc<Mr>) -> bool {
        let slot = self.slot_of(old.key());
        let mut state = slot.state.lock();
        let begun = slot.holds(*state, RegionState::Live, old) && advance(&mut state, RegionEvent::BeginChange).is_ok();
        if begun {
            let _checked_in_can_exchange = slot.gate.close();
        }
        begun
    }

    /// Whether `old`, which is under change, can be exchanged now: pending while an access is
    /// inside, false if it was ended meanwhile. The last access to leave wakes the waiter through
    /// `old`'s context.
    pub(crate) fn can_exchange(&self, old: &Arc<Mr>) -> Poll<bool> {
        let slot = self.slot_of(old.key());
        let state = slot.state.lock();
        if !slot.holds(*state, RegionState::Changing, old) {
            return Poll::Ready(false);
        }
        // A gate once seen empty stays empty, except for refused entries, which touch nothing.
        if slot.gate.inside() == 0 { Poll::Ready(true) } else { Poll::Pending }
    }

    /// Stores `new`'s registration in the place of `old`'s and opens the gate. Returns the memory
    /// that was registered before; none if `memory` is none, which keeps it. Call it after
    /// [`RegionTable::can_exchange`] has returned true.
    ///
    /// # Errors
    /// `memory` itself, if `old` was ended meanwhile.
    pub(crate) fn exchange(
        &self,
        old: &Arc<Mr>,
        new: Arc<Mr>,
        memory: Option<Registration>,
    ) -> Result<Option<Registration>, Option<Registration>> {
        let slot = self.slot_of(old.key());
        let mut state = slot.state.lock();
        if !slot.holds(*state, RegionState::Changing, old) || advance(&mut state, RegionEvent::Exchange).is_err() {
            return Err(memory);
        }
        // SAFETY: the state was Changing, the lock is held, and the closed gate was seen empty: no
        // access reads. See `MrSlot`.
        let region = unsafe { (*slot.region.get()).as_mut() };
        let region = region.expect("a slot under change holds its region");
        region.mr = new;
        let before = memory.map(|memory| std::mem::replace(&mut region.memory, memory));
        slot.gate.reopen();
        Ok(before)
    }

    /// The owner of an ended region gives up its key: once drained, the slot can be used again.
    /// Called once.
    pub(crate) fn forget(&self, key: u32) {
        let slot = self.slot_of(key);
        let reusable = {
            let mut state = slot.state.lock();
            let forgotten = advance(&mut state, RegionEvent::Forget);
            debug_assert_eq!(forgotten, Ok(()), "key {key:#x}");
            forgotten.is_ok() && *state == RegionState::Free
        };
        if reusable {
            self.free.lock().used.push_back(key::index(key));
        }
    }

    /// Called by an access that left a closed gate as the last one.
    #[cold]
    fn last_out(&self, slot: &MrSlot) {
        let mut deferred = Deferred::default();
        if let Some(mr) = self.drain(slot, &mut deferred) {
            mr.owner().kernel().run_deferred(deferred);
        }
    }

    /// If the slot's region is draining and no access is inside: takes the region out, releases it,
    /// and returns its handle. If the region is under change: wakes the task that changes it.
    fn drain(&self, slot: &MrSlot, deferred: &mut Deferred) -> Option<Arc<Mr>> {
        let (region, reusable) = {
            let mut state = slot.state.lock();
            if *state == RegionState::Changing {
                // SAFETY: the state is Changing and the lock is held: only `exchange` writes, under
                // the same lock.
                let region = unsafe { (*slot.region.get()).as_ref() };
                let owner = region.map(|region| Arc::clone(region.mr.owner()));
                drop(state);
                if let Some(owner) = owner {
                    owner.drained().wake_all();
                }
                return None;
            }
            if slot.gate.inside() != 0 || advance(&mut state, RegionEvent::Drain).is_err() {
                return None;
            }
            // SAFETY: the state was Draining or DrainingUnowned and the lock is held: the gate of
            // this very use is closed, and no access is inside. See `MrSlot`.
            (unsafe { (*slot.region.get()).take() }, *state == RegionState::Free)
        };
        let RegisteredRegion { mr, memory } = region.expect("a draining slot holds its region until it is drained");
        if reusable {
            self.free.lock().used.push_back(key::index(mr.key()));
        }
        mr.release(memory, deferred);
        self.live.fetch_sub(1, Ordering::SeqCst);
        Some(mr)
    }
}

#[cfg(all(test, not(any(daxlab_loom, daxlab_shuttle))))]
mod tests;
