//! Listening at a path: Unix sockets that somebody else may have left behind.
//!
//! It owns the rules of who may have a path. Invariants: a path at which somebody listens is never taken from him; only a socket
//! is ever removed, anything else that lies there stays. Counterpart: unix(7), whose kernel side leaves the file when its
//! listener dies (`unix_bind_bsd` in net/unix/af_unix.c).

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// The longest path of a socket in bytes: `sun_path` of unix(7) without its end.
pub const PATH_MAX: usize = 107;

/// Why nobody listens at a path.
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
    /// Somebody listens there.
    #[error("socket {}: in use, somebody listens there; end that or name another path", .path.display())]
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
/// [`ListenError`]: nothing was made, and nothing removed that anybody could still use.
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
        // The one answer that says nobody listens. Anything else (a full backlog, no permission) may be a living one's.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
        // It went between the two looks.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return UnixListener::bind(path).map_err(os),
        Ok(_) => return Err(ListenError::InUse { path: path.to_owned() }),
        Err(source) => return Err(os(source)),
    }
    std::fs::remove_file(path).map_err(os)?;
    UnixListener::bind(path).map_err(os)
}

/// Stops listening and removes the socket's file.
pub fn close(listener: UnixListener) {
    // The file goes first: once nobody listens, it may be another's.
    if let Some(path) = listener.local_addr().ok().as_ref().and_then(|address| address.as_pathname()) {
        let _gone_already = std::fs::remove_file(path);
    }
    drop(listener);
}
