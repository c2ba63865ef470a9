//! A guest export: a file that a virtual machine has as its persistent memory.
//!
//! It owns the file's open description, lease and pins for as long as the guest is attached. Invariants: an export holds what
//! the design's gate demands (an exclusive lease where it demands any) and long-term pins over the whole file, or it does not
//! exist; revoked, it has no pieces, and flushes fail from then on, for good; its lease ends with it, never before its pins.
//! Kernel counterpart: none; QEMU's `memory-backend-file,share=on` over a DAX file, pinned by vfio, and virtio-pmem's flush
//! (drivers/nvdimm/virtio_pmem.c; VirtIO 1.3 section 5.19).

use std::any::Any;

use emulator::sync::{Arc, Mutex};

use super::region::{Accessed, Region};
use super::{HolderInfo, PinHolder, downcast};
use crate::design::LeaseRules;
use crate::errno::Errno;
use crate::extent_map::Layout;
use crate::gup::{Admission, LongTermUser, Registration, Want};
use crate::inode::{Ino, Inode};
use crate::lease::Kind;
use crate::process::Process;
use crate::process::custody::Custody;
use crate::process::description::{Access, Deferred, Description, OpenObject, Pass};
use crate::process::fd_table::Fd;
use crate::process::task::Task;
use crate::range::BlockRange;
use crate::{BLOCK, Kernel};

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

/// See the module.
#[derive(Debug)]
pub struct GuestExport {
    custody: Arc<Custody>,
    registrant: Arc<Process>,
    ino: Ino,
    region: Region,
    /// What the lease lives and dies with.
    file: Mutex<Option<Arc<Description>>>,
}

impl PinHolder for GuestExport {
    fn describe(&self) -> HolderInfo {
        HolderInfo::in_descriptor("guest export", &self.custody, &self.registrant)
    }

    fn custody(&self) -> Option<Arc<Custody>> {
        Some(Arc::clone(&self.custody))
    }

    fn keeps_file(&self) -> bool {
        true
    }

    fn revoke(&self, kernel: &Arc<Kernel>) {
        let mut deferred = Deferred::default();
        self.region.shut(kernel, &mut deferred);
        kernel.run_deferred(deferred);
    }
}

impl OpenObject for GuestExport {
    fn release(&self, kernel: &Arc<Kernel>, deferred: &mut Deferred) {
        self.region.shut(kernel, deferred);
        let file = self.file.lock().take();
        if let Some(file) = file {
            file.put(deferred);
        }
    }

    fn may_pass(&self, _kernel: &Kernel, _pass: Pass) -> bool {
        true
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

impl GuestExport {
    fn access(&self, access: impl FnOnce(&Region) -> Accessed) -> Result<(), Errno> {
        access(&self.region).unwrap_or(Err(Errno::EIO))
    }

    /// The inode exported.
    pub fn ino(&self) -> Ino {
        self.ino
    }

    /// Where the file lies on the device, in file order; nothing once it was revoked.
    pub fn pieces(&self, kernel: &Arc<Kernel>) -> Vec<GuestPiece> {
        let pieces = self.region.access(kernel, |registration| {
            let Registration::Pinned(pinned) = registration else { return Vec::new() };
            let mut file_offset = 0;
            let piece = |pages: &emulator::pin::PageRange| {
                let (device_offset, len) = (pages.start() * BLOCK, pages.len() * BLOCK);
                file_offset += len;
                GuestPiece { file_offset: file_offset - len, device_offset, len }
            };
            pinned.holder.pages.iter().map(piece).collect()
        });
        pieces.unwrap_or_default()
    }

    /// The guest loads from byte `offset`.
    ///
    /// # Errors
    /// EFAULT outside the file as it was exported; EIO once revoked, where the guest would get a machine check, or if the memory
    /// failed.
    pub fn read(&self, kernel: &Arc<Kernel>, offset: u64, into: &mut [u8]) -> Result<(), Errno> {
        self.access(|region| region.read(kernel, offset, into))
    }

    /// The guest stores at byte `offset`.
    ///
    /// # Errors
    /// As [`GuestExport::read`].
    pub fn write(&self, kernel: &Arc<Kernel>, offset: u64, from: &[u8]) -> Result<(), Errno> {
        self.access(|region| region.write(kernel, offset, from))
    }

    /// The guest's flush: what it stored before is durable when this returns.
    ///
    /// # Errors
    /// EIO once revoked, or if the device is gone or could not be written back.
    pub fn flush(&self, kernel: &Arc<Kernel>) -> Result<(), Errno> {
        self.access(|region| {
            region.access(kernel, |_| {
                let there = !kernel.device.poison().is_gone() && kernel.device.sync().is_ok();
                if there { Ok(()) } else { Err(Errno::EIO) }
            })
        })
    }

    /// Whether it was revoked (or has ended).
    pub fn is_revoked(&self) -> bool {
        self.region.is_shut()
    }
}

impl Task {
    /// Exports the file open as `fd`, over its size of now, to a guest that lives in the descriptor returned. The export opens
    /// the file for itself: closing `fd` takes nothing from the guest. The calling process is the lease holder and registrant.
    ///
    /// # Errors
    /// EBADF, EINVAL (not a file, or empty), EACCES (not open for reading and writing), EMFILE; what [`Task::lease`] and
    /// [`Task::register`] say. Refused, nothing stays leased or pinned.
    pub fn export_to_guest(&self, fd: Fd) -> Result<(Fd, Arc<GuestExport>), Errno> {
        let file = self.open_again(fd, |access| access == Access::BOTH)?;
        let (inode, _) = file.file().ok_or(Errno::EINVAL)?;
        let inode = Arc::clone(inode);
        let len = inode.layout(Layout::size);
        let installed = self.install_object(|custody| {
            Arc::new(GuestExport {
                custody,
                registrant: Arc::clone(self.process()),
                ino: inode.ino(),
                region: Region::new(len),
                file: Mutex::new(Some(Arc::clone(&file))),
            })
        });
        // Once made, the object has the file's reference, and releases it whatever happens.
        let (guest_fd, object) = installed.inspect_err(|errno| {
            if *errno == Errno::Dead {
                let mut deferred = Deferred::default();
                Arc::clone(&file).put(&mut deferred);
                self.kernel().run_deferred(deferred);
            }
        })?;
        let export: Arc<GuestExport> = downcast(object)?;
        let attached = self.attach(&export, &inode, len);
        match attached {
            Ok(()) => Ok((guest_fd, export)),
            Err(errno) => {
                // EBADF if another thread closed it meanwhile: then it is released.
                let _released = self.close(guest_fd);
                Err(errno)
            }
        }
    }

    /// Takes what the design demands.
    fn attach(&self, export: &Arc<GuestExport>, inode: &Arc<Inode>, len: u64) -> Result<(), Errno> {
        self.syscall(|| {
            let kernel = self.kernel();
            let file = export.file.lock().as_ref().map(Description::get).ok_or(Errno::EBADF)?;
            let mut deferred = Deferred::default();
            let attached = (|| {
                if len == 0 {
                    return Err(Errno::EINVAL);
                }
                // Asked first: what is refused to every guest breaks nobody's lease.
                if let Admission::PinsUnder { .. } = kernel.admission(LongTermUser::Other)? {
                    self.lease_file(&file, inode, exclusive_kind(kernel.axes.lease_rules), BlockRange::ALL)?;
                }
                let want = Want { va: 0, len, write: true, user: LongTermUser::Other };
                let holder = Arc::clone(export) as Arc<dyn PinHolder>;
                let registration = self.register_file(want, &file, 0, holder)?;
                export.region.install(kernel, registration, &mut deferred);
                Ok(())
            })();
            file.put(&mut deferred);
            kernel.run_deferred(deferred);
            attached
        })
    }
}

/// The exclusive kind that leaves the layout as it is and any gate is content with.
fn exclusive_kind(rules: LeaseRules) -> Kind {
    match rules {
        LeaseRules::Chinner => Kind::WRITE,
        LeaseRules::ManPage | LeaseRules::None => Kind::READ_U,
    }
}
