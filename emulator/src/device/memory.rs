//! Plain memory that several threads copy to and from at once: what a simulated process keeps its
//! buffers in.
//!
//! It owns its words and nothing about their meaning. Invariant: every access stays within the
//! length, and goes through the same word-wise copies as the device's, so that a race of the
//! emulated machine is never one of the emulator. Kernel counterpart: the pages of an anonymous
//! mapping.

use super::copy;
use crate::runtime::sync::machine::{AtomicU64, Ordering};

/// See the module. The length is a multiple of 8 bytes.
#[derive(Debug)]
pub struct ProcessMemory {
    words: Box<[AtomicU64]>,
}

/// An access beyond the end of a [`ProcessMemory`], or to a word at an odd place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{len} bytes at offset {offset} are not in a memory of {bytes} bytes, or not aligned as they must be")]
pub struct OutsideMemory {
    /// The first byte asked for.
    pub offset: u64,
    /// How many.
    pub len: u64,
    /// How many there are.
    pub bytes: u64,
}

impl ProcessMemory {
    /// `len` zero bytes, rounded up to 8.
    pub fn new(len: usize) -> ProcessMemory {
        ProcessMemory { words: (0..len.div_ceil(8)).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Its length in bytes.
    pub fn bytes(&self) -> u64 {
        self.words.len() as u64 * 8
    }

    /// The address of byte `offset`, from which `len` bytes are inside.
    fn at(&self, offset: u64, len: u64) -> Result<*mut u8, OutsideMemory> {
        let bytes = self.bytes();
        if offset > bytes || len > bytes - offset {
            return Err(OutsideMemory { offset, len, bytes });
        }
        // SAFETY: at most one past the end of the words.
        Ok(unsafe { self.words.as_ptr().cast::<u8>().cast_mut().add(offset as usize) })
    }

    /// Reads `into.len()` bytes at byte `offset`.
    ///
    /// # Errors
    /// [`OutsideMemory`]; nothing was read.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), OutsideMemory> {
        let at = self.at(offset, into.len() as u64)?;
        // SAFETY: inside our words, which live as long as `self` and are only accessed as words.
        unsafe { copy::load(at, into) };
        Ok(())
    }

    /// Writes `from` at byte `offset`. Concurrent writes to neighbouring bytes are never lost.
    ///
    /// # Errors
    /// [`OutsideMemory`]; nothing was written.
    pub fn write(&self, offset: u64, from: &[u8]) -> Result<(), OutsideMemory> {
        let at = self.at(offset, from.len() as u64)?;
        // SAFETY: inside our words, which live as long as `self` and are only accessed as words.
        unsafe { copy::store(at, from) };
        Ok(())
    }

    fn word(&self, offset: u64) -> Result<&AtomicU64, OutsideMemory> {
        let word = self.words.get((offset / 8) as usize).filter(|_| offset.is_multiple_of(8));
        word.ok_or(OutsideMemory { offset, len: 8, bytes: self.bytes() })
    }

    /// Stores `value` to the word at `offset`; never torn. SeqCst.
    ///
    /// # Errors
    /// [`OutsideMemory`].
    pub fn store_u64(&self, offset: u64, value: u64) -> Result<(), OutsideMemory> {
        self.word(offset)?.store(value, Ordering::SeqCst);
        Ok(())
    }

    /// Adds `value` to the word at `offset`, wrapping, and returns what stood there. SeqCst, as the
    /// device's atomics.
    ///
    /// # Errors
    /// [`OutsideMemory`].
    pub fn fetch_add_u64(&self, offset: u64, value: u64) -> Result<u64, OutsideMemory> {
        Ok(self.word(offset)?.fetch_add(value, Ordering::SeqCst))
    }

    /// Puts `new` into the word at `offset` if `expected` stands there; returns what stood there.
    /// SeqCst.
    ///
    /// # Errors
    /// [`OutsideMemory`].
    pub fn compare_exchange_u64(&self, offset: u64, expected: u64, new: u64) -> Result<u64, OutsideMemory> {
        let outcome = self.word(offset)?.compare_exchange(expected, new, Ordering::SeqCst, Ordering::SeqCst);
        Ok(outcome.unwrap_or_else(|found| found))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_go_in_and_out_and_nowhere_else() {
        let memory = ProcessMemory::new(60);
        assert_eq!(memory.bytes(), 64);
        memory.write(5, &[7; 50]).unwrap();
        let mut all = [1u8; 64];
        memory.read(0, &mut all).unwrap();
        let want: Vec<u8> = (0..64).map(|at| if (5..55).contains(&at) { 7 } else { 0 }).collect();
        assert_eq!(all.as_slice(), want);
        assert_eq!(memory.fetch_add_u64(56, 3), Ok(0));
        assert_eq!(memory.compare_exchange_u64(56, 3, 9), Ok(3));
        assert_eq!(memory.compare_exchange_u64(56, 3, 1), Ok(9));
    }

    #[test]
    fn beyond_the_end_and_beside_a_word_is_an_error() {
        let memory = ProcessMemory::new(64);
        let beyond = |offset, len| Err(OutsideMemory { offset, len, bytes: 64 });
        assert_eq!(memory.write(60, &[0; 5]), beyond(60, 5));
        assert_eq!(memory.read(u64::MAX, &mut [0; 2]), beyond(u64::MAX, 2));
        assert_eq!(memory.read(64, &mut []), Ok(()));
        assert_eq!(memory.fetch_add_u64(4, 1), Err(OutsideMemory { offset: 4, len: 8, bytes: 64 }));
        assert_eq!(memory.fetch_add_u64(64, 1), Err(OutsideMemory { offset: 64, len: 8, bytes: 64 }));
    }
}
