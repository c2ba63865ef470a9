//! Registrations: long-term pins from request to release.
//!
//! It owns a long-term pin's life: gate, charge, pins, commit, release. Invariants: a registration
//! that fails leaves no pin, no charge and no gate count behind; a holder is committed before the
//! registration returns. Kernel counterpart: `ib_umem_get`, `ib_umem_release`
//! (drivers/infiniband/core/umem.c).

use emulator::ledger::Stamp;
use emulator::pin::{PageRange, Pin};
use emulator::race_point;
use emulator::sync::Arc;
use emulator::sync::atomic::Ordering;

use crate::base::errno::Errno;
use crate::base::numbers::{DescriptionId, HolderId, Ino, Pid};
use crate::base::range::BlockRange;
use crate::base::units::BLOCK;
use crate::design::PinGate;
use crate::extent_map::lookup::{pages_of, pieces_in};
use crate::extent_map::{Extent, ExtentState, Piece};
use crate::holders::holder::{Holder, PinHolder, RevokeReason, revoke_holder};
use crate::holders::lease_gate::AdmittingLeases;
use crate::holders::list::list_of;
use crate::layout_change::changes::allocate::{AllocationCause, clean_unwritten, fault_in};
use crate::leases::layout::breaking::revoke_if_lease_lost;
use crate::leases::layout::table::{LeaseTable, PinRequirement};
use crate::leases::layout::unlock::gate_emptied;
use crate::pinning::admission::{Admission, LongTermUser, admission};
use crate::pinning::anon_range::AnonRange;
use crate::pinning::gup::{pin_long, pin_long_of_device, unpin_all};
use crate::pinning::locked_memory::{charge_locked_memory, uncharge_locked_memory};
use crate::pinning::on_demand::OnDemand;
use crate::vfs::inode::Inode;
use crate::vfs::kernel::Kernel;
use crate::vfs::open_file::{Deferred, Description};
use crate::vfs::process::Process;
use crate::vfs::task::Task;

/// A request for long-term access to mapped memory.
#[derive(Clone, Copy, Debug)]
pub struct PinRequest {
    /// First address.
    pub va: u64,
    /// Length in bytes.
    pub len: u64,
    /// Whether the device will write.
    pub write: bool,
    /// The kind of user.
    pub user: LongTermUser,
}

/// What a request for long-term access got.
#[derive(Debug)]
pub enum Registration {
    /// Pinned file pages.
    Pinned(Pinned),
    /// A file range that is pinned for each access, by a translation that layout changes
    /// invalidate.
    OnDemand(OnDemand),
    /// Memory without pages of a DAX file. No truncate takes it from the device.
    Anonymous(AnonRange),
}

/// Pages of a file as a device holds them: pinned, or, for a guest that can be unmapped, only
/// listed to be told of changes. [`Pinned::release`] ends it.
#[derive(Debug)]
pub struct Pinned {
    pub(crate) inode: Arc<Inode>,
    pub(crate) holder: Arc<Holder>,
    pins: Vec<Pin>,
    /// Drawn before the map was read.
    pub(crate) read_point: Stamp,
    /// Byte offset of the region's first byte in the file.
    pub(crate) file_offset: u64,
    pub(crate) len: u64,
    held_file: Option<Arc<Description>>,
    /// They were pinned through a mapping of the device, not of the file.
    of_device: bool,
    registrant: Arc<Process>,
}

/// What is recorded of a holder, besides its identity.
struct HolderDraft {
    range: BlockRange,
    pages: Arc<[PageRange]>,
    leases: Arc<AdmittingLeases>,
    holds_file: Option<DescriptionId>,
    notify_only: bool,
}

/// Long-term access to `request.len` bytes from byte `offset` of the file, whatever is mapped.
pub(crate) fn register_file(
    task: &Task,
    request: PinRequest,
    description: &Arc<Description>,
    offset: u64,
    object: Arc<dyn PinHolder>,
) -> Result<Registration, Errno> {
    let kernel = task.kernel();
    let (inode, _) = description.file().ok_or(Errno::EINVAL)?;
    kernel.mount.check()?;
    let range = BlockRange::of_bytes(offset, request.len);
    let zombies_pass = kernel.sabotage.zombie_lets_pin;
    let required = match admission(kernel, request.user)? {
        Admission::OnDemand => {
            return Ok(Registration::OnDemand(OnDemand::new(Arc::clone(task.process()), &request)));
        }
        Admission::NotifyOnly => {
            return register_notify_only(task, inode, range, request, object).map(Registration::Pinned);
        }
        Admission::Pins => None,
        Admission::PinsUnder { exclusive, by_reference } => {
            Some(PinRequirement { exclusive, by_reference, zombies_pass })
        }
    };
    if inode.turn.refuses_in(range) {
        return Err(Errno::EAGAIN);
    }
    let leases = match required {
        None => AdmittingLeases::new(range, Vec::new()),
        Some(required) => LeaseTable::of(inode).enter_gates(kernel.axes.lease_rules, task.pid(), range, required)?,
    };
    let pages = range.len();
    let charged = charge_locked_memory(kernel, task.process(), pages);
    let pinned = charged.and_then(|()| {
        let pinned = pin_long(task, inode, range, request.write);
        pinned.inspect_err(|_| uncharge_locked_memory(kernel, task.process(), pages))
    });
    match pinned {
        Ok((pins, read_point)) => {
            if request.write {
                pins.iter().for_each(|pin| kernel.caches.dirty(pin.range()));
            }
            race_point!("gup: rechecked, not committed");
            let held_file = (kernel.axes.mr_holds_lease == Some(true)).then(|| description.get());
            let held_pages = pins.iter().map(Pin::range).collect();
            let holds_file = (held_file.is_some() || object.keeps_file()).then(|| description.id());
            let draft = HolderDraft { range, pages: held_pages, leases, holds_file, notify_only: false };
            let holder = commit_holder(task, inode, draft, object);
            revoke_if_lease_lost(kernel, inode, &holder);
            Ok(Registration::Pinned(Pinned {
                inode: Arc::clone(inode),
                holder,
                pins,
                read_point,
                file_offset: offset,
                len: request.len,
                held_file,
                of_device: false,
                registrant: Arc::clone(task.process()),
            }))
        }
        Err(errno) => {
            LeaseTable::of(inode).entry_over(&leases);
            leave_gates(kernel, inode, &leases);
            Err(errno)
        }
    }
}

/// Long-term access to `request.len` bytes of the device from byte `offset` on, mapped as
/// device-DAX. No gate is asked. The pins are listed with the file that has the pages, so a change
/// of it judges them as any other.
pub(crate) fn register_device(
    task: &Task,
    request: PinRequest,
    offset: u64,
    object: Arc<dyn PinHolder>,
) -> Result<Registration, Errno> {
    let kernel = task.kernel();
    let pages = BlockRange::of_bytes(offset, request.len).len();
    charge_locked_memory(kernel, task.process(), pages)?;
    let pinned = pin_long_of_device(task, offset, request.len);
    let (file, pins, read_point) = pinned.inspect_err(|_| uncharge_locked_memory(kernel, task.process(), pages))?;
    race_point!("gup: rechecked, not committed");
    let range = BlockRange::of_bytes(file.at, request.len);
    let leases = AdmittingLeases::new(range, Vec::new());
    let held_pages = pins.iter().map(Pin::range).collect();
    let draft = HolderDraft { range, pages: held_pages, leases, holds_file: None, notify_only: false };
    let holder = commit_holder(task, &file.inode, draft, object);
    Ok(Registration::Pinned(Pinned {
        inode: Arc::clone(&file.inode),
        holder,
        pins,
        read_point,
        file_offset: file.at,
        len: request.len,
        held_file: None,
        of_device: true,
        registrant: Arc::clone(task.process()),
    }))
}

fn commit_holder(task: &Task, inode: &Arc<Inode>, draft: HolderDraft, object: Arc<dyn PinHolder>) -> Arc<Holder> {
    let kernel = task.kernel();
    let id = HolderId(kernel.next_holder.fetch_add(1, Ordering::Relaxed));
    let HolderDraft { range, pages, leases, holds_file, notify_only } = draft;
    let holder = Arc::new(Holder {
        id,
        pid: task.pid(),
        ino: inode.ino(),
        range,
        pages,
        notify_only,
        leases,
        holds_file,
        object,
    });
    list_of(inode, &holder).commit(Arc::clone(&holder));
    LeaseTable::of(inode).entry_over(&holder.leases);
    kernel.trace(if notify_only { "mapped" } else { "pinned" }, id.0, inode.ino().0, holder.pages.first().copied());
    // A change that has closed its pages and met these pins before they were listed must judge
    // again.
    if inode.turn.has_closed_pages() {
        kernel.pins.drained().wake_all();
    }
    if kernel.mount.check().is_err() {
        // The device is being removed, and the remover may have missed this holder.
        revoke_holder(kernel, &holder, RevokeReason::DeviceRemoved);
    }
    holder
}

/// Long-term access without pins to `request.len` bytes from the file's start: allocates, unshares
/// and cleans what it must, then lists `object` among the holders that are told before a page of
/// theirs changes. It holds the turn while it reads the map and lists the holder, so no change is
/// in progress that could miss it.
fn register_notify_only(
    task: &Task,
    inode: &Arc<Inode>,
    range: BlockRange,
    request: PinRequest,
    object: Arc<dyn PinHolder>,
) -> Result<Pinned, Errno> {
    let kernel = task.kernel();
    loop {
        fault_in(task, inode, range, AllocationCause::LongTermPin)?;
        clean_unwritten(kernel, inode, range);
        let turn = inode.turn.change(kernel, task.waiter().id());
        let taken = turn.take(task, &range.into(), false);
        // As for a pin: a change waits.
        taken.map_err(|errno| if errno == Errno::ETXTBSY { Errno::EAGAIN } else { errno })?;
        let read_point = kernel.ledger.read_point();
        let usable = |extent: &Extent| extent.state == ExtentState::Written && !extent.shared;
        let pages: Option<Vec<PageRange>> = inode.layout(|layout| {
            let pieces = pieces_in(layout, range).into_iter();
            let pages = |piece| match piece {
                Piece::Mapped(extent) if usable(&extent) => Some(pages_of(&extent)),
                Piece::Mapped(_) | Piece::Hole { .. } => None,
            };
            pieces.map(pages).collect()
        });
        let Some(pages) = pages else { continue };
        race_point!("gup: map read, not listed");
        let leases = AdmittingLeases::new(range, Vec::new());
        let draft = HolderDraft { range, pages: pages.into(), leases, holds_file: None, notify_only: true };
        return Ok(Pinned {
            inode: Arc::clone(inode),
            holder: commit_holder(task, inode, draft, object),
            pins: Vec::new(),
            read_point,
            file_offset: range.start * BLOCK,
            len: request.len,
            held_file: None,
            of_device: false,
            registrant: Arc::clone(task.process()),
        });
    }
}

fn leave_gates(kernel: &Kernel, inode: &Inode, leases: &AdmittingLeases) {
    for lease in leases.take() {
        if lease.gate.leave() {
            gate_emptied(kernel, inode, &lease);
        }
    }
}

impl Registration {
    /// Whether it pins pages of a file through the file: what a design says of passing and of
    /// leases concerns it.
    pub fn pins_file(&self) -> bool {
        matches!(self, Registration::Pinned(pinned) if !pinned.of_device)
    }
}

impl Pinned {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it holds no byte; a registration never does.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether `object` answers for these pins.
    pub fn is_of(&self, object: &dyn PinHolder) -> bool {
        std::ptr::addr_eq(Arc::as_ptr(&self.holder.object), object)
    }

    /// The inode and the file range whose pages these were when they were pinned.
    pub fn file_range(&self) -> (Ino, BlockRange) {
        (self.inode.ino(), self.holder.range)
    }

    /// Whether active leases of `pid` would let it register this range itself (for
    /// `receiver-lease`).
    pub fn is_covered_for(&self, kernel: &Kernel, pid: Pid) -> bool {
        let exclusive = kernel.axes.pin_gate == PinGate::Unbreakable;
        self.of_device || LeaseTable::of(&self.inode).covers(kernel.axes.lease_rules, pid, self.holder.range, exclusive)
    }

    /// The end of the registration: unpins every page exactly once, takes the holder off the list,
    /// leaves the leases' gates, gives the locked memory back. References that it held on its file
    /// go to `deferred`.
    pub fn release(self, kernel: &Arc<Kernel>, deferred: &mut Deferred) {
        let event = if self.holder.notify_only { "unmapped" } else { "unpinned" };
        kernel.trace(event, self.holder.id.0, self.inode.ino().0, self.holder.pages.first().copied());
        unpin_all(kernel, self.pins);
        list_of(&self.inode, &self.holder).remove(&self.holder);
        if self.inode.turn.has_closed_pages() {
            // A change that revoked this holder may be waiting for it to be gone.
            kernel.pins.drained().wake_all();
        }
        leave_gates(kernel, &self.inode, &self.holder.leases);
        if !self.holder.notify_only {
            uncharge_locked_memory(kernel, &self.registrant, self.holder.range.len());
        }
        if let Some(description) = self.held_file {
            description.put(deferred);
        }
    }
}
