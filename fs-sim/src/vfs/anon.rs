//! Anonymous shared memory of simulated processes: where an RDMA program keeps its local buffers.
//!
//! It owns the errno values of an access; the bytes belong to [`emulator::device::memory`].
//! Invariant: its length is a multiple of 8 bytes. Kernel counterpart: an anonymous `MAP_SHARED`
//! mapping.

use emulator::device::memory::ProcessMemory;

use crate::base::atomic_op::AtomicOp;
use crate::base::errno::Errno;

/// See the module. The length is a multiple of 8 bytes.
#[derive(Debug)]
pub struct AnonMemory(ProcessMemory);

impl AnonMemory {
    /// `len` zero bytes, rounded up to 8.
    pub fn new(len: usize) -> AnonMemory {
        AnonMemory(ProcessMemory::new(len))
    }

    /// Its length in bytes.
    pub fn bytes(&self) -> u64 {
        self.0.bytes()
    }

    /// Copies out from byte `offset`.
    ///
    /// # Errors
    /// EFAULT if the range leaves the memory.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Errno> {
        self.0.read(offset, into).map_err(|_| Errno::EFAULT)
    }

    /// Copies in at byte `offset`.
    ///
    /// # Errors
    /// EFAULT if the range leaves the memory.
    pub fn write(&self, offset: u64, from: &[u8]) -> Result<(), Errno> {
        self.0.write(offset, from).map_err(|_| Errno::EFAULT)
    }

    /// A device's atomic on the 8 aligned bytes at `offset`; the value before, or the one stored.
    ///
    /// # Errors
    /// EINVAL if misaligned, EFAULT if the range leaves the memory.
    pub fn atomic(&self, offset: u64, op: AtomicOp) -> Result<u64, Errno> {
        if !offset.is_multiple_of(8) {
            return Err(Errno::EINVAL);
        }
        match op {
            AtomicOp::Store(value) => self.0.store_u64(offset, value).map(|()| value),
            AtomicOp::FetchAdd(addend) => self.0.fetch_add_u64(offset, addend),
            AtomicOp::CompareSwap(expected, new) => self.0.compare_exchange_u64(offset, expected, new),
        }
        .map_err(|_| Errno::EFAULT)
    }
}
