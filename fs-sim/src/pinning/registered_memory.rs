//! The memory of one registration, as a device that is no NIC holds it.
//!
//! It owns the [`Registration`] of one holder and its release. An access *enters* the memory's
//! gate and leaves it after the copy. A revocation, or the holder's end, *closes* the gate: no
//! further access enters. The one that finds the closed gate empty (the closer, or the last access
//! to leave) takes the registration out and releases it. Invariants: it is released once, and
//! never during a copy; once the gate is closed it will be released. A revocation can come before
//! the registration has returned: then the task that installs it finds the gate closed. Kernel
//! counterpart: `percpu_ref` around io_uring's registered nodes, `xdp_umem` references.
//! (rdma-sim's regions do the same in slots of a table.)

use emulator::pin::gate::Gate;
use emulator::race_point;
use emulator::sync::{Arc, Mutex};

use crate::base::errno::Errno;
use crate::pinning::registration::Registration;
use crate::vfs::kernel::Kernel;
use crate::vfs::open_file::Deferred;

/// The memory was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RegionClosed;

/// The result of an access: the memory was closed, or the access itself succeeded or failed.
pub(crate) type MemoryAccess = Result<Result<(), Errno>, RegionClosed>;

#[derive(Debug)]
enum RegionSlot {
    /// The registration has not returned yet.
    Coming,
    Here(Arc<Registration>),
    Gone,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct RegisteredMemory {
    gate: Gate,
    slot: Mutex<RegionSlot>,
    /// In bytes.
    len: u64,
}

impl RegisteredMemory {
    /// A gate for `len` bytes, still without memory.
    pub(crate) fn new(len: u64) -> RegisteredMemory {
        RegisteredMemory { gate: Gate::new(), slot: Mutex::new(RegionSlot::Coming), len }
    }

    /// Puts in what was registered. If the memory was closed meanwhile it is released at once.
    pub(crate) fn install(&self, kernel: &Arc<Kernel>, registration: Registration, deferred: &mut Deferred) {
        *self.slot.lock() = RegionSlot::Here(Arc::new(registration));
        if self.gate.is_closed() {
            self.drain(kernel, deferred);
        }
    }

    /// Copies out of the memory.
    pub(crate) fn read(&self, kernel: &Arc<Kernel>, offset: u64, into: &mut [u8]) -> MemoryAccess {
        let inside = self.check(offset, into.len());
        self.access(kernel, |registration| {
            inside.and_then(|()| match registration {
                Registration::Pinned(pinned) => pinned.dma_read(kernel, offset, into),
                Registration::OnDemand(range) => range.dma_read(kernel, offset, into),
                Registration::Anonymous(range) => range.read(offset, into),
            })
        })
    }

    /// Copies into the memory.
    pub(crate) fn write(&self, kernel: &Arc<Kernel>, offset: u64, from: &[u8]) -> MemoryAccess {
        let inside = self.check(offset, from.len());
        self.access(kernel, |registration| {
            inside.and_then(|()| match registration {
                Registration::Pinned(pinned) => pinned.dma_write(kernel, offset, from),
                Registration::OnDemand(range) => range.dma_write(kernel, offset, from),
                Registration::Anonymous(range) => range.write(offset, from),
            })
        })
    }

    pub(crate) fn check(&self, offset: u64, len: usize) -> Result<(), Errno> {
        let inside = offset.checked_add(len as u64).is_some_and(|end| end <= self.len);
        if inside { Ok(()) } else { Err(Errno::EFAULT) }
    }

    /// Runs `look` with the registration, which stays until it returns.
    pub(crate) fn access<R>(
        &self,
        kernel: &Arc<Kernel>,
        look: impl FnOnce(&Registration) -> R,
    ) -> Result<R, RegionClosed> {
        if !self.hold(kernel) {
            return Err(RegionClosed);
        }
        let registration = match &*self.slot.lock() {
            RegionSlot::Here(registration) => Some(Arc::clone(registration)),
            RegionSlot::Coming | RegionSlot::Gone => None,
        };
        race_point!("region of a small holder: entered");
        let result = registration.as_deref().map(look).ok_or(RegionClosed);
        // Before leaving: the one that takes it out needs the only reference.
        drop(registration);
        self.unhold(kernel);
        result
    }

    /// Closes the gate and releases the memory once no access uses it. True if this call closed
    /// it. References to files go to `deferred`.
    pub(crate) fn close(&self, kernel: &Arc<Kernel>, deferred: &mut Deferred) -> bool {
        let (_inside, shut) = self.gate.close();
        self.drain(kernel, deferred);
        shut
    }

    /// Enters for as long as the memory is used in another way than by these copies, until
    /// [`RegisteredMemory::unhold`]. False if it was closed.
    pub(crate) fn hold(&self, kernel: &Arc<Kernel>) -> bool {
        match self.gate.enter() {
            Ok(()) => true,
            Err(closed) => {
                if closed.last {
                    self.last_out(kernel);
                }
                false
            }
        }
    }

    /// Ends one [`RegisteredMemory::hold`]. Called with no lock held.
    pub(crate) fn unhold(&self, kernel: &Arc<Kernel>) {
        if self.gate.leave() {
            self.last_out(kernel);
        }
    }

    /// Whether it was closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.gate.is_closed()
    }

    #[cold]
    fn last_out(&self, kernel: &Arc<Kernel>) {
        let mut deferred = Deferred::default();
        self.drain(kernel, &mut deferred);
        kernel.run_deferred(deferred);
    }

    fn drain(&self, kernel: &Arc<Kernel>, deferred: &mut Deferred) {
        let registration = {
            let mut slot = self.slot.lock();
            if self.gate.inside() != 0 {
                return;
            }
            match std::mem::replace(&mut *slot, RegionSlot::Gone) {
                RegionSlot::Here(registration) => registration,
                RegionSlot::Coming => {
                    *slot = RegionSlot::Coming;
                    return;
                }
                RegionSlot::Gone => return,
            }
        };
        let registration =
            Arc::into_inner(registration).expect("no access is inside, and each has dropped its reference");
        if let Registration::Pinned(pinned) = registration {
            pinned.release(kernel, deferred);
        }
    }
}
