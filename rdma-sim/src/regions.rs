//! The table of memory regions: from a 32-bit key to the region, without a lock, and the end of a region exactly once.
//!
//! It owns every registered region's backing (pinned pages above all) between its registration and its release. Kernel
//! counterpart: a NIC's memory translation and protection table; `rxe_pool` with `rxe_mr.c`; `percpu_ref` for the drain.
//!
//! # Keys
//! A key is a 24-bit index of a slot (the upper half of the indices belongs to memory windows, see `windows`) and 8 bits that rotate with each use of the slot, so that a stale key is caught until
//! the slot has been used 256 times more. Free slots are taken oldest first. Slot 0 is never used: no key is 0.
//!
//! # How a revocation meets a copy in flight
//! Each slot has a [`Gate`]. A copy *enters* by one atomic add, compares the key, checks, copies, and *leaves*. Whoever
//! ends the region (deregistration, revocation, the context's close, and with it a process's death) *closes* the gate; from
//! then on nobody gets in. The one that finds the closed gate empty, which is the closer or the last to leave, *drains*:
//! takes the backing out and releases it. Several may believe to be that one (a refused entry counts itself for a moment,
//! and its undo can be the last out, even of the slot's next use); so under the slot's mutex it is looked at once more
//! whether the region of now is closing and its gate empty, and the phase moves on by it. Hence:
//!
//! * the backing is taken out once, whoever comes first;
//! * nobody is inside when it is taken, and nobody gets in after;
//! * if the gate is closed, somebody will: after the last add or subtract of a closed gate that leaves it empty, its author
//!   (told so by [`Gate::leave`]) or the closer looks, and by then the phase says `Closing`.
//!
//! A registration is *changed* in the same way: its gate is shut, the last one out is waited for, another region is put in its
//! place under the same key, and the gate opens again. Whoever ends the region meanwhile ends the change too.
//!
//! The index is free again when the region is both drained and forgotten by its owner, so that a revoked region's key names
//! nothing else while a program still holds it.

use std::cell::UnsafeCell;
use std::collections::VecDeque;
use std::ops::Deref;
use std::task::Poll;

use emulator::pin::gate::Gate;
use emulator::race_point;
use emulator::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use emulator::sync::{Arc, Mutex, OnceLock};
use fs_sim::Errno;
use fs_sim::gup::Registration;
use fs_sim::process::description::Deferred;

use crate::verbs::mr::Mr;
use crate::verbs::work::Fault;

/// Slots in a leaf, leaves in a branch, branches in the table: 2^23 slots, memory only where one was used.
const LEAF: usize = 64;
const BRANCH: usize = 512;
const ROOT: usize = 256;
/// How many regions can exist at once.
const SLOTS: u32 = (LEAF * BRANCH * ROOT) as u32;
const _: () = assert!(SLOTS - 1 == crate::windows::FIRST - 1, "the upper half of the indices is the windows'");

type Leaf = Box<[Slot]>;
type Branch = Box<[OnceLock<Leaf>]>;

/// A registered region.
pub(crate) struct Region {
    pub(crate) mr: Arc<Mr>,
    pub(crate) memory: Registration,
}

/// Where a slot stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nobody's, or reserved for a registration that is under way. The gate is shut.
    Empty,
    /// Holds a region; the gate is open.
    Live,
    /// The gate is shut and will open again over another region; somebody may still be inside.
    Changing,
    /// The gate is shut for good; somebody may still be inside.
    Closing,
    /// The backing was taken out; the owner still holds the key.
    Drained,
}

#[derive(Debug)]
struct Life {
    phase: Phase,
    /// The owner is done with the key.
    forgotten: bool,
}

struct Slot {
    gate: Gate,
    /// The key of the slot's present or last use.
    key: AtomicU32,
    life: Mutex<Life>,
    /// Written only with the gate shut and nobody inside; read only from inside.
    region: UnsafeCell<Option<Region>>,
}

// SAFETY: `region` is the only part that isn't Sync by itself. It is written in `install` (phase Empty, by the one who
// reserved the slot), in `exchange` (phase Changing, gate shut and seen empty) and in `drain` (phase Closing, gate shut and
// empty), all under `life` and all while the gate lets nobody in; it is read through `Entry` alone, which exists between a successful `Gate::enter` and its `Gate::leave`.
// `install` and `exchange` reopen the gate after writing, and an entry's SeqCst add comes later in that word's order, so it sees the
// write; `drain` reads a count of zero that every leave's release subtract went into, so all reads are over.
unsafe impl Sync for Slot where Region: Send + Sync {}

impl Slot {
    fn new() -> Slot {
        let slot = Slot {
            gate: Gate::new(),
            // The first use turns it to rotation 0.
            key: AtomicU32::new(u32::MAX),
            life: Mutex::new(Life { phase: Phase::Empty, forgotten: false }),
            region: UnsafeCell::new(None),
        };
        let _nobody_inside = slot.gate.close();
        slot
    }

    /// Whether the region of `mr` is in here, at this phase of its life. `life` is the slot's, locked.
    fn holds(&self, life: &Life, phase: Phase, mr: &Arc<Mr>) -> bool {
        // SAFETY: every write of it is made under the lock that `life` is behind; see `Slot`.
        let region = || unsafe { (*self.region.get()).as_ref() };
        life.phase == phase && region().is_some_and(|region| Arc::ptr_eq(&region.mr, mr))
    }
}

struct Free {
    /// Indices that were used before, oldest first.
    used: VecDeque<u32>,
    /// The first index that never was.
    fresh: u32,
}

/// See the module.
pub(crate) struct Regions {
    root: Box<[OnceLock<Branch>]>,
    free: Mutex<Free>,
    live: AtomicU64,
}

/// Somebody inside a region. Leaving is its drop.
pub(crate) struct Entry<'a> {
    regions: &'a Regions,
    slot: &'a Slot,
}

impl Deref for Entry<'_> {
    type Target = Region;

    fn deref(&self) -> &Region {
        // SAFETY: inside an open gate the slot holds a region, and nobody writes it before we have left; see `Slot`.
        let region = unsafe { &*self.slot.region.get() };
        region.as_ref().expect("a gate is opened only over a region, which stays until the last one has left")
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        if self.slot.gate.leave() {
            self.regions.last_out(self.slot);
        }
    }
}

impl Regions {
    pub(crate) fn new() -> Regions {
        Regions {
            root: (0..ROOT).map(|_| OnceLock::new()).collect(),
            free: Mutex::new(Free { used: VecDeque::new(), fresh: 1 }),
            live: AtomicU64::new(0),
        }
    }

    /// How many regions are installed and not drained.
    pub(crate) fn live(&self) -> u64 {
        self.live.load(Ordering::SeqCst)
    }

    fn slot(&self, index: u32) -> Option<&Slot> {
        let index = index as usize;
        let branch = self.root.get(index / (LEAF * BRANCH))?.get()?;
        branch.get(index / LEAF % BRANCH)?.get()?.get(index % LEAF)
    }

    /// The slot of a key that was reserved.
    fn slot_of(&self, key: u32) -> &Slot {
        self.slot(key >> 8).expect("a reserved key has a slot, and slots stay")
    }

    /// A key for a registration under way. To be followed by [`Regions::install`] or [`Regions::cancel`].
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

    /// Makes the slot at `index`. Called under `free`, so that two never make the same one.
    fn grow(&self, index: usize) {
        let branch = self.root[index / (LEAF * BRANCH)].get_or_init(|| (0..BRANCH).map(|_| OnceLock::new()).collect());
        branch[index / LEAF % BRANCH].get_or_init(|| (0..LEAF).map(|_| Slot::new()).collect());
    }

    /// Gives back a key that was reserved and not installed.
    pub(crate) fn cancel(&self, key: u32) {
        self.free.lock().used.push_back(key >> 8);
    }

    /// Puts the region under its key (reserved by the caller) and opens its gate.
    pub(crate) fn install(&self, key: u32, region: Region) {
        let slot = self.slot_of(key);
        let mut life = slot.life.lock();
        debug_assert_eq!(life.phase, Phase::Empty, "key {key:#x} is in use");
        // SAFETY: phase Empty: the gate is shut and was empty when the last use was drained; see `Slot`.
        unsafe { *slot.region.get() = Some(region) };
        *life = Life { phase: Phase::Live, forgotten: false };
        self.live.fetch_add(1, Ordering::SeqCst);
        slot.gate.reopen();
    }

    /// Enters the region of `key`.
    ///
    /// # Errors
    /// [`Fault::UnknownKey`], or [`Fault::Revoked`] if the key is right and its region was shut.
    pub(crate) fn enter(&self, key: u32) -> Result<Entry<'_>, Fault> {
        let slot = self.slot(key >> 8).ok_or(Fault::UnknownKey)?;
        match slot.gate.enter() {
            Ok(()) => {
                let entry = Entry { regions: self, slot };
                race_point!("region: entered");
                if entry.mr.key() == key { Ok(entry) } else { Err(Fault::UnknownKey) }
            }
            Err(shut) => {
                if shut.last {
                    self.last_out(slot);
                }
                Err(if slot.key.load(Ordering::Relaxed) == key { Fault::Revoked } else { Fault::UnknownKey })
            }
        }
    }

    /// Shuts the region of a key that its owner has not forgotten, and releases it if nobody is inside. True if this call was
    /// the one to shut it. References to files that the region held go to `deferred`.
    pub(crate) fn close(&self, key: u32, deferred: &mut Deferred) -> bool {
        let slot = self.slot_of(key);
        let shut = {
            let mut life = slot.life.lock();
            let shut = matches!(life.phase, Phase::Live | Phase::Changing);
            if shut {
                life.phase = Phase::Closing;
                let _see_drain = slot.gate.close();
            }
            shut
        };
        race_point!("region: shut, not drained");
        if shut {
            self.drain(slot, deferred);
        }
        shut
    }

    /// Shuts the region of `old` for a change of its registration. False if it is shut already, or gone: then the slot may be
    /// another region's, whoever's.
    pub(crate) fn begin_change(&self, old: &Arc<Mr>) -> bool {
        let slot = self.slot_of(old.key());
        let mut life = slot.life.lock();
        let live = slot.holds(&life, Phase::Live, old);
        if live {
            life.phase = Phase::Changing;
            let _asked_later = slot.gate.close();
        }
        live
    }

    /// Whether `old`, under change, can be exchanged now: pending while somebody is inside, false if it was ended meanwhile.
    /// Who waits for it is woken through its context.
    pub(crate) fn can_exchange(&self, old: &Arc<Mr>) -> Poll<bool> {
        let slot = self.slot_of(old.key());
        let life = slot.life.lock();
        if !slot.holds(&life, Phase::Changing, old) {
            return Poll::Ready(false);
        }
        // Once seen empty it stays so, but for refused entries, which touch nothing.
        if slot.gate.inside() == 0 { Poll::Ready(true) } else { Poll::Pending }
    }

    /// Puts `new`'s registration in the place of `old`'s and opens the gate: of what memory it was before, or the same if
    /// `memory` is none. To be called once [`Regions::can_exchange`] has said so.
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
        let mut life = slot.life.lock();
        if !slot.holds(&life, Phase::Changing, old) {
            return Err(memory);
        }
        // SAFETY: phase Changing under the lock, and the shut gate was seen empty: nobody reads; see `Slot`.
        let region = unsafe { (*slot.region.get()).as_mut() };
        let region = region.expect("a slot under change holds its region");
        region.mr = new;
        let before = memory.map(|memory| std::mem::replace(&mut region.memory, memory));
        life.phase = Phase::Live;
        slot.gate.reopen();
        Ok(before)
    }

    /// The owner of a closed region is done with its key: once drained, the slot can be used again. Called once.
    pub(crate) fn forget(&self, key: u32) {
        let reusable = {
            let mut life = self.slot_of(key).life.lock();
            debug_assert!(!matches!(life.phase, Phase::Live | Phase::Changing), "forgotten while its gate is open");
            life.forgotten = true;
            let drained = life.phase == Phase::Drained;
            if drained {
                life.phase = Phase::Empty;
            }
            drained
        };
        if reusable {
            self.free.lock().used.push_back(key >> 8);
        }
    }

    /// Somebody left a shut gate as the last one.
    #[cold]
    fn last_out(&self, slot: &Slot) {
        let mut deferred = Deferred::default();
        if let Some(mr) = self.drain(slot, &mut deferred) {
            mr.context().kernel().run_deferred(deferred);
        }
    }

    /// If the slot's region is closing and nobody is inside: takes it out and releases it. Returns whose it was. If it is
    /// changing: tells the one who changes it.
    fn drain(&self, slot: &Slot, deferred: &mut Deferred) -> Option<Arc<Mr>> {
        let (region, reusable) = {
            let mut life = slot.life.lock();
            if life.phase == Phase::Changing {
                // SAFETY: phase Changing under the lock: only `exchange` writes, under the same lock.
                let region = unsafe { (*slot.region.get()).as_ref() };
                let changing = region.map(|region| Arc::clone(region.mr.context()));
                drop(life);
                if let Some(context) = changing {
                    context.drained().wake_all();
                }
                return None;
            }
            if life.phase != Phase::Closing || slot.gate.inside() != 0 {
                return None;
            }
            life.phase = if life.forgotten { Phase::Empty } else { Phase::Drained };
            // SAFETY: phase Closing under the lock: the gate of this very use is shut, and nobody is inside; see `Slot`.
            (unsafe { (*slot.region.get()).take() }, life.forgotten)
        };
        let Region { mr, memory } = region.expect("a closing slot holds its region until it is drained");
        if reusable {
            self.free.lock().used.push_back(mr.key() >> 8);
        }
        mr.let_go(memory, deferred);
        self.live.fetch_sub(1, Ordering::SeqCst);
        Some(mr)
    }
}

#[cfg(all(test, not(any(daxlab_loom, daxlab_shuttle))))]
mod tests;
