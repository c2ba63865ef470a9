//! Anonymous shared memory of simulated processes: where an RDMA program keeps its local buffers.
//!
//! It owns plain bytes that several threads may copy at once. Invariant: every access stays within the memory's length.
//! Kernel counterpart: an anonymous `MAP_SHARED` mapping.

use emulator::sync::atomic::{AtomicU64, Ordering};

use crate::dma::AtomicOp;
use crate::errno::Errno;

/// See the module. The length is a multiple of 8 bytes.
#[derive(Debug)]
pub struct AnonMemory {
    words: Box<[AtomicU64]>,
}

impl AnonMemory {
    /// `len` zero bytes, rounded up to 8.
    pub fn new(len: usize) -> AnonMemory {
        AnonMemory { words: (0..len.div_ceil(8)).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.words.len() * 8
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    fn check(&self, offset: u64, len: usize) -> Result<usize, Errno> {
        let start = usize::try_from(offset).map_err(|_| Errno::EFAULT)?;
        let end = start.checked_add(len).ok_or(Errno::EFAULT)?;
        if end > self.len() { Err(Errno::EFAULT) } else { Ok(start) }
    }

    /// Copies out from byte `offset`.
    ///
    /// # Errors
    /// EFAULT if the range leaves the memory.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Errno> {
        let start = self.check(offset, into.len())?;
        let mut at = start;
        let mut rest = into;
        while !rest.is_empty() {
            let word = self.words[at / 8].load(Ordering::Relaxed).to_ne_bytes();
            let within = at % 8;
            let n = (8 - within).min(rest.len());
            let (head, tail) = rest.split_at_mut(n);
            head.copy_from_slice(&word[within..within + n]);
            rest = tail;
            at += n;
        }
        Ok(())
    }

    /// Copies in at byte `offset`. A partial word is read and written back: bytes of one word that two threads write at once
    /// may lose one of the writes, as with a cache line behind a NIC without byte enables.
    ///
    /// # Errors
    /// EFAULT if the range leaves the memory.
    pub fn write(&self, offset: u64, from: &[u8]) -> Result<(), Errno> {
        let start = self.check(offset, from.len())?;
        let mut at = start;
        let mut rest = from;
        while !rest.is_empty() {
            let cell = &self.words[at / 8];
            let within = at % 8;
            let n = (8 - within).min(rest.len());
            let mut word = if n == 8 { [0; 8] } else { cell.load(Ordering::Relaxed).to_ne_bytes() };
            word[within..within + n].copy_from_slice(&rest[..n]);
            cell.store(u64::from_ne_bytes(word), Ordering::Relaxed);
            rest = &rest[n..];
            at += n;
        }
        Ok(())
    }

    /// A device's atomic on the 8 aligned bytes at `offset`; the value before.
    ///
    /// # Errors
    /// EINVAL if misaligned, EFAULT if the range leaves the memory.
    pub fn atomic(&self, offset: u64, op: AtomicOp) -> Result<u64, Errno> {
        let start = self.check(offset, 8)?;
        if !start.is_multiple_of(8) {
            return Err(Errno::EINVAL);
        }
        let word = &self.words[start / 8];
        // ORDERING: SeqCst, as the device's own atomics: an RDMA atomic is ordered against everything of its queue pair.
        Ok(match op {
            AtomicOp::FetchAdd(addend) => word.fetch_add(addend, Ordering::SeqCst),
            AtomicOp::CompareSwap(expected, new) => {
                word.compare_exchange(expected, new, Ordering::SeqCst, Ordering::SeqCst).unwrap_or_else(|found| found)
            }
        })
    }
}
