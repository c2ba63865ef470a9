//! The pages of a private file mapping that were copied.
//!
//! It owns the memory behind a `MAP_PRIVATE` mapping and the record of which of its pages are
//! copies. A page that is none shows the file's page. Invariant: a page becomes a copy only while
//! it lies inside the file, and a truncate takes the copies behind the new end away; both are
//! settled under `copied`. Kernel counterpart: the anonymous pages of a private file mapping
//! (`do_cow_fault`, `unmap_mapping_range` with `even_cows`).

use std::collections::BTreeSet;

use emulator::sync::{Arc, Mutex};

use crate::base::errno::Errno;
use crate::base::units::BLOCK;
use crate::vfs::anon::AnonMemory;

/// See the module.
#[derive(Debug)]
pub struct PrivatePages {
    memory: Arc<AnonMemory>,
    /// Byte offset in the file of the memory's first byte.
    file_offset: u64,
    /// The pages that are copies, counted from the memory's first.
    copied: Mutex<BTreeSet<u64>>,
}

impl PrivatePages {
    /// No copy yet, of `len` bytes at `file_offset`, both multiples of 4 KiB.
    pub(crate) fn new(file_offset: u64, len: u64) -> PrivatePages {
        PrivatePages { memory: Arc::new(AnonMemory::new(len as usize)), file_offset, copied: Mutex::default() }
    }

    /// The memory that holds the copies.
    pub(crate) fn memory(&self) -> &Arc<AnonMemory> {
        &self.memory
    }

    /// The byte of the file behind byte `at` of the memory.
    pub(crate) fn in_file(&self, at: u64) -> u64 {
        self.file_offset + at
    }

    /// Whether the page that holds byte `at` is a copy.
    pub(crate) fn is_copied(&self, at: u64) -> bool {
        self.copied.lock().contains(&(at / BLOCK))
    }

    /// Makes the page that holds byte `at` a copy with these bytes, unless it is one. `inside` says
    /// whether the file still has the page: a truncate that published its size before this asks
    /// takes away later what is copied now.
    ///
    /// # Errors
    /// SIGBUS: the file has no such page any more. EFAULT outside of the memory.
    pub(crate) fn copy_in(&self, at: u64, bytes: &[u8], inside: impl FnOnce() -> bool) -> Result<(), Errno> {
        let mut copied = self.copied.lock();
        let page = at / BLOCK;
        if copied.contains(&page) {
            return Ok(());
        }
        if !inside() {
            return Err(Errno::SIGBUS);
        }
        self.memory.write(page * BLOCK, bytes)?;
        copied.insert(page);
        Ok(())
    }

    /// The file ends at `size` now: copies of pages wholly behind it are gone.
    pub(crate) fn truncated(&self, size: u64) {
        let first = size.next_multiple_of(BLOCK).saturating_sub(self.file_offset) / BLOCK;
        self.copied.lock().split_off(&first);
    }

    /// A forked child's pages: copies of the copies.
    pub(crate) fn fork(&self) -> PrivatePages {
        let child = PrivatePages::new(self.file_offset, self.memory.bytes());
        {
            let copied = self.copied.lock();
            let mut bytes = vec![0; BLOCK as usize];
            for page in &*copied {
                let moved =
                    self.memory.read(page * BLOCK, &mut bytes).and_then(|()| child.memory.write(page * BLOCK, &bytes));
                debug_assert_eq!(moved, Ok(()), "both memories have the page");
            }
            *child.copied.lock() = copied.clone();
        }
        child
    }
}
