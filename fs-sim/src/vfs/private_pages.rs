//! The pages of a private file mapping that were copied.
//!
//! It owns the copies of a `MAP_PRIVATE` mapping. A page without a copy shows the file's page.
//! Invariants: a page gets a copy only while it lies inside the file, and a truncate takes the
//! copies behind the new end away; both are settled under `copies`. A copy that was taken away and
//! is held by a device is never the mapping's again. Kernel counterpart: the anonymous pages of a
//! private file mapping (`do_cow_fault`, `unmap_mapping_range` with `even_cows`).

use std::collections::BTreeMap;

use emulator::sync::{Arc, Mutex};

use crate::base::errno::Errno;
use crate::base::units::BLOCK;
use crate::vfs::page_run::{MemoryPage, PageRun};

/// See the module.
#[derive(Debug)]
pub struct PrivatePages {
    /// How long the mapping was made, in bytes.
    len: u64,
    /// Byte offset in the file of the mapping's first byte.
    file_offset: u64,
    /// By page, counted from the mapping's first.
    copies: Mutex<BTreeMap<u64, Arc<MemoryPage>>>,
}

impl PrivatePages {
    /// No copy yet, of `len` bytes at `file_offset`, both multiples of 4 KiB.
    pub(crate) fn new(file_offset: u64, len: u64) -> PrivatePages {
        PrivatePages { len, file_offset, copies: Mutex::default() }
    }

    /// The byte of the file behind byte `at` of the mapping.
    pub(crate) fn in_file(&self, at: u64) -> u64 {
        self.file_offset + at
    }

    /// Whether the page that holds byte `at` is a copy.
    pub(crate) fn is_copied(&self, at: u64) -> bool {
        self.copies.lock().contains_key(&(at / BLOCK))
    }

    /// The copies that hold `len` bytes from byte `at` on. `None` if a page of them is no copy.
    pub(crate) fn copies(&self, at: u64, len: u64) -> Option<PageRun> {
        let copies = self.copies.lock();
        let pages = at / BLOCK..(at + len).div_ceil(BLOCK);
        let pages = pages.map(|page| copies.get(&page).cloned()).collect::<Option<Vec<_>>>()?;
        Some(PageRun::new(pages, at % BLOCK))
    }

    /// Makes the page that holds byte `at` a copy with these bytes, unless it is one. `inside` says
    /// whether the file still has the page: a truncate that published its size before this asks
    /// takes away later what is copied now.
    ///
    /// # Errors
    /// SIGBUS: the file has no such page any more. EFAULT: `at` lies outside of the mapping, or
    /// `bytes` are more than a page.
    pub(crate) fn copy_in(&self, at: u64, bytes: &[u8], inside: impl FnOnce() -> bool) -> Result<(), Errno> {
        if at >= self.len {
            return Err(Errno::EFAULT);
        }
        let mut copies = self.copies.lock();
        let page = at / BLOCK;
        if copies.contains_key(&page) {
            return Ok(());
        }
        if !inside() {
            return Err(Errno::SIGBUS);
        }
        let copy = MemoryPage::new(None);
        copy.bytes.write(0, bytes)?;
        copies.insert(page, Arc::new(copy));
        Ok(())
    }

    /// The file ends at `size` now: copies of pages wholly behind it are gone.
    pub(crate) fn truncated(&self, size: u64) {
        let first = size.next_multiple_of(BLOCK).saturating_sub(self.file_offset) / BLOCK;
        let _gone = self.copies.lock().split_off(&first);
    }

    /// A forked child's pages: copies of the copies.
    pub(crate) fn fork(&self) -> PrivatePages {
        let child = PrivatePages::new(self.file_offset, self.len);
        {
            let copies = self.copies.lock();
            let mut bytes = vec![0; BLOCK as usize];
            let mut childs = child.copies.lock();
            for (page, copy) in &*copies {
                let own = MemoryPage::new(None);
                let moved = copy.bytes.read(0, &mut bytes).and_then(|()| own.bytes.write(0, &bytes));
                debug_assert_eq!(moved, Ok(()), "both are pages");
                childs.insert(*page, Arc::new(own));
            }
        }
        child
    }
}
