//! Protection: the only way from a key to memory.
//!
//! It owns the check of key, domain, range and access, and the copy behind it. Invariants: a region is entered for one copy
//! of at most [`CHUNK`] bytes at a time, and nobody is inside two regions at once (a copy may wait for pages to be faulted in
//! while a layout change waits for another region to be left); the whole range of a request is checked at each entry, so a
//! piece is never moved of a request that must fail as a whole. Kernel counterpart: `mr_check_range`, `rxe_mr_copy`, `lookup_mr`
//! (drivers/infiniband/sw/rxe/rxe_mr.c).

use fs_sim::Errno;
use fs_sim::dma::AtomicOp;
use fs_sim::gup::Registration;

use crate::regions::{Entry, Region};
use crate::verbs::mr::AccessFlags;
use crate::verbs::qp::Qp;
use crate::verbs::work::Fault;

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
}

impl Need {
    fn is_met_by(self, access: AccessFlags) -> bool {
        match self {
            Need::LocalRead => true,
            Need::LocalWrite => access.local_write,
            Need::RemoteRead => access.remote_read,
            Need::RemoteWrite => access.remote_write,
            Need::RemoteAtomic => access.remote_atomic,
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
        let entry = qp.context().nic().regions.enter(self.key)?;
        let mr = &entry.mr;
        if mr.pd() != qp.pd() {
            return Err(Fault::OtherDomain);
        }
        let offset = self.addr.checked_sub(mr.va()).ok_or(Fault::Range)?;
        if offset.checked_add(u64::from(self.len)).is_none_or(|end| end > mr.len()) {
            return Err(Fault::Range);
        }
        if !need.is_met_by(mr.access()) {
            return Err(Fault::Access);
        }
        Ok((entry, offset))
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

    /// An atomic on the range, which is 8 bytes long; what was there.
    pub(crate) fn atomic(&self, qp: &Qp, op: AtomicOp) -> Result<u64, Fault> {
        let (entry, offset) = self.enter(qp, Need::RemoteAtomic)?;
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

fn fault_of(errno: Errno) -> Fault {
    match errno {
        Errno::EFAULT => Fault::NotPresent,
        Errno::EINVAL => Fault::Misaligned,
        _ => Fault::Device,
    }
}
