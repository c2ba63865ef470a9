//! What is said over a control socket.
//!
//! It owns the two messages and the asking side. Invariant: a line of at most [`REQUEST_MAX`] bytes is a request; the answer is one
//! line and the end.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The longest request, in bytes.
pub const REQUEST_MAX: u64 = 64 << 10;
/// The longest answer that is read, in bytes.
const ANSWER_MAX: u64 = 64 << 20;
/// How long either side waits for the other.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// A question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Who stands against a change of a file's layout, and who waits.
    Blockers {
        /// The file's name, or its inode's number.
        file: String,
    },
    /// The layout leases of a file, or of all.
    Leases {
        /// The file's name, or its inode's number.
        file: Option<String>,
    },
    /// The long-term pins of a file, or of all.
    Pins {
        /// The file's name, or its inode's number.
        file: Option<String>,
    },
}

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
    /// It could not be answered.
    Refused {
        /// Why, and what to do.
        why: String,
    },
}

/// Why nothing could be asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody listens there.
    #[error("nobody answers at `{}`: {error}; a race listens with `daxlab race --control {}`", path.display(), path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The question is longer than [`REQUEST_MAX`].
    #[error("the question is longer than {REQUEST_MAX} bytes; no file has such a name")]
    TooLong,
    /// The conversation broke off.
    #[error("the conversation broke off: {0}")]
    Talk(#[from] io::Error),
    /// The answer is none.
    #[error("the answer is not understood: {0}")]
    Answer(#[from] serde_json::Error),
}

/// Asks at the socket `path`.
///
/// # Errors
/// [`ControlError`].
pub fn ask(path: &Path, request: &Request) -> Result<Response, ControlError> {
    let connect = |error| ControlError::Connect { path: path.to_owned(), error };
    let mut stream = UnixStream::connect(path).map_err(connect)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_string(request)?;
    line.push('\n');
    if line.len() as u64 > REQUEST_MAX {
        return Err(ControlError::TooLong);
    }
    stream.write_all(line.as_bytes())?;
    let mut answer = String::new();
    BufReader::new(stream.take(ANSWER_MAX)).read_line(&mut answer)?;
    Ok(serde_json::from_str(&answer)?)
}
