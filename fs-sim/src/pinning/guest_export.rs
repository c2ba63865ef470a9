//! A guest export: a file that a virtual machine has as its persistent memory.
//!
//! It owns the file's open file, lease and pins for as long as the guest is attached. Invariants:
//! an export holds what the design's gate demands (an exclusive lease where it demands any) and
//! long-term pins over the whole file (none under `fault`, see below), or it does not exist; after
//! a revocation it has no pieces and flushes fail, for good; its lease ends with it, never before
//! its pins. Kernel counterpart: none; QEMU's `memory-backend-file,share=on` over a DAX file,
//! pinned by vfio, and virtio-pmem's flush (drivers/nvdimm/virtio_pmem.c; VirtIO 1.3 section
//! 5.19).
//!
//! # Mappings
//! An export can have a [`GuestMapping`]: a real virtual machine, whose loads and stores this
//! kernel neither sees nor stops. For the export it is one more access, in flight from the first
//! [`GuestExport::pieces`] until [`GuestExport::unmapped`]. As with any other access, a revocation
//! demands its end, and the pins, the lease and the blocks go when it has ended.
//!
//! Because its end can be demanded, such a guest is admitted where the gate is `fault` too. It
//! holds neither lease nor pins then: a task that is about to change one of its blocks has it
//! unmapped first, and waits. All of it is unmapped, for good **\[chosen\]**: nothing in
//! virtio-pmem tells a guest that a page is back. Kernel counterpart:
//! `mmu_notifier_invalidate_range_start` for a memory slot (virt/kvm/kvm_main.c), without the
//! fault that brings the page back.

use std::any::Any;
use std::fmt;

use emulator::ledger::Stamp;
use emulator::pin::PageRange;
use emulator::sync::{Arc, Mutex};

use crate::base::errno::Errno;
use crate::base::numbers::{HolderId, Ino};
use crate::base::range::BlockRange;
use crate::base::units::BLOCK;
use crate::design::LeaseRules;
use crate::holders::holder::{HolderInfo, PinHolder, RevokeReason};
use crate::holders::stale_watch::StaleWatch;
use crate::layout_change::copy::clean_file;
use crate::leases::layout::acquire::lease_file;
use crate::leases::layout::kind::LeaseKind;
use crate::pinning::admission::{Admission, LongTermUser, admission};
use crate::pinning::registered_memory::{MemoryAccess, RegisteredMemory};
use crate::pinning::registration::{PinRequest, Pinned, Registration, register_file};
use crate::vfs::fd_holders::FdHolders;
use crate::vfs::inode::Inode;
use crate::vfs::kernel::Kernel;
use crate::vfs::open_file::{Deferred, Description, OpenObject, Passing};
use crate::vfs::process::Process;
use crate::vfs::task::Task;

/// A piece of the exported file, all in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestPiece {
    /// Where it lies in the file, and in the guest's device.
    pub file_offset: u64,
    /// Where it lies on the host's device.
    pub device_offset: u64,
    /// Its length, a multiple of 4 KiB.
    pub len: u64,
}

/// The mapping of an export in a virtual machine. This kernel can only ask for its end.
pub trait GuestMapping: Send + Sync + 'static {
    /// Demands that no piece of the export stays mapped or is mapped again. It is complete with
    /// [`GuestExport::unmapped`], called from inside this call or later from any thread. Called at
    /// most once, with no lock held; must return without waiting. It can come before the call that
    /// made the export has returned, and while [`GuestExport::pieces`] hands pieces out: those
    /// must be unmapped too.
    fn unmap(&self);

    /// What identifies it, for people, such as `guest at /run/a.sock, QEMU process 4711`. Must
    /// neither wait nor call the kernel.
    fn describe(&self) -> String;
}

/// What a guest may reach of an export's file by its mapping at this moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exposure {
    /// Bytes that have left the file (or their offset) since the export and are free or another
    /// file's now, though still mapped.
    pub exposed_bytes: u64,
    /// Bytes that have left the file and are kept for the guest: mapped, and harmless.
    pub orphaned_bytes: u64,
    /// Where the exposed bytes are, in file order.
    pub pieces: Vec<GuestPiece>,
}

/// See the module.
pub struct GuestExport {
    pub(crate) fd_holders: Arc<FdHolders>,
    pub(crate) registrant: Arc<Process>,
    pub(crate) ino: Ino,
    pub(crate) region: RegisteredMemory,
    pub(crate) mapping: Option<Arc<dyn GuestMapping>>,
    pub(crate) state: Mutex<ExportState>,
}

impl fmt::Debug for GuestExport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mapping = self.mapping.as_ref().map(|mapping| mapping.describe());
        f.debug_struct("GuestExport").field("ino", &self.ino).field("mapping", &mapping).finish_non_exhaustive()
    }
}

#[derive(Debug)]
pub(crate) struct ExportState {
    /// The open file with which the lease lives and dies.
    pub(crate) file: Option<Arc<Description>>,
    /// Where the file lay when it was exported.
    pub(crate) view: Option<ExportView>,
    pub(crate) mapped: GuestMapped,
    /// The descriptor is gone.
    pub(crate) ended: bool,
}

/// Pages in file order, and a read point drawn before they were looked up.
#[derive(Clone, Debug)]
pub(crate) struct ExportView {
    holder: HolderId,
    pages: Arc<[PageRange]>,
    read_point: Stamp,
}

/// Whether a virtual machine may have pieces mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GuestMapped {
    NotYet,
    Now,
    NoMore,
}

impl PinHolder for GuestExport {
    fn describe(&self) -> HolderInfo {
        let guest = self.mapping.as_ref().map(|mapping| mapping.describe());
        HolderInfo { guest, ..HolderInfo::in_descriptor("guest export", &self.fd_holders, &self.registrant) }
    }

    fn fd_holders(&self) -> Option<Arc<FdHolders>> {
        Some(Arc::clone(&self.fd_holders))
    }

    fn keeps_file(&self) -> bool {
        true
    }

    fn revoke(&self, kernel: &Arc<Kernel>, _reason: RevokeReason) {
        let mut deferred = Deferred::default();
        let closed = self.region.close(kernel, &mut deferred);
        kernel.run_deferred(deferred);
        if !closed {
            return;
        }
        if self.state.lock().mapped != GuestMapped::Now {
            self.reaches_nothing(kernel);
        }
        if let Some(mapping) = &self.mapping {
            mapping.unmap();
        }
    }
}

impl OpenObject for GuestExport {
    fn release(&self, kernel: &Arc<Kernel>, deferred: &mut Deferred) {
        let closed = self.region.close(kernel, deferred);
        let (mapped, file) = {
            let mut state = self.state.lock();
            state.ended = true;
            let mapped = state.mapped == GuestMapped::Now;
            (mapped, if mapped { None } else { state.file.take() })
        };
        if let Some(file) = file {
            file.put(deferred);
        }
        match &self.mapping {
            Some(mapping) if mapped && closed => mapping.unmap(),
            _ if mapped => {}
            _ => self.reaches_nothing(kernel),
        }
    }

    fn may_pass(&self, _kernel: &Kernel, _pass: Passing) -> bool {
        true
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

impl GuestExport {
    pub(crate) fn access(&self, access: impl FnOnce(&RegisteredMemory) -> MemoryAccess) -> Result<(), Errno> {
        access(&self.region).unwrap_or(Err(Errno::EIO))
    }

    /// The exported inode.
    pub fn ino(&self) -> Ino {
        self.ino
    }

    /// Where the file lies on the device, in file order and in as few pieces as possible; nothing
    /// after a revocation. With a mapping behind the export, these may be mapped from now on until
    /// [`GuestExport::unmapped`], and nothing afterwards.
    pub fn pieces(&self, kernel: &Arc<Kernel>) -> Vec<GuestPiece> {
        let pages = match self.mapping {
            Some(_) => self.hand_out(kernel),
            None => self.state.lock().view.as_ref().filter(|_| !self.is_revoked()).map(|view| Arc::clone(&view.pages)),
        };
        let mut pieces = Vec::new();
        let mut file_offset = 0;
        for pages in pages.iter().flat_map(|pages| pages.iter()) {
            push_piece(&mut pieces, file_offset, *pages);
            file_offset += pages.len() * BLOCK;
        }
        pieces
    }

    /// The pages for a mapping, which holds the memory from now on; `None` if it may map nothing.
    fn hand_out(&self, kernel: &Arc<Kernel>) -> Option<Arc<[PageRange]>> {
        if !self.region.hold(kernel) {
            return None;
        }
        let (keeps, pages) = {
            let mut state = self.state.lock();
            let may = state.mapped != GuestMapped::NoMore && !state.ended && !self.region.is_closed();
            let begins = may && state.mapped == GuestMapped::NotYet && state.view.is_some();
            if begins {
                state.mapped = GuestMapped::Now;
            }
            (begins, state.view.as_ref().filter(|_| may).map(|view| Arc::clone(&view.pages)))
        };
        if !keeps {
            self.region.unhold(kernel);
        }
        pages
    }

    /// States that nothing of the export is mapped or ever will be: what [`GuestMapping::unmap`]
    /// demands, or the guest has ended. If the export was revoked or its descriptor is gone, its
    /// pins and its lease go with this call, else with the export's end. Idempotent.
    ///
    /// The end of the descriptor (close, exit, a fatal signal) is no such statement; it demands
    /// one. A caller that knows that the guest has ended calls this before it closes the
    /// descriptor, and lease and pins go with the close.
    pub fn unmapped(&self, kernel: &Arc<Kernel>) {
        let (was_mapped, file) = {
            let mut state = self.state.lock();
            let was_mapped = state.mapped == GuestMapped::Now;
            state.mapped = GuestMapped::NoMore;
            (was_mapped, if state.ended { state.file.take() } else { None })
        };
        self.reaches_nothing(kernel);
        if was_mapped {
            self.region.unhold(kernel);
        }
        if let Some(file) = file {
            let mut deferred = Deferred::default();
            file.put(&mut deferred);
            kernel.run_deferred(deferred);
        }
    }

    /// No guest reaches pages by this export any more.
    fn reaches_nothing(&self, kernel: &Kernel) {
        let holder = self.state.lock().view.as_ref().map(|view| view.holder);
        if let Some(holder) = holder {
            kernel.attached::<StaleWatch>().end(holder);
        }
    }

    /// Where the guest could do harm now: the pages it may have mapped (or, without a mapping,
    /// reaches by [`GuestExport::write`]) that have left the file since it was exported. Exact
    /// while no layout changes.
    pub fn exposure(&self, kernel: &Kernel) -> Exposure {
        let view = {
            let state = self.state.lock();
            let reached = match self.mapping {
                Some(_) => state.mapped == GuestMapped::Now,
                None => !self.is_revoked(),
            };
            state.view.clone().filter(|_| reached)
        };
        let mut exposure = Exposure::default();
        let Some(ExportView { pages, read_point, .. }) = view else { return exposure };
        let mut file_offset = 0;
        for run in pages.iter() {
            for (pages, stamp) in kernel.ledger.newer_in(*run, read_point) {
                let bytes = pages.len() * BLOCK;
                if stamp.is_orphan() {
                    exposure.orphaned_bytes += bytes;
                } else {
                    exposure.exposed_bytes += bytes;
                    push_piece(&mut exposure.pieces, file_offset + (pages.start() - run.start()) * BLOCK, pages);
                }
            }
            file_offset += run.len() * BLOCK;
        }
        exposure
    }

    /// The guest loads from byte `offset`.
    ///
    /// # Errors
    /// EFAULT outside the file as it was exported; EIO once revoked, where the guest would get a
    /// machine check, or if the memory failed.
    pub fn read(&self, kernel: &Arc<Kernel>, offset: u64, into: &mut [u8]) -> Result<(), Errno> {
        self.access(|region| region.read(kernel, offset, into))
    }

    /// The guest stores at byte `offset`.
    ///
    /// # Errors
    /// As [`GuestExport::read`].
    pub fn write(&self, kernel: &Arc<Kernel>, offset: u64, from: &[u8]) -> Result<(), Errno> {
        self.access(|region| {
            region.access(kernel, |registration| {
                region.check(offset, from.len())?;
                match registration {
                    Registration::Pinned(pinned) => {
                        let _storing = pinned.store(kernel, offset, from.len() as u64);
                        pinned.dma_write(kernel, offset, from)
                    }
                    Registration::OnDemand(range) => range.dma_write(kernel, offset, from),
                    Registration::Anonymous(range) => range.write(offset, from),
                }
            })
        })
    }

    /// The guest's flush: what it stored before is durable when this returns. It is an `fsync` of
    /// the file, as of any host that answers it so: a device's store into a pinned page that was
    /// clean is missed.
    ///
    /// # Errors
    /// EIO once revoked, or if the device is gone or could not be written back.
    pub fn flush(&self, kernel: &Arc<Kernel>) -> Result<(), Errno> {
        self.access(|region| {
            region.access(kernel, |_| {
                if let Some(inode) = kernel.inodes.get(self.ino) {
                    clean_file(kernel, &inode, BlockRange::ALL);
                }
                let there = !kernel.device.poison().is_gone() && kernel.device.sync().is_ok();
                if there { Ok(()) } else { Err(Errno::EIO) }
            })
        })
    }

    /// Whether it was revoked or has ended.
    pub fn is_revoked(&self) -> bool {
        self.region.is_closed()
    }
}

/// Takes the lease and the pins that the design demands.
pub(crate) fn attach_guest(task: &Task, export: &Arc<GuestExport>, inode: &Arc<Inode>, len: u64) -> Result<(), Errno> {
    task.syscall(|| {
        let kernel = task.kernel();
        let file = export.state.lock().file.as_ref().map(Description::get).ok_or(Errno::EBADF)?;
        let mut deferred = Deferred::default();
        let attached = (|| {
            if len == 0 {
                return Err(Errno::EINVAL);
            }
            // The gate is asked first: what it refuses to every guest breaks no lease.
            let user = if export.mapping.is_some() { LongTermUser::Unmappable } else { LongTermUser::Other };
            if let Admission::PinsUnder { .. } = admission(kernel, user)? {
                lease_file(task, &file, inode, exclusive_kind(kernel.axes.lease_rules), BlockRange::ALL)?;
            }
            let request = PinRequest { va: 0, len, write: true, user };
            let holder = Arc::clone(export) as Arc<dyn PinHolder>;
            let registration = register_file(task, request, &file, 0, holder)?;
            if let Registration::Pinned(Pinned { holder, read_point, .. }) = &registration {
                let view = ExportView { holder: holder.id, pages: Arc::clone(&holder.pages), read_point: *read_point };
                kernel.attached::<StaleWatch>().begin(view.holder, &view.pages);
                export.state.lock().view = Some(view);
            }
            export.region.install(kernel, registration, &mut deferred);
            Ok(())
        })();
        file.put(&mut deferred);
        kernel.run_deferred(deferred);
        attached
    })
}

/// Adds a run of pages at byte `file_offset`, joined with the piece before where both the file and
/// the device continue.
fn push_piece(pieces: &mut Vec<GuestPiece>, file_offset: u64, pages: PageRange) {
    let (device_offset, len) = (pages.start() * BLOCK, pages.len() * BLOCK);
    match pieces.last_mut() {
        Some(last) if (last.file_offset + last.len, last.device_offset + last.len) == (file_offset, device_offset) => {
            last.len += len;
        }
        _ => pieces.push(GuestPiece { file_offset, device_offset, len }),
    }
}

/// The exclusive kind that lets the layout stay as it is and that any gate accepts.
fn exclusive_kind(rules: LeaseRules) -> LeaseKind {
    match rules {
        LeaseRules::Chinner => LeaseKind::WRITE,
        LeaseRules::ManPage | LeaseRules::None => LeaseKind::READ_U,
    }
}
