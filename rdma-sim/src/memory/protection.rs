//! Protection: the only way from a key to memory.
//!
//! It owns the check of key, domain, range and rights, and the copy behind it. Invariants: an
//! access enters a region for one copy of at most [`CHUNK`] bytes; a thread is never inside two
//! regions at once (a copy can wait for a page fault while a layout change waits until another
//! region is left); each entry checks the whole range of the request, so no piece is copied of a
//! request that must fail as a whole. Kernel counterpart: `mr_check_range`, `rxe_mr_copy`,
//! `lookup_mr` (drivers/infiniband/sw/rxe/rxe_mr.c).

use emulator::sync::Arc;
use fs_sim::base::atomic_op::AtomicOp;
use fs_sim::pinning::registration::Registration;
use fs_sim::{Errno, Kernel};

use super::access::{AccessFlags, FlushLevel, QpIdentity, WindowAccess};
use super::fault::WorkFault;
use super::key;
use super::nic::Nic;
use super::region_table::{RegionEntry, RegisteredRegion};

/// How much is copied at a time, in bytes: fits a first-level cache beside its source and
/// destination.
pub(crate) const CHUNK: usize = 16 << 10;

/// What a request needs of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AccessNeed {
    /// The local source of a write or send: every region allows it.
    LocalRead,
    /// The local destination of a read, of an atomic's result, or of a message.
    LocalWrite,
    RemoteRead,
    RemoteWrite,
    RemoteAtomic,
    FlushGlobal,
    FlushPersistent,
}

impl AccessNeed {
    fn is_met_by(self, access: AccessFlags) -> bool {
        match self {
            AccessNeed::LocalRead => true,
            AccessNeed::LocalWrite => access.local_write,
            AccessNeed::RemoteRead => access.remote_read,
            AccessNeed::RemoteWrite => access.remote_write,
            AccessNeed::RemoteAtomic => access.remote_atomic,
            AccessNeed::FlushGlobal => access.flush_global,
            AccessNeed::FlushPersistent => access.flush_persistent,
        }
    }

    /// A window allows a peer to access the bytes. It allows no flush, and nothing to its own side.
    fn is_met_through(self, access: WindowAccess) -> bool {
        match self {
            AccessNeed::RemoteRead => access.remote_read,
            AccessNeed::RemoteWrite => access.remote_write,
            AccessNeed::RemoteAtomic => access.remote_atomic,
            AccessNeed::LocalRead | AccessNeed::LocalWrite | AccessNeed::FlushGlobal | AccessNeed::FlushPersistent => {
                false
            }
        }
    }
}

/// A queue pair's access to the memory of its machine.
#[derive(Clone, Copy)]
pub(crate) struct MemoryAccessor<'a> {
    pub(crate) nic: &'a Nic,
    pub(crate) kernel: &'a Arc<Kernel>,
    pub(crate) qp: QpIdentity,
}

/// A range of a region, as a request names it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeyedRange {
    pub(crate) key: u32,
    pub(crate) addr: u64,
    pub(crate) len: u32,
}

impl KeyedRange {
    /// Enters the region for `need`. Returns also the range's offset in the region.
    fn enter<'a>(&self, by: MemoryAccessor<'a>, need: AccessNeed) -> Result<(RegionEntry<'a>, u64), WorkFault> {
        if key::is_window(self.key) {
            return self.enter_through_window(by, need);
        }
        let entry = enter_of_domain(by, self.key)?;
        let mr = &entry.mr;
        let offset = self.offset_in(mr.va(), mr.len())?;
        if !need.is_met_by(mr.access()) {
            return Err(WorkFault::Access);
        }
        Ok((entry, offset))
    }

    /// As `enter`, by the key of a window: the binding is the bound instead of the region. A
    /// binding that ends while a piece is copied does not stop that piece.
    fn enter_through_window<'a>(
        &self,
        by: MemoryAccessor<'a>,
        need: AccessNeed,
    ) -> Result<(RegionEntry<'a>, u64), WorkFault> {
        let bound = by.nic.windows.find(self.key).ok_or(WorkFault::UnknownKey)?.opens(self.key, by.qp)?;
        let offset = self.offset_in(bound.addr, bound.len)?;
        if !need.is_met_through(bound.access) {
            return Err(WorkFault::Access);
        }
        let entry = by.nic.regions.enter(bound.mr.key())?;
        // Since the lookup of the window its context may have ended, and another region may use the
        // slot.
        if !Arc::ptr_eq(&entry.mr, &bound.mr) {
            return Err(WorkFault::Revoked);
        }
        Ok((entry, offset + (bound.addr - bound.mr.va())))
    }

    /// The offset of the range in the `len` bytes at `start`, if all of it lies there.
    fn offset_in(&self, start: u64, len: u64) -> Result<u64, WorkFault> {
        let offset = self.addr.checked_sub(start).ok_or(WorkFault::Range)?;
        let inside = offset.checked_add(u64::from(self.len)).is_some_and(|end| end <= len);
        if inside { Ok(offset) } else { Err(WorkFault::Range) }
    }

    /// Checks without copying. The key of a range of no bytes is not checked.
    pub(crate) fn check(&self, by: MemoryAccessor<'_>, need: AccessNeed) -> Result<(), WorkFault> {
        if self.len == 0 { Ok(()) } else { self.enter(by, need).map(|_| ()) }
    }

    /// Copies out, from byte `at` of the range on.
    pub(crate) fn read(
        &self,
        by: MemoryAccessor<'_>,
        need: AccessNeed,
        at: u64,
        into: &mut [u8],
    ) -> Result<(), WorkFault> {
        let (entry, offset) = self.enter(by, need)?;
        match &entry.memory {
            Registration::Pinned(pinned) => pinned.dma_read(by.kernel, offset + at, into),
            Registration::OnDemand(range) => range.dma_read(by.kernel, offset + at, into),
            Registration::Anonymous(range) => range.read(offset + at, into),
        }
        .map_err(fault_of)
    }

    /// Copies in, from byte `at` of the range on.
    pub(crate) fn write(
        &self,
        by: MemoryAccessor<'_>,
        need: AccessNeed,
        at: u64,
        from: &[u8],
    ) -> Result<(), WorkFault> {
        let (entry, offset) = self.enter(by, need)?;
        match &entry.memory {
            Registration::Pinned(pinned) => pinned.dma_write(by.kernel, offset + at, from),
            Registration::OnDemand(range) => range.dma_write(by.kernel, offset + at, from),
            Registration::Anonymous(range) => range.write(offset + at, from),
        }
        .map_err(fault_of)
    }

    /// Flushes the range, or its whole region: checks the access, and for a persistent flush
    /// persists the bytes.
    pub(crate) fn flush(&self, by: MemoryAccessor<'_>, need: AccessNeed, level: FlushLevel) -> Result<(), WorkFault> {
        let (entry, offset, len) = match level {
            FlushLevel::Range => {
                let (entry, offset) = self.enter(by, need)?;
                (entry, offset, u64::from(self.len))
            }
            FlushLevel::Mr => {
                let entry = enter_of_domain(by, self.key)?;
                if !need.is_met_by(entry.mr.access()) {
                    return Err(WorkFault::Access);
                }
                let len = entry.mr.len();
                (entry, 0, len)
            }
        };
        if need != AccessNeed::FlushPersistent {
            return Ok(());
        }
        match &entry.memory {
            Registration::Pinned(pinned) => pinned.persist(by.kernel, offset, len).map_err(fault_of),
            Registration::OnDemand(range) => range.persist(by.kernel, offset, len).map_err(fault_of),
            // Device-DAX memory, whose stores are durable at once.
            Registration::Anonymous(range) if range.is_persistent() => Ok(()),
            // Anonymous memory is not persistent, and `reg_mr` refuses `flush_persistent` on it.
            Registration::Anonymous(_) => Err(WorkFault::Access),
        }
    }

    /// Executes an atomic on the range, which is 8 bytes long. Returns the bytes before.
    pub(crate) fn atomic(&self, by: MemoryAccessor<'_>, need: AccessNeed, op: AtomicOp) -> Result<u64, WorkFault> {
        let (entry, offset) = self.enter(by, need)?;
        let RegisteredRegion { memory, .. } = &*entry;
        match memory {
            Registration::Pinned(pinned) => pinned.dma_atomic(by.kernel, offset, op),
            Registration::OnDemand(range) => range.dma_atomic(by.kernel, offset, op),
            Registration::Anonymous(range) => range.atomic(offset, op),
        }
        .map_err(fault_of)
    }
}

/// Enters the region of a key, if it is in the queue pair's domain.
#[inline]
fn enter_of_domain<'a>(by: MemoryAccessor<'a>, key: u32) -> Result<RegionEntry<'a>, WorkFault> {
    let entry = by.nic.regions.enter(key)?;
    if entry.mr.pd() == by.qp.pd { Ok(entry) } else { Err(WorkFault::OtherDomain) }
}

fn fault_of(errno: Errno) -> WorkFault {
    match errno {
        Errno::EFAULT => WorkFault::NotPresent,
        Errno::EINVAL => WorkFault::Misaligned,
        _ => WorkFault::Device,
    }
}
