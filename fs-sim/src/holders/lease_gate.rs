//! The gate of a layout lease: the part of a lease that pins refer to.
//!
//! It owns the count of pins taken under a lease, and the record of the leases that one pin counts
//! in. Invariants: a pin counts in a gate from before its first page is pinned until after its last
//! page is unpinned; a closed gate admits no pin; a lease has one gate of its own, also a part of a
//! lease that a rule `revoke` has cut. Kernel counterpart: none; the 2019 RFC looked the lease up
//! without taking a reference.

use emulator::pin::gate::Gate;
use emulator::sync::{Arc, Mutex, OnceLock};

use crate::base::numbers::LeaseId;
use crate::base::range::BlockRange;

/// A lease's identity and gate: what pins refer to. Its kind, range and state are in the inode's
/// table.
#[derive(Debug)]
pub struct Lease {
    /// Its number.
    pub id: LeaseId,
    /// Counts the pins taken under it; closed once the lease admits no more.
    pub(crate) gate: Gate,
    /// Set before the lease leaves the table, if a rule `revoke` takes it away from its pins.
    pub(crate) revoked: OnceLock<LeaseRevocation>,
}

/// Which rule `revoke` took a lease away while pins under it lived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LeaseRevocation {
    /// `stranger_change` or `holder_change`: the change also judges the pins, one by one.
    Change,
    /// `last_close_while_pinned`: the pins go too.
    LastClose,
}

/// The leases that admitted one pin, which counts in the gate of each. Where a rule `revoke` cuts
/// such a lease in parts, the pin counts in the parts that its range overlaps instead.
#[derive(Debug)]
pub(crate) struct AdmittingLeases {
    /// The file blocks that the pin covers.
    range: BlockRange,
    leases: Mutex<Vec<Arc<Lease>>>,
}

impl AdmittingLeases {
    /// A pin of `range` that has entered the gates of `leases`.
    pub(crate) fn new(range: BlockRange, leases: Vec<Arc<Lease>>) -> Arc<AdmittingLeases> {
        Arc::new(AdmittingLeases { range, leases: Mutex::new(leases) })
    }

    /// The leases that it counts in now.
    pub(crate) fn all(&self) -> Vec<Arc<Lease>> {
        self.leases.lock().clone()
    }

    /// Whether it counts in the gate of `lease`.
    pub(crate) fn contains(&self, lease: &Arc<Lease>) -> bool {
        self.any(|held| Arc::ptr_eq(held, lease))
    }

    /// Whether `holds` for one of the leases. `holds` is called with them locked.
    pub(crate) fn any(&self, holds: impl Fn(&Arc<Lease>) -> bool) -> bool {
        self.leases.lock().iter().any(holds)
    }

    /// `lease` was cut in `parts`: if the pin counts in it, it counts in the parts that its range
    /// overlaps instead. Their gates are open.
    pub(crate) fn move_to_parts(&self, lease: &Arc<Lease>, parts: &[(BlockRange, Arc<Lease>)]) {
        let mut leases = self.leases.lock();
        let Some(at) = leases.iter().position(|held| Arc::ptr_eq(held, lease)) else { return };
        for (_, part) in parts.iter().filter(|(range, _)| range.overlaps(self.range)) {
            let entered = part.gate.enter();
            debug_assert!(entered.is_ok(), "a new lease admits pins");
            leases.push(Arc::clone(part));
        }
        // The caller wakes the tasks that wait for this gate to empty.
        let _last = leases.swap_remove(at).gate.leave();
    }

    /// The pin is over, or was never made: takes the leases, whose gates the caller leaves.
    pub(crate) fn take(&self) -> Vec<Arc<Lease>> {
        std::mem::take(&mut *self.leases.lock())
    }
}
