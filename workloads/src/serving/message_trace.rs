//! The file that `serve --trace` writes guests' messages to.
//!
//! It owns the file. Invariants: a line is written by one write(2) at the file's end, so that the
//! backend processes of several sockets share the file; only an older trace is ever emptied, once
//! the server has started, and not while another server's guests write to it: a server has the lock
//! of its trace, as it has that of its image. Counterpart: `-d trace:...,file=...` of QEMU.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use emulator::sync::Mutex;
use emulator::vhost_user::MessageTrace;
use rustix::fs::{FlockOperation, OFlags};

use super::host_paths::{self, identity, kind};
use super::{ServeError, out_of_descriptors};

/// How many bytes of a file show whether it is a trace: more than a socket's path has.
const FIRST_LINE: u64 = 1 << 10;

/// The most lines of one socket that are kept until the trace begins. A guest needs 40 to start,
/// and a server starts in less than a second.
const EARLY_MAX: usize = 1_000;

/// The file of a server that is starting. Unless the trace begins, its drop leaves things as they
/// were.
pub(super) struct OpenedTrace<'a> {
    path: &'a Path,
    file: File,
    /// It was made for this trace.
    made: bool,
}

impl Drop for OpenedTrace<'_> {
    fn drop(&mut self) {
        if self.made && self.is_at_its_path() {
            let _gone_already = std::fs::remove_file(self.path);
        }
    }
}

impl<'a> OpenedTrace<'a> {
    /// Opens or makes the file at `path`, which must be none of `others`, the files that the user
    /// named by other options, for a server with so many sockets.
    ///
    /// # Errors
    /// It can't be had, or holds something else than an older trace. It is as it was.
    pub(super) fn open(
        path: &'a Path,
        others: &[(&str, &Path)],
        sockets: usize,
    ) -> Result<OpenedTrace<'a>, ServeError> {
        let unusable = |error: io::Error| match host_paths::unusable("--trace", path, &error, "") {
            ServeError::Cannot(why) => ServeError::Cannot(why + &out_of_descriptors(&error, sockets)),
            other => other,
        };
        let wrong = |what: &str| ServeError::Wrong(format!("--trace {}: {what}", path.display()));
        let opened = match std::fs::metadata(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let file = options().create_new(true).open(path).map_err(unusable)?;
                OpenedTrace { path, file, made: true }
            }
            Err(error) => return Err(unusable(error)),
            Ok(found) if found.is_file() => {
                OpenedTrace { path, file: options().open(path).map_err(unusable)?, made: false }
            }
            Ok(found) if found.file_type().is_char_device() || found.file_type().is_fifo() => {
                // A trace that a slow reader holds up loses lines, and no guest waits.
                let file = options().read(false).open(path).map_err(|error| match error.raw_os_error() {
                    Some(libc::ENXIO) => wrong(&format!("{} that no process reads", kind(&found))),
                    _ => unusable(error),
                })?;
                return Ok(OpenedTrace { path, file, made: false });
            }
            Ok(found) => return Err(wrong(&format!("{}; a trace is written to a file", kind(&found)))),
        };
        let found = identity(&opened.file.metadata().map_err(unusable)?);
        for (option, other) in others {
            if std::fs::metadata(other).is_ok_and(|other| identity(&other) == found) {
                return Err(wrong(&format!("this is the file of {option}; a trace needs a file of its own")));
            }
        }
        match rustix::fs::flock(&opened.file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(wrong(
                    "in use (its lock is held): another server writes its trace there or serves it as an image, or a guest of one that has ended is still attached; name another file",
                ));
            }
            Err(error) => return Err(unusable(error.into())),
        }
        match opened.holds_a_trace() {
            Ok(true) => Ok(opened),
            Ok(false) => Err(wrong(
                "it holds something else than an older trace, and was left alone; remove it or name another file",
            )),
            Err(error) => Err(unusable(error)),
        }
    }

    /// For the backend processes: they share its lock.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Empties it: the server has started.
    ///
    /// # Errors
    /// It could not be emptied, and is as it was.
    pub(super) fn begin(mut self) -> Result<(), ServeError> {
        let emptied = self.file.metadata().and_then(|found| match found.is_file() && found.len() > 0 {
            true => self.file.set_len(0),
            // Something that is no regular file has no length to set.
            false => Ok(()),
        });
        emptied.map_err(|error| host_paths::unusable("--trace", self.path, &error, ""))?;
        self.made = false;
        Ok(())
    }

    /// Whether nothing but a trace is lost when it is emptied.
    fn holds_a_trace(&self) -> io::Result<bool> {
        let mut first = Vec::new();
        (&self.file).take(FIRST_LINE).read_to_end(&mut first)?;
        Ok(first.is_empty() || is_line(&first))
    }

    fn is_at_its_path(&self) -> bool {
        let there = std::fs::metadata(self.path).map(|found| identity(&found));
        let own = self.file.metadata().map(|found| identity(&found));
        matches!((there, own), (Ok(there), Ok(own)) if there == own)
    }
}

/// Nothing that is opened with them blocks, or becomes the terminal of this process.
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).append(true).custom_flags((OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed());
    options
}

/// Whether `bytes` begin with a trace's line: socket, seconds, connection, direction.
fn is_line(bytes: &[u8]) -> bool {
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let Ok(line) = str::from_utf8(line) else { return false };
    let is_number = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
    let is_time = |word: &str| {
        word.split_once('.')
            .is_some_and(|(seconds, micros)| is_number(seconds) && micros.len() == 6 && is_number(micros))
    };
    let words: Vec<&str> = line.split(' ').collect();
    // A socket's path may have spaces.
    let is_there = |words: &[&str]| matches!(words, [_, time, connection, "->" | "<-" | "--", ..] if is_time(time) && is_number(connection));
    (0..words.len()).any(|at| is_there(&words[at..]))
}

/// The lines of one socket's guests.
pub(super) struct FileTrace {
    file: File,
    /// What a line begins with.
    socket: String,
    /// Lines of frontends that came before the trace began, at most [`EARLY_MAX`]; none after that.
    early: Mutex<Option<Vec<String>>>,
}

impl FileTrace {
    /// For the guests of `socket`. Its lines are kept until it begins.
    pub(super) fn new(file: OwnedFd, socket: String) -> FileTrace {
        FileTrace { file: file.into(), socket, early: Mutex::new(Some(Vec::new())) }
    }

    /// The file is this server's from now on.
    pub(super) fn begin(&self) {
        let mut early = self.early.lock();
        early.take().into_iter().flatten().for_each(|line| self.write(&line));
    }

    fn write(&self, line: &str) {
        // A full disk ends the trace, and no guest.
        let _written = (&self.file).write_all(line.as_bytes());
    }
}

impl MessageTrace for FileTrace {
    fn line(&self, line: &str) {
        let line = format!("{} {line}\n", self.socket);
        match &mut *self.early.lock() {
            Some(early) if early.len() < EARLY_MAX => early.push(line),
            Some(_) => {}
            None => self.write(&line),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "/tmp/a b 12.001204 1 -> SET_MEM_TABLE flags 0x9 size 40 files 1: forwarded\nmore\n";

    #[test]
    fn lines_of_two_sockets_are_whole_and_a_new_trace_begins_empty() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace");
        std::fs::write(&path, OLD).unwrap();
        let opened = OpenedTrace::open(&path, &[], 1).unwrap();
        let file = || opened.fd().try_clone_to_owned().unwrap();
        let sockets = ["a", "b"].map(|name| FileTrace::new(file(), name.to_owned()));
        sockets[0].line("early");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), OLD);
        opened.begin().unwrap();
        sockets.iter().for_each(FileTrace::begin);
        for at in 0..3 {
            sockets.iter().for_each(|socket| socket.line(&format!("line {at}")));
        }
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, "a early\na line 0\nb line 0\na line 1\nb line 1\na line 2\nb line 2\n");
        // Its lock lives in the backend processes' descriptors.
        let Err(ServeError::Wrong(why)) = OpenedTrace::open(&path, &[], 1) else { panic!("it is locked") };
        assert!(why.contains("its lock is held"), "{why}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    }

    #[test]
    fn a_start_that_fails_leaves_no_new_file_and_every_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace");
        drop(OpenedTrace::open(&path, &[], 1).unwrap());
        assert!(!path.exists());
        std::fs::write(&path, OLD).unwrap();
        drop(OpenedTrace::open(&path, &[], 1).unwrap());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), OLD);
    }

    #[test]
    fn what_is_no_trace_is_told_from_one() {
        for line in [OLD, "a 0.000001 1 -- process 7 connected", "a\u{fffd} 0.000001 1 <- SHMEM_MAP files 1\n"] {
            assert!(is_line(line.as_bytes()), "{line}");
        }
        for other in [
            "",
            "kept\n",
            "a 0.1 1 -> X",
            "0.000001 1 -> X",
            "\n a 0.000001 1 -> X",
            "a 0.000001 x -> X",
            "a 0.000001 1 = X",
        ] {
            assert!(!is_line(other.as_bytes()), "{other}");
        }
        assert!(!is_line(b"\xff 0.000001 1 -> X\n"));
    }
}
