//! The messages over a control socket.
//!
//! It owns the two messages and the asking side. Invariant: a line of at most [`REQUEST_MAX`]
//! bytes is a request; the answer is one line and the end.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::request::encode;
use crate::ops::Op;

/// The longest request, in bytes.
pub const REQUEST_MAX: u64 = 64 << 10;
/// The longest answer that is read, in bytes.
const ANSWER_MAX: u64 = 64 << 20;
/// How long either side waits for the other.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Response {
    /// The answer, for people and for programs.
    Answer {
        /// For people; ends with a line end.
        text: String,
        /// For programs.
        data: serde_json::Value,
    },
    /// It was tried, and failed: what a design or the simulated machine says.
    Failed {
        /// For people; ends with a line end.
        text: String,
        /// For programs.
        data: serde_json::Value,
    },
    /// It could not be answered, or makes no sense here.
    Refused {
        /// Why, and what to do.
        why: String,
    },
}

impl Response {
    pub(super) fn refusal(why: &str) -> Response {
        Response::Refused { why: why.to_owned() }
    }

    /// Sends it as one line.
    pub(super) fn send(&self, mut stream: &UnixStream) -> io::Result<()> {
        let mut text = serde_json::to_string(self)?;
        text.push('\n');
        stream.write_all(text.as_bytes())
    }
}

/// Why nothing could be asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The path names something else.
    #[error("`{}` is no socket; `daxlab serve` and `daxlab race --control` say where they listen", path.display())]
    NoSocket {
        /// The path.
        path: PathBuf,
    },
    /// No process listens there.
    #[error("no process answers at `{}`: {error}; a server listens at its socket's path with `.ctl` behind it, a race with `daxlab race --control {}`", path.display(), path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Another user's process listens there, and its socket is for that user.
    #[error(
        "`{}`: {error}: the socket is for the user of that process; `daxlab serve --allow-uid {uid}` lets this user (uid {uid}) ask, if the folders on the way let it through", path.display()
    )]
    NotAllowed {
        /// The socket.
        path: PathBuf,
        /// Why.
        error: io::Error,
        /// The user that asks.
        uid: u32,
    },
    /// The question is longer than [`REQUEST_MAX`].
    #[error("the question is longer than {REQUEST_MAX} bytes; no file has such a name")]
    TooLong,
    /// It listens, and says nothing.
    #[error("`{}` gives no answer within {} s", path.display(), PATIENCE.as_secs())]
    Silent {
        /// The socket.
        path: PathBuf,
    },
    /// It ended, or could not answer.
    #[error("`{}` hung up without an answer{hint}", path.display())]
    HungUp {
        /// The socket.
        path: PathBuf,
        /// Where to ask, if it is a guest's socket.
        hint: String,
    },
    /// The conversation broke off.
    #[error("the conversation broke off: {0}")]
    Talk(#[from] io::Error),
    /// The answer is none.
    #[error("the answer is not understood: {0}")]
    Answer(#[from] serde_json::Error),
}

/// Asks at the socket `path`. Waits as long as it takes where the operation may wait
/// ([`crate::ops::Verb::may_wait`]), else 10 s.
///
/// # Errors
/// [`ControlError`].
pub fn ask(path: &Path, request: &Op) -> Result<Response, ControlError> {
    let connect = |error: io::Error| match error.kind() {
        io::ErrorKind::PermissionDenied => {
            ControlError::NotAllowed { path: path.to_owned(), error, uid: rustix::process::geteuid().as_raw() }
        }
        _ => ControlError::Connect { path: path.to_owned(), error },
    };
    if std::fs::metadata(path).is_ok_and(|found| !found.file_type().is_socket()) {
        return Err(ControlError::NoSocket { path: path.to_owned() });
    }
    let mut stream = UnixStream::connect(path).map_err(connect)?;
    stream.set_read_timeout((!request.verb().may_wait()).then_some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = encode(request);
    line.push('\n');
    if line.len() as u64 > REQUEST_MAX {
        return Err(ControlError::TooLong);
    }
    // A server that lacks descriptors or threads refuses before it reads, and hangs up.
    let asked = stream.write_all(line.as_bytes());
    let mut answer = String::new();
    let read = BufReader::new(stream.take(ANSWER_MAX)).read_line(&mut answer);
    match read.map_err(|error| (error.kind(), error)) {
        Err((io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut, _)) => {
            return Err(ControlError::Silent { path: path.to_owned() });
        }
        Ok(0) | Err((io::ErrorKind::ConnectionReset, _)) => {
            return Err(match asked {
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => error.into(),
                _ => ControlError::HungUp { path: path.to_owned(), hint: control_beside(path) },
            });
        }
        Ok(_) => {}
        Err((_, error)) => return Err(error.into()),
    }
    Ok(serde_json::from_str(&answer)?)
}

/// Who asks at a guest's socket finds the control socket beside it.
fn control_beside(path: &Path) -> String {
    let mut beside = path.to_owned().into_os_string();
    beside.push(".ctl");
    let beside = PathBuf::from(beside);
    match std::fs::metadata(&beside).is_ok_and(|found| found.file_type().is_socket()) {
        true => format!("; a guest connects there, and `{}` is the socket to ask at", beside.display()),
        false => String::new(),
    }
}
