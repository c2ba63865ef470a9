//! Pinning a range of a file: the only way to its pages.
//!
//! It owns the protocol between whoever wants a file's pages and whoever changes the file's layout. Kernel counterpart:
//! `pin_user_pages_fast` with its recheck (mm/gup.c), and the 2019 RFC's lease check in `FOLL_LONGTERM`.
//!
//! # The recheck, and why it suffices
//! A pinner reads the inode's generation, then draws its read point R from the ledger, then reads the map, pins what the map
//! says, and reads the generation again. If it is the same *number* (it never takes a value twice), no block left, moved or
//! joined the file in between, so the pages pinned are the file's. A change shuts the pages that leave before it publishes,
//! and publishes before it reopens them: a pin that comes too early is seen by the change, one that comes too late is
//! refused by the door or undone by the recheck. R lies after the first look at the generation, so a stamp newer than R can
//! only mean that the page left after the map was read; it never blames a page that merely arrived.
//!
//! A long-term pin is *committed* (listed in [`crate::holders`]) before its registration returns, and counts in the gates of
//! the leases it was let through under from before its first pin until after its last unpin.

use emulator::ledger::Stamp;
use emulator::pin::{PageRange, Pin, PinError, PinKind};
use emulator::race_point;
use emulator::sync::atomic::Ordering;
use emulator::sync::{Arc, thread};
use emulator::wait::{WaitFor, WaitQueue, Waiter};

use crate::Kernel;
use crate::anon::AnonMemory;
use crate::design::{GateScope, PinGate};
use crate::errno::Errno;
use crate::extent_map::{Extent, ExtentState, Layout, Piece};
use crate::holders::{Holder, HolderId, PinHolder};
use crate::inode::Inode;
use crate::lease::Lease;
use crate::lease::table::Gate;
use crate::process::Process;
use crate::process::address_space::Backing;
use crate::process::description::{Deferred, Description, DescriptionId};
use crate::process::task::Task;
use crate::range::BlockRange;

pub use crate::dma::on_demand::OnDemand;

/// Who wants a long-term pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LongTermUser {
    /// An RDMA region. It can fault at access where the design says so.
    Rdma,
    /// Anybody else: an AF_XDP umem, io_uring fixed buffers, a guest of which nobody knows how to unmap it. They can't fault.
    Other,
    /// A guest from which its memory can be taken away. It can't fault either, but be unmapped before a page changes, once.
    Unmappable,
}

/// A request for long-term access to mapped memory.
#[derive(Clone, Copy, Debug)]
pub struct Want {
    /// First address.
    pub va: u64,
    /// Length in bytes.
    pub len: u64,
    /// Whether the device will write.
    pub write: bool,
    /// Who asks.
    pub user: LongTermUser,
}

/// What a request for long-term access got.
#[derive(Debug)]
pub enum Registration {
    /// Pinned file pages.
    Pinned(Pinned),
    /// A file range that is pinned for the moment of each access, by a translation that layout changes invalidate.
    OnDemand(OnDemand),
    /// Anonymous memory, which nobody truncates.
    Anonymous {
        /// The memory.
        memory: Arc<AnonMemory>,
        /// Byte offset in it.
        offset: u64,
    },
}

/// Pages of a file as a device holds them: pinned, or (where the design says so of somebody who can be unmapped) only listed to
/// be told of. Give it back with [`Pinned::release`].
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
    registrant: Arc<Process>,
}

/// The pieces of a file range, pinned for the time of one access.
#[derive(Debug)]
pub(crate) struct ShortPins {
    pub(crate) pins: Vec<Pin>,
    /// The file's pieces, mapped or holes, in file order.
    pub(crate) pieces: Vec<Piece>,
    /// The file's size in bytes when the pieces were read.
    pub(crate) size: u64,
    /// Drawn before the map was read.
    pub(crate) read_point: Stamp,
    /// The inode's generation while the pieces held.
    pub(crate) generation: u64,
}

/// What the design's gate has for a long-term user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Pins.
    Pins,
    /// Pins, under a lease.
    PinsUnder {
        /// Whether it must be an exclusive one.
        exclusive: bool,
    },
    /// Faults.
    OnDemand,
    /// Nothing but to be told before a page changes.
    Told,
}

/// What is to be known of a holder, besides who it is.
struct Draft {
    range: BlockRange,
    pages: Arc<[PageRange]>,
    leases: Vec<Arc<Lease>>,
    holds_file: Option<DescriptionId>,
    told: bool,
}

/// Why a try to pin did not hold.
enum Miss {
    /// A door was shut, or the map changed: look again.
    Again,
    /// It can't be.
    Errno(Errno),
}

impl Kernel {
    fn pin_pieces(
        self: &Arc<Self>,
        inode: &Inode,
        generation: u64,
        pieces: &[Piece],
        kind: PinKind,
    ) -> Result<Vec<Pin>, Miss> {
        let mut pins = Vec::with_capacity(pieces.len());
        let mut refused = None;
        for piece in pieces {
            let Piece::Mapped(extent) = piece else { continue };
            match self.pins.pin(pages_of(extent), kind) {
                Ok(pin) => pins.push(pin),
                Err(error) => {
                    refused = Some((error, pages_of(extent)));
                    break;
                }
            }
        }
        race_point!("gup: pinned, not rechecked");
        if let Some((error, pages)) = refused {
            self.unpin_all(pins);
            if error.orphan_seen() {
                self.reap_orphans(pages);
            }
            return Err(match error {
                PinError::Closed(_) => Miss::Again,
                PinError::CountFull(_) => Miss::Errno(Errno::ENOMEM),
                PinError::OutOfRange => Miss::Errno(Errno::EIO),
            });
        }
        if inode.generation() != generation && !self.sabotage.no_recheck {
            self.unpin_all(pins);
            return Err(Miss::Again);
        }
        Ok(pins)
    }

    /// Drops pins; frees what was orphaned and waited for them.
    pub(crate) fn unpin_all(self: &Arc<Self>, pins: Vec<Pin>) {
        for pin in pins {
            let pages = pin.range();
            if self.pins.unpin(pin).orphan_seen {
                self.reap_orphans(pages);
            }
        }
    }

    /// Pins the pieces of a file range for one access. Never refused: it waits for doors to reopen.
    pub(crate) fn pin_short(
        self: &Arc<Self>,
        inode: &Inode,
        range: BlockRange,
        task: Option<&Task>,
    ) -> Result<ShortPins, Errno> {
        loop {
            let generation = inode.generation();
            let read_point = self.ledger.read_point();
            let (pieces, size) = inode.layout(|layout| (pieces_in(layout, range), layout.size()));
            race_point!("gup: map read, not pinned");
            match self.pin_pieces(inode, generation, &pieces, PinKind::Short) {
                Ok(pins) => return Ok(ShortPins { pins, pieces, size, read_point, generation }),
                Err(Miss::Errno(errno)) => return Err(errno),
                Err(Miss::Again) => self.wait_for_doors(inode, task),
            }
        }
    }

    /// Pins pieces that were the file's at `generation`, for one access. None if the map has changed since, or is about to:
    /// then they are to be read again.
    pub(crate) fn pin_translated(
        self: &Arc<Self>,
        inode: &Inode,
        generation: u64,
        pieces: &[Piece],
    ) -> Result<Option<Vec<Pin>>, Errno> {
        match self.pin_pieces(inode, generation, pieces, PinKind::Short) {
            Ok(pins) => Ok(Some(pins)),
            Err(Miss::Again) => Ok(None),
            Err(Miss::Errno(errno)) => Err(errno),
        }
    }

    /// Ends an access.
    pub(crate) fn unpin_short(self: &Arc<Self>, pins: ShortPins) {
        self.unpin_all(pins.pins);
    }

    /// A pin met a shut door or a changed map: waits until the doors it met are open again. Doors are shut only while pins drain
    /// that their holders are about to drop, so this wait is not interruptible.
    fn wait_for_doors(&self, inode: &Inode, task: Option<&Task>) {
        self.counters.pin_retries.add(1);
        let (reopenings, (_, queue)) = (inode.ticket.reopenings(), inode.ticket.doors());
        let shut = || inode.ticket.doors().0 && inode.ticket.reopenings() == reopenings;
        // The door is mostly shut for less than a sleep and a wake-up take.
        for _ in 0..DOOR_SPINS {
            thread::yield_now();
            if !shut() {
                return;
            }
        }
        let ready = || match shut() {
            true => std::task::Poll::Pending,
            false => std::task::Poll::Ready(()),
        };
        let how = WaitFor::uninterruptible("pages of a layout change");
        let own;
        let waiter: &Arc<Waiter> = match task {
            Some(task) => {
                task.note_waited();
                task.waiter()
            }
            None => {
                own = self.new_waiter();
                &own
            }
        };
        // Uninterruptible and without a deadline: it can only end by its condition.
        let _ended = WaitQueue::wait(queue, &self.world, waiter, how, ready);
    }
}

/// How often a pinner yields before it sleeps in front of a shut door.
const DOOR_SPINS: u32 = 32;

/// The device pages of an extent.
pub(crate) fn pages_of(extent: &Extent) -> PageRange {
    PageRange::new(extent.block, u64::from(extent.len))
}

/// The pieces of a layout in a range that may reach to infinity.
pub(crate) fn pieces_in(layout: &Layout, range: BlockRange) -> Vec<Piece> {
    layout.pieces(range.start, range.len()).collect()
}

/// What stands behind a piece of mapped memory.
pub(crate) enum Target {
    File { description: Arc<Description>, offset: u64 },
    Anon { memory: Arc<AnonMemory>, offset: u64 },
}

impl Process {
    /// What is mapped at `va..va+len`, which must lie in one mapping; with a reference of its own on a file.
    ///
    /// # Errors
    /// EINVAL if it does not, EFAULT if `write` and the mapping is read-only.
    pub(crate) fn target(&self, va: u64, len: u64, write: bool) -> Result<Target, Errno> {
        let mm = self.mm.lock();
        let mapping = mm.find(va, len).filter(|_| len > 0).ok_or(Errno::EINVAL)?;
        if write && !mapping.write {
            return Err(Errno::EFAULT);
        }
        let delta = va - mapping.start;
        Ok(match &mapping.backing {
            Backing::File { description, offset } => {
                Target::File { description: description.get(), offset: offset + delta }
            }
            Backing::Anon { memory, offset } => Target::Anon { memory: Arc::clone(memory), offset: offset + delta },
        })
    }
}

impl Task {
    /// Sets how many pages this process may lock, for registrations from now on; what is locked stays so. A forked child
    /// inherits it. `setrlimit` with `RLIMIT_MEMLOCK`.
    ///
    /// # Errors
    /// None but the caller's death.
    pub fn set_memlock(&self, pages: u64) -> Result<(), Errno> {
        self.syscall(|| {
            self.process().memlock.store(pages, Ordering::Relaxed);
            Ok(())
        })
    }

    /// Registers mapped memory for long-term access by a device. `object` answers for the pins from the moment it is
    /// committed, which is before this returns.
    ///
    /// # Errors
    /// EINVAL (length 0, or beyond the mapping), EFAULT (protection, or a read-only request over a hole or past the end),
    /// EOPNOTSUPP, EPERM (the gate), EAGAIN (a layout change waits), ETXTBSY (must allocate or unshare under somebody's lease),
    /// ENOMEM (locked memory, or a pin count at its bound), ENOSPC. Refused, nothing stays pinned.
    pub fn register(&self, want: Want, object: Arc<dyn PinHolder>) -> Result<Registration, Errno> {
        self.syscall(|| {
            match self.process().target(want.va, want.len, want.write)? {
                Target::Anon { memory, offset } => Ok(Registration::Anonymous { memory, offset }),
                Target::File { description, offset } => {
                    // The reference taken with the target covers this call; a region that holds its file takes its own.
                    let registered = self.register_file(want, &description, offset, object);
                    let mut deferred = Deferred::default();
                    description.put(&mut deferred);
                    self.kernel().run_deferred(deferred);
                    registered
                }
            }
        })
    }

    /// Registers mapped memory for access by faults, whatever the gate: an explicit on-demand region pins nothing, and every
    /// design lets it through. What is mapped is only looked at; each access looks again.
    ///
    /// # Errors
    /// EINVAL (length 0, or beyond the mapping), EFAULT (protection).
    pub fn register_on_demand(&self, want: Want) -> Result<Registration, Errno> {
        self.syscall(|| match self.process().target(want.va, want.len, want.write)? {
            Target::Anon { memory, offset } => Ok(Registration::Anonymous { memory, offset }),
            Target::File { description, .. } => {
                let mut deferred = Deferred::default();
                description.put(&mut deferred);
                self.kernel().run_deferred(deferred);
                Ok(Registration::OnDemand(OnDemand::new(Arc::clone(self.process()), &want)))
            }
        })
    }

    /// Long-term access to `want.len` bytes from byte `offset` of the file, whatever is mapped.
    pub(crate) fn register_file(
        &self,
        want: Want,
        description: &Arc<Description>,
        offset: u64,
        object: Arc<dyn PinHolder>,
    ) -> Result<Registration, Errno> {
        let kernel = self.kernel();
        let (inode, _) = description.file().ok_or(Errno::EINVAL)?;
        kernel.mount.check()?;
        let range = BlockRange::of_bytes(offset, want.len);
        let exclusive = match kernel.admission(want.user)? {
            Admission::OnDemand => {
                return Ok(Registration::OnDemand(OnDemand::new(Arc::clone(self.process()), &want)));
            }
            Admission::Told => return self.register_told(inode, range, want, object).map(Registration::Pinned),
            Admission::Pins => None,
            Admission::PinsUnder { exclusive } => Some(exclusive),
        };
        if inode.ticket.waiting_on().is_some_and(|waited| waited.overlaps(range)) {
            return Err(Errno::EAGAIN);
        }
        let leases = match exclusive {
            None => Vec::new(),
            Some(exclusive) => {
                let gate = Gate { exclusive, zombies_pass: kernel.sabotage.zombie_lets_pin };
                inode.leases.enter_gates(kernel.axes.lease_rules, self.pid(), range, gate)?
            }
        };
        let pages = range.len();
        let charged = kernel.charge(self.process(), pages);
        let pinned = charged.and_then(|()| {
            let pinned = self.pin_long(inode, range, want.write);
            pinned.inspect_err(|_| kernel.uncharge(self.process(), pages))
        });
        match pinned {
            Ok((pins, read_point)) => {
                race_point!("gup: rechecked, not committed");
                let held_file = (kernel.axes.mr_holds_lease == Some(true)).then(|| description.get());
                let held_pages = pins.iter().map(Pin::range).collect();
                let holds_file = (held_file.is_some() || object.keeps_file()).then(|| description.id());
                let draft = Draft { range, pages: held_pages, leases, holds_file, told: false };
                let holder = self.commit(inode, draft, object);
                kernel.revoke_if_lease_lost(inode, &holder);
                Ok(Registration::Pinned(Pinned {
                    inode: Arc::clone(inode),
                    holder,
                    pins,
                    read_point,
                    file_offset: offset,
                    len: want.len,
                    held_file,
                    registrant: Arc::clone(self.process()),
                }))
            }
            Err(errno) => {
                kernel.leave_gates(inode, &leases);
                Err(errno)
            }
        }
    }

    fn commit(&self, inode: &Arc<Inode>, draft: Draft, object: Arc<dyn PinHolder>) -> Arc<Holder> {
        let kernel = self.kernel();
        let id = HolderId(kernel.next_holder.fetch_add(1, Ordering::Relaxed));
        let Draft { range, pages, leases, holds_file, told } = draft;
        let holder =
            Arc::new(Holder { id, pid: self.pid(), ino: inode.ino(), range, pages, told, leases, holds_file, object });
        inode.list_of(&holder).commit(Arc::clone(&holder));
        kernel.trace(if told { "mapped" } else { "pinned" }, id.0, inode.ino().0, holder.pages.first().copied());
        // A change that has shut its doors and met our pins without a name to them must judge again.
        if inode.ticket.doors().0 {
            kernel.pins.drained().wake_all();
        }
        if kernel.mount.check().is_err() {
            // The device is being removed, and whoever does it may have missed this one.
            kernel.revoke(&holder);
        }
        holder
    }

    /// Long-term access without pins to `want.len` bytes from the file's start: allocates, unshares and cleans what it must, then
    /// lists `object` among those who are told before a page of theirs changes. With the ticket held: the blocks stay where
    /// they are until then, and no change has begun that could miss it.
    fn register_told(
        &self,
        inode: &Arc<Inode>,
        range: BlockRange,
        want: Want,
        object: Arc<dyn PinHolder>,
    ) -> Result<Pinned, Errno> {
        let kernel = self.kernel();
        loop {
            self.fault_in(inode, range)?;
            kernel.clean_unwritten(inode, range);
            let ticket = inode.ticket.take_unless_waiting(self);
            // As for a pin: a change waits.
            let _ticket = ticket.map_err(|errno| if errno == Errno::ETXTBSY { Errno::EAGAIN } else { errno })?;
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
            let draft = Draft { range, pages: pages.into(), leases: Vec::new(), holds_file: None, told: true };
            return Ok(Pinned {
                inode: Arc::clone(inode),
                holder: self.commit(inode, draft, object),
                pins: Vec::new(),
                read_point,
                file_offset: range.start * crate::BLOCK,
                len: want.len,
                held_file: None,
                registrant: Arc::clone(self.process()),
            });
        }
    }

    /// Long-term pins of a file range: allocates, unshares and cleans what it must, then pins and rechecks.
    fn pin_long(&self, inode: &Arc<Inode>, range: BlockRange, write: bool) -> Result<(Vec<Pin>, Stamp), Errno> {
        let kernel = self.kernel();
        loop {
            let generation = inode.generation();
            let read_point = kernel.ledger.read_point();
            let (pieces, size) = inode.layout(|layout| (pieces_in(layout, range), layout.size()));
            if range.end > size.div_ceil(crate::BLOCK) {
                return Err(Errno::EFAULT);
            }
            if pieces.iter().any(|piece| matches!(piece, Piece::Hole { .. })) {
                if !write {
                    return Err(Errno::EFAULT);
                }
                self.fault_in(inode, range)?;
                continue;
            }
            if pieces.iter().any(|piece| matches!(piece, Piece::Mapped(e) if e.shared)) {
                // Not only for writing: nobody copies a block on write under a device that reads it.
                self.unshare(inode, range)?;
                continue;
            }
            if pieces.iter().any(|piece| matches!(piece, Piece::Mapped(e) if e.state == ExtentState::Unwritten)) {
                kernel.clean_unwritten(inode, range);
                continue;
            }
            race_point!("gup: map read, not pinned");
            match kernel.pin_pieces(inode, generation, &pieces, PinKind::Long) {
                Ok(pins) => return Ok((pins, read_point)),
                Err(Miss::Errno(errno)) => return Err(errno),
                Err(Miss::Again) => {
                    kernel.wait_for_doors(inode, Some(self));
                    if inode.ticket.waiting_on().is_some_and(|waited| waited.overlaps(range)) {
                        return Err(Errno::EAGAIN);
                    }
                }
            }
        }
    }
}

impl Kernel {
    /// What the gate has for `user`, whatever it holds and wants.
    ///
    /// # Errors
    /// EOPNOTSUPP: nothing.
    pub(crate) fn admission(&self, user: LongTermUser) -> Result<Admission, Errno> {
        let rdma = user == LongTermUser::Rdma;
        if self.axes.gate_scope == GateScope::RdmaOnly && !rdma {
            return Err(Errno::EOPNOTSUPP);
        }
        match self.axes.pin_gate {
            PinGate::Fault if rdma => Ok(Admission::OnDemand),
            PinGate::Fault if user == LongTermUser::Unmappable => Ok(Admission::Told),
            PinGate::Refuse | PinGate::Fault => Err(Errno::EOPNOTSUPP),
            PinGate::Open => Ok(Admission::Pins),
            PinGate::Lease => Ok(Admission::PinsUnder { exclusive: false }),
            PinGate::Unbreakable => Ok(Admission::PinsUnder { exclusive: true }),
        }
    }

    fn charge(&self, process: &Process, pages: u64) -> Result<(), Errno> {
        let within = |locked: u64| locked.checked_add(pages).filter(|locked| *locked <= process.memlock());
        let charged = process.locked_pages.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within);
        charged.map(|_| ()).map_err(|_| Errno::ENOMEM)
    }

    fn uncharge(&self, process: &Process, pages: u64) {
        process.locked_pages.fetch_sub(pages, Ordering::Relaxed);
    }

    fn leave_gates(&self, inode: &Inode, leases: &[Arc<Lease>]) {
        for lease in leases {
            if lease.gate.leave() {
                self.gate_emptied(inode, lease);
            }
        }
    }

    /// Asks a holder to let go; see [`PinHolder::revoke`].
    pub(crate) fn revoke(self: &Arc<Self>, holder: &Holder) {
        self.counters.revocations.add(1);
        self.trace("revoked", holder.id.0, holder.ino.0, holder.pages.first().copied());
        holder.object.revoke(self);
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

    /// The inode whose pages these were when they were pinned, and the file range.
    pub fn file_range(&self) -> (crate::inode::Ino, BlockRange) {
        (self.inode.ino(), self.holder.range)
    }

    /// Whether active leases of `pid` would let it register this range itself (for `receiver-lease`).
    pub fn is_covered_for(&self, kernel: &Kernel, pid: crate::process::Pid) -> bool {
        let exclusive = kernel.axes.pin_gate == PinGate::Unbreakable;
        self.inode.leases.covers(kernel.axes.lease_rules, pid, self.holder.range, exclusive)
    }

    /// The end of the registration: unpins every page exactly once, takes the holder off the list, leaves the leases' gates,
    /// gives the locked memory back. References it held on its file go to `deferred`.
    pub fn release(self, kernel: &Arc<Kernel>, deferred: &mut Deferred) {
        let event = if self.holder.told { "unmapped" } else { "unpinned" };
        kernel.trace(event, self.holder.id.0, self.inode.ino().0, self.holder.pages.first().copied());
        kernel.unpin_all(self.pins);
        self.inode.list_of(&self.holder).remove(&self.holder);
        if self.inode.ticket.doors().0 {
            // A change that revoked this holder may be waiting for it to be gone.
            kernel.pins.drained().wake_all();
        }
        kernel.leave_gates(&self.inode, &self.holder.leases);
        if !self.holder.told {
            kernel.uncharge(&self.registrant, self.holder.range.len());
        }
        if let Some(description) = self.held_file {
            description.put(deferred);
        }
    }
}

#[cfg(all(test, not(any(daxlab_loom, daxlab_shuttle))))]
mod tests;
