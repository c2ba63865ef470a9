//! The CPU caches in front of the device: which stores a power cut takes back.
//!
//! It owns, on a platform without eADR, the durable image of the device and the *dirty* pages:
//! those that a store, or a pin for writing, has reached through a file's mapping since the last
//! `fsync`. Under [`Platform::Eadr`] it owns nothing, and all stores are durable.
//!
//! - What the kernel's own calls store (`write`, zeroing, copies of blocks, direct I/O to the file)
//!   is durable when they return.
//! - What a CPU stores through a mapping is durable after CLWB and SFENCE, `msync` or `fsync`; what
//!   a guest stores, after its flush.
//! - What a device stores through pinned pages (RDMA, AF_XDP, fixed buffers, direct I/O into a
//!   mapping) is durable after an RDMA FLUSH (persistent), or CLWB and SFENCE.
//!
//! The kernel copies with non-temporal stores; a device's writes are allocated in the CPU's cache
//! (Intel DDIO). `fsync` writes back whole *dirty* pages only. It makes them clean and
//! write-protects them, so the next CPU store faults and dirties them again. A device that still
//! has the page pinned stores without a fault: a later `fsync` misses that store. Invariants: a
//! line is never older after the cut than its last write-back; the kernel's own stores are written
//! back before the map that shows them is published. Kernel counterparts:
//! `dax_writeback_mapping_range` and its tags (fs/dax.c), `noop_dirty_folio` of the DAX address
//! spaces, `memcpy_flushcache`, `arch_wb_cache_pmem`. Linux tags a huge page as a whole; here pages
//! of 4 KiB are tagged **\[chosen\]**. The copy of a shared block is written back too
//! **\[chosen\]**: in Linux it is dirty after a fault, and after a `write` or an unshare the lines
//! that were only copied are neither flushed nor tagged (`dax_iomap_copy_around`).

use emulator::device::persistence::DurableImage;
use emulator::device::{Device, OpenError};
use emulator::pin::PageRange;
use emulator::sync::{Arc, Mutex};

use crate::base::units::BLOCK;
use crate::design::Platform;
use crate::volume::PageList;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct CpuCaches {
    volatile: Option<VolatileCaches>,
}

#[derive(Debug)]
struct VolatileCaches {
    durable: Arc<DurableImage>,
    dirty: Mutex<DirtyPages>,
}

#[derive(Debug, Default)]
struct DirtyPages {
    pages: PageList,
    /// Of each store under way, the pages. They stay dirty through a write-back, because the store
    /// may land behind it.
    storing: Vec<PageRange>,
}

/// A store to pages of a file that is under way. The pages are dirty, and stay so until it ends.
#[must_use]
pub(crate) struct StoreUnderWay<'c> {
    caches: Option<&'c VolatileCaches>,
    pages: Vec<PageRange>,
}

impl Drop for StoreUnderWay<'_> {
    fn drop(&mut self) {
        let Some(caches) = self.caches else { return };
        let mut dirty = caches.dirty.lock();
        for pages in &self.pages {
            if let Some(at) = dirty.storing.iter().position(|storing| storing == pages) {
                dirty.storing.swap_remove(at);
            }
        }
    }
}

impl CpuCaches {
    /// The caches of a machine that boots with `live` as it is now.
    ///
    /// # Errors
    /// There is no memory for the durable image.
    pub(crate) fn new(platform: Platform, live: &Device) -> Result<CpuCaches, OpenError> {
        match platform {
            Platform::Eadr => Ok(CpuCaches::default()),
            Platform::Adr => Ok(CpuCaches::over(Some(Arc::new(DurableImage::new(live)?)))),
        }
    }

    /// The caches of a machine that boots over a durable image.
    pub(crate) fn over(durable: Option<Arc<DurableImage>>) -> CpuCaches {
        let volatile = durable.map(|durable| VolatileCaches { durable, dirty: Mutex::default() });
        CpuCaches { volatile }
    }

    /// Whether a store can be lost.
    pub(crate) fn are_volatile(&self) -> bool {
        self.volatile.is_some()
    }

    /// What a power cut leaves of the bytes; none if it leaves them all.
    pub(crate) fn durable(&self) -> Option<Arc<DurableImage>> {
        self.volatile.as_ref().map(|caches| Arc::clone(&caches.durable))
    }

    /// Writes back the lines of `len` bytes at byte `offset` of the device.
    pub(crate) fn write_back(&self, live: &Device, offset: u64, len: u64) {
        if let Some(caches) = &self.volatile {
            // The callers' bytes are on the device: they have just been copied there.
            let _inside = caches.durable.write_back(live, offset..offset.saturating_add(len));
        }
    }

    /// As [`CpuCaches::write_back`], of whole pages.
    pub(crate) fn write_back_pages(&self, live: &Device, pages: PageRange) {
        self.write_back(live, pages.start() * BLOCK, pages.len() * BLOCK);
    }

    /// A fault for writing has reached `pages`: a pin for writing.
    pub(crate) fn dirty(&self, pages: PageRange) {
        if let Some(caches) = &self.volatile {
            caches.dirty.lock().pages.put(pages);
        }
    }

    /// A store to `pages` begins, by a CPU or by a device on demand. Its end is the drop of what is
    /// returned.
    pub(crate) fn store(&self, pages: impl IntoIterator<Item = PageRange>) -> StoreUnderWay<'_> {
        let Some(caches) = &self.volatile else { return StoreUnderWay { caches: None, pages: Vec::new() } };
        let pages: Vec<PageRange> = pages.into_iter().collect();
        let mut dirty = caches.dirty.lock();
        for pages in &pages {
            dirty.pages.put(*pages);
            dirty.storing.push(*pages);
        }
        drop(dirty);
        StoreUnderWay { caches: Some(caches), pages }
    }

    /// `fsync`: writes back those of `pages` that are dirty. They are clean then, but for stores
    /// under way. A concurrent call returns only after the bytes are durable too: it waits for the
    /// list.
    pub(crate) fn clean(&self, live: &Device, pages: PageRange) {
        let Some(caches) = &self.volatile else { return };
        let mut dirty = caches.dirty.lock();
        for pages in dirty.pages.take(pages) {
            self.write_back_pages(live, pages);
            let still: Vec<PageRange> = dirty.storing.iter().filter_map(|storing| storing.intersect(pages)).collect();
            still.into_iter().for_each(|pages| dirty.pages.put(pages));
        }
    }

    /// `pages` have left their file: no `fsync` reaches what was stored to them.
    pub(crate) fn forget(&self, pages: PageRange) {
        if let Some(caches) = &self.volatile {
            caches.dirty.lock().pages.take(pages);
        }
    }

    /// How many 64-byte lines of `pages` a power cut would take back now.
    pub(crate) fn unflushed(&self, live: &Device, pages: PageRange) -> u64 {
        let lost = self.volatile.as_ref().map(|caches| caches.durable.unflushed(live, pages).unwrap_or(0));
        lost.unwrap_or(0)
    }
}
