//! AF_XDP calls: the socket and its packet memory.
//!
//! It owns the checks of their arguments. Kernel counterpart: `xsk_create`, `xsk_setsockopt`
//! (net/xdp/xsk.c).

use emulator::sync::atomic::AtomicBool;
use emulator::sync::{Arc, Mutex};

use crate::base::errno::Errno;
use crate::base::numbers::Fd;
use crate::holders::holder::PinHolder;
use crate::pinning::admission::LongTermUser;
use crate::pinning::af_xdp::{Umem, XdpSocket, XdpSocketState};
use crate::pinning::registered_memory::RegisteredMemory;
use crate::pinning::registration::PinRequest;
use crate::vfs::open_file::{Deferred, OpenObject, downcast};
use crate::vfs::task::Task;

impl Task {
    /// Opens an AF_XDP socket: `socket(AF_XDP, SOCK_RAW, 0)`.
    ///
    /// # Errors
    /// EMFILE.
    pub fn xdp_socket(&self) -> Result<(Fd, Arc<XdpSocket>), Errno> {
        let (fd, object) = self.install_object(|fd_holders| {
            Arc::new(XdpSocket { fd_holders, state: Mutex::new(XdpSocketState::Unbound) }) as Arc<dyn OpenObject>
        })?;
        Ok((fd, downcast(object)?))
    }

    /// Gives the socket `fd` its packet memory: `setsockopt(XDP_UMEM_REG)`. Always writable, as
    /// the kernel pins it.
    ///
    /// # Errors
    /// EBADF, EINVAL (not an AF_XDP socket), EBUSY (it has had one), and what [`Task::register`]
    /// returns to a long-term user other than RDMA.
    pub fn register_umem(&self, fd: Fd, va: u64, len: u64) -> Result<(), Errno> {
        let socket: Arc<XdpSocket> = downcast(self.object(fd)?)?;
        let umem = Arc::new(Umem {
            fd_holders: Arc::clone(&socket.fd_holders),
            registrant: Arc::clone(self.process()),
            region: RegisteredMemory::new(len),
            lost: AtomicBool::new(false),
        });
        if socket.umem().is_some() {
            return Err(Errno::EBUSY);
        }
        let request = PinRequest { va, len, write: true, user: LongTermUser::Umem };
        let registration = self.register(request, Arc::clone(&umem) as Arc<dyn PinHolder>)?;
        let mut deferred = Deferred::default();
        umem.region.install(self.kernel(), registration, &mut deferred);
        let bound = {
            let mut state = socket.state.lock();
            match &*state {
                XdpSocketState::Unbound => {
                    *state = XdpSocketState::Bound(Arc::clone(&umem));
                    Ok(())
                }
                XdpSocketState::Bound(_) => Err(Errno::EBUSY),
                // Another thread has closed it meanwhile.
                XdpSocketState::Closed => Err(Errno::EBADF),
            }
        };
        if bound.is_err() {
            umem.region.close(self.kernel(), &mut deferred);
        }
        self.run_deferred(deferred);
        bound
    }
}
