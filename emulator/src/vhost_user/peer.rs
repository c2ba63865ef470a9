//! The process at the other end of a Unix socket, as the kernel tells it.
//!
//! It owns the reading of credentials. Invariant: what the kernel does not tell is absent, and
//! never a number that means something else. Kernel counterparts: `SO_PEERCRED` and `SO_PEERPIDFD`
//! of unix(7), filled in when the peer called connect(2) (`init_peercred` in net/unix/af_unix.c).

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use rustix::process::{Pid, PidfdFlags, pidfd_open};

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
        let mut found = MaybeUninit::<libc::ucred>::zeroed();
        socket_option(&socket, libc::SO_PEERCRED, &mut found)?;
        // SAFETY: three integers, which are valid when all bytes are zero, and whatever the kernel
        // writes.
        let found = unsafe { found.assume_init() };
        if found.uid == u32::MAX {
            return Err(io::Error::other("the kernel tells no peer of this socket"));
        }
        Ok(Peer { pid: u32::try_from(found.pid).ok().filter(|pid| *pid > 0), uid: found.uid })
    }

    /// A descriptor of the peer's process, which tells of its end (poll(2)) whatever becomes of its
    /// number, also if the process is in another PID namespace. None if the process can't be had.
    ///
    /// Linux before 6.5 does not tell it (ENOPROTOOPT). There the process that has the number now
    /// is taken: it is another one if the peer ended and its number was given away since.
    pub fn process(&self, socket: impl AsFd) -> Option<OwnedFd> {
        let mut found = MaybeUninit::new(-1 as RawFd);
        match socket_option(&socket, libc::SO_PEERPIDFD, &mut found) {
            Ok(()) => {
                // SAFETY: an integer, initialized from the start.
                let fd = unsafe { found.assume_init() };
                // SAFETY: the kernel has just made this descriptor, and nothing else has it.
                (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => {
                let pid = Pid::from_raw(i32::try_from(self.pid?).ok()?)?;
                pidfd_open(pid, PidfdFlags::empty()).ok()
            }
            Err(_) => None,
        }
    }
}

/// Reads an option of `SOL_SOCKET` whose value has the size of a `T`.
fn socket_option<T>(socket: &impl AsFd, option: i32, value: &mut MaybeUninit<T>) -> io::Result<()> {
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: the descriptor is open through the call, and `value` has room for `len` bytes.
    let told = unsafe {
        libc::getsockopt(socket.as_fd().as_raw_fd(), libc::SOL_SOCKET, option, value.as_mut_ptr().cast(), &raw mut len)
    };
    if told != 0 {
        return Err(io::Error::last_os_error());
    }
    if len as usize == size_of::<T>() { Ok(()) } else { Err(io::Error::other("the option has another size")) }
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

    #[test]
    fn the_process_of_a_peer_is_told() {
        let (one, _other) = UnixStream::pair().unwrap();
        let peer = Peer::of(&one).unwrap();
        let process = peer.process(&one).unwrap();
        // What proc(5) says of the descriptor.
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", process.as_raw_fd())).unwrap();
        let own = format!("Pid:\t{}\n", std::process::id());
        assert!(info.contains(&own), "{info}");
        assert!(peer.process(std::fs::File::open("/dev/null").unwrap()).is_none(), "no socket");
    }
}
