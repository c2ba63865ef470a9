//! Exporting a file to a guest.
//!
//! It owns the descriptor in which an export lives. Kernel counterpart: none.

use emulator::sync::{Arc, Mutex};

use crate::base::errno::Errno;
use crate::base::numbers::Fd;
use crate::extent_map::Layout;
use crate::pinning::guest_export::{ExportState, GuestExport, GuestMapped, GuestMapping, attach_guest};
use crate::pinning::registered_memory::RegisteredMemory;
use crate::syscalls::open::open_again;
use crate::vfs::open_file::{AccessMode, Deferred, downcast};
use crate::vfs::task::Task;

impl Task {
    /// Exports the file open as `fd`, over its present size, to a guest that lives in the
    /// descriptor returned. The export opens the file for itself: closing `fd` takes nothing from
    /// the guest. The calling process is the lease holder and registrant.
    ///
    /// # Errors
    /// EBADF, EINVAL (not a file, or empty), EACCES (not open for reading and writing), EMFILE;
    /// the errors of [`Task::lease`] and [`Task::register`]. Refused, nothing stays leased or
    /// pinned.
    pub fn export_to_guest(&self, fd: Fd) -> Result<(Fd, Arc<GuestExport>), Errno> {
        export_file(self, fd, None)
    }

    /// As [`Task::export_to_guest`], with a virtual machine behind it that can be asked to unmap.
    /// Such a guest is admitted where the gate is `fault` too.
    ///
    /// # Errors
    /// As for [`Task::export_to_guest`]; EAGAIN: a layout change waits.
    pub fn export_to_guest_mapped(
        &self,
        fd: Fd,
        mapping: Arc<dyn GuestMapping>,
    ) -> Result<(Fd, Arc<GuestExport>), Errno> {
        export_file(self, fd, Some(mapping))
    }
}

fn export_file(task: &Task, fd: Fd, mapping: Option<Arc<dyn GuestMapping>>) -> Result<(Fd, Arc<GuestExport>), Errno> {
    let file = open_again(task, fd, |access| access == AccessMode::BOTH)?;
    let (inode, _) = file.file().ok_or(Errno::EINVAL)?;
    let inode = Arc::clone(inode);
    let len = inode.layout(Layout::size);
    let installed = task.install_object(|fd_holders| {
        Arc::new(GuestExport {
            fd_holders,
            registrant: Arc::clone(task.process()),
            ino: inode.ino(),
            region: RegisteredMemory::new(len),
            mapping,
            state: Mutex::new(ExportState {
                file: Some(Arc::clone(&file)),
                view: None,
                mapped: GuestMapped::NotYet,
                ended: false,
            }),
        })
    });
    // Once made, the object has the file's reference, and releases it in any case.
    let (guest_fd, object) = installed.inspect_err(|errno| {
        if *errno == Errno::Dead {
            let mut deferred = Deferred::default();
            Arc::clone(&file).put(&mut deferred);
            task.run_deferred(deferred);
        }
    })?;
    let export: Arc<GuestExport> = downcast(object)?;
    let attached = attach_guest(task, &export, &inode, len);
    match attached {
        Ok(()) => Ok((guest_fd, export)),
        Err(errno) => {
            // EBADF if another thread has closed it meanwhile: then it is released.
            let _released = task.close(guest_fd);
            Err(errno)
        }
    }
}
