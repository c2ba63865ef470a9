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
//! spaces, `memcpy_flushcache`, `arch_wb_cache_pmem`. Linux tags a huge page as a whole; here
//! pages of 4 KiB are tagged **\[chosen\]**.

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
    dirty: Mutex<PageList>,
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

    /// What a power cut leaves of the bytes; none if it leaves them all.
    pub(crate) fn durable(&self) -> Option<Arc<DurableImage>> {
        self.volatile.as_ref().map(|caches| Arc::clone(&caches.durable))
    }

    /// Writes the lines of `len` bytes at byte `offset` of the device back to it.
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

    /// A fault for writing has reached `pages`.
    pub(crate) fn dirty(&self, pages: PageRange) {
        if let Some(caches) = &self.volatile {
            caches.dirty.lock().put(pages);
        }
    }

    /// `fsync`: writes those of `pages` back that are dirty. They are clean then.
    pub(crate) fn clean(&self, live: &Device, pages: PageRange) {
        let Some(caches) = &self.volatile else { return };
        // Clean first: a store during the write-back dirties the page anew.
        let dirty = caches.dirty.lock().take(pages);
        dirty.into_iter().for_each(|pages| self.write_back_pages(live, pages));
    }

    /// How many 64-byte lines of `pages` a power cut would take back now.
    pub(crate) fn unflushed(&self, live: &Device, pages: PageRange) -> u64 {
        let lost = self.volatile.as_ref().map(|caches| caches.durable.unflushed(live, pages).unwrap_or(0));
        lost.unwrap_or(0)
    }
}
