//! Memory of simulated processes without a file: anonymous shared memory, where an RDMA program
//! keeps its local buffers, and device-DAX memory, which is persistent.
//!
//! It owns the errno values of an access; the bytes belong to [`emulator::device::memory`].
//! Invariant: its length is a multiple of 8 bytes. Kernel counterpart: an anonymous `MAP_SHARED`
//! mapping; a mapping of `/dev/dax0.0`.

use emulator::device::memory::ProcessMemory;

use crate::base::atomic_op::AtomicOp;
use crate::base::errno::Errno;

/// See the module. The length is a multiple of 8 bytes.
#[derive(Debug)]
pub struct AnonMemory {
    memory: ProcessMemory,
    persistent: bool,
}

impl AnonMemory {
    /// `len` zero bytes of anonymous memory, rounded up to 8.
    pub fn new(len: usize) -> AnonMemory {
        AnonMemory { memory: ProcessMemory::new(len), persistent: false }
    }

    /// `len` zero bytes of a device-DAX device, rounded up to 8.
    pub fn device_dax(len: usize) -> AnonMemory {
        AnonMemory { persistent: true, ..AnonMemory::new(len) }
    }

    /// Whether it is device-DAX memory.
    pub fn is_persistent(&self) -> bool {
        self.persistent
    }

    /// Its length in bytes.
    pub fn bytes(&self) -> u64 {
        self.memory.bytes()
    }

    /// Copies out from byte `offset`.
    ///
    /// # Errors
    /// EFAULT if the range leaves the memory.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Errno> {
        self.memory.read(offset, into).map_err(|_| Errno::EFAULT)
    }

    /// Copies in at byte `offset`.
    ///
    /// # Errors
    /// EFAULT if the range leaves the memory.
    pub fn write(&self, offset: u64, from: &[u8]) -> Result<(), Errno> {
        self.memory.write(offset, from).map_err(|_| Errno::EFAULT)
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
            AtomicOp::Store(value) => self.memory.store_u64(offset, value).map(|()| value),
            AtomicOp::FetchAdd(addend) => self.memory.fetch_add_u64(offset, addend),
            AtomicOp::CompareSwap(expected, new) => self.memory.compare_exchange_u64(offset, expected, new),
        }
        .map_err(|_| Errno::EFAULT)
    }
}
