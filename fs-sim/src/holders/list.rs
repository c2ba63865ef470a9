//! The lists of an inode's holders.
//!
//! It owns which holders are committed, by file range. Invariants as in [`super::holder`]. Kernel
//! counterpart: none.

use std::collections::BTreeMap;

use emulator::pin::PageRange;
use emulator::sync::atomic::{AtomicU64, Ordering};
use emulator::sync::{Arc, Mutex};
use emulator::wait::WaitQueue;

use crate::base::numbers::HolderId;
use crate::base::range::BlockRange;
use crate::holders::holder::Holder;
use crate::holders::lease_gate::Lease;
use crate::vfs::attachments::{Attachment, Slot};
use crate::vfs::inode::Inode;

/// The committed holders of one inode, by first file block.
#[derive(Debug, Default)]
pub(crate) struct Holders {
    list: Mutex<BTreeMap<(u64, HolderId), Arc<Holder>>>,
    /// The longest range ever listed, in blocks: bounds how far before a range its holders can
    /// start.
    longest: AtomicU64,
    pub(crate) changed: WaitQueue,
}

impl Attachment for Holders {
    const SLOT: Slot = Slot::PinHolders;
}

/// Holders that pin nothing and must be told before their pages change; listed and unlisted with
/// the inode's turn held, or at their end.
#[derive(Debug, Default)]
struct NotifyOnlyHolders(Holders);

impl Attachment for NotifyOnlyHolders {
    const SLOT: Slot = Slot::NotifyOnlyHolders;
}

/// The holders that pin pages of `inode`.
pub(crate) fn pin_holders(inode: &Inode) -> &Holders {
    inode.attached()
}

/// The holders of `inode` that pin nothing and must be told before their pages change.
pub(crate) fn notify_only(inode: &Inode) -> &Holders {
    &inode.attached::<NotifyOnlyHolders>().0
}

impl Holders {
    pub(crate) fn commit(&self, holder: Arc<Holder>) {
        let mut list = self.list.lock();
        self.longest.fetch_max(holder.range.len(), Ordering::Relaxed);
        list.insert((holder.range.start, holder.id), holder);
    }

    /// Takes a holder off the list and wakes the tasks that wait for that.
    pub(crate) fn remove(&self, holder: &Holder) {
        self.list.lock().remove(&(holder.range.start, holder.id));
        self.changed.wake_all();
    }

    /// The holders registered for a file range that overlaps `range`.
    pub(crate) fn registered_in(&self, range: BlockRange) -> Vec<Arc<Holder>> {
        let list = self.list.lock();
        let first = range.start.saturating_sub(self.longest.load(Ordering::Relaxed));
        list.range((first, HolderId(0))..)
            .take_while(|((start, _), _)| *start < range.end)
            .filter(|(_, holder)| holder.range.overlaps(range))
            .map(|(_, holder)| Arc::clone(holder))
            .collect()
    }

    /// The holders registered in `range` that hold any of `pages` (sorted and disjoint).
    pub(crate) fn holding(&self, range: BlockRange, pages: &[PageRange]) -> Vec<Arc<Holder>> {
        let mut found = self.registered_in(range);
        found.retain(|holder| holder.holds_any_of(pages));
        found
    }

    /// The holders that `lease` admitted.
    pub(crate) fn under_lease(&self, lease: &Arc<Lease>) -> Vec<Arc<Holder>> {
        self.under_leases(std::slice::from_ref(lease))
    }

    /// The holders that any of `leases` admitted, each once.
    pub(crate) fn under_leases(&self, leases: &[Arc<Lease>]) -> Vec<Arc<Holder>> {
        let list = self.list.lock();
        let under = |holder: &&Arc<Holder>| leases.iter().any(|lease| holder.leases.contains(lease));
        list.values().filter(under).cloned().collect()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.list.lock().is_empty()
    }

    /// All of them.
    pub(crate) fn all(&self) -> Vec<Arc<Holder>> {
        self.list.lock().values().cloned().collect()
    }
}

/// The list that a holder is on.
pub(crate) fn list_of<'i>(inode: &'i Inode, holder: &Holder) -> &'i Holders {
    if holder.notify_only { notify_only(inode) } else { pin_holders(inode) }
}
