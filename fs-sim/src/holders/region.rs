//! A region: the memory of one registration, as a device that is no NIC holds it.
//!
//! It owns the [`Registration`] of one holder and the end of it. Whoever accesses the memory *enters* the region's gate and
//! leaves it after the copy. Taking the memory away (revocation, the holder's end) *shuts* the gate: from then on nobody gets
//! in. Whoever finds the shut gate empty, which is the one who shut it or the last to leave, takes the registration out and
//! releases it. Invariants: it is released once, and never under a copy; if the gate is shut, somebody will release it. A
//! revocation can come before the registration has even returned: then whoever puts it in finds the gate shut. Kernel
//! counterpart: `percpu_ref` around io_uring's registered nodes, `xdp_umem` references. (rdma-sim's regions do the same in
//! slots of a table.)

use emulator::pin::gate::Gate;
use emulator::race_point;
use emulator::sync::{Arc, Mutex};

use crate::Kernel;
use crate::errno::Errno;
use crate::gup::Registration;
use crate::process::description::Deferred;

/// The region was shut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shut;

/// What an access to a region came to: it was shut, or the access itself failed.
pub(crate) type Accessed = Result<Result<(), Errno>, Shut>;

#[derive(Debug)]
enum Slot {
    /// The registration has not returned yet.
    Coming,
    Here(Arc<Registration>),
    Gone,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Region {
    gate: Gate,
    slot: Mutex<Slot>,
    /// In bytes.
    len: u64,
}

impl Region {
    /// A region of `len` bytes, still without memory.
    pub(crate) fn new(len: u64) -> Region {
        Region { gate: Gate::new(), slot: Mutex::new(Slot::Coming), len }
    }

    /// Puts in what was registered. If the region was shut meanwhile it is released at once.
    pub(crate) fn install(&self, kernel: &Arc<Kernel>, registration: Registration, deferred: &mut Deferred) {
        *self.slot.lock() = Slot::Here(Arc::new(registration));
        if self.gate.is_closed() {
            self.drain(kernel, deferred);
        }
    }

    /// Copies out of the region.
    pub(crate) fn read(&self, kernel: &Arc<Kernel>, offset: u64, into: &mut [u8]) -> Accessed {
        let inside = self.check(offset, into.len());
        self.access(kernel, |registration| {
            inside.and_then(|()| match registration {
                Registration::Pinned(pinned) => pinned.dma_read(kernel, offset, into),
                Registration::OnDemand(range) => range.dma_read(kernel, offset, into),
                Registration::Anonymous { memory, offset: start } => memory.read(start.saturating_add(offset), into),
            })
        })
    }

    /// Copies into the region.
    pub(crate) fn write(&self, kernel: &Arc<Kernel>, offset: u64, from: &[u8]) -> Accessed {
        let inside = self.check(offset, from.len());
        self.access(kernel, |registration| {
            inside.and_then(|()| match registration {
                Registration::Pinned(pinned) => pinned.dma_write(kernel, offset, from),
                Registration::OnDemand(range) => range.dma_write(kernel, offset, from),
                Registration::Anonymous { memory, offset: start } => memory.write(start.saturating_add(offset), from),
            })
        })
    }

    fn check(&self, offset: u64, len: usize) -> Result<(), Errno> {
        let inside = offset.checked_add(len as u64).is_some_and(|end| end <= self.len);
        if inside { Ok(()) } else { Err(Errno::EFAULT) }
    }

    /// Runs `look` with the registration, which stays until it returns.
    pub(crate) fn access<R>(&self, kernel: &Arc<Kernel>, look: impl FnOnce(&Registration) -> R) -> Result<R, Shut> {
        if !self.hold(kernel) {
            return Err(Shut);
        }
        let registration = match &*self.slot.lock() {
            Slot::Here(registration) => Some(Arc::clone(registration)),
            Slot::Coming | Slot::Gone => None,
        };
        race_point!("region of a small holder: entered");
        let result = registration.as_deref().map(look).ok_or(Shut);
        // Before leaving: the one who takes it out wants the only reference.
        drop(registration);
        self.let_go(kernel);
        result
    }

    /// Lets nobody in any more, and releases what nobody uses. True if this call was the one to shut it. References to files
    /// go to `deferred`.
    pub(crate) fn shut(&self, kernel: &Arc<Kernel>, deferred: &mut Deferred) -> bool {
        let (_inside, shut) = self.gate.close();
        self.drain(kernel, deferred);
        shut
    }

    /// Enters for as long as something may use the memory by another way than these copies, until [`Region::let_go`]. False if
    /// it was shut.
    pub(crate) fn hold(&self, kernel: &Arc<Kernel>) -> bool {
        match self.gate.enter() {
            Ok(()) => true,
            Err(shut) => {
                if shut.last {
                    self.last_out(kernel);
                }
                false
            }
        }
    }

    /// Ends one [`Region::hold`]. Called with no lock held.
    pub(crate) fn let_go(&self, kernel: &Arc<Kernel>) {
        if self.gate.leave() {
            self.last_out(kernel);
        }
    }

    /// Whether it was shut.
    pub(crate) fn is_shut(&self) -> bool {
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
            match std::mem::replace(&mut *slot, Slot::Gone) {
                Slot::Here(registration) => registration,
                Slot::Coming => {
                    *slot = Slot::Coming;
                    return;
                }
                Slot::Gone => return,
            }
        };
        let registration = Arc::into_inner(registration).expect("nobody is inside, and all have dropped theirs");
        if let Registration::Pinned(pinned) = registration {
            pinned.release(kernel, deferred);
        }
    }
}
