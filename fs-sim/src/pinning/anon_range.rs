//! Registered memory that is no page of a file: anonymous memory, device-DAX memory, and the copies
//! of a private mapping.
//!
//! It owns the mapping's right to store. Invariant: no access of a device changes memory that was
//! registered through a read-only mapping. Kernel counterpart: `ib_umem` over anonymous pages.

use emulator::sync::Arc;

use crate::base::atomic_op::AtomicOp;
use crate::base::errno::Errno;
use crate::vfs::anon::AnonMemory;

/// See the module.
#[derive(Debug)]
pub struct AnonRange {
    memory: Arc<AnonMemory>,
    /// Byte offset in the memory of the range's first byte.
    offset: u64,
    writable: bool,
}

impl AnonRange {
    /// The memory from byte `offset` on. `writable`: whether a device may write it.
    pub fn new(memory: Arc<AnonMemory>, offset: u64, writable: bool) -> AnonRange {
        AnonRange { memory, offset, writable }
    }

    /// Whether it is device-DAX memory.
    pub fn is_persistent(&self) -> bool {
        self.memory.is_persistent()
    }

    /// Copies out from byte `offset` of the range.
    ///
    /// # Errors
    /// EFAULT if the access leaves the memory.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Errno> {
        self.memory.read(self.at(offset)?, into)
    }

    /// Copies in at byte `offset` of the range.
    ///
    /// # Errors
    /// EFAULT if the access leaves the memory, or the mapping is read-only.
    pub fn write(&self, offset: u64, from: &[u8]) -> Result<(), Errno> {
        self.check_store()?;
        self.memory.write(self.at(offset)?, from)
    }

    /// A device's atomic on the 8 aligned bytes at `offset` of the range.
    ///
    /// # Errors
    /// As [`AnonMemory::atomic`]; EFAULT if the mapping is read-only.
    pub fn atomic(&self, offset: u64, op: AtomicOp) -> Result<u64, Errno> {
        self.check_store()?;
        self.memory.atomic(self.at(offset)?, op)
    }

    fn at(&self, offset: u64) -> Result<u64, Errno> {
        self.offset.checked_add(offset).ok_or(Errno::EFAULT)
    }

    fn check_store(&self) -> Result<(), Errno> {
        if self.writable { Ok(()) } else { Err(Errno::EFAULT) }
    }
}
