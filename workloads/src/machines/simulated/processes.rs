//! Calls about processes, descriptors, leases and memory.
//!
//! It owns the translation of arguments and results; the semantics are the simulated kernel's.

use emulator::sync::{Arc, Mutex};
use fs_sim::design::LeaseRules;
use fs_sim::leases::layout::kind::LeaseKind;
use fs_sim::leases::posix::request::{PosixLeaseRequest, PosixLeaseType};
use fs_sim::syscalls::descriptors::Received;
use fs_sim::vfs::credentials::Credentials;
use fs_sim::vfs::signals::Disposition;
use fs_sim::{Errno, Task};

use super::bindings::{self, Made, Thing, blocks};
use super::calls::{Call, CallFailure, Reply};
use crate::ops::{BaseLeaseRequest, ByteRange, LayoutLeaseMode, MemoryFailurePolicy, Op, SignalAction, describe_bytes};

/// Performs a call of these families.
pub(super) fn perform(call: &Call, task: &Task) -> Result<Reply, CallFailure> {
    match &call.op {
        Op::Fork {} => {
            let child = task.fork()?;
            return Ok(Reply { value: None, made: Some(Made::Process(child)) });
        }
        Op::Exit {} => task.exit(),
        Op::Kill { process, signal } => task.kill(call.pid(process)?, bindings::signal(signal.word()))?,
        Op::Signal { signal, disposition } => {
            let disposition = match disposition {
                SignalAction::Handler => Disposition::Handler,
                SignalAction::Ignore => Disposition::Ignore,
                SignalAction::Default => Disposition::Default,
            };
            task.process().set_disposition(bindings::signal(signal.word()), disposition);
        }
        Op::MceKill { policy } => task.process().set_early_kill(*policy == MemoryFailurePolicy::Early),
        Op::Credentials { uid, capabilities } => {
            let uid = u32::try_from(*uid).map_err(|_| Errno::EINVAL)?;
            task.set_credentials(Credentials { uid, cap_lease: capabilities.cap_lease })?;
        }
        Op::RamDisk { length, delay } => {
            let (fd, disk) = task.ram_disk(length.0, delay.map(|delay| delay.0))?;
            return Reply::made(Thing::Disk(fd, disk));
        }
        Op::Dup { fd: name } => {
            let fd = task.dup(call.fd(name)?)?;
            return Reply::made(call.thing(name).map_or(Thing::Fd(fd), |thing| thing.at(fd)));
        }
        Op::Dup2 { from, to } => drop(task.dup2(call.fd(from)?, call.fd(to)?)?),
        Op::Close { fd } => task.close(call.fd(fd)?)?,
        Op::Send { process, fd } => task.send_fd(call.pid(process)?, call.fd(fd)?)?,
        Op::Recv {} => return receive(call, task),
        _ => return lease(call, task),
    }
    Ok(Reply::default())
}

/// What was received is recognised: a file, or one of the objects that the scenario knows.
fn receive(call: &Call, task: &Task) -> Result<Reply, CallFailure> {
    let fd = match task.recv_fd()? {
        Received::Fd(fd) => fd,
        Received::Truncated => return Err(CallFailure::Word("MSG_CTRUNC".to_owned())),
    };
    let Ok(object) = task.object(fd) else { return Reply::made(Thing::Fd(fd)) };
    let known = call.known.iter().find(|known| known.is(&object));
    Reply::made(known.map_or(Thing::Fd(fd), |known| known.at(fd)))
}

fn lease(call: &Call, task: &Task) -> Result<Reply, CallFailure> {
    match &call.op {
        Op::Lease { fd, mode, flags, range } => {
            let chinner = task.kernel().axes().lease_rules == LeaseRules::Chinner;
            let kind = match (mode, flags.unbreakable) {
                (LayoutLeaseMode::Read, false) => LeaseKind::READ,
                (LayoutLeaseMode::Read, true) => LeaseKind::READ_U,
                (LayoutLeaseMode::Exclusive, _) if !chinner => LeaseKind::READ_U,
                (LayoutLeaseMode::Write, true) => LeaseKind::WRITE_U,
                _ => LeaseKind::WRITE,
            };
            task.lease(call.fd(fd)?, kind, blocks(*range))?;
        }
        Op::Unlock { fd, range } => task.unlock(call.fd(fd)?, blocks(*range))?,
        Op::Downgrade { fd, range } => task.downgrade_lease(call.fd(fd)?, blocks(*range))?,
        Op::SetLease { fd, lease } => task.set_base_lease(call.fd(fd)?, base_lease(*lease))?,
        Op::GetLease { fd } => return Reply::value(base_lease_word(task.get_base_lease(call.fd(fd)?)?)),
        Op::SetDeleg { fd, delegation } => task.set_delegation(call.fd(fd)?, base_lease(*delegation))?,
        Op::GetDeleg { fd } => return Reply::value(base_lease_word(task.get_delegation(call.fd(fd)?)?)),
        Op::SetOwn { fd, process } => task.set_owner(call.fd(fd)?, Some(call.pid(process)?))?,
        Op::SetSig { fd, signal } => task.set_signal(call.fd(fd)?, Some(bindings::signal(signal.word())))?,
        _ => return memory(call, task),
    }
    Ok(Reply::default())
}

fn base_lease(asked: BaseLeaseRequest) -> PosixLeaseRequest {
    match asked {
        BaseLeaseRequest::Read => PosixLeaseRequest::Take(PosixLeaseType::Read),
        BaseLeaseRequest::Write => PosixLeaseRequest::Take(PosixLeaseType::Write),
        BaseLeaseRequest::Unlock => PosixLeaseRequest::Unlock,
    }
}

fn base_lease_word(held: Option<PosixLeaseType>) -> &'static str {
    match held {
        Some(PosixLeaseType::Read) => "read",
        Some(PosixLeaseType::Write) => "write",
        None => "none",
    }
}

fn memory(call: &Call, task: &Task) -> Result<Reply, CallFailure> {
    match &call.op {
        Op::Mmap { fd, range, flags } => {
            let ByteRange { offset, len } = *range;
            let va = match (flags.private, flags.sync) {
                (true, true) => task.mmap_private_sync(call.fd(fd)?, offset, len, !flags.ro)?,
                (true, false) => task.mmap_private(call.fd(fd)?, offset, len, !flags.ro)?,
                (false, true) => task.mmap_sync(call.fd(fd)?, offset, len, !flags.ro)?,
                (false, false) => task.mmap(call.fd(fd)?, offset, len, !flags.ro)?,
            };
            return Reply::made(Thing::Map { va, len });
        }
        Op::MmapAnon { length } => {
            let (va, _) = task.mmap_anonymous(length.0)?;
            return Reply::made(Thing::Map { va, len: length.0 });
        }
        Op::MmapDevDax { length } => {
            let (va, _) = task.mmap_device_dax(length.0)?;
            return Reply::made(Thing::Map { va, len: length.0 });
        }
        Op::MmapDevice { file, range } => {
            let va = task.mmap_device(file, range.offset, range.len)?;
            return Reply::made(Thing::Map { va, len: range.len });
        }
        Op::Munmap { map, range } => {
            let (va, len) = call.map(map)?;
            let part = range.unwrap_or(ByteRange { offset: 0, len });
            task.munmap(va.checked_add(part.offset).ok_or(Errno::EINVAL)?, part.len)?;
        }
        Op::Msync { map, range } => {
            let va = call.map(map)?.0.checked_add(range.offset).ok_or(Errno::ENOMEM)?;
            task.msync(va, range.len)?;
        }
        Op::Load { map, range } => {
            let va = call.map(map)?.0;
            let mut bytes = vec![0; range.len as usize];
            task.load(va.checked_add(range.offset).ok_or(Errno::SIGSEGV)?, &mut bytes)?;
            return Reply::value(describe_bytes(&bytes, bytes.len()));
        }
        Op::Store { map, range, byte } => {
            let va = call.map(map)?.0;
            let va = va.checked_add(range.offset).ok_or(Errno::SIGSEGV)?;
            task.store(va, &vec![*byte; range.len as usize])?;
        }
        Op::Vmsplice { map, range } => {
            let va = call.map(map)?.0.checked_add(range.offset).ok_or(Errno::EFAULT)?;
            let pages = task.vmsplice(va, range.len)?;
            return Reply::made(Thing::Pipe(Arc::new(Mutex::new(Some(pages)))));
        }
        Op::SendZeroCopy { map, range } => {
            let va = call.map(map)?.0.checked_add(range.offset).ok_or(Errno::EFAULT)?;
            let sent = task.send_zero_copy(va, range.len)?;
            return Reply::made(Thing::Sent(Arc::new(Mutex::new(Some(sent)))));
        }
        Op::Acknowledge { send } => {
            let sent = match call.thing(send) {
                Some(Thing::Sent(sent)) => sent.lock().take(),
                _ => None,
            };
            let bytes = sent.ok_or(Errno::EBADF)?.acknowledge(task.kernel())?;
            return Reply::value(describe_bytes(&bytes, bytes.len()));
        }
        Op::Drain { pipe } => {
            let pages = match call.thing(pipe) {
                // Only the process that has the pipe can read it.
                Some(Thing::Pipe(pipe)) => pipe.lock().take_if(|pages| pages.is_of(task)),
                _ => None,
            };
            let bytes = pages.ok_or(Errno::EBADF)?.read(task.kernel())?;
            return Reply::value(describe_bytes(&bytes, bytes.len()));
        }
        _ => return Err(call.unknown()),
    }
    Ok(Reply::default())
}
