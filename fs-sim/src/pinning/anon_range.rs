//! Registered memory that is no page of a DAX file: anonymous memory, device-DAX memory, the copies
//! of a private mapping, and pages of a file that is not DAX.
//!
//! It owns the mapping's right to store. Invariant: no access of a device changes memory that was
//! registered through a read-only mapping. Kernel counterpart: `ib_umem` over such pages.

use emulator::sync::Arc;

use crate::base::atomic_op::AtomicOp;
use crate::base::errno::Errno;
use crate::vfs::anon::AnonMemory;
use crate::vfs::page_run::PageRun;

/// Where a range has its bytes.
#[derive(Debug)]
enum RangeBytes {
    /// In one memory, from this byte offset on.
    Memory(Arc<AnonMemory>, u64),
    /// In pages that the range holds, whatever becomes of their file.
    Pages(PageRun),
}

/// See the module.
#[derive(Debug)]
pub struct AnonRange {
    bytes: RangeBytes,
    writable: bool,
}

impl AnonRange {
    /// The memory from byte `offset` on. `writable`: whether a device may write it.
    pub fn new(memory: Arc<AnonMemory>, offset: u64, writable: bool) -> AnonRange {
        AnonRange { bytes: RangeBytes::Memory(memory, offset), writable }
    }

    /// Pages of a file that is not DAX.
    pub(crate) fn of_pages(pages: PageRun, writable: bool) -> AnonRange {
        AnonRange { bytes: RangeBytes::Pages(pages), writable }
    }

    /// Whether it is device-DAX memory.
    pub fn is_persistent(&self) -> bool {
        matches!(&self.bytes, RangeBytes::Memory(memory, _) if memory.is_persistent())
    }

    /// Copies out from byte `offset` of the range.
    ///
    /// # Errors
    /// EFAULT if the access leaves the memory.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Errno> {
        match &self.bytes {
            RangeBytes::Memory(memory, start) => memory.read(within(*start, offset)?, into),
            RangeBytes::Pages(pages) => pages.read(offset, into),
        }
    }

    /// Copies in at byte `offset` of the range.
    ///
    /// # Errors
    /// EFAULT if the access leaves the memory, or the mapping is read-only.
    pub fn write(&self, offset: u64, from: &[u8]) -> Result<(), Errno> {
        self.check_store()?;
        match &self.bytes {
            RangeBytes::Memory(memory, start) => memory.write(within(*start, offset)?, from),
            RangeBytes::Pages(pages) => pages.write(offset, from),
        }
    }

    /// A device's atomic on the 8 aligned bytes at `offset` of the range.
    ///
    /// # Errors
    /// As [`AnonMemory::atomic`]; EFAULT if the mapping is read-only.
    pub fn atomic(&self, offset: u64, op: AtomicOp) -> Result<u64, Errno> {
        self.check_store()?;
        match &self.bytes {
            RangeBytes::Memory(memory, start) => memory.atomic(within(*start, offset)?, op),
            RangeBytes::Pages(pages) => pages.atomic(offset, op),
        }
    }

    fn check_store(&self) -> Result<(), Errno> {
        if self.writable { Ok(()) } else { Err(Errno::EFAULT) }
    }
}

fn within(start: u64, offset: u64) -> Result<u64, Errno> {
    start.checked_add(offset).ok_or(Errno::EFAULT)
}
