//! Calls about holders of pages that are no NIC, and of the system.
//!
//! It owns the translation of arguments and results; the semantics are the simulated kernel's. A
//! power cut is not here: it takes the machine away under the callers ([`super::Simulation`] does
//! it).

use emulator::sync::Arc;
use fs_sim::base::numbers::Fd;
use fs_sim::holders::block_layout::IoMode;
use fs_sim::pinning::fixed_buffers::FixedBuffer;
use fs_sim::pinning::guest_export::GuestExport;
use fs_sim::{BlockRange, Errno, Task};
use rdma_sim::Nic;

use super::bindings::{Thing, blocks};
use super::calls::{Call, CallFailure, Reply};
use crate::ops::{BlockLayoutAccess, ByteRange, DataRange, Op};

/// Performs a call of a holder.
pub(super) fn perform(call: &Call, task: &Task) -> Result<Reply, CallFailure> {
    let kernel = task.kernel();
    let bytes = |byte: u8, range: &DataRange| vec![byte; range.len as usize];
    match &call.op {
        Op::UmemRegister { map, range } => {
            let (fd, socket) = task.xdp_socket()?;
            let (va, len) = memory(call, map, *range)?;
            or_close(task, fd, task.register_umem(fd, va, len))?;
            return Reply::made(Thing::Umem(fd, socket));
        }
        Op::FixedBuffers { map, range } => {
            let (fd, ring) = task.io_uring()?;
            let part = memory(call, map, *range)?;
            or_close(task, fd, task.register_buffers(fd, &[part]))?;
            return Reply::made(Thing::Ring(fd, ring));
        }
        Op::UmemReceive { umem, range, byte } => match call.thing(umem) {
            Some(Thing::Umem(_, socket)) => socket.receive(kernel, range.offset, &bytes(*byte, range))?,
            _ => return Err(CallFailure::Errno(Errno::EINVAL)),
        },
        Op::RingRead { ring, range, from, at } => {
            let buffer = FixedBuffer { index: 0, offset: range.offset, len: range.len };
            task.read_fixed(call.fd(ring)?, buffer, call.fd(from)?, at.0)?;
        }
        Op::GuestAttach { fd } => {
            let (fd, guest) = task.export_to_guest(call.fd(fd)?)?;
            return Reply::made(Thing::Guest(fd, guest));
        }
        Op::GuestStore { guest, range, byte } => {
            guest_export(call, guest)?.write(kernel, range.offset, &bytes(*byte, range))?;
        }
        Op::GuestFlush { guest } => guest_export(call, guest)?.flush(kernel)?,
        Op::GuestDetach { guest } => task.close(call.fd(guest)?)?,
        Op::LayoutGet { fd, range, access } => {
            let mode = match access {
                BlockLayoutAccess::Read => IoMode::Read,
                BlockLayoutAccess::Both => IoMode::ReadWrite,
            };
            let (fd, layout) = task.layoutget(call.fd(fd)?, blocks(Some(*range)), mode)?;
            return Reply::made(Thing::BlockLayout(fd, layout));
        }
        Op::LayoutWrite { layout, range, byte } => match call.thing(layout) {
            Some(Thing::BlockLayout(_, layout)) => layout.write(kernel, range.offset, &bytes(*byte, range))?,
            _ => return Err(CallFailure::Errno(Errno::EINVAL)),
        },
        Op::LayoutReturn { layout } => task.layoutreturn(call.fd(layout)?)?,
        _ => return Err(call.unknown()),
    }
    Ok(Reply::default())
}

fn guest_export<'c>(call: &'c Call, guest: &str) -> Result<&'c GuestExport, CallFailure> {
    match call.thing(guest) {
        Some(Thing::Guest(_, guest)) => Ok(guest),
        _ => Err(CallFailure::Errno(Errno::EINVAL)),
    }
}

/// The address and length of the part `range` of the mapping `map`.
fn memory(call: &Call, map: &str, range: ByteRange) -> Result<(u64, u64), CallFailure> {
    let (va, _) = call.map(map)?;
    Ok((va.checked_add(range.offset).ok_or(Errno::EINVAL)?, range.len))
}

/// Closes `fd` again if what it was opened for failed.
fn or_close(task: &Task, fd: Fd, result: Result<(), Errno>) -> Result<(), Errno> {
    if result.is_err() {
        task.close(fd)?;
    }
    result
}

/// The blocks of a range of a file, rounded outward.
///
/// # Errors
/// EINVAL: it is empty, or goes beyond the last byte that can be named.
fn some_blocks(range: ByteRange) -> Result<BlockRange, Errno> {
    let inside = range.len == u64::MAX || range.offset.checked_add(range.len).is_some();
    if inside && range.len > 0 { Ok(blocks(Some(range))) } else { Err(Errno::EINVAL) }
}

/// Performs what the system itself does.
pub(super) fn system(call: &Call, task: &Task) -> Result<Reply, CallFailure> {
    let kernel = task.kernel();
    match &call.op {
        Op::Defragment { file, flags } => {
            let done = if flags.polite { kernel.defragment_politely(file)? } else { task.defragment(file)? };
            return Reply::value(format!("moved:{} skipped:{}", done.moved, done.skipped));
        }
        Op::Poison { file, offset, length } => {
            let inode = kernel.named(file).ok_or(Errno::ENOENT)?;
            let len = length.map_or(1, |length| length.0);
            kernel.poison_range(inode.ino(), some_blocks(ByteRange { offset: offset.0, len })?)?;
        }
        Op::PoisonMap { map, range } => {
            let (va, len) = memory(call, map, *range)?;
            task.poison_mapped(va, len)?;
        }
        Op::PoisonMr { mr, range } => {
            let mr = call.region(mr)?;
            kernel.poison_region(mr.rkey(), mr.va(), range.offset, range.len)?;
        }
        Op::ClearPoison { file, range } => {
            let inode = kernel.named(file).ok_or(Errno::ENOENT)?;
            kernel.clear_poison_range(inode.ino(), some_blocks(*range)?)?;
        }
        Op::Persist { file, offset, length } => {
            let inode = kernel.named(file).ok_or(Errno::ENOENT)?;
            kernel.persist_range(inode.ino(), offset.0, length.0)?;
        }
        Op::PersistMap { map, range } => {
            let (va, len) = memory(call, map, *range)?;
            task.persist_mapped(va, len)?;
        }
        Op::PersistMr { mr, range } => {
            let mr = call.region(mr)?;
            kernel.persist_region(mr.rkey(), mr.va(), range.offset, range.len)?;
        }
        Op::Unmount {} => Arc::clone(kernel).unmount()?,
        Op::RemoveDevice {} => kernel.remove_device(),
        Op::RemoveNic {} => Nic::of(kernel).remove(kernel),
        _ => return Err(call.unknown()),
    }
    Ok(Reply::default())
}
