//! Files that are not DAX: their pages are ordinary memory, in the page cache of another file
//! system or of tmpfs.
//!
//! It owns a file's size and its pages by number. Invariants: a page that the file loses (truncate,
//! punch) is never the file's again, and lives as long as something holds it; so no change waits
//! for a holder, and no holder reaches a page that the file got later. The pages of all such files
//! of a machine, lost ones that are held among them, take no more than [`MEMORY_FILES_MAX`] bytes.
//! Kernel counterpart: `struct address_space` with `truncate_inode_pages` (mm/truncate.c);
//! mm/shmem.c.

use std::any::Any;
use std::collections::BTreeMap;

use emulator::sync::atomic::{AtomicU64, Ordering};
use emulator::sync::{Arc, Mutex};

use crate::base::errno::Errno;
use crate::base::units::{BLOCK, FILE_MAX};
use crate::vfs::attachments::{Attachment, Slot};
use crate::vfs::kernel::Kernel;
use crate::vfs::open_file::{Deferred, Description, OpenObject, OpenTarget, Passing, downcast};
use crate::vfs::page_run::{MemoryPage, PageRun};

/// How many bytes of pages the memory files of one machine have at most: 256 MiB **\[chosen\]**.
pub const MEMORY_FILES_MAX: u64 = 256 << 20;

/// Whose pages they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryFileKind {
    /// A file system without DAX, which must know when a page gets dirty. A long-term pin for
    /// writing is EFAULT. Kernel: `writable_file_mapping_allowed` (mm/gup.c).
    PageCache,
    /// tmpfs, or a memfd: long-term pins are allowed.
    Shmem,
}

/// Of the kernel: how many bytes the pages of its memory files have.
#[derive(Debug, Default)]
pub(crate) struct MemoryFileBytes(Arc<AtomicU64>);

impl Attachment for MemoryFileBytes {
    const SLOT: Slot = Slot::MemoryFileBytes;
}

#[derive(Debug, Default)]
struct FileMap {
    size: u64,
    pages: BTreeMap<u64, Arc<MemoryPage>>,
}

impl FileMap {
    /// The file reaches to `end` at least. What was stored through a mapping behind the old end, in
    /// its page, is not to be seen.
    fn grow(&mut self, end: u64) -> Result<(), Errno> {
        if end > self.size {
            zero_in_page(self, self.size, self.size.next_multiple_of(BLOCK))?;
            self.size = end;
        }
        Ok(())
    }
}

/// See the module.
#[derive(Debug)]
pub struct MemoryFile {
    kind: MemoryFileKind,
    map: Mutex<FileMap>,
    /// Held while the size changes and private mappings lose what lies behind it: both are one step
    /// for other changes of the size.
    resizing: Mutex<()>,
    of_all: Arc<AtomicU64>,
}

impl MemoryFile {
    /// A file of `size` bytes, all of them a hole.
    ///
    /// # Errors
    /// EFBIG.
    pub(crate) fn new(kernel: &Kernel, kind: MemoryFileKind, size: u64) -> Result<MemoryFile, Errno> {
        if size > FILE_MAX {
            return Err(Errno::EFBIG);
        }
        let of_all = Arc::clone(&kernel.attached::<MemoryFileBytes>().0);
        Ok(MemoryFile {
            kind,
            map: Mutex::new(FileMap { size, pages: BTreeMap::new() }),
            resizing: Mutex::default(),
            of_all,
        })
    }

    /// The file that is open there, if it is a memory file.
    pub(crate) fn of(description: &Description) -> Option<Arc<MemoryFile>> {
        match description.open() {
            OpenTarget::Object(object) => downcast(Arc::clone(object)).ok(),
            OpenTarget::File { .. } => None,
        }
    }

    /// Whether a device may hold its pages for long, to write them.
    pub(crate) fn allows_long_term_write(&self) -> bool {
        self.kind == MemoryFileKind::Shmem
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.map.lock().size
    }

    /// How many pages it has.
    pub fn pages(&self) -> u64 {
        self.map.lock().pages.len() as u64
    }

    /// Reads from byte `offset`; the number of bytes, short at the end of the file. Holes read as
    /// zeros.
    pub(crate) fn read(&self, offset: u64, into: &mut [u8]) -> Result<usize, Errno> {
        let (len, pages) = {
            let map = self.map.lock();
            let len = (into.len() as u64).min(map.size.saturating_sub(offset)) as usize;
            let numbers = page_numbers(offset, len as u64);
            (len, numbers.map(|page| map.pages.get(&page).cloned()).collect::<Vec<_>>())
        };
        let mut done = 0;
        for page in pages {
            let at = (offset + done as u64) % BLOCK;
            let part = &mut into[done..len.min(done + (BLOCK - at) as usize)];
            match page {
                Some(page) => page.bytes.read(at, part)?,
                None => part.fill(0),
            }
            done += part.len();
        }
        Ok(len)
    }

    /// Writes at byte `offset`, all or nothing.
    ///
    /// # Errors
    /// ENOSPC: no memory is left for its pages.
    pub(crate) fn write(&self, offset: u64, from: &[u8]) -> Result<usize, Errno> {
        if from.is_empty() {
            return Ok(0);
        }
        let end = offset.checked_add(from.len() as u64).filter(|end| *end <= FILE_MAX).ok_or(Errno::EFBIG)?;
        let run = {
            let mut map = self.map.lock();
            let run = self.run(&mut map, offset, from.len() as u64).ok_or(Errno::ENOSPC)?;
            map.grow(end)?;
            run
        };
        run.write(0, from).map(|()| from.len())
    }

    /// How much a read of `len` bytes at `offset` transfers: it is short at the end of the file.
    pub(crate) fn readable(&self, offset: u64, len: u64) -> u64 {
        len.min(self.size().saturating_sub(offset))
    }

    /// The pages that a direct read of `len` bytes at `offset` is from. Holes are of one page of
    /// zeros.
    pub(crate) fn pages_to_read(&self, offset: u64, len: u64) -> PageRun {
        let zeros = Arc::new(MemoryPage::new(None));
        let map = self.map.lock();
        let pages = page_numbers(offset, len).map(|page| Arc::clone(map.pages.get(&page).unwrap_or(&zeros)));
        PageRun::new(pages.collect(), offset % BLOCK)
    }

    /// The pages that a direct write of `len` bytes at `offset` goes to. The file has its new size
    /// when this returns **\[chosen\]**.
    ///
    /// # Errors
    /// ENOSPC: no memory is left for its pages.
    pub(crate) fn pages_to_write(&self, offset: u64, len: u64) -> Result<PageRun, Errno> {
        let mut map = self.map.lock();
        let run = self.run(&mut map, offset, len).ok_or(Errno::ENOSPC)?;
        if len > 0 {
            map.grow(offset + len)?;
        }
        Ok(run)
    }

    /// Runs `lost` with the new size if the file gets shorter, before another call changes the
    /// size.
    ///
    /// # Errors
    /// EFBIG.
    pub(crate) fn resize(&self, size: u64, lost: impl FnOnce()) -> Result<(), Errno> {
        let _resizing = self.resizing.lock();
        let before = self.size();
        self.set_size(size)?;
        if size < before {
            lost();
        }
        Ok(())
    }

    /// Sets the size. Pages wholly behind it are lost; the rest of the last page reads as zeros.
    fn set_size(&self, size: u64) -> Result<(), Errno> {
        if size > FILE_MAX {
            return Err(Errno::EFBIG);
        }
        let _lost = {
            let mut map = self.map.lock();
            let lost = map.pages.split_off(&size.div_ceil(BLOCK));
            zero_in_page(&map, size, size.next_multiple_of(BLOCK))?;
            map.grow(size)?;
            map.size = size;
            lost
        };
        Ok(())
    }

    /// Punches a hole of the bytes from `offset` to `end`.
    pub(crate) fn punch(&self, offset: u64, end: u64) -> Result<(), Errno> {
        let mut map = self.map.lock();
        let (first, last) = (offset.div_ceil(BLOCK), end / BLOCK);
        if first < last {
            let mut behind = map.pages.split_off(&first);
            let mut kept = behind.split_off(&last);
            map.pages.append(&mut kept);
        }
        zero_in_page(&map, offset, end.min(offset.next_multiple_of(BLOCK)))?;
        zero_in_page(&map, (last * BLOCK).max(offset), end)
    }

    /// Makes the pages of `len` bytes at `offset`.
    ///
    /// # Errors
    /// ENOSPC: no memory is left for its pages.
    pub(crate) fn allocate(&self, offset: u64, len: u64, keep_size: bool) -> Result<(), Errno> {
        let mut map = self.map.lock();
        self.run(&mut map, offset, len).ok_or(Errno::ENOSPC)?;
        if !keep_size {
            map.grow(offset + len)?;
        }
        Ok(())
    }

    /// The pages that hold `len` bytes at `offset`, made where there are none.
    ///
    /// # Errors
    /// SIGBUS: beyond the page that holds the last byte of the file, or no memory is left for it.
    pub(crate) fn fault(&self, offset: u64, len: u64) -> Result<PageRun, Errno> {
        let mut map = self.map.lock();
        let end = offset.checked_add(len).ok_or(Errno::SIGBUS)?;
        if end > map.size.next_multiple_of(BLOCK) {
            return Err(Errno::SIGBUS);
        }
        self.run(&mut map, offset, len).ok_or(Errno::SIGBUS)
    }

    /// The pages of a range. `None`, and the file is as before, if the machine has no room for
    /// those that are to be made.
    fn run(&self, map: &mut FileMap, offset: u64, len: u64) -> Option<PageRun> {
        let pages = page_numbers(offset, len);
        if pages.end - pages.start > MEMORY_FILES_MAX / BLOCK {
            return None;
        }
        let missing: Vec<u64> = pages.clone().filter(|page| !map.pages.contains_key(page)).collect();
        let bytes = (missing.len() as u64).checked_mul(BLOCK)?;
        let fits = |all: u64| all.checked_add(bytes).filter(|all| *all <= MEMORY_FILES_MAX);
        self.of_all.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok()?;
        for page in missing {
            let made = MemoryPage::new(Some(Arc::clone(&self.of_all)));
            map.pages.insert(page, Arc::new(made));
        }
        let pages = pages.filter_map(|page| map.pages.get(&page).cloned()).collect();
        Some(PageRun::new(pages, offset % BLOCK))
    }
}

/// The pages that hold `len` bytes at `offset`.
fn page_numbers(offset: u64, len: u64) -> std::ops::Range<u64> {
    if len == 0 { 0..0 } else { offset / BLOCK..(offset + len).div_ceil(BLOCK) }
}

/// Zeroes the bytes from `from` to `to`, which lie in one page, if the file has it.
fn zero_in_page(map: &FileMap, from: u64, to: u64) -> Result<(), Errno> {
    match map.pages.get(&(from / BLOCK)) {
        Some(page) if from < to => page.bytes.write(from % BLOCK, &vec![0; (to - from) as usize]),
        _ => Ok(()),
    }
}

impl OpenObject for MemoryFile {
    fn release(&self, _kernel: &Arc<Kernel>, _deferred: &mut Deferred) {}

    fn may_pass(&self, _kernel: &Kernel, _pass: Passing) -> bool {
        true
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

#[cfg(all(test, not(any(daxlab_loom, daxlab_shuttle))))]
mod tests;
