//! AF_XDP sockets: packet memory (umem) that a network card writes to and reads from.
//!
//! It owns a socket's umem. Invariants: a socket has at most one umem in its life; revoked, the umem is unbound, the socket
//! reports ENETDOWN once and every further packet is ENXIO; the pins go with the socket's last close at the latest. Kernel
//! counterpart: net/xdp/xsk.c (`xsk_notifier`, `xsk_unbind_dev`), net/xdp/xdp_umem.c (`xdp_umem_pin_pages`).

use std::any::Any;

use emulator::sync::atomic::{AtomicBool, Ordering};
use emulator::sync::{Arc, Mutex};

use super::region::{Accessed, Region};
use super::{HolderInfo, PinHolder, downcast};
use crate::Kernel;
use crate::errno::Errno;
use crate::gup::{LongTermUser, Want};
use crate::process::Process;
use crate::process::custody::Custody;
use crate::process::description::{Deferred, OpenObject, Pass};
use crate::process::fd_table::Fd;
use crate::process::task::Task;

/// An AF_XDP socket; see the module.
#[derive(Debug)]
pub struct XdpSocket {
    custody: Arc<Custody>,
    state: Mutex<State>,
}

#[derive(Clone, Debug)]
enum State {
    Unbound,
    Bound(Arc<Umem>),
    Closed,
}

/// Registered packet memory.
#[derive(Debug)]
struct Umem {
    custody: Arc<Custody>,
    registrant: Arc<Process>,
    region: Region,
    /// Its socket is to be told of its loss.
    lost: AtomicBool,
}

impl PinHolder for Umem {
    fn describe(&self) -> HolderInfo {
        HolderInfo::in_descriptor("AF_XDP umem", &self.custody, &self.registrant)
    }

    fn custody(&self) -> Option<Arc<Custody>> {
        Some(Arc::clone(&self.custody))
    }

    fn revoke(&self, kernel: &Arc<Kernel>) {
        let mut deferred = Deferred::default();
        if self.region.shut(kernel, &mut deferred) {
            self.lost.store(true, Ordering::SeqCst);
        }
        kernel.run_deferred(deferred);
    }
}

impl OpenObject for XdpSocket {
    fn release(&self, kernel: &Arc<Kernel>, deferred: &mut Deferred) {
        let state = std::mem::replace(&mut *self.state.lock(), State::Closed);
        if let State::Bound(umem) = state {
            umem.region.shut(kernel, deferred);
        }
    }

    /// A socket may always be passed: the axis `pass_context` speaks of RDMA contexts.
    fn may_pass(&self, _kernel: &Kernel, _pass: Pass) -> bool {
        true
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

impl XdpSocket {
    fn umem(&self) -> Option<Arc<Umem>> {
        match &*self.state.lock() {
            State::Bound(umem) => Some(Arc::clone(umem)),
            State::Unbound | State::Closed => None,
        }
    }

    fn packet(&self, access: impl FnOnce(&Region) -> Accessed) -> Result<(), Errno> {
        let umem = self.umem().ok_or(Errno::ENXIO)?;
        access(&umem.region).unwrap_or(Err(Errno::ENXIO))
    }

    /// A packet arrives: the card writes it into the umem at byte `offset`. The error is what a call of the program would say.
    ///
    /// # Errors
    /// ENXIO without a umem, or after it was revoked; EFAULT outside it; EIO if the memory failed.
    pub fn receive(&self, kernel: &Arc<Kernel>, offset: u64, packet: &[u8]) -> Result<(), Errno> {
        self.packet(|region| region.write(kernel, offset, packet))
    }

    /// The card sends what stands in the umem at byte `offset`.
    ///
    /// # Errors
    /// As [`XdpSocket::receive`].
    pub fn transmit(&self, kernel: &Arc<Kernel>, offset: u64, packet: &mut [u8]) -> Result<(), Errno> {
        self.packet(|region| region.read(kernel, offset, packet))
    }

    /// The socket's pending error (`SO_ERROR`), which reading takes away: ENETDOWN once its umem was revoked.
    pub fn take_error(&self) -> Option<Errno> {
        let lost = self.umem().is_some_and(|umem| umem.lost.swap(false, Ordering::SeqCst));
        lost.then_some(Errno::ENETDOWN)
    }

    /// Whether it has a umem that was not taken away.
    pub fn is_bound(&self) -> bool {
        self.umem().is_some_and(|umem| !umem.region.is_shut())
    }
}

impl Task {
    /// Opens an AF_XDP socket: `socket(AF_XDP, SOCK_RAW, 0)`.
    ///
    /// # Errors
    /// EMFILE.
    pub fn xdp_socket(&self) -> Result<(Fd, Arc<XdpSocket>), Errno> {
        let (fd, object) = self.install_object(|custody| {
            Arc::new(XdpSocket { custody, state: Mutex::new(State::Unbound) }) as Arc<dyn OpenObject>
        })?;
        Ok((fd, downcast(object)?))
    }

    /// Gives the socket `fd` its packet memory: `setsockopt(XDP_UMEM_REG)`. Always writable, as the kernel pins it.
    ///
    /// # Errors
    /// EBADF, EINVAL (not an AF_XDP socket), EBUSY (it has had one), and what [`Task::register`] says to a long-term user other
    /// than RDMA.
    pub fn register_umem(&self, fd: Fd, va: u64, len: u64) -> Result<(), Errno> {
        let socket: Arc<XdpSocket> = downcast(self.object(fd)?)?;
        let umem = Arc::new(Umem {
            custody: Arc::clone(&socket.custody),
            registrant: Arc::clone(self.process()),
            region: Region::new(len),
            lost: AtomicBool::new(false),
        });
        if socket.umem().is_some() {
            return Err(Errno::EBUSY);
        }
        let want = Want { va, len, write: true, user: LongTermUser::Other };
        let registration = self.register(want, Arc::clone(&umem) as Arc<dyn PinHolder>)?;
        let mut deferred = Deferred::default();
        umem.region.install(self.kernel(), registration, &mut deferred);
        let bound = {
            let mut state = socket.state.lock();
            match &*state {
                State::Unbound => {
                    *state = State::Bound(Arc::clone(&umem));
                    Ok(())
                }
                State::Bound(_) => Err(Errno::EBUSY),
                // Closed by another thread meanwhile.
                State::Closed => Err(Errno::EBADF),
            }
        };
        if bound.is_err() {
            umem.region.shut(self.kernel(), &mut deferred);
        }
        self.kernel().run_deferred(deferred);
        bound
    }
}
