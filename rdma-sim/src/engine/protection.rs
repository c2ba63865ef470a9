//! Protection: the only way from a key to memory.
//!
//! It owns the check of key, domain, range and access, and the copy behind it. Invariants: a region is entered for one copy
//! of at most [`CHUNK`] bytes at a time, and nobody is inside two regions at once (a copy may wait for pages to be faulted in
//! while a layout change waits for another region to be left); the whole range of a request is checked at each entry, so a
//! piece is never moved of a request that must fail as a whole. Kernel counterpart: `mr_check_range`, `rxe_mr_copy`, `lookup_mr`
//! (drivers/infiniband/sw/rxe/rxe_mr.c).

use emulator::sync::Arc;
use fs_sim::Errno;
use fs_sim::base::atomic_op::AtomicOp;
use fs_sim::pinning::registration::Registration;

use crate::regions::{Entry, Region};
use crate::verbs::mr::AccessFlags;
use crate::verbs::mw::WindowAccess;
use crate::verbs::qp::Qp;
use crate::verbs::work::{Fault, FlushLevel};
use crate::windows;

/// How much is copied at a time, in bytes: fits a first-level cache beside its source and destination.
pub(crate) const CHUNK: usize = 16 << 10;

/// What a request wants of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// The local source of a write or send: any region.
    LocalRead,
    /// The local destination of a read, an atomic's result, or a message.
    LocalWrite,
    RemoteRead,
    RemoteWrite,
    RemoteAtomic,
    FlushGlobal,
    FlushPersistent,
}

impl Need {
    fn is_met_by(self, access: AccessFlags) -> bool {
        match self {
            Need::LocalRead => true,
            Need::LocalWrite => access.local_write,
            Need::RemoteRead => access.remote_read,
            Need::RemoteWrite => access.remote_write,
            Need::RemoteAtomic => access.remote_atomic,
            Need::FlushGlobal => access.flush_global,
            Need::FlushPersistent => access.flush_persistent,
        }
    }

    /// Windows give the peer the bytes, nothing else, and nothing to their own side.
    fn is_met_through(self, access: WindowAccess) -> bool {
        match self {
            Need::RemoteRead => access.remote_read,
            Need::RemoteWrite => access.remote_write,
            Need::RemoteAtomic => access.remote_atomic,
            Need::LocalRead | Need::LocalWrite | Need::FlushGlobal | Need::FlushPersistent => false,
        }
    }
}

/// A range of a region, as a request names it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Range {
    pub(crate) key: u32,
    pub(crate) addr: u64,
    pub(crate) len: u32,
}

impl Range {
    /// Enters the region for `need`; the range's offset in it.
    fn enter<'a>(&self, qp: &'a Qp, need: Need) -> Result<(Entry<'a>, u64), Fault> {
        if windows::is_window(self.key) {
            return self.enter_through_window(qp, need);
        }
        let entry = enter_of_domain(qp, self.key)?;
        let mr = &entry.mr;
        let offset = self.offset_in(mr.va(), mr.len())?;
        if !need.is_met_by(mr.access()) {
            return Err(Fault::Access);
        }
        Ok((entry, offset))
    }

    /// As `enter`, by the key of a window: bounded by its binding instead of its region. A binding that ends while a piece is
    /// copied does not stop that piece.
    fn enter_through_window<'a>(&self, qp: &'a Qp, need: Need) -> Result<(Entry<'a>, u64), Fault> {
        let nic = qp.context().nic();
        let bound = nic.windows.find(self.key).ok_or(Fault::UnknownKey)?.opens(self.key, qp)?;
        let offset = self.offset_in(bound.addr, bound.len)?;
        if !need.is_met_through(bound.access) {
            return Err(Fault::Access);
        }
        let entry = nic.regions.enter(bound.mr.key())?;
        // The context may have ended, and another region have got the slot, since the window was looked at.
        if !Arc::ptr_eq(&entry.mr, &bound.mr) {
            return Err(Fault::Revoked);
        }
        Ok((entry, offset + (bound.addr - bound.mr.va())))
    }

    /// Where the range begins in `len` bytes at `start`, if all of it lies there.
    fn offset_in(&self, start: u64, len: u64) -> Result<u64, Fault> {
        let offset = self.addr.checked_sub(start).ok_or(Fault::Range)?;
        let inside = offset.checked_add(u64::from(self.len)).is_some_and(|end| end <= len);
        if inside { Ok(offset) } else { Err(Fault::Range) }
    }

    /// Checks without copying. A range of no bytes skips the key.
    pub(crate) fn check(&self, qp: &Qp, need: Need) -> Result<(), Fault> {
        if self.len == 0 { Ok(()) } else { self.enter(qp, need).map(|_| ()) }
    }

    /// Copies out, from byte `at` of the range on.
    pub(crate) fn read(&self, qp: &Qp, need: Need, at: u64, into: &mut [u8]) -> Result<(), Fault> {
        let (entry, offset) = self.enter(qp, need)?;
        let kernel = qp.context().kernel();
        match &entry.memory {
            Registration::Pinned(pinned) => pinned.dma_read(kernel, offset + at, into),
            Registration::OnDemand(range) => range.dma_read(kernel, offset + at, into),
            Registration::Anonymous { memory, offset: base } => memory.read(base + offset + at, into),
        }
        .map_err(fault_of)
    }

    /// Copies in, from byte `at` of the range on.
    pub(crate) fn write(&self, qp: &Qp, need: Need, at: u64, from: &[u8]) -> Result<(), Fault> {
        let (entry, offset) = self.enter(qp, need)?;
        let kernel = qp.context().kernel();
        match &entry.memory {
            Registration::Pinned(pinned) => pinned.dma_write(kernel, offset + at, from),
            Registration::OnDemand(range) => range.dma_write(kernel, offset + at, from),
            Registration::Anonymous { memory, offset: base } => memory.write(base + offset + at, from),
        }
        .map_err(fault_of)
    }

    /// Flushes the range, or its whole region: checks, and if persistence is needed makes it so.
    pub(crate) fn flush(&self, qp: &Qp, need: Need, level: FlushLevel) -> Result<(), Fault> {
        let (entry, offset, len) = match level {
            FlushLevel::Range => {
                let (entry, offset) = self.enter(qp, need)?;
                (entry, offset, u64::from(self.len))
            }
            FlushLevel::Mr => {
                let entry = enter_of_domain(qp, self.key)?;
                if !need.is_met_by(entry.mr.access()) {
                    return Err(Fault::Access);
                }
                let len = entry.mr.len();
                (entry, 0, len)
            }
        };
        if need != Need::FlushPersistent {
            return Ok(());
        }
        let kernel = qp.context().kernel();
        match &entry.memory {
            Registration::Pinned(pinned) => pinned.persist(kernel, offset, len).map_err(fault_of),
            Registration::OnDemand(range) => range.persist(kernel, offset, len).map_err(fault_of),
            // Not persistent, and never registered as such.
            Registration::Anonymous { .. } => Err(Fault::Access),
        }
    }

    /// An atomic on the range, which is 8 bytes long; what was there.
    pub(crate) fn atomic(&self, qp: &Qp, need: Need, op: AtomicOp) -> Result<u64, Fault> {
        let (entry, offset) = self.enter(qp, need)?;
        let kernel = qp.context().kernel();
        let Region { memory, .. } = &*entry;
        match memory {
            Registration::Pinned(pinned) => pinned.dma_atomic(kernel, offset, op),
            Registration::OnDemand(range) => range.dma_atomic(kernel, offset, op),
            Registration::Anonymous { memory, offset: base } => memory.atomic(base + offset, op),
        }
        .map_err(fault_of)
    }
}

/// Enters the region of a key in `qp`'s domain.
#[inline]
fn enter_of_domain(qp: &Qp, key: u32) -> Result<Entry<'_>, Fault> {
    let entry = qp.context().nic().regions.enter(key)?;
    if entry.mr.pd() == qp.pd() { Ok(entry) } else { Err(Fault::OtherDomain) }
}

fn fault_of(errno: Errno) -> Fault {
    match errno {
        Errno::EFAULT => Fault::NotPresent,
        Errno::EINVAL => Fault::Misaligned,
        _ => Fault::Device,
    }
}
