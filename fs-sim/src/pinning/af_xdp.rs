//! AF_XDP sockets: packet memory (umem) that a network card writes to and reads from.
//!
//! It owns a socket's umem. Invariants: a socket has at most one umem in its life; after a
//! revocation the umem is unbound, the socket reports ENETDOWN once and every further packet is
//! ENXIO; the pins go with the socket's last close at the latest. Kernel counterpart:
//! net/xdp/xsk.c (`xsk_notifier`, `xsk_unbind_dev`), net/xdp/xdp_umem.c (`xdp_umem_pin_pages`).

use std::any::Any;

use emulator::sync::atomic::{AtomicBool, Ordering};
use emulator::sync::{Arc, Mutex};

use crate::base::errno::Errno;
use crate::holders::holder::{HolderInfo, PinHolder, RevokeReason};
use crate::pinning::registered_memory::{MemoryAccess, RegisteredMemory};
use crate::vfs::fd_holders::FdHolders;
use crate::vfs::kernel::Kernel;
use crate::vfs::open_file::{Deferred, OpenObject, Passing};
use crate::vfs::process::Process;

/// An AF_XDP socket; see the module.
#[derive(Debug)]
pub struct XdpSocket {
    pub(crate) fd_holders: Arc<FdHolders>,
    pub(crate) state: Mutex<XdpSocketState>,
}

#[derive(Clone, Debug)]
pub(crate) enum XdpSocketState {
    Unbound,
    Bound(Arc<Umem>),
    Closed,
}

/// Registered packet memory.
#[derive(Debug)]
pub(crate) struct Umem {
    pub(crate) fd_holders: Arc<FdHolders>,
    pub(crate) registrant: Arc<Process>,
    pub(crate) region: RegisteredMemory,
    /// Whether its socket must still report the loss.
    pub(crate) lost: AtomicBool,
}

impl PinHolder for Umem {
    fn describe(&self) -> HolderInfo {
        HolderInfo::in_descriptor("AF_XDP umem", &self.fd_holders, &self.registrant)
    }

    fn fd_holders(&self) -> Option<Arc<FdHolders>> {
        Some(Arc::clone(&self.fd_holders))
    }

    fn revoke(&self, kernel: &Arc<Kernel>, _reason: RevokeReason) {
        let mut deferred = Deferred::default();
        if self.region.close(kernel, &mut deferred) {
            self.lost.store(true, Ordering::SeqCst);
        }
        kernel.run_deferred(deferred);
    }
}

impl OpenObject for XdpSocket {
    fn release(&self, kernel: &Arc<Kernel>, deferred: &mut Deferred) {
        let state = std::mem::replace(&mut *self.state.lock(), XdpSocketState::Closed);
        if let XdpSocketState::Bound(umem) = state {
            umem.region.close(kernel, deferred);
        }
    }

    /// A socket may always be passed: the axis `pass_context` speaks of RDMA contexts.
    fn may_pass(&self, _kernel: &Kernel, _pass: Passing) -> bool {
        true
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

impl XdpSocket {
    pub(crate) fn umem(&self) -> Option<Arc<Umem>> {
        match &*self.state.lock() {
            XdpSocketState::Bound(umem) => Some(Arc::clone(umem)),
            XdpSocketState::Unbound | XdpSocketState::Closed => None,
        }
    }

    fn packet(&self, access: impl FnOnce(&RegisteredMemory) -> MemoryAccess) -> Result<(), Errno> {
        let umem = self.umem().ok_or(Errno::ENXIO)?;
        access(&umem.region).unwrap_or(Err(Errno::ENXIO))
    }

    /// A packet arrives: the card writes it into the umem at byte `offset`. The error is what a
    /// system call of the program would return.
    ///
    /// # Errors
    /// ENXIO without a umem, or after it was revoked; EFAULT outside it; EIO if the memory failed.
    pub fn receive(&self, kernel: &Arc<Kernel>, offset: u64, packet: &[u8]) -> Result<(), Errno> {
        self.packet(|region| region.write(kernel, offset, packet))
    }

    /// The card sends the packet at byte `offset` of the umem.
    ///
    /// # Errors
    /// As [`XdpSocket::receive`].
    pub fn transmit(&self, kernel: &Arc<Kernel>, offset: u64, packet: &mut [u8]) -> Result<(), Errno> {
        self.packet(|region| region.read(kernel, offset, packet))
    }

    /// The socket's pending error (`SO_ERROR`), which reading clears: ENETDOWN once its umem was
    /// revoked.
    pub fn take_error(&self) -> Option<Errno> {
        let lost = self.umem().is_some_and(|umem| umem.lost.swap(false, Ordering::SeqCst));
        lost.then_some(Errno::ENETDOWN)
    }

    /// Whether it has a umem that was not revoked.
    pub fn is_bound(&self) -> bool {
        self.umem().is_some_and(|umem| !umem.region.is_closed())
    }
}
