//! Committed holders: who holds long-term pins on an inode's blocks.
//!
//! It owns the answer to "who blocks this change?". Invariants: a holder is listed from before its registration returns
//! until after its last page is unpinned, so a verdict against a layout change can always name somebody; a pin that is
//! still to be rechecked is never listed. Kernel counterpart: none today, which is part of the discussion; the 2019 RFC's
//! `struct file_file_pin`.

pub mod block_layout;
pub mod fixed_buffers;
pub mod guest;
mod region;
pub mod stale;
pub mod umem;

use std::any::Any;
use std::collections::BTreeMap;

use emulator::pin::PageRange;
use emulator::sync::atomic::{AtomicU64, Ordering};
use emulator::sync::{Arc, Mutex};
use emulator::wait::WaitQueue;

use crate::Kernel;
use crate::errno::Errno;
use crate::file_ops::open::Flags;
use crate::inode::Ino;
use crate::lease::Lease;
use crate::process::custody::Custody;
use crate::process::description::{Access, Description, DescriptionId, Open, OpenObject};
use crate::process::fd_table::Fd;
use crate::process::task::Task;
use crate::process::{Pid, Process};
use crate::range::BlockRange;

/// A holder's number. Never reused within a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HolderId(pub u64);

/// Who a holder is, for people and for `blockers`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HolderInfo {
    /// Its kind, such as `"RDMA region"`.
    pub kind: &'static str,
    /// The processes that could let go of it now; for an RDMA region those that hold its context.
    pub processes: Vec<Pid>,
    /// The descriptor under which the first of them holds the context, if there is one.
    pub fd: Option<Fd>,
    /// The context's number, if there is one.
    pub context: Option<u64>,
    /// The region's key, if there is one.
    pub region: Option<u32>,
    /// The virtual machine that has it mapped, in words, if one outside of this kernel does.
    pub guest: Option<String>,
}

impl HolderInfo {
    /// A holder that lives in a descriptor, without a context or a key.
    fn in_descriptor(kind: &'static str, custody: &Arc<Custody>, registrant: &Process) -> HolderInfo {
        let processes = custody.processes();
        let fd = (processes.first() == Some(&registrant.pid())).then(|| registrant.fd_of(custody)).flatten();
        HolderInfo { kind, processes, fd, context: None, region: None, guest: None }
    }
}

/// The object as the kind that a call wants.
///
/// # Errors
/// EINVAL: it is another kind.
fn downcast<T: Any + Send + Sync>(object: Arc<dyn OpenObject>) -> Result<Arc<T>, Errno> {
    object.as_any().downcast::<T>().map_err(|_| Errno::EINVAL)
}

impl Task {
    /// An open description of its own, as that of a server, for the file open as `fd`. In nobody's table.
    ///
    /// # Errors
    /// EBADF, EINVAL (not a file), EACCES (`suits` doesn't like how it is open); what an open meets ([`Task::open`]).
    fn open_again(&self, fd: Fd, suits: impl FnOnce(Access) -> bool) -> Result<Arc<Description>, Errno> {
        self.with_file(fd, |_, inode, access| {
            if !suits(access) {
                return Err(Errno::EACCES);
            }
            // It is open as `fd`, so it can't be on its way out.
            inode.life.lock().opens += 1;
            self.enter_inode(inode, Flags::open(access), false).inspect_err(|_| self.kernel().drop_open(inode))?;
            let open = Open::File { inode: Arc::clone(inode), access };
            Ok(self.kernel().new_description(open, Arc::new(Custody::default())))
        })
    }
}

/// What the kernel may ask of whoever registered a long-term pin. Implemented by the crates above.
pub trait PinHolder: Send + Sync + 'static {
    /// Who it is.
    fn describe(&self) -> HolderInfo;

    /// Who holds the descriptor it lives in, if it lives in one: also those that hold it unread in a queue.
    fn custody(&self) -> Option<Arc<Custody>> {
        None
    }

    /// Whether it keeps the file open that it pins, whatever the design says of regions.
    fn keeps_file(&self) -> bool {
        false
    }

    /// Demands that the pins be let go. Idempotent, returns at once, called with no lock held. Its completion *is* the
    /// unpin, which comes once accesses in flight have drained.
    fn revoke(&self, kernel: &Arc<Kernel>);
}

/// One committed holder.
pub struct Holder {
    /// Its number.
    pub id: HolderId,
    /// Who registered it; stays so after any unlock or passing.
    pub pid: Pid,
    /// The inode it was registered on.
    pub ino: Ino,
    /// The file range it was registered for.
    pub range: BlockRange,
    /// The pages it holds, in file order.
    pub pages: Arc<[PageRange]>,
    /// It pins nothing: it is told before these pages change, and the change waits until it has let go. In [`Inode::mapped`].
    ///
    /// [`Inode::mapped`]: crate::inode::Inode
    pub(crate) told: bool,
    /// The leases it was let through under; it counts in the gate of each.
    pub(crate) leases: Vec<Arc<Lease>>,
    /// The open file that it keeps open, and with it that file's leases: a region where the design says so (`mr_holds_lease`),
    /// under any gate; a guest's export always.
    pub(crate) holds_file: Option<DescriptionId>,
    /// Whoever answers for it.
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

/// The committed holders of one inode, by first file block.
#[derive(Debug, Default)]
pub(crate) struct Holders {
    list: Mutex<BTreeMap<(u64, HolderId), Arc<Holder>>>,
    /// The longest range ever listed, in blocks: bounds how far before a range its holders can start.
    longest: AtomicU64,
    pub(crate) changed: WaitQueue,
}

impl Holders {
    pub(crate) fn commit(&self, holder: Arc<Holder>) {
        let mut list = self.list.lock();
        self.longest.fetch_max(holder.range.len(), Ordering::Relaxed);
        list.insert((holder.range.start, holder.id), holder);
    }

    /// Takes a holder off the list and wakes whoever waits for it to be gone.
    pub(crate) fn remove(&self, holder: &Holder) {
        self.list.lock().remove(&(holder.range.start, holder.id));
        self.changed.wake_all();
    }

    /// Those registered for a file range that overlaps `range`.
    pub(crate) fn registered_in(&self, range: BlockRange) -> Vec<Arc<Holder>> {
        let list = self.list.lock();
        let first = range.start.saturating_sub(self.longest.load(Ordering::Relaxed));
        list.range((first, HolderId(0))..)
            .take_while(|((start, _), _)| *start < range.end)
            .filter(|(_, holder)| holder.range.overlaps(range))
            .map(|(_, holder)| Arc::clone(holder))
            .collect()
    }

    /// Those that hold any of `pages` (sorted and disjoint), registered in `range`.
    pub(crate) fn holding(&self, range: BlockRange, pages: &[PageRange]) -> Vec<Arc<Holder>> {
        let mut found = self.registered_in(range);
        found.retain(|holder| holder.holds_any_of(pages));
        found
    }

    /// Those let through under `lease`.
    pub(crate) fn under_lease(&self, lease: &Arc<Lease>) -> Vec<Arc<Holder>> {
        let list = self.list.lock();
        list.values().filter(|holder| holder.leases.iter().any(|held| Arc::ptr_eq(held, lease))).cloned().collect()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.list.lock().is_empty()
    }

    /// All of them.
    pub(crate) fn all(&self) -> Vec<Arc<Holder>> {
        self.list.lock().values().cloned().collect()
    }
}
