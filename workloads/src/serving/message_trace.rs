//! The file that `serve --trace` writes guests' messages to.
//!
//! It owns the file. Invariant: a line is written by one write(2) at the file's end, so that the
//! backend processes of several sockets share the file. Counterpart: `-d trace:...,file=...` of
//! QEMU.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use emulator::vhost_user::MessageTrace;

/// Makes the file at `path`, or empties it.
///
/// # Errors
/// The operating system's.
pub(super) fn create(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().create(true).append(true).open(path)?;
    // Something that is no regular file has no length to set.
    if file.metadata()?.is_file() {
        file.set_len(0)?;
    }
    Ok(file)
}

/// The lines of one socket's guests.
pub(super) struct FileTrace {
    file: File,
    /// What a line begins with.
    socket: String,
}

impl FileTrace {
    /// For the guests of `socket`.
    pub(super) fn new(file: OwnedFd, socket: String) -> FileTrace {
        FileTrace { file: file.into(), socket }
    }
}

impl MessageTrace for FileTrace {
    fn line(&self, line: &str) {
        // A full disk ends the trace, and no guest.
        let _written = (&self.file).write_all(format!("{} {line}\n", self.socket).as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_two_sockets_are_whole_and_a_new_trace_begins_empty() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace");
        std::fs::write(&path, "old\n").unwrap();
        let file = create(&path).unwrap();
        let sockets = ["a", "b"].map(|name| FileTrace::new(file.try_clone().unwrap().into(), name.to_owned()));
        for at in 0..3 {
            sockets.iter().for_each(|socket| socket.line(&format!("line {at}")));
        }
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, "a line 0\nb line 0\na line 1\nb line 1\na line 2\nb line 2\n");
        assert!(create(&dir.path().join("no/such")).is_err());
    }
}
