//! Long arrays of atomic 64-bit words that cost memory only where they are touched.
//!
//! It owns the memory of pin words and owner stamps. Invariant: a fresh store reads zero
//! everywhere, and its length never changes. With the standard backend a store is one anonymous
//! private mapping without reserved swap, so that a 1 TiB device's 2^28 words cost address space
//! until they are written to (4 KiB of memory for each 512 words written, and nothing but page
//! tables for words only read). Under loom and shuttle, whose atomics are larger than 8 bytes, it
//! is a vector. Kernel counterpart: `vmemmap`, the sparsely populated array of `struct page`.

use std::io;

use crate::runtime::sync::atomic::AtomicU64;

/// See the module.
#[derive(Debug)]
pub(crate) struct WordStore(imp::Words);

impl WordStore {
    /// `len` words, all zero.
    ///
    /// # Errors
    /// What `mmap` says, when the address space can't hold them (8 bytes a word).
    pub(crate) fn new(len: u64) -> io::Result<WordStore> {
        let len = usize::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        imp::Words::new(len).map(WordStore)
    }

    /// All words.
    #[inline]
    pub(crate) fn words(&self) -> &[AtomicU64] {
        self.0.words()
    }
}

#[cfg(not(any(daxlab_loom, daxlab_shuttle)))]
mod imp {
    use std::io;
    use std::ptr::{self, NonNull};

    use rustix::mm::{Advice, MapFlags, ProtFlags};

    use crate::runtime::sync::atomic::AtomicU64;

    pub(super) use MappedWords as Words;

    #[derive(Debug)]
    pub(super) struct MappedWords {
        start: NonNull<AtomicU64>,
        len: usize,
    }

    // SAFETY: the mapping is owned by the store alone, lives until its drop, and holds nothing but
    // atomics, which any thread may access through a shared reference.
    unsafe impl Send for MappedWords {}
    // SAFETY: as for Send.
    unsafe impl Sync for MappedWords {}

    impl MappedWords {
        pub(super) fn new(len: usize) -> io::Result<MappedWords> {
            // A mapping of no bytes is an error of its own; one unreachable word is not.
            let bytes = len.max(1).checked_mul(size_of::<AtomicU64>()).ok_or(io::ErrorKind::OutOfMemory)?;
            let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
            // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing
            // that exists.
            let start = unsafe {
                rustix::mm::mmap_anonymous(ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, flags)
            }?;
            // A huge page would make one touched word cost 2 MiB. Advice only: a kernel without
            // huge pages says EINVAL. SAFETY: the range is exactly the mapping just made.
            let _ = unsafe { rustix::mm::madvise(start, bytes, Advice::LinuxNoHugepage) };
            let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
            Ok(MappedWords { start, len })
        }

        #[inline]
        pub(super) fn words(&self) -> &[AtomicU64] {
            // SAFETY: the mapping is page aligned, readable and writable, holds `len` words that
            // began as zero bytes (a valid AtomicU64), and outlives `self`; every reference to it
            // is derived from `self`.
            unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
        }
    }

    impl Drop for MappedWords {
        fn drop(&mut self) {
            let bytes = self.len.max(1) * size_of::<AtomicU64>();
            // SAFETY: the whole mapping made in `new`, to which no reference is left.
            let unmapped = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), bytes) };
            debug_assert!(unmapped.is_ok(), "munmap of our own mapping failed: {unmapped:?}");
        }
    }
}

#[cfg(any(daxlab_loom, daxlab_shuttle))]
mod imp {
    use std::io;

    use crate::runtime::sync::atomic::AtomicU64;

    pub(super) use VecWords as Words;

    #[derive(Debug)]
    pub(super) struct VecWords(Vec<AtomicU64>);

    impl VecWords {
        pub(super) fn new(len: usize) -> io::Result<VecWords> {
            Ok(VecWords((0..len).map(|_| AtomicU64::new(0)).collect()))
        }

        pub(super) fn words(&self) -> &[AtomicU64] {
            &self.0
        }
    }
}

#[cfg(all(test, not(any(daxlab_loom, daxlab_shuttle))))]
mod tests {
    use super::*;
    use crate::runtime::sync::atomic::Ordering;

    #[test]
    fn a_terabyte_of_pages_costs_only_what_is_touched() {
        let store = WordStore::new(1 << 28).unwrap();
        let words = store.words();
        assert_eq!(words.len(), 1 << 28);
        for at in [0, 511, 512, (1 << 28) - 1] {
            assert_eq!(words[at].fetch_add(at as u64 + 1, Ordering::Relaxed), 0);
        }
        assert_eq!(words[(1 << 28) - 1].load(Ordering::Relaxed), 1 << 28);
        assert_eq!(words[1 << 20].load(Ordering::Relaxed), 0);
    }

    #[test]
    fn no_words_at_all_is_fine() {
        assert!(WordStore::new(0).unwrap().words().is_empty());
        assert!(WordStore::new(u64::MAX).is_err());
    }
}
