//! Registering mapped memory for long-term access by a device.
//!
//! It owns the step from an address to a file range or anonymous memory. Kernel counterpart:
//! `ib_umem_get`, `ib_umem_odp_get`.

use emulator::sync::Arc;

use crate::base::errno::Errno;
use crate::base::units::BLOCK;
use crate::holders::holder::PinHolder;
use crate::pinning::admission::{Admission, admission};
use crate::pinning::anon_range::AnonRange;
use crate::pinning::locked_memory::may_lock;
use crate::pinning::on_demand::OnDemand;
use crate::pinning::registration::{PinRequest, Registration, register_device, register_file};
use crate::syscalls::memory::copy_private;
use crate::vfs::address_space::Backing;
use crate::vfs::anon::AnonMemory;
use crate::vfs::memory_file::MemoryFile;
use crate::vfs::open_file::{Deferred, Description};
use crate::vfs::private_pages::PrivatePages;
use crate::vfs::task::Task;

impl Task {
    /// Registers mapped memory for long-term access by a device. `object` answers for the pins
    /// from their commit on, which comes before this returns.
    ///
    /// A user that the design's gate never admits is refused as Linux refuses it, before the
    /// mapping's rights and the end of the file are looked at: ENOMEM (locked memory), then
    /// EOPNOTSUPP if the range holds a page of a file before it holds an address that is not
    /// mapped (EFAULT). Behind a page that can be pinned, these two are ENOMEM for a umem and
    /// EFAULT for fixed buffers. A umem is refused a private mapping of a file also where all pages
    /// are copies. A user that the gate admits by faults is registered as by
    /// [`Task::register_on_demand`]. Pages of a private mapping are copied first, under every other
    /// gate; they are no pages of a file. Of a file that is not DAX, and of a mapping of the
    /// volume's device, no gate asks anything.
    ///
    /// # Errors
    /// EINVAL (length 0, or beyond the mapping), EFAULT (protection, past the end, a
    /// read-only request over a hole, one for writing to a file in the page cache, or pages of the
    /// volume's device that are not one file's), EOPNOTSUPP, EPERM (the gate), EAGAIN (a layout
    /// change waits), ETXTBSY (must allocate or unshare under another process's lease), ENOMEM
    /// (locked memory, or a pin count at its bound), ENOSPC. Refused, nothing stays pinned.
    pub fn register(&self, request: PinRequest, object: Arc<dyn PinHolder>) -> Result<Registration, Errno> {
        self.syscall(|| {
            match admission(self.kernel(), request.user) {
                Ok(Admission::OnDemand) if !self.process().maps_ungated(request.va, request.len) => {
                    return on_demand(self, &request);
                }
                Err(refusal) => refuse_file_pages(self, &request, refusal)?,
                Ok(_) => {}
            }
            match self.process().target(request.va, request.len, request.write)? {
                Backing::Anon { memory, offset } => Ok(anonymous(memory, offset, request.write)),
                Backing::Memory { file, offset } => register_memory_file(&file, offset, &request),
                Backing::Device { offset } if request.len > 0 => register_device(self, request, offset, object),
                Backing::Device { .. } => Err(Errno::EINVAL),
                Backing::File { description, offset } => {
                    // The reference taken with the target covers this call; a region that keeps
                    // its file open takes its own.
                    let registered = register_file(self, request, &description, offset, object);
                    let mut deferred = Deferred::default();
                    description.put(&mut deferred);
                    self.run_deferred(deferred);
                    registered
                }
                Backing::Private { description, pages, offset } => {
                    register_private(self, &request, description, &pages, offset)
                }
            }
        })
    }

    /// Registers mapped memory for access by faults, whatever the gate: an explicit on-demand
    /// region pins nothing, and every design admits it. Each access looks the memory up again, and
    /// only then the mapping's rights and the end of the file matter.
    ///
    /// # Errors
    /// EINVAL (length 0, or beyond the mapping), EIO (the device is gone), EOPNOTSUPP (a mapping of
    /// the volume's device **\[chosen\]**).
    pub fn register_on_demand(&self, request: PinRequest) -> Result<Registration, Errno> {
        self.syscall(|| on_demand(self, &request))
    }
}

/// Long-term access through a private mapping: every page is copied first, also for reading, and
/// then no page of the file is concerned: no gate, no pin, no charge. The device writes the copies
/// only if `request` is for writing.
fn register_private(
    task: &Task,
    request: &PinRequest,
    description: Arc<Description>,
    pages: &Arc<PrivatePages>,
    offset: u64,
) -> Result<Registration, Errno> {
    let copied = copy_private(task, &description, pages, offset, request.len);
    let mut deferred = Deferred::default();
    description.put(&mut deferred);
    task.run_deferred(deferred);
    match copied {
        Ok(pages) => Ok(Registration::Anonymous(AnonRange::of_pages(pages, request.write))),
        // What a store would get as a signal. A wait at a closed page that ended is told as such.
        Err(Errno::SIGBUS | Errno::EIO) => Err(Errno::EFAULT),
        Err(errno) => Err(errno),
    }
}

/// Long-term access to pages of a file that is not DAX: the registration holds them, and the file
/// loses them to a truncate all the same. Kernel: `writable_file_mapping_allowed`.
fn register_memory_file(file: &MemoryFile, offset: u64, request: &PinRequest) -> Result<Registration, Errno> {
    if request.write && !file.allows_long_term_write() {
        return Err(Errno::EFAULT);
    }
    let pages = file.fault(offset, request.len).map_err(|_| Errno::EFAULT)?;
    Ok(Registration::Anonymous(AnonRange::of_pages(pages, request.write)))
}

fn anonymous(memory: Arc<AnonMemory>, offset: u64, writable: bool) -> Registration {
    Registration::Anonymous(AnonRange::new(memory, offset, writable))
}

fn on_demand(task: &Task, request: &PinRequest) -> Result<Registration, Errno> {
    // Memory without pages of a file is registered once and not looked up again. Its mapping's
    // rights never change, so what they refuse is decided here.
    let writable = request.write && task.process().maps_writable(request.va, request.len);
    let allowed = PinRequest { write: writable, ..*request };
    match task.process().target(request.va, request.len, false)? {
        Backing::Anon { memory, offset } => Ok(anonymous(memory, offset, writable)),
        Backing::Private { description, pages, offset } => {
            register_private(task, &allowed, description, &pages, offset)
        }
        // Each access looks up which page the file has then.
        Backing::Memory { .. } => Ok(Registration::OnDemand(OnDemand::new(Arc::clone(task.process()), request))),
        // A mapping of the device has no translation that a change could invalidate.
        Backing::Device { .. } => Err(Errno::EOPNOTSUPP),
        Backing::File { description, .. } => {
            let mut deferred = Deferred::default();
            description.put(&mut deferred);
            task.run_deferred(deferred);
            task.kernel().mount.check()?;
            Ok(Registration::OnDemand(OnDemand::new(Arc::clone(task.process()), request)))
        }
    }
}

/// Refuses `request`, of a user that the gate does not admit, if it asks for pages of a file.
fn refuse_file_pages(task: &Task, request: &PinRequest, refusal: Errno) -> Result<(), Errno> {
    let PinRequest { va, len, write, user } = *request;
    if len == 0 {
        return Err(Errno::EINVAL);
    }
    let refused = task.process().mm.lock().refuse_file_pages(va, len, write, user.finds_copies(), refusal);
    refused.map_err(|(errno, behind)| {
        let errno = if behind { user.behind_pinned_pages(errno) } else { errno };
        // Memory without a file is not charged, so the limit refuses only what is refused anyway.
        let pages = (va % BLOCK).saturating_add(len).div_ceil(BLOCK);
        if may_lock(task.process(), pages) { errno } else { Errno::ENOMEM }
    })
}
