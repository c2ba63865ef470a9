//! On-demand paging: a device's range of a process's memory that pins nothing between accesses.
//!
//! It owns the cached translation of each range: runs of the file's blocks, as an access found
//! them. Invariants: a cached run is used only under short-term pins that were taken while the
//! file's generation was still the one it was read at, and while the process has unmapped nothing
//! since; so a truncate never waits for it and never meets it stale. Only written, unshared blocks
//! are cached: a block may turn from unwritten to written without a new generation. A read or a
//! flush of a hole allocates nothing; a write is a fault of the process whose memory it is, and
//! allocates or unshares as a store would. Kernel counterpart: `struct ib_umem_odp` with its
//! `mmu_interval_notifier` (drivers/infiniband/core/umem_odp.c), `hmm_range_fault`.

use std::collections::BTreeMap;
use std::fmt;

use emulator::ledger::Stamp;
use emulator::race_point;
use emulator::sync::atomic::Ordering;
use emulator::sync::{Arc, Mutex};

use crate::base::atomic_op::AtomicOp;
use crate::base::errno::Errno;
use crate::base::range::BlockRange;
use crate::base::units::BLOCK;
use crate::extent_map::lookup::{is_writable, pages_of};
use crate::extent_map::{Extent, ExtentState, Piece};
use crate::holders::short_pins::ShortPins;
use crate::layout_change::changes::allocate::{AllocationCause, clean_unwritten, fault_in};
use crate::pinning::dma::{AccessSubject, atomic_at, persist_short, read_short, store_short, write_short};
use crate::pinning::gup::{pin_short, pin_translated, unpin_short};
use crate::pinning::registration::PinRequest;
use crate::vfs::address_space::Backing;
use crate::vfs::inode::Inode;
use crate::vfs::kernel::Kernel;
use crate::vfs::memory_file::MemoryFile;
use crate::vfs::open_file::Deferred;
use crate::vfs::page_run::PageRun;
use crate::vfs::process::Process;

/// Whether an access stores into the range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AccessIntent {
    /// A read or a flush: a hole stays a hole.
    Look,
    /// A write or an atomic.
    Store,
}

/// How many runs a range caches. A range with more drops them all and starts again.
const RUNS_MAX: usize = 4096;

/// A range of a process's memory that is translated at each access (on-demand paging).
pub struct OnDemand {
    process: Arc<Process>,
    va: u64,
    /// Length in bytes.
    pub len: u64,
    write: bool,
    cache: Mutex<Option<Translation>>,
}

impl fmt::Debug for OnDemand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let OnDemand { process, va, len, write, .. } = self;
        write!(f, "OnDemand {{ pid: {}, va: {va:#x}, len: {len}, write: {write} }}", process.pid())
    }
}

/// Where a range's bytes lie, as far as it is known.
struct Translation {
    inode: Arc<Inode>,
    /// Byte offset in the file of the range's first byte.
    file_offset: u64,
    /// Whether stores go through it: else the mapping is read-only.
    writable: bool,
    /// The process's count of unmaps, read before the address was looked up.
    unmaps: u64,
    /// The file's generation and size when the map was read, and a read point drawn before that.
    generation: u64,
    size: u64,
    read_point: Stamp,
    /// Written, unshared runs, by first file block.
    runs: BTreeMap<u64, Extent>,
}

impl Translation {
    fn holds(&self, process: &Process) -> bool {
        self.unmaps == process.unmaps.load(Ordering::SeqCst) && self.generation == self.inode.generation()
    }

    /// The pieces of `range`, if all of it is known.
    fn pieces(&self, range: BlockRange) -> Option<Vec<Piece>> {
        let mut pieces = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let (_, run) = self.runs.range(..=at).next_back()?;
            let part = run.clipped(BlockRange::new(at, range.end))?;
            at = part.end();
            pieces.push(Piece::Mapped(part));
        }
        Some(pieces)
    }

    fn learn(&mut self, pieces: &[Piece]) {
        for piece in pieces {
            let Piece::Mapped(run) = piece else { continue };
            if run.state != ExtentState::Written || run.shared {
                continue;
            }
            if self.runs.len() >= RUNS_MAX {
                self.runs.clear();
            }
            // A run that starts inside would hide the rest of the new one.
            let hidden: Vec<u64> = self.runs.range(run.file_block..run.end()).map(|(start, _)| *start).collect();
            for start in hidden {
                self.runs.remove(&start);
            }
            self.runs.insert(run.file_block, *run);
        }
    }
}

/// Pages held for one access.
enum Held {
    /// Pinned pages of a DAX file.
    Dax {
        inode: Arc<Inode>,
        pins: ShortPins,
        /// The access's first byte in the file.
        at: u64,
    },
    /// Pages of a file that is not DAX.
    Memory(PageRun),
}

/// The bytes of one access.
enum HeldBytes<'h> {
    /// From this byte of the file on.
    Dax(&'h Inode, &'h ShortPins, u64),
    Memory(&'h PageRun),
}

impl OnDemand {
    pub(crate) fn new(process: Arc<Process>, request: &PinRequest) -> OnDemand {
        let PinRequest { va, len, write, .. } = *request;
        OnDemand { process, va, len, write, cache: Mutex::new(None) }
    }

    /// Runs `access` on `len` bytes from `offset` on, under short-term pins: by the cached
    /// translation if it still holds, else by a fault. What lies beyond the end, and what a fault
    /// is refused, is EFAULT, which the NIC reports as a remote access error.
    fn access<R>(
        &self,
        kernel: &Arc<Kernel>,
        (offset, len): (u64, u64),
        intent: AccessIntent,
        access: impl FnOnce(HeldBytes<'_>) -> Result<R, Errno>,
    ) -> Result<R, Errno> {
        if len == 0 {
            return Err(Errno::EINVAL);
        }
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.len);
        if !inside || (intent == AccessIntent::Store && !self.write) || self.process.is_dying() {
            return Err(Errno::EFAULT);
        }
        let held = match self.pin_cached(kernel, offset, len, intent)? {
            Some(held) => held,
            None => self.fault(kernel, offset, len, intent)?,
        };
        match held {
            Held::Memory(pages) => access(HeldBytes::Memory(&pages)),
            Held::Dax { inode, pins, at } => {
                let beyond = at + len > pins.size;
                let result = if beyond { Err(Errno::EFAULT) } else { access(HeldBytes::Dax(&inode, &pins, at)) };
                unpin_short(kernel, pins);
                result
            }
        }
    }

    /// Pins what the cached translation says, if it covers the range and still holds once it is
    /// pinned.
    fn pin_cached(
        &self,
        kernel: &Arc<Kernel>,
        offset: u64,
        len: u64,
        intent: AccessIntent,
    ) -> Result<Option<Held>, Errno> {
        let (known, outdated) = {
            let mut cache = self.cache.lock();
            match &*cache {
                Some(known) if known.holds(&self.process) => {
                    let at = known.file_offset + offset;
                    let allowed = known.writable || intent == AccessIntent::Look;
                    let pieces = known.pieces(BlockRange::of_bytes(at, len)).filter(|_| allowed);
                    let Translation { size, read_point, generation, .. } = *known;
                    let pins = |pieces| ShortPins { pins: Vec::new(), pieces, size, read_point, generation };
                    (pieces.map(|pieces| (Arc::clone(&known.inode), pins(pieces), at)), None)
                }
                _ => (None, cache.take()),
            }
        };
        if outdated.is_some() {
            kernel.counters.odp_invalidations.add(1);
        }
        let Some((inode, translated, at)) = known else { return Ok(None) };
        race_point!("odp: translated, not pinned");
        let pinned = pin_translated(kernel, &inode, translated.generation, &translated.pieces)?;
        Ok(pinned.map(|pins| Held::Dax { inode, pins: ShortPins { pins, ..translated }, at }))
    }

    /// Looks the address up in the process's memory as it is now, allocates and unshares what a
    /// store needs, pins what the file has there, and caches it.
    fn fault(&self, kernel: &Arc<Kernel>, offset: u64, len: u64, intent: AccessIntent) -> Result<Held, Errno> {
        kernel.counters.odp_faults.add(1);
        // Before the mappings are read: a later unmap makes what is found here outdated.
        let unmaps = self.process.unmaps.load(Ordering::SeqCst);
        let va = self.va + offset;
        let target = self.process.target(va, len, intent == AccessIntent::Store).map_err(|_| Errno::EFAULT)?;
        let writable = self.process.maps_writable(va, len);
        let (description, at) = match target {
            Backing::File { description, offset } => (description, offset),
            Backing::Memory { file, offset } => return fault_memory(&file, offset, len).map(Held::Memory),
            // The address was mapped anew. None of these is registered on demand.
            other @ (Backing::Private { .. } | Backing::Device { .. } | Backing::Anon { .. }) => {
                let mut deferred = Deferred::default();
                other.put(&mut deferred);
                kernel.run_deferred(deferred);
                return Err(Errno::EFAULT);
            }
        };
        let held = (|| {
            let (inode, _) = description.file().ok_or(Errno::EFAULT)?;
            let range = BlockRange::of_bytes(at, len);
            let pins = match intent {
                AccessIntent::Look => pin_short(kernel, inode, range, None)?,
                AccessIntent::Store => self.pin_for_store(kernel, inode, range, at + len)?,
            };
            self.learn(kernel, inode, (unmaps, writable), at - offset, &pins);
            Ok(Held::Dax { inode: Arc::clone(inode), pins, at })
        })();
        let mut deferred = Deferred::default();
        description.put(&mut deferred);
        kernel.run_deferred(deferred);
        held
    }

    /// Pins `range` once every block of it is the file's own and written. What is missing or shared
    /// is faulted in as by a store of the process whose memory this is: a lease that forbids the
    /// store refuses the access. `end` is the access's end in the file, in bytes.
    fn pin_for_store(
        &self,
        kernel: &Arc<Kernel>,
        inode: &Arc<Inode>,
        range: BlockRange,
        end: u64,
    ) -> Result<ShortPins, Errno> {
        loop {
            clean_unwritten(kernel, inode, range);
            let pins = pin_short(kernel, inode, range, None)?;
            if end > pins.size || pins.pieces.iter().all(is_writable) {
                return Ok(pins);
            }
            unpin_short(kernel, pins);
            race_point!("odp: hole found, not filled");
            let task = kernel.spawn_task(Arc::clone(&self.process));
            // A device that fails is no fault of the requester's.
            let refused = |errno| if errno == Errno::EIO { Errno::EIO } else { Errno::EFAULT };
            fault_in(&task, inode, range, AllocationCause::Fault).map_err(refused)?;
        }
    }

    fn learn(
        &self,
        kernel: &Kernel,
        inode: &Arc<Inode>,
        (unmaps, writable): (u64, bool),
        file_offset: u64,
        pins: &ShortPins,
    ) {
        let ShortPins { generation, size, read_point, .. } = *pins;
        let outdated = {
            let mut cache = self.cache.lock();
            let known = cache.as_ref().is_some_and(|known| {
                let same = Arc::ptr_eq(&known.inode, inode) && known.file_offset == file_offset;
                same && (known.generation, known.unmaps, known.writable) == (generation, unmaps, writable)
            });
            let outdated = if known { None } else { cache.take() };
            cache
                .get_or_insert_with(|| Translation {
                    inode: Arc::clone(inode),
                    file_offset,
                    writable,
                    unmaps,
                    generation,
                    size,
                    read_point,
                    runs: BTreeMap::new(),
                })
                .learn(&pins.pieces);
            outdated
        };
        if outdated.is_some() {
            kernel.counters.odp_invalidations.add(1);
        }
    }

    /// Translates `len` bytes from `offset` on ahead of an access; for writing, allocates what is
    /// missing. Leaves no pin.
    ///
    /// # Errors
    /// EFAULT beyond the end of the file or against a lease; EIO if the device fails.
    pub fn prefetch(&self, kernel: &Arc<Kernel>, offset: u64, len: u64, write: bool) -> Result<(), Errno> {
        let intent = if write { AccessIntent::Store } else { AccessIntent::Look };
        self.access(kernel, (offset, len), intent, |_| Ok(()))
    }

    /// As [`Pinned::dma_write`](super::registration::Pinned::dma_write), with a fault if needed,
    /// which allocates and unshares.
    ///
    /// # Errors
    /// EFAULT beyond the end of the file, through a read-only mapping, or where a lease forbids the
    /// fault; EIO if the device fails.
    pub fn dma_write(&self, kernel: &Arc<Kernel>, offset: u64, from: &[u8]) -> Result<(), Errno> {
        let len = from.len() as u64;
        self.access(kernel, (offset, len), AccessIntent::Store, |held| match held {
            HeldBytes::Dax(inode, pins, at) => {
                // An `fsync` that cleans the page unmaps it from the device: the next access
                // faults again.
                let _storing = store_short(kernel, pins);
                write_short(kernel, inode, pins, at, from)
            }
            HeldBytes::Memory(pages) => pages.write(0, from),
        })
    }

    /// As [`Pinned::dma_read`](super::registration::Pinned::dma_read), with a fault if needed.
    /// Holes and unwritten blocks read as zeros.
    ///
    /// # Errors
    /// EFAULT beyond the end of the file; EIO if the device fails.
    pub fn dma_read(&self, kernel: &Arc<Kernel>, offset: u64, into: &mut [u8]) -> Result<(), Errno> {
        let len = into.len() as u64;
        self.access(kernel, (offset, len), AccessIntent::Look, |held| match held {
            HeldBytes::Dax(inode, pins, at) => read_short(kernel, inode, pins, at, into),
            HeldBytes::Memory(pages) => pages.read(0, into),
        })
    }

    /// As [`Pinned::persist`](super::registration::Pinned::persist), with a fault if needed. A hole
    /// stays one.
    ///
    /// # Errors
    /// EFAULT beyond the end of the file, or if it is not DAX: its pages are not persistent; EIO if
    /// the device fails.
    pub fn persist(&self, kernel: &Arc<Kernel>, offset: u64, len: u64) -> Result<(), Errno> {
        if len == 0 {
            return Ok(());
        }
        self.access(kernel, (offset, len), AccessIntent::Look, |held| {
            let HeldBytes::Dax(_, pins, at) = held else { return Err(Errno::EFAULT) };
            persist_short(kernel, pins, at, len)
        })
    }

    /// As [`Pinned::dma_atomic`](super::registration::Pinned::dma_atomic), with a fault if needed.
    ///
    /// # Errors
    /// EINVAL if misaligned; EFAULT as for [`OnDemand::dma_write`]; EIO if the device fails.
    pub fn dma_atomic(&self, kernel: &Arc<Kernel>, offset: u64, op: AtomicOp) -> Result<u64, Errno> {
        if !self.va.wrapping_add(offset).is_multiple_of(8) {
            return Err(Errno::EINVAL);
        }
        self.access(kernel, (offset, 8), AccessIntent::Store, |held| {
            let (inode, pins, at) = match held {
                HeldBytes::Dax(inode, pins, at) => (inode, pins, at),
                HeldBytes::Memory(pages) => return pages.atomic(0, op),
            };
            let Some(Piece::Mapped(extent)) = pins.pieces.first() else { return Err(Errno::EFAULT) };
            let _storing = store_short(kernel, pins);
            let subject = AccessSubject { region: None, ino: inode.ino(), file_block: extent.file_block };
            let skip = at - extent.file_block * BLOCK;
            atomic_at(kernel, pages_of(extent), skip, pins.read_point, &subject, op)
        })
    }
}

/// The pages of an access to a file that is not DAX.
fn fault_memory(file: &MemoryFile, offset: u64, len: u64) -> Result<PageRun, Errno> {
    if offset + len > file.size() {
        return Err(Errno::EFAULT);
    }
    file.fault(offset, len).map_err(|_| Errno::EFAULT)
}
