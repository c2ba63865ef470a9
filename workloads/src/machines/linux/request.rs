//! Operations as requests to a process.
//!
//! It owns the translation: names become descriptor numbers, addresses and pids; flags become the
//! kernel's. Invariant: a request touches only the scenario's directory, its descriptors and its
//! mappings. Kernel counterpart: the C library.

use std::ffi::OsStr;
use std::path::Path;

use libc::c_int;

use super::child::wire::{ChildDisposition, ChildRequest, FilePart, TwoFileCall};
use super::names::{NamedThing, ScenarioNames};
use super::registrants;
use super::watch::SleepPlace;
use crate::machines::machine::Trouble;
use crate::ops::{
    AllocateFlags, BaseLeaseRequest, ByteRange, MapFlags, Op, OpenAccess, OpenFlagWords, SignalAction, SignalName, Verb,
};

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
        Verb::Unlink => anywhere(libc::SYS_unlinkat),
        Verb::Rename => anywhere(libc::SYS_renameat2),
        Verb::Link => anywhere(libc::SYS_linkat),
        Verb::Chmod => anywhere(libc::SYS_fchmodat),
        Verb::Utime => anywhere(libc::SYS_utimensat),
        Verb::Ftruncate => anywhere(libc::SYS_ftruncate),
        Verb::Close => anywhere(libc::SYS_close),
        Verb::Read => anywhere(libc::SYS_pread64),
        Verb::Write => anywhere(libc::SYS_pwrite64),
        Verb::Fallocate | Verb::Punch | Verb::Zero | Verb::Collapse | Verb::Insert | Verb::Unshare => {
            anywhere(libc::SYS_fallocate)
        }
        Verb::RingRead => anywhere(libc::SYS_io_uring_enter),
        Verb::Reflink | Verb::Dedupe | Verb::Exchange => anywhere(libc::SYS_ioctl),
        Verb::SubmitReadInto | Verb::SubmitWriteFrom => anywhere(libc::SYS_io_submit),
        Verb::Complete => anywhere(libc::SYS_io_getevents),
        _ => None,
    }
}

/// Whether the operation can neither wake nor end another process.
pub(super) fn is_calm(verb: Verb) -> bool {
    matches!(
        verb,
        Verb::Dup
            | Verb::Memfd
            | Verb::Tmpfile
            | Verb::Stat
            | Verb::Fstat
            | Verb::GetLease
            | Verb::GetDeleg
            | Verb::Recv
            | Verb::SetOwn
            | Verb::SetSig
            | Verb::Signal
            | Verb::Mmap
            | Verb::MmapAnon
            | Verb::MmapDevDax
            | Verb::UmemRegister
            | Verb::FixedBuffers
            | Verb::Fsync
            | Verb::Msync
            | Verb::Load
            | Verb::Store
            | Verb::Vmsplice
    )
}

/// The number of a signal.
pub(super) fn signal_number(signal: SignalName) -> c_int {
    match signal {
        SignalName::Sigio => libc::SIGIO,
        SignalName::Sigusr1 => libc::SIGUSR1,
        SignalName::Sigusr2 => libc::SIGUSR2,
        SignalName::Sigterm => libc::SIGTERM,
        SignalName::Sigkill => libc::SIGKILL,
        SignalName::Sigbus => libc::SIGBUS,
    }
}

/// The name of a signal's number.
pub(super) fn signal_name(number: i32) -> String {
    let signals = SignalName::WORDS.iter().filter_map(|word| SignalName::from_word(word));
    let known = signals.into_iter().find(|signal| signal_number(*signal) == number);
    match (known, number) {
        (Some(signal), _) => signal.word().to_owned(),
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
    if dir.to_str().is_none() {
        let dir = dir.display();
        return Err(Trouble::CannotRun(format!("the folder `{dir}` has a name that is not UTF-8: choose another one")));
    }
    match path.to_str() {
        Some(path) if plain && Path::new(path).file_name() == Some(OsStr::new(name)) => Ok(path.to_owned()),
        _ => Err(Trouble::Script(format!("`{name}` can't be a file's name on a real Linux"))),
    }
}

/// The path of a scenario's file, or of the directory.
fn path_of_any(dir: &Path, name: &str) -> Result<String, Trouble> {
    match (name, dir.to_str()) {
        (".", Some(dir)) => Ok(dir.to_owned()),
        _ => path(dir, name),
    }
}

/// Translates an operation of the process `who`. The caller handles `fork`, `send`, `exec` and
/// `tmpfile`, which need more than a request.
pub(super) fn translate(op: &Op, who: &str, dir: &Path, names: &ScenarioNames) -> Result<PreparedOp, Trouble> {
    let file = |name: &str| path(dir, name);
    let fallocate = |fd: &str, range: &ByteRange, mode: c_int| {
        let ByteRange { offset, len } = *range;
        Ok(ChildRequest::Fallocate { fd: names.fd(fd)?, mode, offset: signed(offset), len: length(offset, len) })
    };
    let keep_size = |flags: &AllocateFlags| if flags.keep_size { libc::FALLOC_FL_KEEP_SIZE } else { 0 };
    let request = match op {
        Op::Exit {} => ChildRequest::Exit,
        Op::Kill { process, signal } => ChildRequest::Kill { pid: names.pid(process)?, signal: signal_number(*signal) },
        Op::Signal { signal, disposition: action } => {
            ChildRequest::Signal { signal: signal_number(*signal), disposition: disposition(*action) }
        }
        Op::Credentials { uid, capabilities } => ChildRequest::Credentials {
            uid: u32::try_from(*uid).map_err(|_| Trouble::Script("there is no such user".to_owned()))?,
            cap_lease: capabilities.cap_lease,
        },
        Op::Dup { fd } => ChildRequest::Dup { fd: names.fd(fd)? },
        Op::Dup2 { from, to } => ChildRequest::Dup2 { from: names.fd(from)?, to: names.fd(to)? },
        Op::Close { fd } => ChildRequest::Close { fd: names.fd(fd)? },
        Op::Recv {} => ChildRequest::Receive,
        Op::Open { file: name, access, flags } => {
            ChildRequest::Open { path: path_of_any(dir, name)?, flags: open_flags(*access, *flags) }
        }
        Op::Memfd { length } => ChildRequest::Memfd { size: signed(length.0) },
        Op::Read { fd, range } => {
            ChildRequest::Read { fd: names.fd(fd)?, offset: signed(range.offset), len: range.len }
        }
        Op::Write { fd, range, byte } => {
            ChildRequest::Write { fd: names.fd(fd)?, offset: signed(range.offset), len: range.len, byte: *byte }
        }
        Op::Truncate { file: name, size } => ChildRequest::Truncate { path: file(name)?, size: signed(size.0) },
        Op::Ftruncate { fd, size } => ChildRequest::Ftruncate { fd: names.fd(fd)?, size: signed(size.0) },
        Op::Fallocate { fd, range, flags } => fallocate(fd, range, keep_size(flags))?,
        Op::Punch { fd, range } => fallocate(fd, range, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE)?,
        Op::Zero { fd, range, flags } => fallocate(fd, range, libc::FALLOC_FL_ZERO_RANGE | keep_size(flags))?,
        Op::Collapse { fd, range } => fallocate(fd, range, libc::FALLOC_FL_COLLAPSE_RANGE)?,
        Op::Insert { fd, range } => fallocate(fd, range, libc::FALLOC_FL_INSERT_RANGE)?,
        Op::Unshare { fd, range } => fallocate(fd, range, libc::FALLOC_FL_UNSHARE_RANGE | libc::FALLOC_FL_KEEP_SIZE)?,
        Op::Drain { pipe } => ChildRequest::Drain { fd: names.fd(pipe)? },
        Op::Fsync { fd } => ChildRequest::Fsync { fd: names.fd(fd)? },
        Op::Unlink { file: name } => ChildRequest::Unlink { path: file(name)? },
        Op::Rename { from, to } => ChildRequest::Rename { from: file(from)?, to: file(to)? },
        Op::Link { file: old, name } => ChildRequest::Link { path: file(old)?, name: file(name)? },
        Op::Chmod { file: name } => ChildRequest::Chmod { path: path_of_any(dir, name)? },
        Op::Utime { file: name } => ChildRequest::Utime { path: path_of_any(dir, name)? },
        Op::Stat { file: name } => ChildRequest::Stat { path: path_of_any(dir, name)? },
        Op::Fstat { fd } => ChildRequest::Fstat { fd: names.fd(fd)? },
        Op::SetDeleg { fd, delegation } => {
            ChildRequest::SetDelegation { fd: names.fd(fd)?, kind: lease(*delegation) as u16 }
        }
        Op::GetDeleg { fd } => ChildRequest::GetDelegation { fd: names.fd(fd)? },
        Op::SetLease { fd, lease: wanted } => {
            ChildRequest::Fcntl { fd: names.fd(fd)?, command: libc::F_SETLEASE, argument: lease(*wanted) }
        }
        Op::GetLease { fd } => ChildRequest::Fcntl { fd: names.fd(fd)?, command: libc::F_GETLEASE, argument: 0 },
        Op::SetOwn { fd, process } => {
            ChildRequest::Fcntl { fd: names.fd(fd)?, command: libc::F_SETOWN, argument: names.pid(process)? }
        }
        Op::SetSig { fd, signal } => {
            // F_SETSIG.
            ChildRequest::Fcntl { fd: names.fd(fd)?, command: 10, argument: signal_number(*signal) }
        }
        Op::Mmap { fd, range, flags } => {
            let ByteRange { offset, len } = *range;
            let sharing = sharing(*flags);
            ChildRequest::Map { fd: Some(names.fd(fd)?), offset, len, write: !flags.ro, sharing }
        }
        Op::MmapAnon { length } => {
            ChildRequest::Map { fd: None, offset: 0, len: length.0, write: true, sharing: libc::MAP_SHARED }
        }
        _ => return translate_memory(op, who, names),
    };
    Ok(PreparedOp::Ask(request))
}

/// Translates the operations on the blocks of two files.
fn remap(op: &Op, names: &ScenarioNames) -> Result<ChildRequest, Trouble> {
    let (kind, from, from_offset, to, range) = match op {
        Op::Reflink { from, from_offset, to, to_range } => (TwoFileCall::Clone, from, from_offset, to, to_range),
        Op::Dedupe { from, from_offset, to, to_range } => (TwoFileCall::Dedupe, from, from_offset, to, to_range),
        Op::Exchange { a, a_offset, b, b_range } => (TwoFileCall::Exchange, a, a_offset, b, b_range),
        other => return Err(Trouble::CannotRun(format!("a real Linux can't do `{}`", other.verb()))),
    };
    let from = FilePart { fd: names.fd(from)?, offset: from_offset.0 };
    let to = FilePart { fd: names.fd(to)?, offset: range.offset };
    Ok(ChildRequest::Remap { kind, from, to, len: range.len })
}

/// Translates the operations on a mapping that exists, or on two files.
fn translate_memory(op: &Op, who: &str, names: &ScenarioNames) -> Result<PreparedOp, Trouble> {
    let request = match op {
        Op::Munmap { map, range } => match place(names, who, map, *range, true)? {
            Ok((at, len)) => ChildRequest::Unmap { at, len },
            // The scenario has nothing mapped there, and `munmap` reports success for that.
            Err(_) => return Ok(PreparedOp::Plain("ok")),
        },
        Op::Msync { map, range } => match place(names, who, map, Some(*range), false)? {
            Ok((at, len)) => ChildRequest::Msync { at, len },
            // `place` knows the range to be unmapped.
            Err(_) => return Ok(PreparedOp::Plain("ENOMEM")),
        },
        Op::Vmsplice { map, range } => match place(names, who, map, Some(**range), false)? {
            Ok((at, len)) => ChildRequest::Vmsplice { at, len },
            Err(_) => return Ok(PreparedOp::Plain("EFAULT")),
        },
        Op::Load { map, range } => match place(names, who, map, Some(**range), false)? {
            Ok((at, len)) => ChildRequest::Load { at, len },
            Err(outcome) => return Ok(PreparedOp::Plain(outcome)),
        },
        Op::Store { map, range, byte } => match place(names, who, map, Some(**range), false)? {
            Ok((at, len)) => ChildRequest::Store { at, len, byte: *byte },
            Err(outcome) => return Ok(PreparedOp::Plain(outcome)),
        },
        Op::Reflink { .. } | Op::Dedupe { .. } | Op::Exchange { .. } => remap(op, names)?,
        other => match registrants::translate(other, who, names)? {
            Some(Ok(request)) => request,
            Some(Err(outcome)) => return Ok(PreparedOp::Plain(outcome)),
            None => return Err(Trouble::CannotRun(format!("a real Linux can't do `{}`", other.verb()))),
        },
    };
    Ok(PreparedOp::Ask(request))
}

/// The address and length of an operation on a mapping, or its outcome if the process has no such
/// mapping.
pub(super) fn place(
    names: &ScenarioNames,
    who: &str,
    map: &str,
    range: Option<ByteRange>,
    unmaps: bool,
) -> Result<Result<(u64, u64), &'static str>, Trouble> {
    let NamedThing::Map { at, len, owners } = names.get(map)? else {
        return Err(Trouble::Script(format!("`{map}` is not a mapping")));
    };
    let part = range.unwrap_or(ByteRange { offset: 0, len: *len });
    // The page behind a mapping is always inaccessible, so an access may begin there or run into
    // it.
    let within = part.offset < len.next_multiple_of(rustix::param::page_size() as u64);
    match owners.contains(who) && within {
        true => {
            let room = len.next_multiple_of(rustix::param::page_size() as u64) - part.offset + 1;
            let len = if unmaps { part.len } else { part.len.min(room) };
            if unmaps && part.len >= room {
                return Err(Trouble::Script("the range goes beyond the mapping".to_owned()));
            }
            Ok(Ok((at + part.offset, len)))
        }
        false => Ok(Err("SIGSEGV")),
    }
}

fn disposition(action: SignalAction) -> ChildDisposition {
    match action {
        SignalAction::Handler => ChildDisposition::Handler,
        SignalAction::Ignore => ChildDisposition::Ignore,
        SignalAction::Default => ChildDisposition::Default,
    }
}

fn sharing(flags: MapFlags) -> c_int {
    match (flags.private, flags.sync) {
        (false, false) => libc::MAP_SHARED,
        // Plain MAP_SHARED passes over flags that it does not know.
        (false, true) => libc::MAP_SHARED_VALIDATE | libc::MAP_SYNC,
        (true, false) => libc::MAP_PRIVATE,
        (true, true) => libc::MAP_PRIVATE | libc::MAP_SYNC,
    }
}

fn open_flags(access: OpenAccess, flags: OpenFlagWords) -> c_int {
    let access = match access {
        OpenAccess::Read => libc::O_RDONLY,
        OpenAccess::Write => libc::O_WRONLY,
        OpenAccess::Path => libc::O_PATH,
        OpenAccess::Both => libc::O_RDWR,
    };
    let flags = [
        (flags.create, libc::O_CREAT),
        (flags.excl, libc::O_EXCL),
        (flags.trunc, libc::O_TRUNC),
        (flags.nonblock, libc::O_NONBLOCK),
    ];
    flags.into_iter().filter(|(set, _)| *set).fold(access | libc::O_CLOEXEC, |all, (_, flag)| all | flag)
}

fn lease(wanted: BaseLeaseRequest) -> c_int {
    match wanted {
        BaseLeaseRequest::Read => libc::F_RDLCK,
        BaseLeaseRequest::Write => libc::F_WRLCK,
        BaseLeaseRequest::Unlock => libc::F_UNLCK,
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
pub(super) fn signed(size: u64) -> i64 {
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
    EMFILE EMLINK EMSGSIZE ENAMETOOLONG ENFILE ENODEV ENOENT ENOEXEC ENOLCK ENOMEM ENOSPC ENOSYS ENOTCONN ENOTDIR ENOTTY ENXIO EOPNOTSUPP
    EOVERFLOW EPERM EPIPE ERANGE EROFS ESPIPE ESRCH ETXTBSY EXDEV
}
