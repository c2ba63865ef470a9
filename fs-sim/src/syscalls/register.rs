//! Registering mapped memory for long-term access by a device.
//!
//! It owns the step from an address to a file range or anonymous memory. Kernel counterpart:
//! `ib_umem_get`, `ib_umem_odp_get`.

use emulator::sync::Arc;

use crate::base::errno::Errno;
use crate::holders::holder::PinHolder;
use crate::pinning::on_demand::OnDemand;
use crate::pinning::registration::{PinRequest, Registration, register_file};
use crate::vfs::mapped_target::MappedTarget;
use crate::vfs::open_file::Deferred;
use crate::vfs::task::Task;

impl Task {
    /// Registers mapped memory for long-term access by a device. `object` answers for the pins
    /// from their commit on, which comes before this returns.
    ///
    /// # Errors
    /// EINVAL (length 0, or beyond the mapping), EFAULT (protection, or a read-only request over a
    /// hole or past the end), EOPNOTSUPP, EPERM (the gate), EAGAIN (a layout change waits),
    /// ETXTBSY (must allocate or unshare under another process's lease), ENOMEM (locked memory, or
    /// a pin count at its bound), ENOSPC. Refused, nothing stays pinned.
    pub fn register(&self, request: PinRequest, object: Arc<dyn PinHolder>) -> Result<Registration, Errno> {
        self.syscall(|| {
            match self.process().target(request.va, request.len, request.write)? {
                MappedTarget::Anon { memory, offset } => Ok(Registration::Anonymous { memory, offset }),
                MappedTarget::File { description, offset } => {
                    // The reference taken with the target covers this call; a region that keeps
                    // its file open takes its own.
                    let registered = register_file(self, request, &description, offset, object);
                    let mut deferred = Deferred::default();
                    description.put(&mut deferred);
                    self.run_deferred(deferred);
                    registered
                }
            }
        })
    }

    /// Registers mapped memory for access by faults, whatever the gate: an explicit on-demand
    /// region pins nothing, and every design admits it. Each access looks the memory up again, and
    /// only then the mapping's rights and the end of the file matter.
    ///
    /// # Errors
    /// EINVAL (length 0, or beyond the mapping).
    pub fn register_on_demand(&self, request: PinRequest) -> Result<Registration, Errno> {
        self.syscall(|| match self.process().target(request.va, request.len, false)? {
            MappedTarget::Anon { memory, offset } => Ok(Registration::Anonymous { memory, offset }),
            MappedTarget::File { description, .. } => {
                let mut deferred = Deferred::default();
                description.put(&mut deferred);
                self.run_deferred(deferred);
                Ok(Registration::OnDemand(OnDemand::new(Arc::clone(self.process()), &request)))
            }
        })
    }
}
