//! Listening at a path, at which another process may have left a Unix socket.
//!
//! It owns the rules for a path. Invariants: a path at which a process listens is never taken from
//! it; only a socket is ever removed, any other file stays. Counterpart: unix(7), whose kernel
//! side leaves the file when its listener dies (`unix_bind_bsd` in net/unix/af_unix.c).

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

/// The longest path of a socket in bytes: `sun_path` of unix(7) without its end.
pub const PATH_MAX: usize = 107;

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
    /// The operating system refused.
    #[error("socket {}: {source}", .path.display())]
    Os {
        /// The path.
        path: PathBuf,
        /// Its error.
        source: io::Error,
    },
}

/// Listens at `path`. A socket whose listener is gone is replaced.
///
/// # Errors
/// [`ListenError`]: nothing was made, and nothing removed that a process could still use.
pub fn listen(path: &Path) -> Result<UnixListener, ListenError> {
    let os = |source| ListenError::Os { path: path.to_owned(), source };
    let len = path.as_os_str().as_bytes().len();
    if len > PATH_MAX {
        return Err(ListenError::TooLong { path: path.to_owned(), len });
    }
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
        other => return other.map_err(os),
    }
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ListenError::NotASocket { path: path.to_owned() });
        }
        _ => {}
    }
    match UnixStream::connect(path) {
        // The one answer that says that no process listens. Any other (a full backlog, no
        // permission) may come from a living one.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
        // It went between the two looks.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return UnixListener::bind(path).map_err(os),
        Ok(_) => return Err(ListenError::InUse { path: path.to_owned() }),
        Err(source) => return Err(os(source)),
    }
    std::fs::remove_file(path).map_err(os)?;
    UnixListener::bind(path).map_err(os)
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

    /// Removes it, unless it is gone or another's already.
    pub fn remove(self) {
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
