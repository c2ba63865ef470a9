//! Operations as requests to a process.
//!
//! It owns the translation: names become descriptor numbers, addresses and pids; flags become the
//! kernel's. Invariant: a request touches only the scenario's directory, its descriptors and its
//! mappings. Kernel counterpart: the C library.

use std::ffi::OsStr;
use std::path::Path;

use libc::c_int;

use super::child::wire::{ChildRequest, SignalAction};
use super::names::{NamedThing, ScenarioNames};
use super::watch::SleepPlace;
use crate::ops::{ByteRange, Op, Verb};
use crate::scenario::machine::Trouble;

/// An operation that is ready to be made.
pub(super) enum PreparedOp {
    /// Send this request to the process.
    Ask(ChildRequest),
    /// The outcome is known without a request, because the process has no such mapping.
    Plain(&'static str),
}

/// The system call in which the process sleeps if the operation blocks.
pub(super) fn blocks_in(verb: Verb) -> Option<SleepPlace> {
    let anywhere = |number| Some(SleepPlace { number, first: None });
    match verb {
        Verb::Open => anywhere(libc::SYS_openat),
        Verb::Truncate => anywhere(libc::SYS_truncate),
        Verb::Exec => anywhere(libc::SYS_execve),
        _ => None,
    }
}

/// Whether the operation can neither wake nor end another process.
pub(super) fn is_calm(verb: Verb) -> bool {
    matches!(
        verb,
        Verb::Dup
            | Verb::Read
            | Verb::Write
            | Verb::Ftruncate
            | Verb::Fallocate
            | Verb::Punch
            | Verb::Zero
            | Verb::Collapse
            | Verb::Insert
            | Verb::Chmod
            | Verb::Utime
            | Verb::Stat
            | Verb::Fstat
            | Verb::GetLease
            | Verb::Recv
            | Verb::SetOwn
            | Verb::SetSig
            | Verb::Signal
            | Verb::Mmap
            | Verb::MmapAnon
            | Verb::Load
            | Verb::Store
    )
}

/// The number of a signal's name.
pub(super) fn signal_number(name: &str) -> c_int {
    match name {
        "SIGIO" => libc::SIGIO,
        "SIGUSR1" => libc::SIGUSR1,
        "SIGTERM" => libc::SIGTERM,
        "SIGUSR2" => libc::SIGUSR2,
        "SIGKILL" => libc::SIGKILL,
        other => unreachable!("operations name only the signals of {:?}: {other}", crate::ops::SIGNALS),
    }
}

/// The name of a signal's number.
pub(super) fn signal_name(number: i32) -> String {
    let known = crate::ops::SIGNALS.into_iter().find(|name| signal_number(name) == number);
    match (known, number) {
        (Some(name), _) => name.to_owned(),
        (None, libc::SIGBUS) => "SIGBUS".to_owned(),
        (None, libc::SIGSEGV) => "SIGSEGV".to_owned(),
        (None, number) => format!("signal {number}"),
    }
}

/// The path of a scenario's file.
///
/// # Errors
/// [`Trouble::Script`] for a name that leaves the directory.
pub(super) fn path(dir: &Path, name: &str) -> Result<String, Trouble> {
    let plain = !name.contains(['/', '\0']) && !matches!(name, "" | "." | "..");
    let path = dir.join(name);
    match path.to_str() {
        Some(path) if plain && Path::new(path).file_name() == Some(OsStr::new(name)) => Ok(path.to_owned()),
        _ => Err(Trouble::Script(format!("`{name}` can't be a file's name on a real Linux"))),
    }
}

/// Translates an operation of the process `who`. The caller handles `fork`, `send` and `exec`,
/// which need more than a request.
pub(super) fn translate(op: &Op, who: &str, dir: &Path, names: &ScenarioNames) -> Result<PreparedOp, Trouble> {
    let fd = |n: usize| names.fd(op.name(n));
    let file = |n: usize| path(dir, op.name(n));
    let fallocate = |mode: c_int| {
        let ByteRange { offset, len } = op.range(1);
        Ok(ChildRequest::Fallocate { fd: fd(0)?, mode, offset: signed(offset), len: length(offset, len) })
    };
    let keep_size = |n: usize| if op.has(n, "keep_size") { libc::FALLOC_FL_KEEP_SIZE } else { 0 };
    let request = match op.verb {
        Verb::Exit => ChildRequest::Exit,
        Verb::Kill => ChildRequest::Kill { pid: names.pid(op.name(0))?, signal: signal_number(op.word(1)) },
        Verb::Signal => {
            ChildRequest::Signal { signal: signal_number(op.word(0)), disposition: disposition(op.word(1)) }
        }
        Verb::Credentials => ChildRequest::Credentials {
            uid: u32::try_from(op.number(0)).map_err(|_| Trouble::Script("there is no such user".to_owned()))?,
            cap_lease: op.has(1, "cap_lease"),
        },
        Verb::Dup => ChildRequest::Dup { fd: fd(0)? },
        Verb::Dup2 => ChildRequest::Dup2 { from: fd(0)?, to: fd(1)? },
        Verb::Close => ChildRequest::Close { fd: fd(0)? },
        Verb::Recv => ChildRequest::Receive,
        Verb::Open => ChildRequest::Open { path: file(0)?, flags: open_flags(op) },
        Verb::Read => {
            let ByteRange { offset, len } = op.range(1);
            ChildRequest::Read { fd: fd(0)?, offset: signed(offset), len }
        }
        Verb::Write => {
            let ByteRange { offset, len } = op.range(1);
            ChildRequest::Write { fd: fd(0)?, offset: signed(offset), len, byte: op.byte(2) }
        }
        Verb::Truncate => ChildRequest::Truncate { path: file(0)?, size: signed(op.number(1)) },
        Verb::Ftruncate => ChildRequest::Ftruncate { fd: fd(0)?, size: signed(op.number(1)) },
        Verb::Fallocate => fallocate(keep_size(2))?,
        Verb::Punch => fallocate(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE)?,
        Verb::Zero => fallocate(libc::FALLOC_FL_ZERO_RANGE | keep_size(2))?,
        Verb::Collapse => fallocate(libc::FALLOC_FL_COLLAPSE_RANGE)?,
        Verb::Insert => fallocate(libc::FALLOC_FL_INSERT_RANGE)?,
        Verb::Unlink => ChildRequest::Unlink { path: file(0)? },
        Verb::Rename => ChildRequest::Rename { from: file(0)?, to: file(1)? },
        Verb::Link => ChildRequest::Link { path: file(0)?, name: file(1)? },
        Verb::Chmod => ChildRequest::Chmod { path: file(0)? },
        Verb::Utime => ChildRequest::Utime { path: file(0)? },
        Verb::Stat => ChildRequest::Stat { path: file(0)? },
        Verb::Fstat => ChildRequest::Fstat { fd: fd(0)? },
        Verb::SetLease => ChildRequest::Fcntl { fd: fd(0)?, command: libc::F_SETLEASE, argument: lease(op.word(1)) },
        Verb::GetLease => ChildRequest::Fcntl { fd: fd(0)?, command: libc::F_GETLEASE, argument: 0 },
        Verb::SetOwn => ChildRequest::Fcntl { fd: fd(0)?, command: libc::F_SETOWN, argument: names.pid(op.name(1))? },
        Verb::SetSig => {
            // F_SETSIG.
            ChildRequest::Fcntl { fd: fd(0)?, command: 10, argument: signal_number(op.word(1)) }
        }
        Verb::Mmap => {
            let ByteRange { offset, len } = op.range(1);
            ChildRequest::Map { fd: Some(fd(0)?), offset, len, write: !op.has(2, "ro") }
        }
        Verb::MmapAnon => ChildRequest::Map { fd: None, offset: 0, len: op.number(0), write: true },
        Verb::Munmap => match place(op, who, names)? {
            Ok((at, len)) => ChildRequest::Unmap { at, len },
            // The scenario has nothing mapped there, and `munmap` succeeds on an unmapped range.
            Err(_) => return Ok(PreparedOp::Plain("ok")),
        },
        Verb::Load | Verb::Store => match place(op, who, names)? {
            Ok((at, len)) if op.verb == Verb::Load => ChildRequest::Load { at, len },
            Ok((at, len)) => ChildRequest::Store { at, len, byte: op.byte(2) },
            Err(outcome) => return Ok(PreparedOp::Plain(outcome)),
        },
        other => return Err(Trouble::CannotRun(format!("a real Linux can't do `{other}`"))),
    };
    Ok(PreparedOp::Ask(request))
}

/// The address and length of an operation on a mapping, or its outcome if the process has no such
/// mapping.
fn place(op: &Op, who: &str, names: &ScenarioNames) -> Result<Result<(u64, u64), &'static str>, Trouble> {
    let NamedThing::Map { at, len, owners } = names.get(op.name(0))? else {
        return Err(Trouble::Script(format!("`{}` is not a mapping", op.name(0))));
    };
    let part = op.maybe_range(1).unwrap_or(ByteRange { offset: 0, len: *len });
    // The page behind a mapping is always inaccessible, so an access may begin there or run into
    // it.
    let within = part.offset < len.next_multiple_of(rustix::param::page_size() as u64);
    match owners.contains(who) && within {
        true => {
            let room = len.next_multiple_of(rustix::param::page_size() as u64) - part.offset + 1;
            let len = if op.verb == Verb::Munmap { part.len } else { part.len.min(room) };
            if op.verb == Verb::Munmap && part.len >= room {
                return Err(Trouble::Script("the range goes beyond the mapping".to_owned()));
            }
            Ok(Ok((at + part.offset, len)))
        }
        false => Ok(Err("SIGSEGV")),
    }
}

fn disposition(word: &str) -> SignalAction {
    match word {
        "handler" => SignalAction::Handler,
        "ignore" => SignalAction::Ignore,
        _ => SignalAction::Default,
    }
}

fn open_flags(op: &Op) -> c_int {
    let access = match op.word(1) {
        "r" => libc::O_RDONLY,
        "w" => libc::O_WRONLY,
        "path" => libc::O_PATH,
        _ => libc::O_RDWR,
    };
    let flags =
        [("create", libc::O_CREAT), ("excl", libc::O_EXCL), ("trunc", libc::O_TRUNC), ("nonblock", libc::O_NONBLOCK)];
    flags.into_iter().filter(|(word, _)| op.has(2, word)).fold(access | libc::O_CLOEXEC, |all, (_, flag)| all | flag)
}

fn lease(word: &str) -> c_int {
    match word {
        "read" => libc::F_RDLCK,
        "write" => libc::F_WRLCK,
        _ => libc::F_UNLCK,
    }
}

/// The name of the lease that F_GETLEASE returned.
pub(super) fn lease_name(number: i64) -> &'static str {
    match i32::try_from(number) {
        Ok(libc::F_RDLCK) => "read",
        Ok(libc::F_WRLCK) => "write",
        _ => "none",
    }
}

/// A size as the kernel's signed type. A size that doesn't fit is larger than any file.
fn signed(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

/// A length. Infinity reaches to the end of the largest file.
fn length(offset: u64, len: u64) -> i64 {
    if len == u64::MAX { i64::MAX - signed(offset) } else { signed(len) }
}

macro_rules! errnos {
    ($($name:ident)*) => {
        /// The name of an error's number.
        pub(super) fn errno_name(number: i32) -> String {
            match number {
                $(libc::$name => stringify!($name).to_owned(),)*
                number => format!("errno {number}"),
            }
        }
    };
}

errnos! {
    E2BIG EACCES EAGAIN EBADF EBUSY ECANCELED ECONNREFUSED ECONNRESET EDEADLK EDQUOT EEXIST EFAULT EFBIG EINTR EINVAL EIO EISDIR ELOOP
    EMFILE EMLINK EMSGSIZE ENAMETOOLONG ENFILE ENODEV ENOENT ENOEXEC ENOLCK ENOMEM ENOSPC ENOSYS ENOTCONN ENOTDIR ENXIO EOPNOTSUPP
    EOVERFLOW EPERM EPIPE ERANGE EROFS ESPIPE ESRCH ETXTBSY EXDEV
}
