//! Block-layout clients: machines that know a file's extents and access the device directly (pNFS
//! block and SCSI layouts, NVMe-oF).
//!
//! It owns the kernel-internal layout lease that each client holds, in every design, even one
//! without user leases. Invariants: a layout is granted and a layout change published under the
//! inode's turn, so every granted layout is either true or being recalled; another process's
//! change continues only when no layout is left in its range; a client that does not return a
//! recalled layout within two lease periods is *fenced*: its access is closed, its I/O in flight
//! drains, the layout ends. A layout pins no page: the blocks stay because the change waits.
//! Kernel counterpart: fs/nfsd/nfs4layouts.c (`nfsd4_layout_lm_break`, `nfsd4_cb_layout_done`,
//! `nfsd4_layout_lm_change`), fs/nfsd/blocklayout.c (fencing by persistent reservations).

use std::any::Any;

use emulator::ledger::Stamp;
use emulator::pin::gate::Gate;
use emulator::race_point;
use emulator::runtime::clock::Nanos;
use emulator::sync::atomic::{AtomicBool, Ordering};
use emulator::sync::{Arc, Mutex, OnceLock};
use emulator::wait::WaitQueue;

use crate::base::errno::Errno;
use crate::base::numbers::Pid;
use crate::base::range::{BlockRange, BlockRanges};
use crate::base::units::BLOCK;
use crate::extent_map::Extent;
use crate::vfs::attachments::{Attachment, Slot};
use crate::vfs::fd_holders::FdHolders;
use crate::vfs::inode::Inode;
use crate::vfs::kernel::Kernel;
use crate::vfs::open_file::{Deferred, Description, OpenObject, Passing};

/// What a client may do with a layout. Kernel: `IOMODE4_READ`, `IOMODE4_RW`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoMode {
    /// Read its extents.
    Read,
    /// Read and write them; holes were allocated for it.
    ReadWrite,
}

/// A layout that a client holds; see the module.
#[derive(Debug)]
pub struct BlockLayout {
    /// The processes that hold its descriptor, once it has one.
    pub(crate) fd_holders: OnceLock<Arc<FdHolders>>,
    pub(crate) pid: Pid,
    pub(crate) inode: Arc<Inode>,
    pub(crate) range: BlockRange,
    pub(crate) mode: IoMode,
    /// The written extents in the range, in file order.
    pub(crate) extents: Vec<Extent>,
    pub(crate) read_point: Stamp,
    /// Counts I/O in flight; closed once the layout was returned or fenced. The last access to
    /// leave it then ends the layout.
    pub(crate) gate: Gate,
    /// When its time is over; `None` until it is recalled.
    pub(crate) recalled: Mutex<Option<Recall>>,
    pub(crate) fenced: AtomicBool,
    /// Keeps the file open until no I/O is in flight: an unlinked file's blocks stay as long.
    pub(crate) file: Mutex<Option<Arc<Description>>>,
}

/// A recall: the notice that a client got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recall {
    /// When it is fenced; `None` where leases are never taken by force (`lease_break_time = 0`).
    pub deadline: Option<Nanos>,
}

/// The layouts that clients hold on one inode.
#[derive(Debug, Default)]
pub(crate) struct BlockLayouts {
    pub(crate) held: Mutex<Vec<Arc<BlockLayout>>>,
    pub(crate) changed: WaitQueue,
}

impl Attachment for BlockLayouts {
    const SLOT: Slot = Slot::BlockLayouts;
}

impl BlockLayouts {
    /// The layouts that clients hold on `inode`.
    pub(crate) fn of(inode: &Inode) -> &BlockLayouts {
        inode.attached()
    }

    pub(crate) fn all(&self) -> Vec<Arc<BlockLayout>> {
        self.held.lock().clone()
    }

    pub(crate) fn overlapping(&self, ranges: &BlockRanges) -> Vec<Arc<BlockLayout>> {
        self.held.lock().iter().filter(|layout| ranges.overlaps(layout.range)).cloned().collect()
    }

    fn remove(&self, layout: &BlockLayout) {
        self.held.lock().retain(|held| !std::ptr::eq(Arc::as_ptr(held), layout));
        self.changed.wake_all();
    }
}

impl BlockLayout {
    /// The client's process.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// The file blocks it is about.
    pub fn range(&self) -> BlockRange {
        self.range
    }

    /// What the client may do.
    pub fn mode(&self) -> IoMode {
        self.mode
    }

    /// The notice that it is recalled, if it is.
    pub fn recall(&self) -> Option<Recall> {
        *self.recalled.lock()
    }

    /// Whether it was fenced.
    pub fn is_fenced(&self) -> bool {
        self.fenced.load(Ordering::SeqCst)
    }

    pub(crate) fn fd_holders(&self) -> Option<&Arc<FdHolders>> {
        self.fd_holders.get()
    }

    /// Closes it, and ends it if no I/O is in flight; else the last I/O ends it.
    pub(crate) fn close(&self, deferred: &mut Deferred) {
        let (inside, _) = self.gate.close();
        if inside == 0 {
            self.end(deferred);
        }
    }

    /// Takes it off the list and releases the file. The last access to leave the closed gate does
    /// this; twice does no harm.
    pub(crate) fn end(&self, deferred: &mut Deferred) {
        BlockLayouts::of(&self.inode).remove(self);
        let file = self.file.lock().take();
        if let Some(file) = file {
            file.put(deferred);
        }
    }

    pub(crate) fn access(&self, kernel: &Arc<Kernel>, body: impl FnOnce() -> Result<(), Errno>) -> Result<(), Errno> {
        let (result, last) = match self.gate.enter() {
            Ok(()) => {
                race_point!("block layout: entered");
                let result = body();
                (result, self.gate.leave())
            }
            Err(shut) => (Err(Errno::EIO), shut.last),
        };
        if last {
            let mut deferred = Deferred::default();
            self.end(&mut deferred);
            kernel.run_deferred(deferred);
        }
        result
    }

    /// Which part of bytes `offset..offset+len` of the file each extent holds: extent, bytes into
    /// it, and the part.
    pub(crate) fn parts(&self, offset: u64, len: u64) -> impl Iterator<Item = (&Extent, u64, std::ops::Range<usize>)> {
        self.extents.iter().filter_map(move |extent| {
            let (start, end) = (extent.file_block * BLOCK, extent.end() * BLOCK);
            let (from, to) = (offset.max(start), offset.saturating_add(len).min(end));
            (from < to).then(|| (extent, from - start, (from - offset) as usize..(to - offset) as usize))
        })
    }

    pub(crate) fn check(&self, offset: u64, len: u64) -> Result<(), Errno> {
        let inside = offset.checked_add(len).is_some_and(|_| self.range.contains(BlockRange::of_bytes(offset, len)));
        if inside { Ok(()) } else { Err(Errno::EFAULT) }
    }
}

impl OpenObject for BlockLayout {
    fn release(&self, _kernel: &Arc<Kernel>, deferred: &mut Deferred) {
        self.close(deferred);
    }

    /// A client's session is not passed to another process.
    fn may_pass(&self, _kernel: &Kernel, _pass: Passing) -> bool {
        false
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

/// Takes a client's access away: its I/O in flight drains, then its layout ends.
pub(crate) fn fence(kernel: &Arc<Kernel>, layout: &BlockLayout) {
    if !layout.fenced.swap(true, Ordering::SeqCst) {
        kernel.counters.layout_fences.add(1);
        kernel.trace("fenced", layout.pid.0.into(), layout.inode.ino().0, None);
    }
    let mut deferred = Deferred::default();
    layout.close(&mut deferred);
    kernel.run_deferred(deferred);
}

/// Tells a client, once, that its layout is recalled.
pub(crate) fn recall_layout(kernel: &Kernel, layout: &BlockLayout) -> Recall {
    let mut recalled = layout.recalled.lock();
    *recalled.get_or_insert_with(|| {
        kernel.counters.layout_recalls.add(1);
        let period = kernel.options.lease_break_time;
        let deadline = (!period.is_zero()).then(|| kernel.world.now().after(period * 2));
        Recall { deadline }
    })
}

#[cfg(all(test, not(any(daxlab_loom, daxlab_shuttle))))]
mod tests;
