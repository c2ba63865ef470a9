//! Calls about processes, descriptors, leases and memory.
//!
//! It owns the translation of arguments and results; the semantics are the simulated kernel's.

use fs_sim::design::LeaseRules;
use fs_sim::leases::layout::kind::LeaseKind;
use fs_sim::leases::posix::request::{PosixLeaseRequest, PosixLeaseType};
use fs_sim::syscalls::descriptors::Received;
use fs_sim::vfs::credentials::Credentials;
use fs_sim::vfs::signals::Disposition;
use fs_sim::{Errno, Task};

use super::calls::{Call, Reply, Stop};
use super::things::{self, Made, Thing, blocks};
use crate::ops::{ByteRange, Verb, describe_bytes};

/// Performs a call of these families.
pub(super) fn perform(call: &Call, task: &Task) -> Result<Reply, Stop> {
    let op = &call.op;
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
        Verb::Credentials => {
            let uid = u32::try_from(op.number(0)).map_err(|_| Errno::EINVAL)?;
            task.set_credentials(Credentials { uid, cap_lease: op.has(1, "cap_lease") })?;
        }
        Verb::Dup => {
            let fd = task.dup(call.fd(0)?)?;
            return Reply::made(call.thing(0).map_or(Thing::Fd(fd), |thing| thing.at(fd)));
        }
        Verb::Dup2 => drop(task.dup2(call.fd(0)?, call.fd(1)?)?),
        Verb::Close => task.close(call.fd(0)?)?,
        Verb::Send => task.send_fd(call.pid(0), call.fd(1)?)?,
        Verb::Recv => return receive(call, task),
        _ => return lease(call, task),
    }
    Ok(Reply::default())
}

/// What was received is recognised: a file, or one of the objects that the scenario knows.
fn receive(call: &Call, task: &Task) -> Result<Reply, Stop> {
    let fd = match task.recv_fd()? {
        Received::Fd(fd) => fd,
        Received::Truncated => return Err(Stop::Word("MSG_CTRUNC".to_owned())),
    };
    let Ok(object) = task.object(fd) else { return Reply::made(Thing::Fd(fd)) };
    let known = call.known.iter().find(|known| known.is(&object));
    Reply::made(known.map_or(Thing::Fd(fd), |known| known.at(fd)))
}

fn lease(call: &Call, task: &Task) -> Result<Reply, Stop> {
    let op = &call.op;
    match op.verb {
        Verb::Lease => {
            let chinner = task.kernel().axes().lease_rules == LeaseRules::Chinner;
            let kind = match (op.word(1), op.has(2, "unbreakable")) {
                ("read", false) => LeaseKind::READ,
                ("read", true) => LeaseKind::READ_U,
                ("exclusive", _) if !chinner => LeaseKind::READ_U,
                ("write", true) => LeaseKind::WRITE_U,
                _ => LeaseKind::WRITE,
            };
            task.lease(call.fd(0)?, kind, blocks(op.maybe_range(3)))?;
        }
        Verb::Unlock => task.unlock(call.fd(0)?, blocks(op.maybe_range(1)))?,
        Verb::Downgrade => task.downgrade_lease(call.fd(0)?, blocks(op.maybe_range(1)))?,
        Verb::SetLease => {
            let request = match op.word(1) {
                "read" => PosixLeaseRequest::Take(PosixLeaseType::Read),
                "write" => PosixLeaseRequest::Take(PosixLeaseType::Write),
                _ => PosixLeaseRequest::Unlock,
            };
            task.set_base_lease(call.fd(0)?, request)?;
        }
        Verb::GetLease => {
            return Reply::value(match task.get_base_lease(call.fd(0)?)? {
                Some(PosixLeaseType::Read) => "read",
                Some(PosixLeaseType::Write) => "write",
                None => "none",
            });
        }
        Verb::SetOwn => task.set_owner(call.fd(0)?, Some(call.pid(1)))?,
        Verb::SetSig => task.set_signal(call.fd(0)?, Some(things::signal(op.word(1))))?,
        _ => return memory(call, task),
    }
    Ok(Reply::default())
}

fn memory(call: &Call, task: &Task) -> Result<Reply, Stop> {
    let op = &call.op;
    match op.verb {
        Verb::Mmap => {
            let ByteRange { offset, len } = op.range(1);
            let va = task.mmap(call.fd(0)?, offset, len, !op.has(2, "ro"))?;
            return Reply::made(Thing::Map { va, len });
        }
        // Device-DAX memory is like anonymous memory in all that matters here: no file system, nobody who truncates it.
        Verb::MmapAnon | Verb::MmapDevDax => {
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
        _ => return Err(call.unknown()),
    }
    Ok(Reply::default())
}
