//! Calls about files.
//!
//! It owns the translation of arguments and results; the semantics are the simulated kernel's.

use crate::input::Size;
use emulator::sync::{Arc, Mutex};
use fs_sim::file_ops::direct_io::Transfer;
use fs_sim::file_ops::fallocate::Mode;
use fs_sim::file_ops::open::Flags;
use fs_sim::process::description::Access;
use fs_sim::{Errno, Task};

use super::calls::{Call, Reply, Stop};
use super::things::{Io, Thing};
use crate::ops::{ByteRange, Verb, describe_bytes};

/// The mode bits of a scenario's files.
const MODE: u32 = 0o777;

/// Performs a call of this family.
pub(super) fn perform(call: &Call, task: &Task) -> Result<Reply, Stop> {
    let op = &call.op;
    let keep_size = || op.has(2, "keep_size");
    match op.verb {
        Verb::Open => return Reply::made(Thing::Fd(task.open(op.name(0), flags(call))?)),
        Verb::Read => {
            let ByteRange { offset, len } = op.range(1);
            let mut bytes = vec![0; len as usize];
            let read = task.read(call.fd(0)?, offset, &mut bytes)?;
            return Reply::value(describe_bytes(&bytes[..read], bytes.len()));
        }
        Verb::Write => {
            let ByteRange { offset, len } = op.range(1);
            task.write(call.fd(0)?, offset, &vec![op.byte(2); len as usize])?;
        }
        Verb::SubmitRead | Verb::SubmitWrite => return submit(call, task),
        Verb::Complete => return complete(call, task),
        Verb::Truncate => task.truncate(op.name(0), op.number(1))?,
        Verb::Ftruncate => task.ftruncate(call.fd(0)?, op.number(1))?,
        Verb::Fallocate => fallocate(call, task, Mode::Allocate { keep_size: keep_size() })?,
        Verb::Punch => fallocate(call, task, Mode::PunchHole)?,
        Verb::Zero => fallocate(call, task, Mode::ZeroRange { keep_size: keep_size() })?,
        Verb::Collapse => fallocate(call, task, Mode::CollapseRange)?,
        Verb::Insert => fallocate(call, task, Mode::InsertRange)?,
        Verb::Unshare => fallocate(call, task, Mode::UnshareRange { keep_size: false })?,
        Verb::Reflink | Verb::Dedupe | Verb::Exchange => return two_files(call, task),
        Verb::Unlink => task.unlink(op.name(0))?,
        Verb::Rename => task.rename(op.name(0), op.name(1))?,
        Verb::Link => task.link(op.name(0), op.name(1))?,
        Verb::Chmod => task.chmod(op.name(0), MODE)?,
        Verb::Utime => task.utime(op.name(0))?,
        Verb::Stat => return Reply::value(Size(task.stat_name(op.name(0))?.size).to_string()),
        Verb::Fstat => return Reply::value(Size(task.stat(call.fd(0)?)?.size).to_string()),
        Verb::Exec => {
            let program = task.exec(op.name(0))?;
            return Reply::made(Thing::Program(Arc::new(Mutex::new(Some(program)))));
        }
        Verb::End => {
            let program = match call.thing(0) {
                Some(Thing::Program(program)) => program.lock().take(),
                _ => None,
            };
            program.ok_or(Errno::ESRCH)?.end(task.kernel());
        }
        _ => return Err(call.unknown()),
    }
    Ok(Reply::default())
}

fn flags(call: &Call) -> Flags {
    let op = &call.op;
    let base = match op.word(1) {
        "path" => Flags::path(),
        "r" => Flags::open(Access::READ),
        "w" => Flags::open(Access::WRITE),
        _ => Flags::open(Access::BOTH),
    };
    Flags {
        create: op.has(2, "create"),
        exclusive: op.has(2, "excl"),
        truncate: op.has(2, "trunc"),
        nonblock: op.has(2, "nonblock"),
        ..base
    }
}

fn fallocate(call: &Call, task: &Task, mode: Mode) -> Result<(), Stop> {
    let ByteRange { offset, len } = call.op.range(1);
    Ok(task.fallocate(call.fd(0)?, mode, offset, len)?)
}

fn two_files(call: &Call, task: &Task) -> Result<Reply, Stop> {
    let op = &call.op;
    let (from, from_offset, to, ByteRange { offset, len }) = (call.fd(0)?, op.number(1), call.fd(2)?, op.range(3));
    match op.verb {
        Verb::Reflink => task.reflink(from, from_offset, to, offset, len)?,
        Verb::Dedupe => {
            let same = task.dedupe(from, from_offset, to, offset, len)?;
            return Reply::value(if same.is_some() { "same" } else { "differs" });
        }
        _ => task.exchange_range(from, from_offset, to, offset, len)?,
    }
    Ok(Reply::default())
}

fn submit(call: &Call, task: &Task) -> Result<Reply, Stop> {
    let op = &call.op;
    let ByteRange { offset, len } = op.range(1);
    let (transfer, reads) = match op.verb {
        Verb::SubmitRead => (Transfer::Read, Some(len as usize)),
        _ => (Transfer::Write(op.byte(2)), None),
    };
    let request = task.submit_direct_io(call.fd(0)?, offset, len, transfer)?;
    Reply::made(Thing::Io(Arc::new(Io { request: Mutex::new(Some(request)), reads })))
}

fn complete(call: &Call, task: &Task) -> Result<Reply, Stop> {
    let Some(Thing::Io(io)) = call.thing(0) else { return Err(Stop::Errno(Errno::EINVAL)) };
    let request = io.request.lock().take().ok_or(Errno::EINVAL)?;
    let mut bytes = vec![0; io.reads.unwrap_or(0)];
    let done = request.complete(task.kernel(), &mut bytes)?;
    match io.reads {
        Some(asked) => Reply::value(describe_bytes(&bytes[..done.min(asked)], asked)),
        None => Ok(Reply::default()),
    }
}

/// `setrlimit` with RLIMIT_MEMLOCK.
pub(super) fn memlock(call: &Call, task: &Task) -> Result<Reply, Errno> {
    task.set_memlock(call.op.number(0) / fs_sim::BLOCK)?;
    Ok(Reply::default())
}
