//! Pages of ordinary memory that can be held one by one.
//!
//! It owns their bytes. Invariant: a page lives as long as something holds it, whatever becomes of
//! the file or the mapping that it came from. Kernel counterpart: the reference count of
//! `struct folio`.

use emulator::sync::Arc;
use emulator::sync::atomic::{AtomicU64, Ordering};

use crate::base::atomic_op::AtomicOp;
use crate::base::errno::Errno;
use crate::base::units::BLOCK;
use crate::vfs::anon::AnonMemory;

/// One page.
#[derive(Debug)]
pub(crate) struct MemoryPage {
    pub(crate) bytes: AnonMemory,
    /// Where its bytes are counted until its last holder is gone.
    counted: Option<Arc<AtomicU64>>,
}

impl MemoryPage {
    /// A page of zeros. Its bytes are counted in `counted` already.
    pub(crate) fn new(counted: Option<Arc<AtomicU64>>) -> MemoryPage {
        MemoryPage { bytes: AnonMemory::new(BLOCK as usize), counted }
    }
}

impl Drop for MemoryPage {
    fn drop(&mut self) {
        if let Some(counted) = &self.counted {
            counted.fetch_sub(BLOCK, Ordering::Relaxed);
        }
    }
}

/// Pages that followed each other when they were taken, and stay what they are.
#[derive(Clone, Debug)]
pub struct PageRun {
    pages: Vec<Arc<MemoryPage>>,
    /// Byte offset in the first page of the run's first byte.
    start: u64,
}

impl PageRun {
    /// The bytes from `start` of the first page on.
    pub(crate) fn new(pages: Vec<Arc<MemoryPage>>, start: u64) -> PageRun {
        PageRun { pages, start }
    }

    /// Calls `each` with the page, the offset in it, and the range of the access's bytes, for every
    /// page of `len` bytes from `offset` of the run on.
    fn split(
        &self,
        offset: u64,
        len: usize,
        mut each: impl FnMut(&AnonMemory, u64, std::ops::Range<usize>) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let mut at = self.start.checked_add(offset).ok_or(Errno::EFAULT)?;
        let mut done = 0;
        while done < len {
            let page = usize::try_from(at / BLOCK).ok().and_then(|page| self.pages.get(page)).ok_or(Errno::EFAULT)?;
            let here = ((BLOCK - at % BLOCK) as usize).min(len - done);
            each(&page.bytes, at % BLOCK, done..done + here)?;
            (at, done) = (at + here as u64, done + here);
        }
        Ok(())
    }

    /// Copies out from byte `offset` of the run.
    ///
    /// # Errors
    /// EFAULT if the range leaves the run's pages.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Errno> {
        self.split(offset, into.len(), |page, at, part| page.read(at, &mut into[part]))
    }

    /// Copies in at byte `offset` of the run.
    ///
    /// # Errors
    /// EFAULT if the range leaves the run's pages.
    pub fn write(&self, offset: u64, from: &[u8]) -> Result<(), Errno> {
        self.split(offset, from.len(), |page, at, part| page.write(at, &from[part]))
    }

    /// A device's atomic on the 8 aligned bytes at `offset` of the run.
    ///
    /// # Errors
    /// As [`AnonMemory::atomic`].
    pub fn atomic(&self, offset: u64, op: AtomicOp) -> Result<u64, Errno> {
        let at = self.start.checked_add(offset).ok_or(Errno::EFAULT)?;
        let page = usize::try_from(at / BLOCK).ok().and_then(|page| self.pages.get(page)).ok_or(Errno::EFAULT)?;
        page.bytes.atomic(at % BLOCK, op)
    }
}
