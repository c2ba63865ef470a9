//! Calls about holders of pages that are no NIC, and of the system.
//!
//! It owns the translation of arguments and results; the semantics are the simulated kernel's. A power cut is not here: it takes
//! the machine away under the callers ([`super::Simulation`] does it).

use emulator::sync::Arc;
use fs_sim::base::numbers::Fd;
use fs_sim::holders::block_layout::IoMode;
use fs_sim::pinning::fixed_buffers::FixedBuffer;
use fs_sim::{BLOCK, Errno, Task};

use super::calls::{Call, Reply, Stop};
use super::things::{Thing, blocks};
use crate::ops::Verb;

/// Performs a call of a holder.
pub(super) fn perform(call: &Call, task: &Task) -> Result<Reply, Stop> {
    let (op, kernel) = (&call.op, task.kernel());
    let bytes = |n: usize| vec![op.byte(n); op.range(1).len as usize];
    match op.verb {
        Verb::UmemRegister => {
            let (fd, socket) = task.xdp_socket()?;
            let (va, len) = memory(call)?;
            or_close(task, fd, task.register_umem(fd, va, len))?;
            return Reply::made(Thing::Umem(fd, socket));
        }
        Verb::FixedBuffers => {
            let (fd, ring) = task.io_uring()?;
            let part = memory(call)?;
            or_close(task, fd, task.register_buffers(fd, &[part]))?;
            return Reply::made(Thing::Ring(fd, ring));
        }
        Verb::UmemReceive => match call.thing(0) {
            Some(Thing::Umem(_, socket)) => socket.receive(kernel, op.range(1).offset, &bytes(2))?,
            _ => return Err(Stop::Errno(Errno::EINVAL)),
        },
        Verb::RingRead => {
            let range = op.range(1);
            let buffer = FixedBuffer { index: 0, offset: range.offset, len: range.len };
            task.read_fixed(call.fd(0)?, buffer, call.fd(2)?, op.number(3))?;
        }
        Verb::GuestAttach => {
            let (fd, guest) = task.export_to_guest(call.fd(0)?)?;
            return Reply::made(Thing::Guest(fd, guest));
        }
        Verb::GuestStore | Verb::GuestFlush => {
            let Some(Thing::Guest(_, guest)) = call.thing(0) else { return Err(Stop::Errno(Errno::EINVAL)) };
            match op.verb {
                Verb::GuestStore => guest.write(kernel, op.range(1).offset, &bytes(2))?,
                _ => guest.flush(kernel)?,
            }
        }
        Verb::GuestDetach => task.close(call.fd(0)?)?,
        Verb::LayoutGet => {
            let mode = if op.word(2) == "r" { IoMode::Read } else { IoMode::ReadWrite };
            let (fd, layout) = task.layoutget(call.fd(0)?, blocks(op.maybe_range(1)), mode)?;
            return Reply::made(Thing::BlockLayout(fd, layout));
        }
        Verb::LayoutWrite => match call.thing(0) {
            Some(Thing::BlockLayout(_, layout)) => layout.write(kernel, op.range(1).offset, &bytes(2))?,
            _ => return Err(Stop::Errno(Errno::EINVAL)),
        },
        Verb::LayoutReturn => task.layoutreturn(call.fd(0)?)?,
        _ => return Err(call.unknown()),
    }
    Ok(Reply::default())
}

/// The memory that the first two arguments name: address and length.
fn memory(call: &Call) -> Result<(u64, u64), Stop> {
    let ((va, _), range) = (call.map(0)?, call.op.range(1));
    Ok((va.checked_add(range.offset).ok_or(Errno::EINVAL)?, range.len))
}

/// Closes `fd` again if what it was opened for failed.
fn or_close(task: &Task, fd: Fd, result: Result<(), Errno>) -> Result<(), Errno> {
    if result.is_err() {
        task.close(fd)?;
    }
    result
}

/// Performs what the system itself does.
pub(super) fn system(call: &Call, task: &Task) -> Result<Reply, Stop> {
    let (op, kernel) = (&call.op, task.kernel());
    match op.verb {
        Verb::Defragment => {
            let done = kernel.defragment(op.name(0))?;
            return Reply::value(format!("moved:{} skipped:{}", done.moved, done.skipped));
        }
        Verb::Poison => {
            let inode = kernel.named(op.name(0)).ok_or(Errno::ENOENT)?;
            kernel.poison(inode.ino(), op.number(1) / BLOCK)?;
        }
        Verb::Unmount => Arc::clone(kernel).unmount()?,
        Verb::RemoveDevice => kernel.remove_device(),
        _ => return Err(call.unknown()),
    }
    Ok(Reply::default())
}
