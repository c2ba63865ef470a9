//! The pages of a private file mapping that were copied.
//!
//! It owns the copies, each a page of memory of its own. A page that is not copied shows the file's
//! page. Invariant: a page becomes a copy only while it lies inside the file, and a truncate takes
//! the copies behind the new end away; both are settled under `copies`. A device that has
//! registered a copy keeps it then, and a later copy of the same page is another one. Kernel
//! counterpart: the anonymous pages of a private file mapping (`do_cow_fault`,
//! `unmap_mapping_range` with `even_cows`).

use std::collections::BTreeMap;

use emulator::sync::{Arc, Mutex};

use crate::base::errno::Errno;
use crate::base::units::BLOCK;
use crate::vfs::anon::AnonMemory;

/// See the module.
#[derive(Debug)]
pub struct PrivatePages {
    /// Byte offset in the file of the first page.
    file_offset: u64,
    /// The copies, 4 KiB each, by page counted from the first.
    copies: Mutex<BTreeMap<u64, Arc<AnonMemory>>>,
}

impl PrivatePages {
    /// No copy yet, of pages from byte `file_offset` (a multiple of 4 KiB) of the file on.
    pub(crate) fn new(file_offset: u64) -> PrivatePages {
        PrivatePages { file_offset, copies: Mutex::default() }
    }

    /// The byte of the file behind byte `at` of the pages.
    pub(crate) fn in_file(&self, at: u64) -> u64 {
        self.file_offset + at
    }

    /// Whether the page that holds byte `at` is a copy.
    pub(crate) fn is_copied(&self, at: u64) -> bool {
        self.copies.lock().contains_key(&(at / BLOCK))
    }

    /// The copy that holds byte `at`, if there is one.
    pub(crate) fn copy(&self, at: u64) -> Option<Arc<AnonMemory>> {
        self.copies.lock().get(&(at / BLOCK)).map(Arc::clone)
    }

    /// The copy that holds byte `at`; made with these bytes if there is none. `inside` says whether
    /// the file still has the page: a truncate that published its size before this asks takes away
    /// later what is copied now.
    ///
    /// # Errors
    /// SIGBUS: the file has no such page any more. EFAULT: `bytes` are more than a page.
    pub(crate) fn copy_in(
        &self,
        at: u64,
        bytes: &[u8],
        inside: impl FnOnce() -> bool,
    ) -> Result<Arc<AnonMemory>, Errno> {
        let mut copies = self.copies.lock();
        if let Some(copy) = copies.get(&(at / BLOCK)) {
            return Ok(Arc::clone(copy));
        }
        if !inside() {
            return Err(Errno::SIGBUS);
        }
        let copy = Arc::new(AnonMemory::new(BLOCK as usize));
        copy.write(0, bytes)?;
        copies.insert(at / BLOCK, Arc::clone(&copy));
        Ok(copy)
    }

    /// The file ends at `size` now: copies of pages wholly behind it are gone.
    pub(crate) fn truncated(&self, size: u64) {
        let first = size.next_multiple_of(BLOCK).saturating_sub(self.file_offset) / BLOCK;
        self.copies.lock().split_off(&first);
    }

    /// A forked child's pages: copies of the copies.
    pub(crate) fn fork(&self) -> PrivatePages {
        let child = PrivatePages::new(self.file_offset);
        let mut bytes = vec![0; BLOCK as usize];
        let duplicate = |(page, copy): (&u64, &Arc<AnonMemory>)| {
            let duplicate = AnonMemory::new(BLOCK as usize);
            let moved = copy.read(0, &mut bytes).and_then(|()| duplicate.write(0, &bytes));
            debug_assert_eq!(moved, Ok(()), "both are pages");
            (*page, Arc::new(duplicate))
        };
        let duplicates = self.copies.lock().iter().map(duplicate).collect();
        *child.copies.lock() = duplicates;
        child
    }
}
