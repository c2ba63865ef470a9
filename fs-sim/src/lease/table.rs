//! The leases of one inode.
//!
//! It owns the entries and the queue of those who wait for them to change. Invariants: entries of one description never
//! overlap; an entry being broken grants nothing; a zombie has no description left and reaches over the whole file.

use emulator::runtime::clock::Nanos;
use emulator::sync::atomic::{AtomicU64, Ordering};
use emulator::sync::{Arc, Mutex, MutexGuard};
use emulator::wait::WaitQueue;

use super::{Kind, Lease};
use crate::design::LeaseRules;
use crate::errno::Errno;
use crate::process::Pid;
use crate::process::custody::Custody;
use crate::process::description::DescriptionId;
use crate::range::BlockRange;

/// Where an entry stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// In force.
    Held,
    /// Being broken: to nothing, or to a read lease.
    Breaking {
        /// What it is being broken to.
        to: BreakTo,
        /// When its time is over; none means never.
        deadline: Option<Nanos>,
        /// The owner was sent SIGKILL; when the time is over again, it is taken by force.
        killed: bool,
    },
    /// Its open description is gone; pins taken under it keep it.
    Zombie,
}

/// What a break leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BreakTo {
    Nothing,
    Read,
}

/// One lease in the table.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) lease: Arc<Lease>,
    pub(crate) file: DescriptionId,
    pub(crate) custody: Arc<Custody>,
    /// The process that took it: the lease holder, and the one who is signalled.
    pub(crate) pid: Pid,
    pub(crate) kind: Kind,
    pub(crate) range: BlockRange,
    pub(crate) state: State,
}

impl Entry {
    /// Those who could release it: whoever holds the open description, or the setter if only mappings are left.
    pub(crate) fn releasers(&self) -> Vec<Pid> {
        let processes = self.custody.processes();
        if processes.is_empty() { vec![self.pid] } else { processes }
    }

    /// Whether pins live that were taken under it.
    pub(crate) fn is_pinned(&self) -> bool {
        self.lease.gate.inside() > 0
    }
}

/// What a pin has to show at the gate of the leases.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gate {
    /// Only exclusive leases count.
    pub(crate) exclusive: bool,
    /// Zombies count too: never, unless broken on purpose.
    pub(crate) zombies_pass: bool,
}

/// Why a pin was not let through.
struct Refusal {
    errno: Errno,
    /// It was counted in some gate for a moment.
    was_inside: bool,
}

/// A request that waits for the leases in its way to be given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asking {
    pub(crate) file: DescriptionId,
    pub(crate) kind: Kind,
    pub(crate) range: BlockRange,
}

/// Keeps a request on the list of those that wait.
pub(crate) struct Waiting<'a>(&'a LeaseTable, Asking);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut asking = self.0.asking.lock();
        if let Some(at) = asking.iter().position(|other| *other == self.1) {
            asking.remove(at);
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct LeaseTable {
    entries: Mutex<Vec<Entry>>,
    /// Requests that wait for breaks they have begun, in the order they came.
    asking: Mutex<Vec<Asking>>,
    pub(crate) changed: WaitQueue,
    /// The blocks of the layout change that has settled with the leases and is not over yet, with what lies between them (a
    /// request there comes after it, soon); written and read with the
    /// entries locked, so that a lease is either judged by the change or comes after it.
    settled: [AtomicU64; 2],
}

impl LeaseTable {
    /// The entries, locked. Never wait, signal or revoke with them in hand.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock()
    }

    /// Lists a request while it waits.
    pub(crate) fn waits(&self, asking: Asking) -> Waiting<'_> {
        self.asking.lock().push(asking);
        Waiting(self, asking)
    }

    /// Whether a request of another open file waits that `stands_against` this one.
    pub(crate) fn is_behind(&self, file: DescriptionId, stands_against: impl Fn(&Asking) -> bool) -> bool {
        self.asking.lock().iter().any(|asking| asking.file != file && stands_against(asking))
    }

    /// The change in progress has settled on `range`: from now on nobody is granted a lease there until it is over.
    pub(crate) fn settle_on(&self, _entries: &MutexGuard<'_, Vec<Entry>>, range: BlockRange) {
        // ORDERING: the entries' lock orders both.
        self.settled[0].store(range.start, Ordering::Relaxed);
        self.settled[1].store(range.end, Ordering::Relaxed);
    }

    /// The blocks on which a change has settled; empty if none has.
    pub(crate) fn settled_on(&self, _entries: &MutexGuard<'_, Vec<Entry>>) -> BlockRange {
        BlockRange::new(self.settled[0].load(Ordering::Relaxed), self.settled[1].load(Ordering::Relaxed))
    }

    /// The change in progress is over.
    pub(crate) fn change_over(&self) {
        {
            let entries = self.lock();
            self.settle_on(&entries, BlockRange::new(0, 0));
        }
        self.changed.wake_all();
    }

    /// Lets a long-term pin of `range` by `pid` through: counts it in the gate of every lease of `pid` that is needed to
    /// cover the range. `gate` says which count.
    ///
    /// # Errors
    /// EPERM if the caller's active leases don't cover the range; EAGAIN if they would, were one not being broken.
    pub(crate) fn enter_gates(
        &self,
        rules: LeaseRules,
        pid: Pid,
        range: BlockRange,
        gate: Gate,
    ) -> Result<Vec<Arc<Lease>>, Errno> {
        let entered = {
            let entries = self.lock();
            Self::enter_each(&entries, rules, pid, range, gate)
        };
        entered.map_err(|refusal| {
            if refusal.was_inside {
                // Who waits for a shut gate to empty may have counted us.
                self.changed.wake_all();
            }
            refusal.errno
        })
    }

    fn enter_each(
        entries: &[Entry],
        rules: LeaseRules,
        pid: Pid,
        range: BlockRange,
        gate: Gate,
    ) -> Result<Vec<Arc<Lease>>, Refusal> {
        let zombie_passes = |entry: &&Entry| gate.zombies_pass && entry.state == State::Zombie;
        let suits = |entry: &&Entry| {
            entry.pid == pid
                && entry.range.overlaps(range)
                && (entry.state != State::Zombie || zombie_passes(entry))
                && (!gate.exclusive || entry.kind.is_exclusive(rules))
        };
        // A lease whose gate is shut is on its way out (an unlock waits for its pins).
        let lets_in =
            |entry: &&Entry| (entry.state == State::Held && !entry.lease.gate.is_closed()) || zombie_passes(entry);
        let mut active: Vec<&Entry> = entries.iter().filter(suits).filter(lets_in).collect();
        if !range.is_covered_by(active.iter().map(|entry| entry.range)) {
            let broken = |entry: &&Entry| lets_in(entry) || matches!(entry.state, State::Breaking { .. });
            let with_broken = range.is_covered_by(entries.iter().filter(suits).filter(broken).map(|entry| entry.range));
            let errno = if with_broken { Errno::EAGAIN } else { Errno::EPERM };
            return Err(Refusal { errno, was_inside: false });
        }
        // Only as many as are needed: a lease that no pin needs stays free to go.
        active.sort_unstable_by_key(|entry| (entry.range.start, std::cmp::Reverse(entry.range.end)));
        let mut reached = range.start;
        active.retain(|entry| {
            let needed = reached < range.end && entry.range.end > reached;
            reached = if needed { entry.range.end } else { reached };
            needed
        });
        let mut through: Vec<Arc<Lease>> = Vec::with_capacity(active.len());
        for entry in active.into_iter().filter(|entry| entry.state != State::Zombie) {
            // Shut since we looked: an unlock has just begun to wait.
            if entry.lease.gate.enter().is_err() {
                for lease in through {
                    // The table's lock is held: what waits for this gate looks again when it is woken.
                    let _last = lease.gate.leave();
                }
                return Err(Refusal { errno: Errno::EPERM, was_inside: true });
            }
            through.push(Arc::clone(&entry.lease));
        }
        Ok(through)
    }

    /// Whether active leases of `pid` cover `range`.
    pub(crate) fn covers(&self, rules: LeaseRules, pid: Pid, range: BlockRange, exclusive: bool) -> bool {
        let entries = self.lock();
        range.is_covered_by(
            entries
                .iter()
                .filter(|e| e.pid == pid && e.state == State::Held && (!exclusive || e.kind.is_exclusive(rules)))
                .map(|entry| entry.range),
        )
    }
}
