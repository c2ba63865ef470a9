//! The process at the other end of a Unix socket, as the kernel tells it.
//!
//! It owns the reading of credentials. Invariant: what the kernel does not tell is absent, and
//! never a number that means something else. Kernel counterpart: `SO_PEERCRED` of unix(7), filled
//! in when the peer called connect(2) (`copy_peercred` in net/unix/af_unix.c).

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// The frontend that connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its process; none if that is in a PID namespace from which this process can't see it (the
    /// kernel tells 0 then).
    pub pid: Option<u32>,
    /// Its effective user, in this process's user namespace; 65534 if that has no name for it.
    pub uid: u32,
}

impl Peer {
    /// The peer of a connected Unix socket.
    ///
    /// # Errors
    /// The errno of getsockopt(2): `socket` is no Unix socket, or was never connected.
    pub fn of(socket: impl AsFd) -> io::Result<Peer> {
        // `rustix::net::sockopt::socket_peercred` reads the pid into a type that can't be 0, and a
        // peer of another PID namespace has pid 0.
        let mut found = libc::ucred { pid: 0, uid: 0, gid: 0 };
        let mut len = size_of::<libc::ucred>() as libc::socklen_t;
        // SAFETY: the descriptor is open through the call; `found` has `len` bytes, in which every
        // bit pattern is a value.
        let told = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERCRED,
                (&raw mut found).cast(),
                &raw mut len,
            )
        };
        if told != 0 {
            return Err(io::Error::last_os_error());
        }
        if len as usize != size_of::<libc::ucred>() || found.uid == u32::MAX {
            return Err(io::Error::other("the kernel tells no peer of this socket"));
        }
        Ok(Peer { pid: u32::try_from(found.pid).ok().filter(|pid| *pid > 0), uid: found.uid })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn a_peer_is_told_and_a_socket_without_one_is_an_error() {
        let (one, _other) = UnixStream::pair().unwrap();
        let peer = Peer::of(&one).unwrap();
        assert_eq!(peer.pid, Some(std::process::id()));
        assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let connected = UnixStream::connect(&path).unwrap();
        assert_eq!(Peer::of(&listener.accept().unwrap().0).unwrap(), peer);
        assert_eq!(Peer::of(&connected).unwrap(), peer, "who listens");
        let lonely = rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM, None);
        assert!(Peer::of(lonely.unwrap()).is_err());
        assert!(Peer::of(std::fs::File::open("/dev/null").unwrap()).is_err());
    }
}
