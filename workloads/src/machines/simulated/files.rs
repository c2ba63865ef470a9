//! Calls about files.
//!
//! It owns the translation of arguments and results; the semantics are the simulated kernel's.

use crate::input::Size;
use emulator::sync::{Arc, Mutex};
use fs_sim::base::numbers::Fd;
use fs_sim::holders::in_flight_io::Transfer;
use fs_sim::syscalls::direct_io::IoDirection;
use fs_sim::syscalls::fallocate::FallocateMode;
use fs_sim::syscalls::open::OpenFlags;
use fs_sim::vfs::memory_file::MemoryFileKind;
use fs_sim::vfs::open_file::AccessMode;
use fs_sim::{Errno, Task};

use super::bindings::{Io, Thing};
use super::calls::{Call, CallFailure, Reply};
use crate::ops::{ByteRange, Bytes, Op, OpenAccess, OpenFlagWords, describe_bytes};

/// The mode bits of a scenario's files.
const MODE: u32 = 0o777;

/// Performs a call of this family.
pub(super) fn perform(call: &Call, task: &Task) -> Result<Reply, CallFailure> {
    match &call.op {
        Op::Open { file, access, flags } => {
            return Reply::made(Thing::Fd(task.open(file, open_flags(*access, *flags))?));
        }
        Op::Memfd { length } => return Reply::made(Thing::Fd(task.memory_file(MemoryFileKind::Shmem, length.0)?)),
        Op::Tmpfile { length } => {
            return Reply::made(Thing::Fd(task.memory_file(MemoryFileKind::PageCache, length.0)?));
        }
        Op::Read { fd, range } => {
            let ByteRange { offset, len } = **range;
            let mut bytes = vec![0; len as usize];
            let read = task.read(call.fd(fd)?, offset, &mut bytes)?;
            return Reply::value(describe_bytes(&bytes[..read], bytes.len()));
        }
        Op::Write { fd, range, byte } => {
            task.write(call.fd(fd)?, range.offset, &vec![*byte; range.len as usize])?;
        }
        Op::SubmitRead { fd, range } => {
            return submit(task, call.fd(fd)?, **range, Transfer::Read, Some(range.len as usize));
        }
        Op::SubmitWrite { fd, range, byte } => {
            return submit(task, call.fd(fd)?, **range, Transfer::Write(*byte), None);
        }
        Op::SubmitReadInto { fd, range, map, at } => {
            return submit_mapped(call, task, fd, **range, (map, at.0), IoDirection::Read);
        }
        Op::SubmitWriteFrom { fd, range, map, at } => {
            return submit_mapped(call, task, fd, **range, (map, at.0), IoDirection::Write);
        }
        Op::Complete { io } => return complete(call, task, io),
        Op::Truncate { file, size } => task.truncate(file, size.0)?,
        Op::Ftruncate { fd, size } => task.ftruncate(call.fd(fd)?, size.0)?,
        Op::Fsync { fd } => task.fsync(call.fd(fd)?)?,
        Op::Unlink { file } => task.unlink(file)?,
        Op::Rename { from, to } => task.rename(from, to)?,
        Op::Link { file, name } => task.link(file, name)?,
        Op::Chmod { file } => task.chmod(file, MODE)?,
        Op::Utime { file } => task.utime(file)?,
        Op::Stat { file } => return Reply::value(Size(task.stat_name(file)?.size).to_string()),
        Op::Fstat { fd } => return Reply::value(Size(task.file_size(call.fd(fd)?)?).to_string()),
        Op::Exec { file } => {
            let program = task.exec(file)?;
            return Reply::made(Thing::Program(Arc::new(Mutex::new(Some(program)))));
        }
        Op::End { program } => {
            let program = match call.thing(program) {
                Some(Thing::Program(program)) => program.lock().take(),
                _ => None,
            };
            program.ok_or(Errno::ESRCH)?.end(task.kernel());
        }
        _ => return layout_change(call, task),
    }
    Ok(Reply::default())
}

fn open_flags(access: OpenAccess, flags: OpenFlagWords) -> OpenFlags {
    let base = match access {
        OpenAccess::Path => OpenFlags::path(),
        OpenAccess::Read => OpenFlags::open(AccessMode::READ),
        OpenAccess::Write => OpenFlags::open(AccessMode::WRITE),
        OpenAccess::Both => OpenFlags::open(AccessMode::BOTH),
    };
    OpenFlags { create: flags.create, exclusive: flags.excl, truncate: flags.trunc, nonblock: flags.nonblock, ..base }
}

/// Performs `fallocate` in all its modes, and the operations on the blocks of two files.
fn layout_change(call: &Call, task: &Task) -> Result<Reply, CallFailure> {
    let (fd, range, mode) = match &call.op {
        Op::Fallocate { fd, range, flags } => (fd, range, FallocateMode::Allocate { keep_size: flags.keep_size }),
        Op::Punch { fd, range } => (fd, range, FallocateMode::PunchHole),
        Op::Zero { fd, range, flags } => (fd, range, FallocateMode::ZeroRange { keep_size: flags.keep_size }),
        Op::Collapse { fd, range } => (fd, range, FallocateMode::CollapseRange),
        Op::Insert { fd, range } => (fd, range, FallocateMode::InsertRange),
        Op::Unshare { fd, range } => (fd, range, FallocateMode::UnshareRange { keep_size: false }),
        Op::Reflink { from, from_offset, to, to_range: ByteRange { offset, len } } => {
            task.reflink(call.fd(from)?, from_offset.0, call.fd(to)?, *offset, *len)?;
            return Ok(Reply::default());
        }
        Op::Dedupe { from, from_offset, to, to_range: ByteRange { offset, len } } => {
            let same = task.dedupe(call.fd(from)?, from_offset.0, call.fd(to)?, *offset, *len)?;
            return Reply::value(if same.is_some() { "same" } else { "differs" });
        }
        Op::Exchange { a, a_offset, b, b_range: ByteRange { offset, len } } => {
            task.exchange_range(call.fd(a)?, a_offset.0, call.fd(b)?, *offset, *len)?;
            return Ok(Reply::default());
        }
        _ => return Err(call.unknown()),
    };
    task.fallocate(call.fd(fd)?, mode, range.offset, range.len)?;
    Ok(Reply::default())
}

fn submit(
    task: &Task,
    fd: Fd,
    range: ByteRange,
    transfer: Transfer,
    reads: Option<usize>,
) -> Result<Reply, CallFailure> {
    let request = task.submit_direct_io(fd, range.offset, range.len, transfer)?;
    Reply::made(Thing::Io(Arc::new(Io { request: Mutex::new(Some(request)), reads })))
}

fn submit_mapped(
    call: &Call,
    task: &Task,
    fd: &str,
    range: ByteRange,
    (map, at): (&str, u64),
    direction: IoDirection,
) -> Result<Reply, CallFailure> {
    let va = call.map(map)?.0.checked_add(at).ok_or(Errno::EFAULT)?;
    let request = task.submit_mapped_io(call.fd(fd)?, (range.offset, range.len), va, direction)?;
    Reply::made(Thing::Io(Arc::new(Io { request: Mutex::new(Some(request)), reads: None })))
}

fn complete(call: &Call, task: &Task, io: &str) -> Result<Reply, CallFailure> {
    let Some(Thing::Io(io)) = call.thing(io) else { return Err(CallFailure::Errno(Errno::EINVAL)) };
    let request = {
        let mut request = io.request.lock();
        // Only the process that has submitted it can complete it.
        request.take_if(|request| request.is_of(task)).ok_or(Errno::EINVAL)?
    };
    let mut bytes = vec![0; io.reads.unwrap_or(0)];
    let done = request.complete(task, &mut bytes)?;
    match io.reads {
        Some(asked) => Reply::value(describe_bytes(&bytes[..done.min(asked)], asked)),
        None => Ok(Reply::default()),
    }
}

/// `setrlimit` with RLIMIT_MEMLOCK.
pub(super) fn memlock(limit: Bytes, task: &Task) -> Result<Reply, Errno> {
    task.set_memlock(limit.0 / fs_sim::BLOCK)?;
    Ok(Reply::default())
}
