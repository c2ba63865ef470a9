//! Listening at a path, at which another process may have left a Unix socket.
//!
//! It owns the rules for a path. Invariants: a path at which a process listens is never taken from
//! it, also not while it only looks whether one does; only a socket is ever removed, any other file
//! stays; a socket's file has the mode that its users need, whatever the umask. Counterpart:
//! unix(7), whose kernel side leaves the file when its listener dies (`unix_bind_bsd` in
//! net/unix/af_unix.c).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use emulator::runtime::clock::{Clock, Nanos};
use rustix::event::Timespec;
use rustix::fs::{AtFlags, CWD, FileType, FlockOperation, Mode, OFlags, StatxFlags, statx};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::peers::AllowedPeers;

/// The longest path of a socket in bytes: `sun_path` of unix(7) without its end.
pub const PATH_MAX: usize = 107;
/// How many connections may wait to be accepted; the kernel allows as many as
/// net.core.somaxconn.
const BACKLOG: i32 = 4096;
/// How long a listener waits for the lock of the folder.
const LOCK_MAX: Duration = Duration::from_secs(10);
/// The same, where a socket is removed at the end, with or without the lock.
const LOCK_AT_END_MAX: Duration = Duration::from_secs(1);
/// How often it looks.
const LOCK_AGAIN: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };

/// Why listening at a path failed.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The path does not fit into a socket's address.
    #[error(
        "socket {}: the path has {len} bytes and a socket's path may have {PATH_MAX}; name a shorter one",
        .path.display()
    )]
    TooLong {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        len: usize,
    },
    /// A process listens there.
    #[error("socket {}: in use, a process listens there; end that or name another path", .path.display())]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// A file, folder or the like lies there. It was left alone.
    #[error("socket {}: something lies there that is no socket; remove it or name another path", .path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// A socket was left there, and another process holds the lock of the folder.
    #[error(
        "socket {}: a socket was left there, and another process has held the lock of {} for {} s; end that, remove the socket or name another path",
        .path.display(), .folder.display(), .patience.as_secs_f64()
    )]
    Locked {
        /// The path.
        path: PathBuf,
        /// Its folder.
        folder: PathBuf,
        /// How long that was waited for.
        patience: Duration,
    },
    /// A socket was left there, and the folder can't be locked.
    #[error(
        "socket {}: a socket was left there, and its folder can't be locked: {source}; remove the socket or name another path",
        .path.display()
    )]
    Unlocked {
        /// The path.
        path: PathBuf,
        /// The error of open(2) or flock(2).
        source: io::Error,
    },
    /// The operating system refused.
    #[error("socket {}: {source}", .path.display())]
    Os {
        /// The path.
        path: PathBuf,
        /// Its error.
        source: io::Error,
    },
}

/// Listens at `path`, for connections of `peers`. A socket whose listener is gone is replaced.
///
/// # Errors
/// [`ListenError`]: nothing was made, and nothing removed that a process could still use.
pub fn listen(path: &Path, peers: &AllowedPeers) -> Result<UnixListener, ListenError> {
    listen_within(path, peers, LOCK_MAX)
}

fn listen_within(path: &Path, peers: &AllowedPeers, patience: Duration) -> Result<UnixListener, ListenError> {
    let os = |source| ListenError::Os { path: path.to_owned(), source };
    let len = path.as_os_str().as_bytes().len();
    if len > PATH_MAX {
        return Err(ListenError::TooLong { path: path.to_owned(), len });
    }
    match bind(path, peers.mode()) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
        other => return other.map_err(os),
    }
    // From the look to the new socket: else another process that has looked as well would remove
    // the new one.
    let _locked = FolderLock::of(path, patience)?;
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ListenError::NotASocket { path: path.to_owned() });
        }
        _ => {}
    }
    if is_in_use(path).map_err(os)? {
        return Err(ListenError::InUse { path: path.to_owned() });
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(os(error)),
        _ => {}
    }
    bind(path, peers.mode()).map_err(|error| match error.kind() {
        // One that finds nothing there takes no lock.
        io::ErrorKind::AddrInUse => ListenError::InUse { path: path.to_owned() },
        _ => os(error),
    })
}

/// Makes a socket at `path` with `mode`, at which nothing may lie, and listens.
fn bind(path: &Path, mode: Mode) -> io::Result<UnixListener> {
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // bind(2) gives the file the mode of the socket, without the bits of the umask: it is never
    // open to more users than it should be.
    rustix::fs::fchmod(&socket, mode)?;
    net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    let listening = widen(path, mode).and_then(|()| Ok(net::listen(&socket, BACKLOG)?));
    if let Err(error) = listening {
        let _gone = std::fs::remove_file(path);
        return Err(error);
    }
    Ok(UnixListener::from(socket))
}

/// Gives the new socket at `path` the bits of `mode` that the umask has kept from it.
fn widen(path: &Path, mode: Mode) -> io::Result<()> {
    let file = rustix::fs::open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let found = rustix::fs::fstat(&file)?;
    if FileType::from_raw_mode(found.st_mode) != FileType::Socket {
        return Err(io::Error::other("another file was put in its place"));
    }
    if Mode::from_raw_mode(found.st_mode) == mode {
        return Ok(());
    }
    // chmod(2) by path would follow a link that was put there since.
    Ok(rustix::fs::chmod(format!("/proc/self/fd/{}", file.as_raw_fd()), mode)?)
}

/// Whether a process has the socket at `path` open. It takes no connection of a listener: the
/// kernel compares the types of the two sockets first (`unix_find_bsd` in net/unix/af_unix.c), and
/// ECONNREFUSED is its answer only where no socket is bound.
fn is_in_use(path: &Path) -> io::Result<bool> {
    let probe = net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    match net::connect(&probe, &SocketAddrUnix::new(path)?) {
        // A datagram socket is there.
        Ok(()) => Ok(true),
        Err(Errno::PROTOTYPE) => Ok(true),
        // It went between the two looks.
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(false),
        // Such as no permission: it may be a living one.
        Err(error) => Err(error.into()),
    }
}

/// The lock of the folder in which a path lies (flock(2)): who removes a socket there has it.
struct FolderLock {
    _folder: OwnedFd,
}

impl FolderLock {
    fn of(path: &Path, patience: Duration) -> Result<FolderLock, ListenError> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let os = |error: Errno| ListenError::Unlocked { path: path.to_owned(), source: error.into() };
        let opened = rustix::fs::open(folder, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(os)?;
        let clock = Clock::real();
        loop {
            match rustix::fs::flock(&opened, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(FolderLock { _folder: opened }),
                Err(Errno::WOULDBLOCK) if clock.now() < Nanos(0).after(patience) => {
                    let _elapsed = rustix::event::poll(&mut [], Some(&LOCK_AGAIN));
                }
                Err(Errno::WOULDBLOCK) => {
                    return Err(ListenError::Locked { path: path.to_owned(), folder: folder.to_owned(), patience });
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(os(error)),
            }
        }
    }
}

/// The file of a listener, so that it can be told from a file that another process has put in its
/// place.
#[derive(Clone, Debug)]
pub struct Name {
    path: PathBuf,
    identity: Identity,
}

/// Device, inode, and when it was made, where the filesystem tells: inode numbers are used again.
type Identity = (u32, u32, u64, Option<(i64, u32)>);

impl Name {
    /// That of `listener`; none if it has no file (any more).
    pub fn of(listener: &UnixListener) -> Option<Name> {
        let path = listener.local_addr().ok()?.as_pathname()?.to_owned();
        let identity = identity(&path)?;
        Some(Name { path, identity })
    }

    /// Removes it, unless it is gone or another's already. While the socket is open no other
    /// process takes the path; after that the lock of the folder decides.
    pub fn remove(self) {
        let _locked = FolderLock::of(&self.path, LOCK_AT_END_MAX);
        if identity(&self.path) == Some(self.identity) {
            let _gone_since = std::fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<Identity> {
    let wanted = StatxFlags::INO | StatxFlags::BTIME;
    let found = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, wanted).ok()?;
    let made = StatxFlags::from_bits_retain(found.stx_mask).contains(StatxFlags::BTIME);
    let made = made.then_some((found.stx_btime.tv_sec, found.stx_btime.tv_nsec));
    Some((found.stx_dev_major, found.stx_dev_minor, found.stx_ino, made))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_another_holds_is_waited_for_with_a_bound_and_only_to_remove_a_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("one");
        let peers = AllowedPeers::with(&[]);
        let locked = FolderLock::of(&path, LOCK_MAX).unwrap();
        let _at_a_free_path = listen_within(&folder.path().join("two"), &peers, Duration::ZERO).unwrap();
        drop(UnixListener::bind(&path).unwrap());
        let error = listen_within(&path, &peers, Duration::from_millis(30)).unwrap_err();
        assert!(matches!(error, ListenError::Locked { .. }), "{error}");
        assert!(error.to_string().contains("for 0.03 s; end that"), "{error}");
        assert!(path.exists());
        drop(locked);
        listen_within(&path, &peers, Duration::ZERO).unwrap();
    }
}
