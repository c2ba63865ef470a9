//! Calls about processes, files, leases and memory.
//!
//! It owns the translation of arguments and results; the semantics are the simulated kernel's.

use fs_sim::design::LeaseRules;
use fs_sim::file_ops::fallocate::Mode;
use fs_sim::file_ops::open::Flags;
use fs_sim::lease::Kind;
use fs_sim::process::description::Access;
use fs_sim::process::signals::Disposition;
use fs_sim::process::task::Received;
use fs_sim::{Errno, Task};
use rdma_sim::Context;

use super::calls::{Call, Reply, Stop};
use super::things::{self, Made, OpenContext, Thing, blocks};
use crate::ops::{ByteRange, Verb, describe_bytes};

/// Performs a call of these families.
pub(super) fn perform(call: &Call, task: &Task) -> Result<Reply, Stop> {
    let op = &call.op;
    let done = || Ok(Reply::default());
    match op.verb {
        Verb::Fork => {
            let child = task.fork()?;
            return Ok(Reply { value: None, made: Some(Made::Process(child)) });
        }
        Verb::Exit => task.exit(),
        Verb::Kill => task.kill(call.pid(0), things::signal(op.word(1)))?,
        Verb::Signal => {
            let disposition = match op.word(1) {
                "handler" => Disposition::Handler,
                "ignore" => Disposition::Ignore,
                _ => Disposition::Default,
            };
            task.process().set_disposition(things::signal(op.word(0)), disposition);
        }
        Verb::Dup => {
            let fd = task.dup(call.fd(0)?)?;
            return Reply::made(call.thing(0).map_or(Thing::Fd(fd), |thing| thing.at(fd)));
        }
        Verb::Dup2 => drop(task.dup2(call.fd(0)?, call.fd(1)?)?),
        Verb::Close => task.close(call.fd(0)?)?,
        Verb::Send => task.send_fd(call.pid(0), call.fd(1)?)?,
        Verb::Recv => return receive(call, task),
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
        Verb::Truncate => task.truncate(op.name(0), op.number(1))?,
        Verb::Ftruncate => task.ftruncate(call.fd(0)?, op.number(1))?,
        Verb::Fallocate => fallocate(call, task, Mode::Allocate { keep_size: op.has(2, "keep_size") })?,
        Verb::Punch => fallocate(call, task, Mode::PunchHole)?,
        Verb::Zero => fallocate(call, task, Mode::ZeroRange { keep_size: op.has(2, "keep_size") })?,
        Verb::Unlink => task.unlink(op.name(0))?,
        Verb::Fstat => return Reply::value(fs_sim::input::Size(task.stat(call.fd(0)?)?.size).to_string()),
        Verb::Lease => {
            let kind = match (op.word(1), op.has(2, "unbreakable")) {
                ("read", false) => Kind::READ,
                ("read", true) => Kind::READ_U,
                ("exclusive", _) if task.kernel().axes().lease_rules != LeaseRules::Chinner => Kind::READ_U,
                (_, false) => Kind::WRITE,
                (_, true) => Kind::WRITE_U,
            };
            task.lease(call.fd(0)?, kind, blocks(op.maybe_range(3)))?;
        }
        Verb::Unlock => task.unlock(call.fd(0)?, blocks(op.maybe_range(1)))?,
        Verb::Downgrade => task.downgrade_lease(call.fd(0)?, blocks(op.maybe_range(1)))?,
        _ => return memory(call, task),
    }
    done()
}

fn memory(call: &Call, task: &Task) -> Result<Reply, Stop> {
    let op = &call.op;
    match op.verb {
        Verb::Mmap => {
            let ByteRange { offset, len } = op.range(1);
            let va = task.mmap(call.fd(0)?, offset, len, !op.has(2, "ro"))?;
            return Reply::made(Thing::Map { va, len });
        }
        Verb::MmapAnon => {
            let (va, _) = task.mmap_anonymous(op.number(0))?;
            return Reply::made(Thing::Map { va, len: op.number(0) });
        }
        Verb::Munmap => {
            let (va, len) = call.map(0)?;
            let part = op.maybe_range(1).unwrap_or(ByteRange { offset: 0, len });
            task.munmap(va.checked_add(part.offset).ok_or(Errno::EINVAL)?, part.len)?;
        }
        Verb::Load => {
            let (va, range) = (call.map(0)?.0, op.range(1));
            let mut bytes = vec![0; range.len as usize];
            task.load(va.checked_add(range.offset).ok_or(Errno::SIGSEGV)?, &mut bytes)?;
            return Reply::value(describe_bytes(&bytes, bytes.len()));
        }
        Verb::Store => {
            let (va, range) = (call.map(0)?.0, op.range(1));
            let va = va.checked_add(range.offset).ok_or(Errno::SIGSEGV)?;
            task.store(va, &vec![op.byte(2); range.len as usize])?;
        }
        _ => return Err(Stop::Word(format!("`{}` is not simulated", op.verb))),
    }
    Ok(Reply::default())
}

fn flags(call: &Call) -> Flags {
    let op = &call.op;
    let access = match op.word(1) {
        "r" | "path" => Access::READ,
        "w" => Access::WRITE,
        _ => Access::BOTH,
    };
    Flags {
        create: op.has(2, "create"),
        exclusive: op.has(2, "excl"),
        truncate: op.has(2, "trunc"),
        ..Flags::open(access)
    }
}

fn fallocate(call: &Call, task: &Task, mode: Mode) -> Result<(), Stop> {
    let ByteRange { offset, len } = call.op.range(1);
    Ok(task.fallocate(call.fd(0)?, mode, offset, len)?)
}

/// What was received is recognised: a file, or one of the contexts that the scenario knows.
fn receive(call: &Call, task: &Task) -> Result<Reply, Stop> {
    let fd = match task.recv_fd()? {
        Received::Fd(fd) => fd,
        Received::Truncated => return Err(Stop::Word("MSG_CTRUNC".to_owned())),
    };
    let Ok(context) = Context::of(task, fd) else { return Reply::made(Thing::Fd(fd)) };
    let known = call.contexts.iter().find(|known| known.context.number() == context.number());
    Reply::made(known.map_or(Thing::Fd(fd), |known| Thing::Context(OpenContext { fd, ..known.clone() })))
}
