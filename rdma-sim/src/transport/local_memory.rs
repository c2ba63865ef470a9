//! The requester's end of a message's bytes.
//!
//! It owns nothing: it is a view. Invariant: every access passes the checks of
//! [`crate::memory::protection`]. Kernel counterpart: `copy_data` of `rxe_mr.c`.

use super::operation::WorkFailure;
use crate::memory::access::Sge;
use crate::memory::protection::{AccessNeed, KeyedRange, MemoryAccessor};

/// The local memory of a request, for a transport to read and write.
pub struct LocalMemory<'a> {
    accessor: MemoryAccessor<'a>,
    sge: Sge,
}

impl<'a> LocalMemory<'a> {
    pub(crate) fn new(accessor: MemoryAccessor<'a>, sge: Sge) -> LocalMemory<'a> {
        LocalMemory { accessor, sge }
    }

    fn range(&self) -> KeyedRange {
        KeyedRange { key: self.sge.lkey, addr: self.sge.addr, len: self.sge.len }
    }

    /// Checks key, range and rights without a copy.
    pub(crate) fn check(&self, need: AccessNeed) -> Result<(), WorkFailure> {
        self.range().check(self.accessor, need).map_err(WorkFailure::local)
    }

    /// Copies out, from the message's byte `at` on.
    ///
    /// # Errors
    /// A local protection error, or a local operation error if the device fails.
    pub fn read(&self, at: u64, into: &mut [u8]) -> Result<(), WorkFailure> {
        self.range().read(self.accessor, AccessNeed::LocalRead, at, into).map_err(WorkFailure::local)
    }

    /// Copies in, from the message's byte `at` on.
    ///
    /// # Errors
    /// A local protection error, or a local operation error if the device fails.
    pub fn write(&self, at: u64, from: &[u8]) -> Result<(), WorkFailure> {
        self.range().write(self.accessor, AccessNeed::LocalWrite, at, from).map_err(WorkFailure::local)
    }
}
