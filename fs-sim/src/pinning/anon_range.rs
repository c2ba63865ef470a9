//! Registered memory that is no page of a file: anonymous memory, device-DAX memory, and the copies
//! of a private mapping.
//!
//! It owns the mapping's right to store. Invariant: no access of a device changes memory that was
//! registered through a read-only mapping. Kernel counterpart: `ib_umem` over anonymous pages.

use std::ops::Range;

use emulator::sync::Arc;

use crate::base::atomic_op::AtomicOp;
use crate::base::errno::Errno;
use crate::base::units::BLOCK;
use crate::vfs::anon::AnonMemory;

/// See the module.
#[derive(Debug)]
pub struct AnonRange {
    /// One memory, or the copies of a private mapping, of 4 KiB each.
    memories: Vec<Arc<AnonMemory>>,
    /// The length of each in bytes; not 0.
    each: u64,
    /// Byte offset in the memories of the range's first byte.
    offset: u64,
    writable: bool,
}

impl AnonRange {
    /// The memory from byte `offset` on. `writable`: whether a device may write it.
    pub fn new(memory: Arc<AnonMemory>, offset: u64, writable: bool) -> AnonRange {
        AnonRange { each: memory.bytes().max(1), memories: vec![memory], offset, writable }
    }

    /// The copies of neighbouring pages, 4 KiB each, from byte `offset` of the first on.
    pub(crate) fn of_copies(copies: Vec<Arc<AnonMemory>>, offset: u64, writable: bool) -> AnonRange {
        AnonRange { memories: copies, each: BLOCK, offset, writable }
    }

    /// Whether it is device-DAX memory.
    pub fn is_persistent(&self) -> bool {
        self.memories.iter().all(|memory| memory.is_persistent())
    }

    /// Copies out from byte `offset` of the range.
    ///
    /// # Errors
    /// EFAULT if the access leaves the memory.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Errno> {
        self.piecewise(offset, into.len(), |memory, at, piece| memory.read(at, &mut into[piece]))
    }

    /// Copies in at byte `offset` of the range.
    ///
    /// # Errors
    /// EFAULT if the access leaves the memory, or the mapping is read-only.
    pub fn write(&self, offset: u64, from: &[u8]) -> Result<(), Errno> {
        self.check_store()?;
        self.piecewise(offset, from.len(), |memory, at, piece| memory.write(at, &from[piece]))
    }

    /// A device's atomic on the 8 aligned bytes at `offset` of the range.
    ///
    /// # Errors
    /// As [`AnonMemory::atomic`]; EFAULT if the mapping is read-only.
    pub fn atomic(&self, offset: u64, op: AtomicOp) -> Result<u64, Errno> {
        self.check_store()?;
        let at = self.at(offset)?;
        let memory = self.memories.get((at / self.each) as usize).ok_or(Errno::EFAULT)?;
        memory.atomic(at % self.each, op)
    }

    fn at(&self, offset: u64) -> Result<u64, Errno> {
        self.offset.checked_add(offset).ok_or(Errno::EFAULT)
    }

    /// Gives `access` each memory that holds some of `len` bytes from `offset` of the range on,
    /// with the first byte there and which of the bytes it holds.
    ///
    /// # Errors
    /// EFAULT if the bytes leave the memories, and nothing was accessed; those of `access`.
    fn piecewise(
        &self,
        offset: u64,
        len: usize,
        mut access: impl FnMut(&AnonMemory, u64, Range<usize>) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let start = self.at(offset)?;
        let end = start.checked_add(len as u64).ok_or(Errno::EFAULT)?;
        if end > self.each * self.memories.len() as u64 {
            return Err(Errno::EFAULT);
        }
        let mut at = start;
        while at < end {
            let to = ((at / self.each + 1) * self.each).min(end);
            let piece = (at - start) as usize..(to - start) as usize;
            access(&self.memories[(at / self.each) as usize], at % self.each, piece)?;
            at = to;
        }
        Ok(())
    }

    fn check_store(&self) -> Result<(), Errno> {
        if self.writable { Ok(()) } else { Err(Errno::EFAULT) }
    }
}

#[cfg(all(test, not(any(daxlab_loom, daxlab_shuttle))))]
mod tests {
    use super::*;

    /// Two pages; the range begins 8 bytes before the end of the first.
    fn two_pages(writable: bool) -> (AnonRange, [Arc<AnonMemory>; 2]) {
        let pages = [(); 2].map(|()| Arc::new(AnonMemory::new(BLOCK as usize)));
        (AnonRange::of_copies(pages.to_vec(), BLOCK - 8, writable), pages)
    }

    #[test]
    fn an_access_goes_on_in_the_next_page() {
        let (range, pages) = two_pages(true);
        range.write(4, b"abcdefgh").unwrap();
        let (mut first, mut second, mut both) = ([0; 4], [0; 4], [0; 8]);
        pages[0].read(BLOCK - 4, &mut first).unwrap();
        pages[1].read(0, &mut second).unwrap();
        assert_eq!((&first, &second), (b"abcd", b"efgh"));
        range.read(4, &mut both).unwrap();
        assert_eq!(&both, b"abcdefgh");
        assert_eq!(range.atomic(16, AtomicOp::FetchAdd(7)), Ok(0));
        pages[1].read(8, &mut both).unwrap();
        assert_eq!(u64::from_ne_bytes(both), 7);
    }

    #[test]
    fn an_access_beyond_the_last_page_does_nothing() {
        let (range, pages) = two_pages(true);
        assert_eq!(range.write(0, &[b'x'; BLOCK as usize + 9]), Err(Errno::EFAULT));
        assert_eq!(range.write(u64::MAX, b"x"), Err(Errno::EFAULT));
        assert_eq!(range.atomic(BLOCK + 8, AtomicOp::FetchAdd(1)), Err(Errno::EFAULT));
        let mut first = [1; 8];
        pages[0].read(BLOCK - 8, &mut first).unwrap();
        assert_eq!(first, [0; 8]);
        assert_eq!(two_pages(false).0.write(0, b"x"), Err(Errno::EFAULT));
    }
}
