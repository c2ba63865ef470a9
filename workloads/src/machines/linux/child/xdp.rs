//! Memory of AF_XDP sockets.
//!
//! It owns a umem's form: chunks of a page, or of half a page where the length asks for it, without
//! headroom. Invariant: the socket that the call gives has the umem. Kernel counterpart:
//! `xdp_umem_reg` in net/xdp/xdp_umem.c, which wants a page's alignment and whole chunks.

use std::os::fd::IntoRawFd;

use rustix::io::Errno;
use rustix::net::sockopt::set_xdp_umem_reg;
use rustix::net::xdp::{XdpUmemReg, XdpUmemRegFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::wire::{ChildFailure, ChildValue};

/// The smallest chunk (`XDP_UMEM_MIN_CHUNK_SIZE`).
const CHUNK_MIN: u32 = 2048;

/// Opens a socket and registers the `len` bytes at `at` as its umem.
pub(super) fn umem(at: u64, len: u64) -> Result<ChildValue, ChildFailure> {
    let socket = match socket_with(AddressFamily::XDP, SocketType::RAW, SocketFlags::CLOEXEC, None) {
        Ok(socket) => socket,
        Err(errno @ (Errno::AFNOSUPPORT | Errno::PERM)) => {
            return Err(ChildFailure::Lacks(format!("no AF_XDP ({errno}; CONFIG_XDP_SOCKETS, CAP_NET_RAW)")));
        }
        Err(errno) => return Err(errno.into()),
    };
    let page = u32::try_from(rustix::param::page_size()).unwrap_or(CHUNK_MIN);
    let chunk_size = if len.is_multiple_of(page.into()) { page } else { CHUNK_MIN };
    let (headroom, flags, tx_metadata_len) = (0, XdpUmemRegFlags::empty(), 0);
    set_xdp_umem_reg(&socket, XdpUmemReg { addr: at, len, chunk_size, headroom, flags, tx_metadata_len })?;
    Ok(ChildValue::Number(socket.into_raw_fd().into()))
}
