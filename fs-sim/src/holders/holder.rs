//! Committed holders: who holds long-term pins on an inode's blocks.
//!
//! It owns the record of one holder and the trait by which the kernel asks it to release its pins.
//! Invariants: a holder is listed from before its registration returns until after its last page
//! is unpinned, so a refusal of a layout change can always name a holder; a pin that is still to
//! be rechecked is never listed. Kernel counterpart: none today, which is part of the discussion;
//! `struct file_file_pin` of the 2019 RFC.

use emulator::pin::PageRange;
use emulator::sync::Arc;

use crate::base::numbers::{DescriptionId, Fd, HolderId, Ino, Pid};
use crate::base::range::BlockRange;
use crate::deadlock::need::{Awaited, Need};
use crate::holders::lease_gate::AdmittingLeases;
use crate::vfs::fd_holders::FdHolders;
use crate::vfs::kernel::Kernel;
use crate::vfs::process::Process;

/// Why a holder must release its pins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RevokeReason {
    /// A rule `revoke` of the design, for a layout change or a last close: of an RDMA context it
    /// takes as much as `revoke_scope` says.
    Rule,
    /// The lease of the pins was lost, under `on_lease_lost = abort`.
    LeaseLost,
    /// The device is being removed, or the machine is switched off.
    DeviceRemoved,
}

/// Asks a holder to release its pins; see [`PinHolder::revoke`].
pub(crate) fn revoke_holder(kernel: &Arc<Kernel>, holder: &Holder, reason: RevokeReason) {
    kernel.counters.revocations.add(1);
    kernel.trace("revoked", holder.id.0, holder.ino.0, holder.pages.first().copied());
    holder.object.revoke(kernel, reason);
}

/// What identifies a holder, for people and for `blockers`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HolderInfo {
    /// Its kind, such as `"RDMA region"`.
    pub kind: &'static str,
    /// The processes that can release it now; for an RDMA region those that hold its context.
    pub processes: Vec<Pid>,
    /// The descriptor under which the first of them holds the context, if there is one.
    pub fd: Option<Fd>,
    /// The context's number, if there is one.
    pub context: Option<u64>,
    /// The region's key, if there is one.
    pub region: Option<u32>,
    /// The virtual machine that has it mapped, in words, if a guest outside of this kernel does.
    pub guest: Option<String>,
}

impl HolderInfo {
    /// A holder that lives in a descriptor, without a context or a key.
    pub(crate) fn in_descriptor(kind: &'static str, fd_holders: &Arc<FdHolders>, registrant: &Process) -> HolderInfo {
        let processes = fd_holders.processes();
        let fd = (processes.first() == Some(&registrant.pid())).then(|| registrant.fd_of(fd_holders)).flatten();
        HolderInfo { kind, processes, fd, context: None, region: None, guest: None }
    }
}

/// What the kernel may ask of the object that registered a long-term pin. Upper crates implement
/// it.
pub trait PinHolder: Send + Sync + 'static {
    /// What identifies it.
    fn describe(&self) -> HolderInfo;

    /// The processes and queues that hold the descriptor it lives in, if it lives in one.
    fn fd_holders(&self) -> Option<Arc<FdHolders>> {
        None
    }

    /// Whether it keeps the file that it pins open, whatever the design says of regions.
    fn keeps_file(&self) -> bool {
        false
    }

    /// Demands that the pins are released. Idempotent, returns at once, called with no lock held.
    /// Its completion *is* the unpin, which comes once accesses in flight have drained.
    fn revoke(&self, kernel: &Arc<Kernel>, reason: RevokeReason);
}

/// One committed holder.
pub struct Holder {
    /// Its number.
    pub id: HolderId,
    /// The process that registered it; stays so after any unlock or passing.
    pub pid: Pid,
    /// The inode it was registered on.
    pub ino: Ino,
    /// The file range it was registered for.
    pub range: BlockRange,
    /// The pages it holds, in file order.
    pub pages: Arc<[PageRange]>,
    /// It pins nothing: it must be told before these pages change, and the change waits until it
    /// has released them. It is on the list [`notify_only`](super::list::notify_only).
    pub(crate) notify_only: bool,
    /// The leases that admitted it; it counts in the gate of each.
    pub(crate) leases: Arc<AdmittingLeases>,
    /// The open file that it keeps open, and with it that file's leases: a region where the design
    /// says so (`mr_holds_lease`), under any gate; a guest's export always.
    pub(crate) holds_file: Option<DescriptionId>,
    /// The object that answers for it.
    pub object: Arc<dyn PinHolder>,
}

impl std::fmt::Debug for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Holder").field("id", &self.id).field("pid", &self.pid).field("range", &self.range).finish()
    }
}

impl Holder {
    /// Whether any of its pages lies in one of `pages`, which are sorted and disjoint.
    pub fn holds_any_of(&self, pages: &[PageRange]) -> bool {
        self.pages.iter().any(|held| meets(*held, pages))
    }
}

/// Whether a page of `held` lies in one of `pages`, which are sorted and disjoint.
pub(crate) fn meets(held: PageRange, pages: &[PageRange]) -> bool {
    let next = pages.partition_point(|range| range.end() <= held.start());
    pages.get(next).is_some_and(|range| range.start() < held.end())
}

impl Awaited {
    /// The release of a holder's pins.
    pub(crate) fn of_holder(kernel: &Arc<Kernel>, holder: Arc<Holder>) -> Awaited {
        let kernel = Arc::clone(kernel);
        Awaited::ask(move || Need::of_holder(&kernel, &holder))
    }
}

impl Need {
    /// A need for the release of a holder's pins: any of its processes can meet it, and any that
    /// has its descriptor unread in its inbox; if none is left, its guest.
    pub(crate) fn of_holder(kernel: &Kernel, holder: &Holder) -> Need {
        let info = holder.object.describe();
        let mut able = info.processes;
        let fd_holders = holder.object.fd_holders();
        let others = fd_holders.map(|fd_holders| kernel.able_to_close(&fd_holders)).unwrap_or_default();
        able.extend(others.into_iter().filter(|pid| !able.contains(pid)).collect::<Vec<_>>());
        let outside = info.guest.filter(|_| able.is_empty());
        Need { any_of: able, task: None, outside }
    }

    /// A need that only the virtual machine that has a holder's memory mapped can meet, if one
    /// has.
    pub(crate) fn of_guest(holder: &Holder) -> Option<Need> {
        let guest = holder.object.describe().guest?;
        Some(Need { any_of: Vec::new(), task: None, outside: Some(guest) })
    }
}
